"""The protobuf services that an agent calls: contexts, budgets, approvals, its own trace, and the session.

    mesh         what a service sees of the daemon, and the two acts that it may ask of it: issue and read a token
    services     the table of services, and how both faces find the one that answers
    contexts     open, read, narrow
    budgets      balances (limits), parts, reports of usage (reports)
    approvals    people asked about what an agent intends to do by itself
    discovery    agents register, and find what they may call
    traces       what agents say of themselves
    fields       what a request's fields must be
    failing      how a refusal looks on both faces
    door         the port and the unix socket (socket_file); the first bytes tell what is spoken
    grpc_server  the face of gRPC, behind a private socket (splice)
    json_http    the face of JSON over HTTP

grpcio and protobuf are imported with the first connection that needs them: an idle daemon has neither in memory.
"""
