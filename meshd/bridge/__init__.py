"""MCP servers that do not speak streamable HTTP, behind clients that do.

    client --HTTP--> proxy/bridge_pool --> sessions --> session --> channel --> the server
                                                         ^              |
                           underway (one call) <---------+--------------+

- `sessions`: which session a call belongs to, how many there may be, and when one may be started again.
- `session`: one client's talk with one copy of the server: ids rewritten, each message to whom it concerns.
- `underway`: one call on it, or the stream on which a client listens, as an attempt's `Stream`.
- `messages`: what one JSON-RPC message says. Pure.
- `stdio`, `child`, `ending`: a channel to a program that the policy starts; `sandbox` says what it may see and do, and
  `launch` is run by a Python of its own just before it.
- `sse`: a channel to a server of 2024-11-05, with two endpoints.

Imported only where a policy has such an upstream.
"""
