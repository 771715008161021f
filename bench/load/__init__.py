"""Load: what calls the proxies, pinned to its own core.

`wrk` and `h2load` where they are installed; `calls` and `unary` are our own stand-ins for a machine without them, so a
figure of one is never compared with a figure of the other. `streams`, `messages`, `held` and `rate` are always our own.
"""
