"""Heads without measure or end, callers that stall, and what a refusal leaves of the connection."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.proxy.http1_server import DISCARD_S_MAX
from tests.proxy.harness import CHAT, echo, get, llm_policy, plain_policy, post, turns, until

LIMITS = "limits: {header_count: 20, header_size: 4096, url_size: 512}\n"


async def test_too_many_fields(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port) + LIMITS)
    client = await one.connect()
    client.send(get("/up/x", *(f"X-{number}: 1" for number in range(30))))
    assert (await client.reply()).status == 431
    assert await client.rest() == b""
    assert up.received == b""


async def test_a_head_that_is_too_large(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port) + LIMITS)
    assert (await one.fetch(get("/up/x", "X-A: " + "a" * 5000))).status == 431
    assert up.received == b""


async def test_an_address_that_is_too_long(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port) + LIMITS)
    assert (await one.fetch(get("/up/" + "a" * 600))).status == 414
    assert up.received == b""


@pytest.mark.parametrize(
    ("start", "piece", "status"),
    [
        (b"GET /up/x HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ", b"a", 431),
        (b"GET /up/x HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"X-A: b\r\n", 431),
        (b"GET /up/", b"a", 414),
        (b"GET /up/x HTTP/1.1\r\nHost: 127.0.0.1\r\nX", b"a", 431),
    ],
    ids=["value", "fields", "path", "name"],
)
@pytest.mark.both_loops
async def test_a_head_without_end(mesh: Any, upstream: Any, start: bytes, piece: bytes, status: int) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port) + LIMITS)
    client = await one.connect()
    client.send(start)
    sent = 0
    while not client.reader._buffer and sent < 1 << 20:  # type: ignore[attr-defined]
        client.send(piece * (1024 // len(piece)))
        sent += 1024
        await client.writer.drain()
        await turns(3)
    # The refusal arrives although the caller goes on sending: it is not lost to a reset.
    assert (await client.reply()).status == status
    assert sent < 64 * 1024
    assert up.received == b""


async def test_extensions_without_end(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(get("/up/x", "Transfer-Encoding: chunked", method="POST") + b"3;")
    sent = 0
    while not client.reader._buffer and sent < 1 << 20:
        client.send(b"a" * 1024)
        sent += 1024
        await client.writer.drain()
        await turns(3)
    assert (await client.reply()).status == 400
    assert sent < 256 * 1024


async def test_trailers_without_end(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(get("/up/x", "Transfer-Encoding: chunked", method="POST") + b"1\r\na\r\n0\r\n")
    sent = 0
    while not client.reader._buffer and sent < 1 << 20:
        client.send(b"X-A: " + b"a" * 1017 + b"\r\n")
        sent += 1024
        await client.writer.drain()
        await turns(3)
    assert (await client.reply()).status in (400, 431)
    assert b"0\r\n\r\n" not in up.received


async def test_a_head_that_comes_too_slowly_is_refused(mesh: Any) -> None:
    one = await mesh(plain_policy(1) + "limits: {header_timeout: 10s}\n")
    client = await one.connect()
    client.send(b"GET /up/x HTTP/1.1\r\nHo")
    await until(lambda: any(hasattr(s, "_reader") and not s._reader.is_between for s in one.proxy.sessions))
    one.expire(9)
    assert not client.reader._buffer
    one.expire(2)
    assert (await client.reply()).status == 408
    assert await client.rest() == b""


@pytest.mark.parametrize("first", [b"", b"PRI * HT"], ids=["nothing", "half a preface"])
async def test_a_connection_that_never_speaks_is_closed(mesh: Any, first: bytes) -> None:
    one = await mesh(plain_policy(1) + "limits: {header_timeout: 10s}\n")
    client = await one.connect()
    client.send(first)
    await until(lambda: one.proxy.sessions)
    one.expire(11)
    assert await client.rest() == b""


async def test_an_idle_connection_is_closed_after_its_time(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port) + "limits: {idle_timeout: 60s}\n")
    client = await one.connect()
    await client.ask(get())
    one.expire(59)
    await client.ask(get())
    one.expire(61)
    assert await client.rest() == b""


async def test_a_body_that_comes_too_slowly_is_refused(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(llm_policy(up.port) + "limits: {header_timeout: 10s}\n")
    client = await one.connect()
    client.send(post("/llm/v1/chat/completions", CHAT)[:-10])
    await until(lambda: one.proxy.live)
    await turns()
    one.expire(11)
    assert (await client.reply()).status == 408
    assert up.received == b""


async def test_an_upload_that_stops_is_given_up(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port) + "limits: {idle_timeout: 60s}\n")
    client = await one.connect()
    client.send(get("/up/x", "Content-Length: 100", method="POST") + b"half")
    await until(lambda: b"half" in up.received)
    one.expire(59)
    assert one.proxy.live
    one.expire(2)
    assert (await client.reply()).status == 408
    assert not one.proxy.live
    await until(lambda: up.peers[0].reader.at_eof() or up.peers[0].reader.exception())


async def test_a_caller_that_never_reads_is_given_up(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(100):
            peer.send(b"x" * 1_000_000)
            await peer.writer.drain()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port) + "limits: {idle_timeout: 60s}\n")
    client = await one.connect()
    client.send(get())
    await until(lambda: any(exchange.attempt and exchange.attempt._is_paused for exchange in one.proxy.live))
    one.expire(61)
    assert not one.proxy.live
    await client.rest()


async def test_a_body_over_the_limit_is_refused_before_and_while_it_comes(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(llm_policy(up.port) + "limits: {request_body: 10kB}\n")
    client = await one.connect()
    client.send(get("/llm/v1/chat/completions", "Content-Length: 20000", method="POST"))
    assert (await client.reply()).status == 413
    client = await one.connect()
    client.send(get("/llm/v1/chat/completions", "Transfer-Encoding: chunked", method="POST"))
    for _ in range(300):
        client.send(b"400\r\n" + b"a" * 1024 + b"\r\n")
        await client.writer.drain()
    # More than the socket's buffers hold is on its way, and the refusal arrives all the same.
    assert (await client.reply()).status == 413
    assert up.received == b""


async def test_a_lingering_connection_ends(mesh: Any) -> None:
    one = await mesh(plain_policy(1))
    client = await one.connect()
    client.send(b"\x00\r\n\r\n")
    assert (await client.reply()).status in (400, 501)
    assert len(one.proxy.sessions) == 1
    one.expire(DISCARD_S_MAX + 1)
    await until(lambda: not one.proxy.sessions)


async def test_connections_of_one_peer_are_bounded(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    one = await mesh(plain_policy(up.port) + "limits: {connections_per_peer: 3}\n")
    clients = [await one.connect() for _ in range(3)]
    for client in clients:
        assert (await client.ask(get())).status == 200
    refused = await one.connect()
    assert await refused.rest() == b""
    clients[0].close()
    await until(lambda: len(one.proxy.sessions) == 2)
    client = await one.connect()
    assert (await client.ask(get())).status == 200


@pytest.mark.both_loops
async def test_replies_that_nobody_reads_are_not_gathered(mesh: Any, upstream: Any) -> None:
    served = []

    async def script(peer: Any) -> None:
        while True:
            await peer.request()
            served.append(1)
            peer.reply(b"x" * 1_000_000)

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(get() * 40)
    await until(lambda: any(getattr(s, "_is_write_paused", False) for s in one.proxy.sessions))
    await turns(2000)
    # The socket's buffers take some megabytes; forty replies would be forty.
    assert len(served) < 30
    for _ in range(40):
        assert len((await client.reply()).body) == 1_000_000
