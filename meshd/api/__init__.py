"""The protobuf services that an agent calls: contexts, budgets, its own trace, and the session.

    mesh        what a service sees of the daemon, and the two acts that it may ask of it: issue and read a token

grpcio and protobuf are imported with the first connection that needs them: an idle daemon has neither in memory.
"""
