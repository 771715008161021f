"""WebSocket and CONNECT: opaque both ways, to hosts that the policy names, and no way to smuggle past it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.proxy.harness import echo, get, llm_policy, plain_policy, turns, until

pytestmark = pytest.mark.both_loops

UPGRADE = ("Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13")
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: y\r\n\r\n"
)


async def test_a_websocket_passes_both_ways(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        request = await peer.request()
        assert request.get(b"upgrade") == b"websocket"
        assert request.get(b"connection") == b"upgrade"
        assert request.get(b"sec-websocket-key") == b"x"
        peer.send(SWITCHED + b"early")
        assert await peer.reader.readexactly(6) == b"\x81frame"
        peer.send(b"answer")
        assert await peer.reader.read() == b""
        peer.close()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    reply = await client.ask(get("/up/ws", *UPGRADE))
    assert (reply.status, reply.get(b"upgrade"), reply.get(b"sec-websocket-accept")) == (101, b"websocket", b"y")
    assert await client.reader.readexactly(5) == b"early"
    client.send(b"\x81frame")
    assert await client.reader.readexactly(6) == b"answer"
    client.writer.write_eof()
    assert await client.rest() == b""
    await one.idle()
    assert one.calls[0].outcome.status == 101


async def test_bytes_behind_the_offer_wait_for_the_upstreams_consent(mesh: Any, upstream: Any) -> None:
    go: list[int] = []

    async def script(peer: Any) -> None:
        await peer.request()
        await until(lambda: go)
        assert peer.log.endswith(b"\r\n\r\n")
        peer.send(SWITCHED)
        assert await peer.reader.readexactly(5) == b"early"
        peer.close()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(get("/up/ws", *UPGRADE) + b"early")
    await until(lambda: up.peers and up.peers[0].log)
    await turns()
    go.append(1)
    assert (await client.reply()).status == 101
    assert await client.rest() == b""


async def test_an_upgrade_that_is_declined_smuggles_nothing(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port) + 'rules: [{match: {operation: "GET /admin"}, deny: "never"}]\n')
    client = await one.connect()
    client.send(get("/up/ws", *UPGRADE) + get("/up/admin") + get("/admin"))
    reply = await client.reply()
    assert (reply.status, reply.body, reply.get(b"connection")) == (200, b"GET /ws\n", b"close")
    client.send(get("/admin"))
    assert await client.rest() == b""
    await turns()
    assert b"admin" not in up.received


async def test_an_upstream_cannot_switch_unasked(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(SWITCHED + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    assert (await client.ask(get())).status == 502
    assert (await client.ask(get("/nobody"))).status == 404


@pytest.mark.parametrize("framing", ["length", "chunked", "none"])
async def test_an_offer_of_h2c_is_declined_and_its_body_kept(mesh: Any, upstream: Any, framing: str) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    body = b"GET /up/smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    for number in range(2):
        path = f"/up/{number}"
        if framing == "length":
            client.send(get(path, *offer, f"Content-Length: {len(body)}", method="POST") + body)
        elif framing == "chunked":
            head = get(path, *offer, "Transfer-Encoding: chunked", method="POST")
            client.send(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        else:
            client.send(get(path, *offer, method="POST"))
        expected = b"" if framing == "none" else body
        assert (await client.reply()).body == b"POST /%d\n" % number + expected
    assert b"upgrade" not in up.received.lower()
    assert b"http2-settings" not in up.received.lower()
    assert len(up.peers) == 1


async def test_connect_to_a_named_host(mesh: Any, upstream: Any) -> None:
    ended: list[int] = []

    async def script(peer: Any) -> None:
        assert await peer.reader.readexactly(5) == b"hello"
        peer.send(b"world")
        peer.writer.write_eof()
        # Half of it is closed; the other half goes on.
        assert await peer.reader.read() == b"more"
        ended.append(1)
        peer.close()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\nhello" % (up.port, up.port))
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"content-length" not in head.lower()
    assert b"transfer-encoding" not in head.lower()
    assert await client.rest() == b"world"
    client.send(b"more")
    client.writer.write_eof()
    await one.idle()
    await until(lambda: ended)


@pytest.mark.parametrize("target", ["nobody.example:443", "127.0.0.1:1", "127.0.0.1", "169.254.169.254:80", ":80", "x"])
async def test_connect_to_a_host_that_nobody_named(mesh: Any, upstream: Any, target: str) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode() + get("/up/x"))
    reply = await client.reply()
    assert reply.status in (400, 403, 404), reply
    assert await client.rest() == b""
    assert up.received == b""


async def test_a_tunnel_to_an_llm_needs_unmetered(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(SWITCHED)
        await peer.closed()

    up = await upstream(script)
    one = await mesh(llm_policy(up.port))
    assert (await one.fetch(get("/llm/v1/realtime", *UPGRADE))).status == 403
    connect = b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % up.port
    assert (await one.fetch(connect)).status == 403
    assert up.received == b""
    two = await mesh(llm_policy(up.port, ", unmetered: true"))
    assert (await two.fetch(get("/llm/v1/realtime", *UPGRADE))).status == 101


async def test_connect_to_a_dead_host_fails(mesh: Any) -> None:
    one = await mesh(plain_policy(1))
    client = await one.connect()
    client.send(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: x\r\n\r\n")
    reply = await client.reply()
    assert (reply.status, reply.get(b"connection")) == (502, b"close")


async def test_a_caller_that_leaves_a_tunnel_ends_it(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(SWITCHED)
        await peer.closed()
        peer.close()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    await client.ask(get("/up/ws", *UPGRADE))
    client.abort()
    await one.idle()


async def test_tunnels_are_bounded(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(SWITCHED)
        await peer.closed()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port, ", pool: {connections: 1}"))
    client = await one.connect()
    assert (await client.ask(get("/up/ws", *UPGRADE))).status == 101
    assert (await one.fetch(get("/up/ws", *UPGRADE))).status == 503
