"""Claims in a store: what is swept, who is dead, and answers in pieces."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest

from meshd.claims.record import Answer, ClaimRecord
from meshd.claims.rest import PIECE_BYTES, PIECES, PIECES_READ, START_BYTES, RestBroken
from meshd.claims.shelf import BEAT_S, CLAIMS, DEAD_S, DUE, HOLDERS, Shelf
from meshd.claims.states import Event, State
from meshd.claims.tape import Tape, spill_in
from meshd.engines.memory import MemoryStore
from meshd.engines.port import Ability, Change
from meshd.ledger.desk import Desk, HolderRecord


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Shared(MemoryStore):
    """Memory that says of itself that others use it too."""

    def __init__(self) -> None:
        super().__init__()
        self.abilities = frozenset({Ability.SHARED})


def known(_nonce: str) -> bool:
    return True


def unknown(_nonce: str) -> bool:
    return False


def flight(holder: str = "h1", epoch: int = 1, nonce: str = "n1", ends_s: float = 100.0) -> ClaimRecord:
    return ClaimRecord(State.IN_FLIGHT, b"p", holder, epoch, nonce, 0.0, ends_s)


async def count(store: Any, space: str) -> int:
    return len(await store.keys(space))


def taped(body: bytes) -> Tape:
    tape = Tape(1 << 26, spill_in(None))
    tape.head(200, [])
    tape.data(body)
    tape.end([])
    return tape


LONG = START_BYTES + 3 * PIECE_BYTES
"""An answer in three whole pieces."""


async def kept(body: bytes) -> Shelf:
    """Return a shelf with an answer under `id`."""
    shelf = Shelf(MemoryStore(), "h1", 1, Clock())
    await shelf.forward("id", flight(), 0)
    await shelf.keep("id", "n1", Answer(200, [], [], size=len(body)), taped(body))
    return shelf


async def read_out(rest: Any) -> bytes:
    body = b""
    while piece := await rest.next():
        body += piece
    return body


async def given(shelf: Shelf) -> bytes:
    """Read the answer as a replay does. Raises RestBroken."""
    record, _ = await shelf.read("id")
    assert record is not None
    assert record.answer is not None
    assert not record.answer.is_too_long
    rest = await shelf.rest_of(record, record.answer)
    return record.answer.body + (await read_out(rest) if rest is not None else b"")


@pytest.mark.parametrize(
    "size", [0, 1, START_BYTES, START_BYTES + 1, START_BYTES + PIECE_BYTES, LONG + 1, (PIECES_READ + 1) * LONG]
)
async def test_an_answer_comes_back_as_it_was_and_is_swept_whole(size: int) -> None:
    body = os.urandom(size)
    shelf = await kept(body)
    assert await given(shelf) == body
    assert await count(shelf.store, PIECES) == -(-max(0, size - START_BYTES) // PIECE_BYTES)
    assert await shelf.sweep(99.0, is_known=known) == 0
    assert await shelf.sweep(101.5, is_known=known) == 1
    assert [await count(shelf.store, space) for space in (CLAIMS, PIECES, DUE)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda piece: None, "lacks its piece 1"),
        (lambda piece: piece[:-1], "damaged in its piece 1"),
        (lambda piece: piece + b"x", "damaged in its piece 1"),
        (lambda piece: b"", "damaged in its piece 1"),
        (lambda piece: piece[:99] + bytes([piece[99] ^ 1]) + piece[100:], "damaged in its piece 1"),
    ],
    ids=["gone", "short", "long", "empty", "one bit"],
)
async def test_a_piece_that_is_not_as_it_was_is_never_given(damage: Any, said: str) -> None:
    body = os.urandom(LONG)
    shelf = await kept(body)
    piece = (await shelf.store.read(PIECES, ("n1/00001",)))["n1/00001"].value
    before = await shelf.store.read(CLAIMS, ("id",))
    await shelf.store.write([Change(PIECES, "n1/00001", damage(piece))])
    # It shows in the midst of the first replay, and before the beginning of the next one.
    record, _ = await shelf.read("id")
    assert record is not None
    assert record.answer is not None
    rest = await shelf.rest_of(record, record.answer)
    assert rest is not None
    with pytest.raises(RestBroken, match=said):
        await read_out(rest)
    with pytest.raises(RestBroken, match=said):
        await shelf.rest_of(record, record.answer)
    assert await shelf.store.read(CLAIMS, ("id",)) == before
    # Whole again, it is given again.
    await shelf.store.write([Change(PIECES, "n1/00001", piece)])
    assert await given(shelf) == body


async def test_an_answer_in_pieces_that_says_nothing_of_them_is_not_begun() -> None:
    shelf = await kept(bytes(LONG))
    record, _ = await shelf.read("id")
    assert record is not None
    assert record.answer is not None
    for sums in ((), record.answer.sums[:-1]):
        with pytest.raises(RestBroken):
            await shelf.rest_of(record, msgspec.structs.replace(record.answer, sums=sums))


async def test_what_a_crash_left_between_pieces_and_record_is_swept() -> None:
    shelf = Shelf(MemoryStore(), "h1", 1, Clock())
    await shelf.forward("id", flight(), 0)
    await shelf.store.write([Change(PIECES, f"{name}/00000", b"x") for name in ("n0", "n1", "n2")])
    await shelf.tell("id", Event.DIED)
    await shelf.sweep(101.5, is_known=known)
    assert await shelf.store.keys(PIECES) == ["n0/00000", "n2/00000"]


async def test_one_in_flight_is_not_swept_while_its_holder_lives() -> None:
    shelf = Shelf(MemoryStore(), "h1", 1, Clock())
    await shelf.forward("id", flight(), 0)
    await shelf.sweep(101.5, is_known=known)
    record, _ = await shelf.read("id")
    assert record is not None
    assert record.state is State.IN_FLIGHT
    assert await count(shelf.store, DUE) == 1
    # Of a run before this one: unknown first, and gone with the next look.
    later = Shelf(shelf.store, "h1", 2, Clock())
    await later.sweep(1e6, is_known=unknown)
    record, _ = await shelf.read("id")
    assert record is not None
    assert record.state is State.UNKNOWN
    await later.sweep(2e6, is_known=unknown)
    assert [await count(shelf.store, space) for space in (CLAIMS, DUE)] == [0, 0]


async def test_a_damaged_claim_is_swept_and_others_with_it() -> None:
    shelf = Shelf(MemoryStore(), "h1", 1, Clock())
    await shelf.forward("bad", flight(), 0)
    await shelf.forward("good", flight(), 0)
    await shelf.tell("good", Event.ANSWERED, nonce="n1", answer=Answer(200, [], []))
    await shelf.store.write([Change(CLAIMS, "bad", b"junk")])
    assert await shelf.sweep(101.5, is_known=known) == 2
    assert [await count(shelf.store, space) for space in (CLAIMS, DUE)] == [0, 0]


async def test_who_of_its_own_is_dead() -> None:
    shelf = Shelf(MemoryStore(), "h1", 2, Clock())
    assert not await shelf.is_dead(flight(epoch=2), is_known=known)
    assert await shelf.is_dead(flight(epoch=2), is_known=unknown)
    assert await shelf.is_dead(flight(epoch=1), is_known=known)
    # Nobody else can have this store: what another name wrote is of before.
    assert await shelf.is_dead(flight("h9"), is_known=known)


async def test_another_that_was_started_again_is_dead_at_once() -> None:
    store = Shared()
    shelf = Shelf(store, "h1", 1, Clock())
    await Desk(store).write_holder("h2", HolderRecord(1))
    assert not await shelf.is_dead(flight("h2"), is_known=known)
    await Desk(store).write_holder("h2", HolderRecord(2))
    assert await shelf.is_dead(flight("h2"), is_known=known)


async def test_another_that_runs_long_is_alive_and_one_that_is_silent_is_not() -> None:
    store, clock = Shared(), Clock()
    one, other = Shelf(store, "h1", 1, clock), Shelf(store, "h2", 1, clock)
    await other.forward("id", flight("h2"), 0)
    for _ in range(100):
        clock.now_s += BEAT_S
        await other.beat()
        assert not await one.is_dead(flight("h2"), is_known=known)
    clock.now_s += DEAD_S
    assert not await one.is_dead(flight("h2"), is_known=known)
    clock.now_s += 0.1
    assert await one.is_dead(flight("h2"), is_known=known)
    # It was only slow.
    await other.beat()
    assert not await one.is_dead(flight("h2"), is_known=known)


async def test_signs_of_life_are_few() -> None:
    store, clock = Shared(), Clock()
    shelf = Shelf(store, "h1", 1, clock)
    for number in range(100):
        await shelf.forward(f"id{number}", flight(), 0)
    first = (await store.read(HOLDERS, ("h1",)))["h1"]
    assert first.value == b"1"
    clock.now_s += BEAT_S
    await shelf.forward("more", flight(), 0)
    assert (await store.read(HOLDERS, ("h1",)))["h1"].value == b"2"
