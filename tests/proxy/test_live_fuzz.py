"""Any bytes to a live port: a reply or a close, the next caller served, nothing left alive, nothing smuggled."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.proxy.harness import Mesh, Upstream, echo, get, plain_policy, post, seeded, turns, until
from tests.proxy.messages import Incomplete, Message
from tests.proxy.test_http1_ambiguous import CHUNK_ERRORS, CHUNKED, REFUSED
from tests.proxy.test_http2_bad import BAD_STREAMS, BROKEN_BODIES, FATAL, PSEUDO, START, headers

ROUNDS = 300
PIECES = (
    *(raw for _, raw in REFUSED.values()), *(CHUNKED + b"\r\n" + raw for raw in CHUNK_ERRORS.values()),
    get("/up/a"), post("/up/b", b"body"), get("/nobody"), CHUNKED + b"\r\n3\r\nabc\r\n0\r\n\r\n",
    b"\r\n", b"\x00", b"a" * 3000, b"GET ", b"0\r\n\r\n",
)  # fmt: skip
FRAMES = (*BAD_STREAMS.values(), *BROKEN_BODIES.values(), *FATAL.values(), headers(1, PSEUDO), headers(3, PSEUDO))


def changed(chance: random.Random, raw: bytes) -> bytes:
    """Return `raw` with some bytes changed, dropped or doubled."""
    out = bytearray(raw)
    for _ in range(chance.randrange(4)):
        at = chance.randrange(len(out) + 1)
        kind = chance.randrange(3)
        if kind == 0:
            out[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 1:
            del out[at : at + chance.randrange(1, 6)]
        else:
            out[at:at] = out[max(0, at - chance.randrange(1, 20)) : at]
    return bytes(out)


async def _visit(one: Mesh, chance: random.Random, raw: bytes) -> None:
    client = await one.connect()
    try:
        while raw and not client.writer.transport.is_closing():
            size = chance.choice((1, 7, 64, 4096))
            client.send(raw[:size])
            raw = raw[size:]
            await turns(chance.randrange(3))
        if chance.random() < 0.5:
            client.writer.write_eof()
            await client.rest()
        else:
            await turns(5)
    except (OSError, RuntimeError):
        pass
    client.close()


@pytest.mark.both_loops
@pytest.mark.parametrize("wire", ["http/1.1", "h2"])
async def test_any_bytes_to_a_live_port(mesh: Any, upstream: Any, wire: str, caplog: pytest.LogCaptureFixture) -> None:
    requests: list[Message] = []

    async def script(peer: Any) -> None:
        # The strict parser is the judge: whatever reaches the upstream must be a request beyond doubt.
        while True:
            request = await peer.request()
            requests.append(request)
            peer.reply(request.target)

    up: Upstream = await upstream(script)
    one: Mesh = await mesh(plain_policy(up.port) + "rules: [{match: {}, breaker: {consecutive: 1000, ratio: 1}}]\n")
    problems: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
    chance = random.Random(7)
    for number in range(ROUNDS // 10):
        raws = []
        for _ in range(10):
            if wire == "h2":
                raw = START + b"".join(chance.choice(FRAMES) for _ in range(chance.randrange(1, 4)))
            else:
                raw = b"".join(chance.choice(PIECES) for _ in range(chance.randrange(1, 4)))
            raws.append(changed(chance, raw))
        await asyncio.gather(*(_visit(one, chance, raw) for raw in raws))
        assert (await one.fetch(get(f"/up/alive{number}"))).body == b"/alive%d" % number
    await one.idle()
    one.expire(6)
    await until(lambda: not one.proxy.sessions)
    assert problems == []
    assert "Traceback" not in caplog.text
    assert up.errors == []
    for request in requests:
        assert request.target[:1] == b"/"
        assert b"smuggled" not in request.target


async def test_what_reaches_the_upstream_is_what_the_caller_meant(mesh: Any, upstream: Any) -> None:
    """Differential: the same requests, framed in every way, arrive as the same method, path and body."""
    up: Upstream = await upstream(echo)
    one: Mesh = await mesh(plain_policy(up.port))
    chance = random.Random(11)
    for number in range(60):
        client = await one.connect()
        expected = []
        raw = b""
        for part in range(chance.randrange(1, 6)):
            body = seeded(number * 10 + part, chance.choice((0, 1, 5, 1000, 70_000)))
            path = f"/up/{number}/{part}?" + "x" * chance.randrange(50)
            if chance.random() < 0.5:
                raw += post(path, body, *(f"X-{n}: {n}" for n in range(chance.randrange(5))))
            else:
                raw += get(path, "Transfer-Encoding: chunked", method="POST")
                at = 0
                while at < len(body):
                    size = min(chance.randrange(1, 30_000), len(body) - at)
                    raw += b"%x%b\r\n%b\r\n" % (size, chance.choice((b"", b";a=b")), body[at : at + size])
                    at += size
                raw += b"0\r\n\r\n"
            expected.append(b"POST " + path[3:].encode() + b"\n" + body)
        while raw:
            size = chance.choice((1, 50, 1000, 100_000)) if len(raw) < 3000 else chance.choice((1000, 100_000))
            client.send(raw[:size])
            raw = raw[size:]
            await turns(1)
        assert [bytes((await client.reply()).body) for _ in expected] == expected
        client.close()


async def test_an_upstream_of_random_bytes_is_never_believed_wrongly(mesh: Any, upstream: Any) -> None:
    chance = random.Random(13)
    good = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole"
    chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n0\r\n\r\n"

    async def script(peer: Any) -> None:
        while True:
            await peer.request()
            peer.send(changed(chance, chance.choice((good, chunks))))
            if chance.random() < 0.5:
                peer.close()

    up: Upstream = await upstream(script)
    one: Mesh = await mesh(
        plain_policy(up.port, ", timeouts: {first_byte: 30s, gap: 30s}")
        + "rules: [{match: {}, retry: {attempts: 0}, breaker: {consecutive: 1000, ratio: 1}}]\n"
    )
    problems: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))

    async def visit() -> None:
        client = await one.connect()
        client.send(get())
        try:
            assert 100 <= (await client.reply()).status < 1000
        except (Incomplete, EOFError, ConnectionError):
            pass
        client.close()

    for _ in range(100):
        visiting = asyncio.ensure_future(visit())
        await turns(60)
        while not visiting.done():
            one.expire(31)
            await turns(20)
        await visiting
    await one.idle()
    assert problems == []
