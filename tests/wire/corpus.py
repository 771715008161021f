"""Heads and bodies that are whole, odd or broken, for tests that cut and change them."""

# ruff: noqa: E501 - bytes are easier to compare on one line

from __future__ import annotations

HOST = b"Host: 127.0.0.1\r\n"
REQUESTS: tuple[bytes, ...] = (
    b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /b HTTP/1.0\r\n\r\n",
    b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\n\r\nbody",
    b"POST /a HTTP/1.1\r\nContent-Length: 4\r\n" + HOST + b"Authorization: Bearer x\r\n\r\nbody" * 2,
    b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\nGET /b HTTP/1.1\r\n" + HOST + b"\r\n",
    b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-A: b\r\n\r\n",
    b"PUT /a HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\nbody",
    b"POST /a HTTP/1.1\r\n" + HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nbody",
    b"GET /a HTTP/1.1\r\n" + HOST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\nGET /b HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /a HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n\x16\x03",
    b"GET /a HTTP/1.1\r\n" + HOST + b"Connection: close, X-B\r\nX-B: c\r\n\r\n",
    b"GET http://a.mesh/b HTTP/1.1\r\n" + HOST + b"X-Meshd-Workflow: w\r\ntraceparent: x\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    b"\r\nGET /a HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n" + b"POST /b HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc" + b"HEAD /c HTTP/1.1\r\n" + HOST + b"\r\n",
    b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nbody",
    b"POST /a HTTP/1.1\r\n" + HOST + b"X-Content-Length: 4\r\nX: content-length: 9\r\n\r\n",
    b"POST /a HTTP/1.1\r\n" + HOST + b"content-LENGTH:4  \r\n\r\nbody",
    b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 00004\r\n\r\nbody",
    b"POST /a HTTP/1.1\n" + HOST + b"\r\n",
    b"GET /a HTTP/1.1\r\n" + HOST + b"X-A: b\r\n c\r\n\r\n",
    b"GET /a HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    b"BREW /a HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /a HTTP/3.0\r\n" + HOST + b"\r\n",
    b"GET /a HTTP/1.1\r\nX: y\r\n\r\n",
)  # fmt: skip

REPLIES: tuple[bytes, ...] = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody",
    b"HTTP/1.1 200 OK\r\n\r\nuntil close",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00",
    b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody",
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbodyHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
    b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nbody",
    b"ICY 200 OK\r\n\r\n",
    b"HTTP/1.1 999 Hm\r\nContent-Length: 0\r\n\r\n",
)  # fmt: skip
