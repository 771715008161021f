"""HTTP/2 to upstreams: calls of HTTP/1.1 over it, its limits and its ways to fail."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from meshd.outcome import Fault
from tests.ports import free_port
from tests.proxy.harness import CHAT, CHAT_REPLY, chunked, get, llm_policy, plain_policy, post, until
from tests.proxy.peers_h2 import echo_h2

H2 = ", protocol: h2"
NO_RETRY = "rules: [{match: {}, retry: {attempts: 0}}]\n"


@pytest.mark.both_loops
async def test_calls_of_http1_over_http2(mesh: Any, upstream_h2: Any) -> None:
    up = await upstream_h2(echo_h2)
    one = await mesh(plain_policy(up.port, H2))
    client = await one.connect()
    assert (await client.ask(get("/up/a?b"))).body == b"GET /a?b\n"
    assert (await client.ask(post("/up/b", b"body"))).body == b"POST /b\nbody"
    assert (await client.ask(chunked("/up/c", b"1", b"22", trailers=b"X-Sum: 3\r\n"))).body == b"POST /c\n122"
    assert (await client.ask(post("/up/d", b"x" * 500_000, method="PUT"))).body == b"PUT /d\n" + b"x" * 500_000
    halves = list(up.servers[0].streams.values())
    assert halves[2].trailers == {"x-sum": "3"}
    assert halves[1].fields["content-length"] == "4"
    names = {name for half in halves for name in half.fields}
    assert names.isdisjoint({"connection", "host", "transfer-encoding", "keep-alive"})
    assert len(up.servers) == 1


async def test_replies_of_http2_in_http1(mesh: Any, upstream_h2: Any) -> None:
    async def script(server: Any) -> None:
        half = await server.request(0)
        server.h2.send_headers(half.id, [(":status", "103"), ("link", "</a>")])
        server.head(half.id)
        server.send(half.id, b"body")
        server.h2.send_headers(half.id, [("x-end", "yes")], end_stream=True)
        server.flush()
        half = await server.request(1)
        server.head(half.id, ("content-length", "10"), end=True)
        half = await server.request(2)
        server.head(half.id, status="204", end=True)
        half = await server.request(3)
        server.reply(half.id, b"last", ("content-length", "4"))

    up = await upstream_h2(script)
    one = await mesh(plain_policy(up.port, H2))
    client = await one.connect()
    reply = await client.ask(get())
    assert reply.informational[0].headers == [(b"link", b"</a>")]
    assert (reply.body, reply.trailers, reply.get(b"transfer-encoding")) == (b"body", [(b"x-end", b"yes")], b"chunked")
    head = await client.ask(get(method="HEAD"))
    assert (head.status, head.get(b"content-length"), head.body) == (200, b"10", b"")
    assert (await client.ask(get())).status == 204
    assert (await client.ask(get())).body == b"last"


async def test_a_metered_call_over_http2(mesh: Any, upstream_h2: Any) -> None:
    async def script(server: Any) -> None:
        half = await server.request()
        await server.ended(half.id)
        server.reply(half.id, CHAT_REPLY, ("content-type", "application/json"))

    up = await upstream_h2(script)
    one = await mesh(llm_policy(up.port, H2))
    reply = await one.fetch(post("/llm/v1/chat/completions", CHAT))
    assert (reply.status, reply.body) == (200, CHAT_REPLY)
    assert one.attempts[0].outcome.usage.input_tokens == 8


async def test_calls_share_a_connection_as_the_upstream_allows(mesh: Any, upstream_h2: Any) -> None:
    async def script(server: Any) -> None:
        answered: set[int] = set()
        while True:
            await server.until(lambda: set(server.streams) - answered)
            most[0] = max(most[0], len(set(server.streams) - answered))
            for _ in range(20):
                await asyncio.sleep(0)
            for id in set(server.streams) - answered:
                answered.add(id)
                server.reply(id, b"ok")

    most = [0]
    up = await upstream_h2(script, streams_max=3)
    one = await mesh(plain_policy(up.port, H2 + ", pool: {connections: 4}"))
    assert (await one.fetch(get())).status == 200
    replies = await asyncio.gather(*(one.fetch(get(f"/up/{number}")) for number in range(40)))
    assert {reply.status for reply in replies} == {200}
    assert len(up.servers) <= 4
    assert most[0] <= 3


@pytest.mark.parametrize("how", ["reset", "close", "goaway", "garbage"])
async def test_a_reply_that_breaks_off_is_not_whole(mesh: Any, upstream_h2: Any, how: str) -> None:
    async def script(server: Any) -> None:
        half = await server.request()
        server.head(half.id)
        server.send(half.id, b"half")
        await until(lambda: seen)
        if how == "reset":
            server.h2.reset_stream(half.id, 2)
            server.flush()
        elif how == "garbage":
            server.writer.write(b"\xff" * 100)
        elif how == "goaway":
            server.h2.close_connection(error_code=2, last_stream_id=0)
            server.flush()
            server.close()
        else:
            server.close()

    seen: list[bytes] = []
    up = await upstream_h2(script)
    one = await mesh(plain_policy(up.port, H2) + NO_RETRY)
    client = await one.connect()
    client.send(get())
    seen.append(await client.reader.readuntil(b"half"))
    rest = await client.rest()
    assert not rest.endswith(b"0\r\n\r\n")
    assert one.attempts[0].outcome.fault is not Fault.NONE


@pytest.mark.parametrize("how", ["reset", "close", "garbage", "bad length"])
async def test_no_reply_at_all_is_a_clean_failure(mesh: Any, upstream_h2: Any, how: str) -> None:
    async def script(server: Any) -> None:
        half = await server.request()
        if how == "reset":
            server.h2.reset_stream(half.id, 2)
            server.flush()
        elif how == "garbage":
            server.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"\x00" * 20)
        elif how == "bad length":
            server.head(half.id, ("content-length", "5"), end=True)
        else:
            server.close()

    up = await upstream_h2(script)
    one = await mesh(plain_policy(up.port, H2) + NO_RETRY)
    client = await one.connect()
    assert (await client.ask(get())).status == 502
    assert (await client.ask(get("/nobody"))).status == 404


async def test_a_refused_stream_is_tried_again(mesh: Any, upstream_h2: Any) -> None:
    async def script(server: Any) -> None:
        half = await server.request(0)
        server.h2.reset_stream(half.id, 7)
        server.flush()
        half = await server.request(1)
        server.reply(half.id, b"taken")

    up = await upstream_h2(script)
    one = await mesh(plain_policy(up.port, H2))
    assert (await one.fetch(get("/up/x", method="DELETE"))).body == b"taken"
    assert [record.outcome.fault for record in one.attempts] == [Fault.REFUSED_STREAM, Fault.NONE]


async def test_streams_beyond_a_goaway_are_tried_elsewhere(mesh: Any, upstream_h2: Any) -> None:
    async def script(server: Any) -> None:
        half = await server.request(0)
        if len(up.servers) == 1:
            server.h2.close_connection(last_stream_id=0)
            server.flush()
            await server.closed()
        else:
            server.reply(half.id, b"elsewhere")

    up = await upstream_h2(script)
    one = await mesh(plain_policy(up.port, H2))
    assert (await one.fetch(get())).body == b"elsewhere"
    assert len(up.servers) == 2


async def test_an_upstream_that_speaks_no_http2(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.reader.read(100)
        peer.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    one = await mesh(plain_policy((await upstream(script)).port, H2) + NO_RETRY)
    assert (await one.fetch(get())).status == 502
    two = await mesh(plain_policy(free_port(), H2) + NO_RETRY)
    assert (await two.fetch(get())).status == 502


async def test_an_idle_connection_closes_after_its_time(mesh: Any, upstream_h2: Any) -> None:
    up = await upstream_h2(echo_h2)
    one = await mesh(plain_policy(up.port, H2 + ", pool: {idle_timeout: 30s}"))
    await one.fetch(get())
    one.expire(29)
    await one.fetch(get())
    assert len(up.servers) == 1
    one.expire(31)
    await up.servers[0].closed()
    assert (await one.fetch(get())).status == 200
    assert len(up.servers) == 2
