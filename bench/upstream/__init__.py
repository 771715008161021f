"""The upstream stand-in: answers as an LLM provider, a gRPC server or a span collector, at as little CPU as Python can.

It shares no code with meshd. `bodies` is what is asked and answered, `http1` and `http2` the two wires, `__main__` the
process.
"""
