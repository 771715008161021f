"""HTTP/1.1 from callers: what a well-behaved client may do, end to end."""

from __future__ import annotations

from typing import Any

import pytest

from tests.proxy.harness import chunked, echo, get, plain_policy, post, until

pytestmark = pytest.mark.both_loops


async def test_a_connection_serves_many_calls(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    for number in range(5):
        reply = await client.ask(post(f"/up/n{number}?q=1", b"body %d" % number))
        assert reply.status == 200
        assert reply.body == b"POST /n%d?q=1\nbody %d" % (number, number)
    assert len(up.peers) == 1


async def test_pipelined_calls_are_answered_in_their_order(mesh: Any, upstream: Any) -> None:
    slow: list[Any] = []

    async def script(peer: Any) -> None:
        while True:
            request = await peer.request()
            if request.target == b"/slow":
                slow.append(peer)
                await until(lambda: not slow)
            peer.reply(request.target)

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(get("/up/slow") + post("/up/b", b"x" * 10) + get("/nowhere/c") + chunked("/up/d", b"1", b"22"))
    await until(lambda: slow)
    slow.clear()
    assert [(await client.reply()).body for _ in range(2)] == [b"/slow", b"/b"]
    assert (await client.reply()).status == 404
    assert (await client.reply()).body == b"/d"


async def test_chunks_and_trailers_arrive_as_sent(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        request = await peer.request()
        assert request.body == b"hello world"
        assert request.trailers == [(b"x-sum", b"42")]
        peer.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\nX-End: yes\r\n"
            b"X-Meshd-Hops: 9\r\n\r\n"
        )

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    trailers = b"X-Sum: 42\r\nX-Meshd-Workflow: w\r\nHost: elsewhere\r\nAuthorization: Bearer x\r\n"
    reply = await one.fetch(chunked("/up/t", b"hello", b" world", trailers=trailers))
    assert (reply.status, reply.body, reply.trailers) == (200, b"abcdefg", [(b"x-end", b"yes")])


async def test_expect_is_answered_by_meshd_and_not_forwarded(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(get("/up/e", "Content-Length: 4", "Expect: 100-continue", method="PUT"))
    interim = await client.reader.readuntil(b"\r\n\r\n")
    assert interim.startswith(b"HTTP/1.1 100 ")
    client.send(b"data")
    assert (await client.reply()).body == b"PUT /e\ndata"
    assert b"expect" not in up.received.lower()


async def test_a_refused_call_with_expect_gets_no_100(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port) + 'rules: [{name: never, match: {target: up}, deny: "not today"}]\n')
    reply = await one.fetch(get("/up/e", "Content-Length: 4", "Expect: 100-continue", method="PUT"))
    assert reply.status == 403
    assert reply.informational == []
    assert up.received == b""


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_replies_without_a_body_leave_the_connection_usable(mesh: Any, upstream: Any, status: bytes) -> None:
    async def script(peer: Any) -> None:
        while True:
            request = await peer.request()
            if request.target == b"/empty":
                peer.send(b"HTTP/1.1 " + status + b"\r\nETag: x\r\n\r\n")
            else:
                peer.reply(b"next")

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    empty = await client.ask(get("/up/empty"))
    assert (empty.status, empty.get(b"etag"), empty.get(b"transfer-encoding")) == (int(status[:3]), b"x", None)
    assert (await client.ask(get("/up/next"))).body == b"next"
    assert len(up.peers) == 1


async def test_head_has_the_length_and_no_body(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        while True:
            request = await peer.request()
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000 * (request.method != b"HEAD"))

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    head = await client.ask(get("/up/h", method="HEAD"))
    assert (head.status, head.get(b"content-length")) == (200, b"1000")
    assert len((await client.ask(get("/up/h"))).body) == 1000
    assert len(up.peers) == 1


async def test_informational_replies_pass_on(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-Meshd-Hops: 1\r\n\r\n")
        peer.reply(b"end")

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    reply = await one.fetch(get())
    assert [(early.status, early.headers) for early in reply.informational] == [(103, [(b"link", b"</a>")])]
    assert reply.body == b"end"


async def test_http_1_0_closes_unless_asked_to_stay(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        while True:
            await peer.request()
            peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(b"GET /up/a HTTP/1.0\r\n\r\n")
    raw = await client.rest()
    assert raw.startswith(b"HTTP/1.1 200 OK\r\n")
    assert raw.endswith(b"\r\n\r\nabc")
    client = await one.connect()
    for _ in range(2):
        reply = await client.ask(b"GET /up/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (reply.body, reply.get(b"connection"), reply.informational) == (b"abc", b"keep-alive", [])


async def test_a_chunked_reply_reaches_http_1_0_without_chunks(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(b"GET /up/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    reply = await client.reply()
    assert (reply.body, reply.get(b"transfer-encoding"), reply.get(b"connection")) == (b"abcdef", None, b"close")


async def test_fields_of_one_connection_and_of_meshd_are_stripped(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        request = await peer.request()
        names = {name for name, _ in request.headers}
        assert names == {b"host", b"x-kept", b"accept"}, names
        peer.reply(b"", b"Connection: x-drop, close", b"X-Drop: 1", b"X-Meshd-Context: forged", b"Keep-Alive: x")

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    fields = (
        "Connection: keep-alive, X-Private, Accept-Encoding", "X-Private: 1", "Keep-Alive: timeout=5", "X-Kept: 1",
        "Proxy-Authorization: Basic x", "Proxy-Connection: keep-alive", "TE: trailers", "Trailer: x-sum", "Accept: */*",
        "X-Meshd-Workflow: w1", "X-Meshd-Unknown: 1", "traceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-01",
    )  # fmt: skip
    reply = await one.fetch(get("/up/f", *fields))
    assert not {name for name, _ in reply.headers} & {b"x-drop", b"x-meshd-context", b"keep-alive"}


async def test_a_reply_leaves_before_its_end_exists(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        await until(lambda: seen)
        peer.send(b"-last")

    seen: list[bytes] = []
    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(get())
    await client.reader.readuntil(b"\r\n\r\n")
    seen.append(await client.reader.readexactly(5))
    assert await client.reader.readexactly(5) == b"-last"


async def test_connection_close_is_kept(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(get("/up/a", "Connection: close") + b"\r\n" + get("/up/b"))
    reply = await client.reply()
    assert (reply.body, reply.get(b"connection")) == (b"GET /a\n", b"close")
    assert await client.rest() == b""
    assert b"/b" not in up.received
