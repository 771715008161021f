"""A long answer that is given again is read while it is sent.

It begins at once, follows its caller's pace, and where it cannot be read to its end it ends broken.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from meshd.claims.rest import PIECE_BYTES, PIECES, PIECES_READ, START_BYTES
from meshd.engines.port import Change, StoreError
from meshd.filters.idempotency import Idempotency
from tests.proxy.harness import plain_policy, post, seeded, turns, until

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.both_loops

SIZE = START_BYTES + 6 * PIECE_BYTES + 77
BODY = seeded(7, SIZE)
ORDER = post("/up/orders", b'{"buy": 1}', "Content-Type: application/json", "Idempotency-Key: order-1")
H2_FIELDS = [("content-type", "application/json"), ("idempotency-key", "order-1")]
CHUNKS = (1, 16_384, 262_145, 5, 99_991)
"""Sizes of the first answer's chunks: none of them is where a piece begins."""


class Shop:
    """An upstream that counts its orders, and answers each in chunks."""

    def __init__(self) -> None:
        self.orders = 0

    async def __call__(self, peer: Any) -> None:
        while True:
            await peer.request()
            self.orders += 1
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            at = number = 0
            while at < SIZE:
                part = BODY[at : at + CHUNKS[number % len(CHUNKS)]]
                peer.send(b"%x\r\n%b\r\n" % (len(part), part))
                at, number = at + len(part), number + 1
            peer.send(b"0\r\n\r\n")


class Reading:
    """Stands before a store: lets the test see, hold back and fail the reading of pieces."""

    def __init__(self, mesh: Any) -> None:
        filters = [one for one in mesh.proxy.chain.per_call if isinstance(one, Idempotency)]
        self.store = filters[0].book._shelf.store
        self._read = self.store.read
        self.names: list[str] = []
        self.fault: StoreError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.store.read = self.read

    async def read(self, space: str, keys: Sequence[str]) -> Any:
        if space == PIECES:
            self.names += keys
            await self.gate.wait()
            if self.fault is not None:
                raise self.fault
        return await self._read(space, keys)

    async def piece(self, number: int) -> tuple[str, bytes]:
        name = (await self.store.keys(PIECES))[number]
        return name, (await self._read(PIECES, (name,)))[name].value


@pytest.fixture
async def kept(mesh: Any, upstream: Any) -> tuple[Any, Shop, Reading]:
    """A sidecar that has carried out the order, and has written its answer down."""
    shop = Shop()
    one = await mesh(plain_policy((await upstream(shop)).port))
    assert (await one.fetch(ORDER)).body == BODY
    reading = Reading(one)
    await until(lambda: not under_way(one))
    return one, shop, reading


def under_way(mesh: Any) -> Any:
    (found,) = [one for one in mesh.proxy.chain.per_call if isinstance(one, Idempotency)]
    return found.book.under_way


async def begun(one: Any, reading: Reading) -> Any:
    """Return a caller whose replay has begun and waits for its first pieces."""
    reading.gate.clear()
    client = await one.connect(limit=2 * SIZE)
    client.send(ORDER)
    await until(lambda: reading.names)
    return client


async def test_it_begins_before_the_rest_is_read(kept: Any) -> None:
    one, shop, reading = kept
    client = await begun(one, reading)
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert await client.reader.readexactly(START_BYTES) == BODY[:START_BYTES]
    assert b"idempotent-replayed: true" in head
    assert b"content-length: %d\r\n" % SIZE in head
    assert b"transfer-encoding" not in head
    assert len(one.proxy.live) == 1
    reading.gate.set()
    assert await client.reader.readexactly(SIZE - START_BYTES) == BODY[START_BYTES:]
    await one.idle()
    assert shop.orders == 1
    # The connection goes on.
    client.send(ORDER)
    assert (await client.reply("POST")).body == BODY


async def test_over_http2(kept: Any, h2_client: Any) -> None:
    one, shop, _ = kept
    client = await h2_client(one)
    for _ in range(2):
        reply = await client.ask("/up/orders", *H2_FIELDS, method="POST", body=b'{"buy": 1}')
        assert bytes(reply.body) == BODY
        assert reply.fields["content-length"] == str(SIZE)
    assert shop.orders == 1


async def test_many_at_once(kept: Any) -> None:
    one, shop, _ = kept
    assert [reply.body == BODY for reply in await asyncio.gather(*(one.fetch(ORDER) for _ in range(8)))] == [True] * 8
    assert shop.orders == 1


async def test_one_that_has_waited_gets_it_at_its_own_pace_too(mesh: Any, upstream: Any) -> None:
    """What is on the tape still is given from there, and stays until the last has read it."""
    shop, gate = Shop(), asyncio.Event()

    async def script(peer: Any) -> None:
        await gate.wait()
        await shop(peer)

    one = await mesh(plain_policy((await upstream(script)).port))
    calls = [asyncio.ensure_future(one.fetch(ORDER)) for _ in range(5)]
    await until(lambda: len(one.proxy.live) == 5)
    await turns()
    gate.set()
    assert [reply.body == BODY for reply in await asyncio.gather(*calls)] == [True] * 5
    assert shop.orders == 1


async def paused(one: Any) -> None:
    await until(lambda: one.proxy.live)
    (exchange,) = one.proxy.live
    await until(lambda: exchange._replaying is not None and exchange._replaying._is_paused)
    await turns(200)


async def test_a_caller_that_does_not_read_is_read_no_further_for(kept: Any, h2_client: Any) -> None:
    one, shop, reading = kept
    client = await h2_client(one)
    client.acknowledges = False
    id = client.request("/up/orders", *H2_FIELDS, method="POST", end=False)
    client.send(id, b'{"buy": 1}', end=True)
    await paused(one)
    # No more is read than what may wait for one caller.
    assert len(reading.names) <= PIECES_READ
    # It reads again, and gets all of it.
    client.acknowledges = True
    half = client.streams[id]
    client.h2.acknowledge_received_data(half.size, id)
    client.flush()
    assert bytes((await client.ended(id)).body) == BODY
    await one.idle()
    # It never reads again: its place is not held for ever.
    client.acknowledges = False
    id = client.request("/up/orders", *H2_FIELDS, method="POST", end=False)
    client.send(id, b'{"buy": 1}', end=True)
    await paused(one)
    one.expire(one.proxy.policy.limits.idle_timeout_s - 1)
    assert one.proxy.live
    one.expire(2)
    await one.idle()
    assert shop.orders == 1


async def test_a_caller_that_hangs_up_ends_it(kept: Any) -> None:
    one, shop, reading = kept
    client = await begun(one, reading)
    await client.reader.readexactly(START_BYTES)
    client.abort()
    await one.idle()
    reading.gate.set()
    await until(lambda: not one.proxy._tasks)
    assert len(reading.names) <= PIECES_READ
    assert (await one.fetch(ORDER)).body == BODY
    assert shop.orders == 1


async def assert_broken(client: Any) -> None:
    data = await client.rest()
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"content-length: %d" % SIZE in head
    assert len(body) < SIZE
    assert BODY.startswith(body)


@pytest.mark.parametrize("what", ["gone", "damaged"])
async def test_a_piece_that_is_lost_breaks_it_off_and_harms_no_claim(kept: Any, what: str) -> None:
    one, shop, reading = kept
    name, piece = await reading.piece(5)
    await reading.store.write([Change(PIECES, name, None if what == "gone" else b"\0" + piece[1:])])
    claims = dict(reading.store._spaces["claim"])
    client = await one.connect(limit=2 * SIZE)
    client.send(ORDER)
    await assert_broken(client)
    await one.idle()
    assert reading.store._spaces["claim"] == claims
    # Asked for again, it is not begun: its caller is told what is known.
    again = await one.fetch(ORDER)
    assert (again.status, again.get(b"x-meshd-reason")) == (409, b"key_unknown")
    assert reading.store._spaces["claim"] == claims
    assert shop.orders == 1
    await reading.store.write([Change(PIECES, name, piece)])
    assert (await one.fetch(ORDER)).body == BODY
    assert shop.orders == 1


async def test_over_http2_it_is_reset(kept: Any, h2_client: Any) -> None:
    one, _, reading = kept
    name, _ = await reading.piece(5)
    await reading.store.write([Change(PIECES, name, None)])
    client = await h2_client(one)
    half = await client.ask("/up/orders", *H2_FIELDS, method="POST", body=b'{"buy": 1}')
    assert half.reset == 2
    assert len(half.body) < SIZE


async def test_a_store_that_goes_away_meanwhile_breaks_it_off(kept: Any) -> None:
    one, shop, reading = kept
    client = await begun(one, reading)
    reading.fault = StoreError("away")
    reading.gate.set()
    await assert_broken(client)
    await one.idle()
    reading.fault = None
    assert (await one.fetch(ORDER)).body == BODY
    assert shop.orders == 1


async def test_a_drain_lets_it_end(kept: Any) -> None:
    one, _, reading = kept
    client = await begun(one, reading)
    one.stop_listening()
    draining = asyncio.ensure_future(one.proxy.drain(60))
    await turns()
    assert not draining.done()
    reading.gate.set()
    assert (await client.reply("POST")).body == BODY
    assert await draining is True


async def test_and_breaks_it_off_when_its_time_is_over(kept: Any) -> None:
    one, _, reading = kept
    client = await begun(one, reading)
    one.stop_listening()
    assert await one.proxy.drain(0) is False
    await assert_broken(client)
    assert not one.proxy.live
