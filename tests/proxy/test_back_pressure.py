"""Large bodies at unequal speeds: bounded memory, the fast side paused, and every byte in its place."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from meshd.wire.http2 import CONNECTION_WINDOW, HELD_MAX, QUEUE_HIGH
from tests.proxy.harness import get, plain_policy, resident_kb, turns, until

SIZE = 200 * 1024 * 1024
PIECE = bytes(range(256)) * 1024
SUM = hashlib.sha256(PIECE * (SIZE // len(PIECE))).hexdigest()
BUFFERED_MAX = 24 * 1024 * 1024
"""Bytes that the sockets' buffers, the streams' windows and meshd's own queues may hold between the two ends."""


async def _send(peer: Any, sent: list[int]) -> None:
    for _ in range(SIZE // len(PIECE)):
        peer.writer.write(PIECE)
        await peer.writer.drain()
        sent[0] += len(PIECE)


async def _stalled(sent: list[int]) -> int:
    """Wait until nothing moves any more; return how far it got."""
    before = -1
    while before != sent[0]:
        before = sent[0]
        await turns(300)
    return before


@pytest.mark.both_loops
async def test_a_download_waits_for_a_slow_caller(mesh: Any, upstream: Any) -> None:
    sent = [0]

    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        await _send(peer, sent)

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect(limit=1 << 20)
    before_kb = resident_kb()
    client.send(get())
    await client.reader.readuntil(b"\r\n\r\n")
    assert await _stalled(sent) < BUFFERED_MAX
    digest, got = hashlib.sha256(), 0
    while got < SIZE:
        piece = await client.reader.read(1 << 20)
        if not got:
            assert await _stalled(sent) < 2 * BUFFERED_MAX
        got += len(piece)
        digest.update(piece)
    assert digest.hexdigest() == SUM
    assert resident_kb() - before_kb < 64 * 1024


@pytest.mark.both_loops
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_an_upload_waits_for_a_slow_upstream(mesh: Any, upstream: Any, is_chunked: bool) -> None:
    sent = [0]
    go: list[int] = []
    size = SIZE if not is_chunked else 40 * len(PIECE) * 4

    async def script(peer: Any) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await until(lambda: go)
        got = 0
        while piece := await peer.reader.read(1 << 20):
            got += len(piece)
            if got >= size:
                break
        peer.reply(b"%d" % (got >= size))

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    client = await one.connect()
    before_kb = resident_kb()
    framing = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {size}"
    client.send(get("/up/x", framing, method="POST"))

    async def upload() -> None:
        for _ in range(size // len(PIECE)):
            client.send(b"%x\r\n%b\r\n" % (len(PIECE), PIECE) if is_chunked else PIECE)
            await client.writer.drain()
            sent[0] += len(PIECE)
        if is_chunked:
            client.send(b"0\r\n\r\n")

    uploading = asyncio.ensure_future(upload())
    await until(lambda: up.received)
    assert await _stalled(sent) < BUFFERED_MAX
    go.append(1)
    assert (await client.reply()).body == b"1"
    await uploading
    assert resident_kb() - before_kb < 64 * 1024


async def test_an_upload_before_there_is_a_connection_waits(mesh: Any, upstream: Any) -> None:
    sent = [0]

    async def script(peer: Any) -> None:
        request = await peer.request()
        peer.reply(b"%d" % len(request.body))

    up = await upstream(script)
    one = await mesh(plain_policy(up.port))
    gate = one.per_attempt.hold()
    client = await one.connect()
    size = 80 * len(PIECE)
    client.send(get("/up/x", f"Content-Length: {size}", method="POST"))

    async def upload() -> None:
        for _ in range(80):
            client.send(PIECE)
            await client.writer.drain()
            sent[0] += len(PIECE)

    uploading = asyncio.ensure_future(upload())
    await until(lambda: sent[0])
    assert await _stalled(sent) < BUFFERED_MAX
    gate.set_result(None)
    assert (await client.reply()).body == b"%d" % size
    await uploading


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
async def test_a_closed_window_pauses_the_upstream(
    mesh: Any, upstream: Any, upstream_h2: Any, h2_client: Any, protocol: str
) -> None:
    sent = [0]
    size = 40 * len(PIECE)

    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(40):
            peer.writer.write(PIECE)
            await peer.writer.drain()
            sent[0] += len(PIECE)

    async def script_h2(server: Any) -> None:
        half = await server.request()
        server.head(half.id)
        for _ in range(40):
            await server.send_all(half.id, PIECE, end=False)
            sent[0] += len(PIECE)
        server.send(half.id, b"", end=True)

    up = await (upstream_h2(script_h2) if protocol == "h2" else upstream(script))
    one = await mesh(plain_policy(up.port, f', protocol: "{protocol}"'))
    client = await h2_client(one)
    client.acknowledges = False
    id = client.request("/up/x")
    await client.until(lambda: client.streams.get(id) and client.streams[id].size == 65_535)
    assert await _stalled(sent) < BUFFERED_MAX
    half = client.streams[id]
    assert half.size == 65_535
    client.acknowledges = True
    client.h2.acknowledge_received_data(65_535, id)
    client.flush()
    await client.ended(id)
    assert half.body == PIECE * 40


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
async def test_a_slow_upstream_closes_the_callers_window(
    mesh: Any, upstream: Any, upstream_h2: Any, h2_client: Any, protocol: str
) -> None:
    sent = [0]
    go: list[int] = []
    size = 40 * len(PIECE)

    async def script(peer: Any) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await until(lambda: go)
        got = len(await peer.reader.readexactly(size))
        peer.reply(b"%d" % got)

    async def script_h2(server: Any) -> None:
        server.acknowledges = server.keeps_bodies = False
        half = await server.request()
        await until(lambda: go)
        server.acknowledges = True
        server.h2.acknowledge_received_data(half.size, half.id)
        server.flush()
        await server.ended(half.id)
        server.reply(half.id, b"%d" % half.size)

    up = await (upstream_h2(script_h2) if protocol == "h2" else upstream(script))
    one = await mesh(plain_policy(up.port, f', protocol: "{protocol}"'))
    client = await h2_client(one)
    id = client.request("/up/x", ("content-length", str(size)), method="POST", end=False)

    async def upload() -> None:
        for number in range(40):
            await client.send_all(id, PIECE, end=number == 39)
            sent[0] += len(PIECE)

    uploading = asyncio.ensure_future(upload())
    await until(lambda: sent[0])
    assert await _stalled(sent) < BUFFERED_MAX
    # One stalled stream leaves room for the others of its connection.
    assert (await client.ask("/nobody")).status == 404
    go.append(1)
    assert (await client.ended(id)).body == b"%d" % size
    await uploading


async def test_many_stalled_streams_stall_their_connection_and_all_of_it_comes_through(
    mesh: Any, upstream_h2: Any, h2_client: Any
) -> None:
    sent = [0]
    go: list[int] = []
    count, size = 60, 8 * len(PIECE)

    async def script(server: Any) -> None:
        server.acknowledges = server.keeps_bodies = False
        await until(lambda: go)
        server.acknowledges = True
        for half in list(server.streams.values()):
            if half.size:
                server.h2.acknowledge_received_data(half.size, half.id)
        server.flush()
        for half in list(server.streams.values()):
            if half.fields:
                await server.ended(half.id)
                server.reply(half.id, b"%d" % half.size)
        await server.closed()

    one = await mesh(plain_policy((await upstream_h2(script)).port, ", protocol: h2"))
    client = await h2_client(one)
    ids = [client.request(f"/up/{n}", ("content-length", str(size)), method="POST", end=False) for n in range(count)]

    async def upload(id: int) -> None:
        for number in range(8):
            await client.send_all(id, PIECE, end=number == 7)
            sent[0] += len(PIECE)

    uploading = [asyncio.ensure_future(upload(id)) for id in ids]
    await until(lambda: sent[0])
    # A full queue for each stream, and one window for all of them together in place of one for each.
    assert await _stalled(sent) < count * QUEUE_HIGH + HELD_MAX + CONNECTION_WINDOW + 2 * 1024 * 1024
    go.append(1)
    for id in ids:
        assert (await client.ended(id)).body == b"%d" % size
    await asyncio.gather(*uploading)
