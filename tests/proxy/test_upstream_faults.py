"""Upstreams that are absent, slow, short, long, endless or insane: a clean failure, and no connection used wrongly."""

# ruff: noqa: E501 - bytes are easier to compare on one line

from __future__ import annotations

import socket
from typing import Any

import pytest

from meshd.outcome import Fault, Verdict
from tests.ports import free_port
from tests.proxy.harness import CHAT, CHAT_REPLY, echo, get, llm_policy, plain_policy, post, turns, until
from tests.proxy.messages import Incomplete

NO_RETRY = "rules: [{match: {}, retry: {attempts: 0}}]\n"

GARBAGE: dict[str, bytes] = {
    "no http": b"hello there\r\n\r\n",
    "http 0.9": b"<html>hi</html>",
    "version 2": b"HTTP/2.0 200 OK\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "status 099": b"HTTP/1.1 099 Hm\r\nContent-Length: 0\r\n\r\n",
    "te and cl": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "cl and te": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "bad length": b"HTTP/1.1 200 OK\r\nContent-Length: three\r\n\r\nabc",
    "minus length": b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc",
    "gzip coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "obs-fold": b"HTTP/1.1 200 OK\r\nX-A: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "bare lf": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "nul in field": b"HTTP/1.1 200 OK\r\nX-A: a\x00\r\nContent-Length: 0\r\n\r\n",
    "space in name": b"HTTP/1.1 200 OK\r\nX A: a\r\nContent-Length: 0\r\n\r\n",
    "too many fields": b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 150 + b"\r\n",
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_a_garbage_head(mesh: Any, upstream: Any, name: str) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(GARBAGE[name])

    up = await upstream(script)
    one = await mesh(plain_policy(up.port) + NO_RETRY)
    client = await one.connect()
    reply = await client.ask(get())
    assert reply.status == 502
    assert one.attempts[0].outcome.fault is Fault.GARBAGE
    # The caller's connection has done nothing wrong.
    assert (await client.ask(get())).status == 502
    assert len(up.peers) == 2


@pytest.mark.parametrize(
    "piece", [b"X-A: b\r\n", b"a", b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"], ids=["fields", "line", "1xx"]
)  # fmt: skip
async def test_an_endless_head(mesh: Any, upstream: Any, piece: bytes) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        if not piece.startswith(b"HTTP"):
            peer.send(b"HTTP/1.1 200 OK\r\nX-Start: ")
        while True:
            peer.send(piece * (4096 // len(piece)))
            await peer.writer.drain()
            await turns(1)

    up = await upstream(script)
    one = await mesh(plain_policy(up.port) + NO_RETRY)
    assert (await one.fetch(get())).status == 502


async def test_nobody_listens(mesh: Any) -> None:
    one = await mesh(plain_policy(free_port()) + NO_RETRY)
    reply = await one.fetch(get())
    assert (reply.status, reply.get(b"x-meshd-reason")) == (502, b"upstream_unreachable")
    assert (one.attempts[0].outcome.fault, one.attempts[0].outcome.is_forwarded) == (Fault.CONNECT, False)


async def test_nobody_accepts(mesh: Any) -> None:
    # A queue of one that is full: the kernel answers no further connection.
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        fillers = [socket.socket() for _ in range(2)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        one = await mesh(plain_policy(port, ", pool: {connect_timeout: 1s}") + NO_RETRY)
        reply = await one.fetch(get())
        assert (reply.status, reply.get(b"x-meshd-reason")) == (504, b"upstream_timeout")
        assert one.attempts[0].outcome.fault is Fault.CONNECT_TIMEOUT
        for filler in fillers:
            filler.close()


@pytest.mark.both_loops
@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
async def test_an_upstream_that_hangs_up_as_soon_as_it_accepts(mesh: Any, upstream: Any, is_reset: bool) -> None:
    async def script(peer: Any) -> None:
        peer.reset() if is_reset else peer.close()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port) + NO_RETRY)
    for _ in range(4):
        assert (await one.fetch(get())).status == 502
    await until(lambda: not sum(one.proxy.pools.open_connections().values()))


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-"], ids=["nothing", "half a head"])
async def test_it_closes_before_its_head(mesh: Any, upstream: Any, sent: bytes) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(sent)
        peer.close()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port) + NO_RETRY)
    assert (await one.fetch(get())).status == 502
    outcome = one.attempts[0].outcome
    assert (outcome.fault, outcome.verdict, outcome.is_forwarded) == (
        Fault.TRUNCATED if sent else Fault.RESET, Verdict.FAILURE, True
    )  # fmt: skip


@pytest.mark.both_loops
@pytest.mark.parametrize(
    "head",
    [b"Content-Length: 100", b"Transfer-Encoding: chunked"],
    ids=["length", "chunked"],
)
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_it_closes_within_the_body(mesh: Any, upstream: Any, head: bytes, version: str) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + (b"4\r\nhalf\r\n" if b"chunked" in head else b"half"))
        await until(lambda: seen)
        peer.close()

    seen: list[bytes] = []
    up = await upstream(script)
    one = await mesh(plain_policy(up.port) + NO_RETRY)
    client = await one.connect()
    client.send(get().replace(b"HTTP/1.1", b"HTTP/" + version.encode()))
    raw_head = await client.reader.readuntil(b"\r\n\r\n")
    seen.append(raw_head)
    is_until_close = b"content-length" not in raw_head.lower() and b"chunked" not in raw_head.lower()
    if is_until_close:
        # Nothing but a reset can say to HTTP/1.0 that a body without a length is not whole.
        with pytest.raises(ConnectionResetError):
            await client.reader.read(-1)
    else:
        body = await client.rest()
        assert b"half" in body
        assert not body.endswith(b"0\r\n\r\n")
    assert one.attempts[0].outcome.fault is Fault.TRUNCATED


async def test_a_body_until_close_is_whole_when_it_closes(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        peer.close()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    assert (await client.ask(get())).body == b"all of it"
    assert (await client.ask(get("/nobody"))).status == 404


async def test_a_reset_ends_no_body(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nhalf of it")
        await until(lambda: seen)
        peer.reset()

    seen: list[bytes] = []
    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(get())
    seen.append(await client.reader.readuntil(b"half of it"))
    assert not (await client.rest()).endswith(b"0\r\n\r\n")
    assert one.attempts[0].outcome.fault is Fault.TRUNCATED


@pytest.mark.parametrize(
    "extra",
    [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged", b"more than it said", b"\x00"],
    ids=["a reply", "text", "nul"],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_bytes_behind_a_reply_reach_nobody(mesh: Any, upstream: Any, extra: bytes, method: str) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + b"ok" * (method == "GET") + extra)
        await peer.closed()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    for _ in range(2):
        reply = await client.ask(get(method=method))
        assert (reply.status, reply.body) == (200, b"ok" * (method == "GET"))
    assert len(up.peers) == 2


async def test_unsolicited_bytes_retire_an_idle_connection(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.reply(b"first")
        await until(lambda: poison)
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")
        await peer.closed()

    poison: list[int] = []
    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    assert (await client.ask(get())).body == b"first"
    poison.append(1)
    await until(lambda: not sum(one.proxy.pools.open_connections().values()))
    assert (await client.ask(get())).body == b"first"
    assert len(up.peers) == 2


async def test_a_reply_before_the_request_is_whole_retires_the_connection(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.reply(b"enough")
        await peer.closed()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(get("/up/x", "Content-Length: 100", method="POST") + b"half")
    assert (await client.reply()).body == b"enough"
    client.send(b"x" * 96)
    assert await client.rest() == b""
    assert (await one.fetch(get())).body == b"enough"
    assert len(up.peers) == 2


async def test_silence_before_and_within_a_reply(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        request = await peer.request()
        if request.target == b"/gap":
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await peer.closed()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port, ", timeouts: {first_byte: 30s, gap: 10s}") + NO_RETRY)
    client = await one.connect()
    client.send(get("/up/mute"))
    await until(lambda: up.received)
    one.expire(29)
    assert one.proxy.live
    one.expire(2)
    assert (await client.reply()).status == 504
    client.send(get("/up/gap"))
    await client.reader.readuntil(b"half")
    one.expire(11)
    assert await client.rest() == b""
    assert [record.outcome.fault for record in one.attempts] == [Fault.FIRST_BYTE_TIMEOUT, Fault.GAP_TIMEOUT]


@pytest.mark.parametrize("raw", [b"{not json", b"", b"\xff" * 100, b"[" * 5000], ids=["text", "empty", "bytes", "deep"])
async def test_a_model_that_answers_nonsense(mesh: Any, upstream: Any, raw: bytes) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.reply(raw, b"Content-Type: application/json")

    up = await upstream(script)
    one = await mesh(llm_policy(up.port))
    reply = await one.fetch(post("/llm/v1/chat/completions", CHAT))
    assert (reply.status, reply.body) == (200, raw)


async def test_5xx_then_200_is_one_reply(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        while True:
            await peer.request()
            served.append(1)
            if len(served) == 1:
                peer.reply(b"later", status=b"503 Service Unavailable")
            else:
                peer.reply(CHAT_REPLY, b"Content-Type: application/json")

    served: list[int] = []
    up = await upstream(script)
    one = await mesh(llm_policy(up.port))
    reply = await one.fetch(post("/llm/v1/chat/completions", CHAT))
    assert (reply.status, reply.body) == (200, CHAT_REPLY)
    assert [record.outcome.status for record in one.attempts] == [503, 200]
    assert len(one.calls) == 1


async def test_a_refused_connection_is_tried_again(mesh: Any, upstream: Any) -> None:
    up = await upstream(echo)
    await up.close()
    one = await mesh(plain_policy(up.port))
    reborn = []

    def revive(call: Any) -> None:
        if call.attempt == 2:
            again = socket.create_server(("127.0.0.1", up.port))
            reborn.append(one.proxy.loop.create_task(up.start(again)))

    one.per_attempt.on_admit = revive
    reply = await one.fetch(post("/up/x", b"body"))
    assert (reply.status, reply.body) == (200, b"POST /x\nbody")
    assert [(record.outcome.status, record.outcome.is_forwarded) for record in one.attempts] == [
        (0, False),
        (200, True),
    ]


async def test_a_body_that_streamed_is_not_sent_twice(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.reader.readexactly(4)
        peer.close()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    reply = await one.fetch(post("/up/x", b"body", method="PUT"))
    assert reply.status == 502
    assert len(up.peers) == 1


async def test_nothing_of_a_broken_reply_looks_whole_to_a_pipeliner(mesh: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        peer.close()

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    client.send(get("/up/a") + get("/up/b"))
    with pytest.raises(Incomplete) as caught:
        await client.reply()
    # The next reply must not stand where the rest of this one should.
    assert caught.value.so_far == b"half"
