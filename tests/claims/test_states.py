"""Every cell of the claim table, as a table and in a store."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from meshd.claims.record import DELETED, Answer, ClaimRecord, decode, encode, step
from meshd.claims.shelf import CLAIMS, Shelf
from meshd.claims.states import Event, State, after
from meshd.engines.memory import MemoryStore
from meshd.engines.port import Change, StoreCorrupt

ABSENT, IN_FLIGHT, DONE, UNKNOWN = State
# Written out once more, by hand: the state after each event, or the same one where it changes nothing.
CELLS: dict[tuple[State, Event], State] = {
    (ABSENT, Event.FORWARDED): IN_FLIGHT,
    (ABSENT, Event.ANSWERED): ABSENT,
    (ABSENT, Event.RELEASED): ABSENT,
    (ABSENT, Event.LOST): ABSENT,
    (ABSENT, Event.DIED): ABSENT,
    (ABSENT, Event.EXPIRED): ABSENT,
    (IN_FLIGHT, Event.FORWARDED): IN_FLIGHT,
    (IN_FLIGHT, Event.ANSWERED): DONE,
    (IN_FLIGHT, Event.RELEASED): ABSENT,
    (IN_FLIGHT, Event.LOST): UNKNOWN,
    (IN_FLIGHT, Event.DIED): UNKNOWN,
    (IN_FLIGHT, Event.EXPIRED): IN_FLIGHT,
    (DONE, Event.FORWARDED): DONE,
    (DONE, Event.ANSWERED): DONE,
    (DONE, Event.RELEASED): DONE,
    (DONE, Event.LOST): DONE,
    (DONE, Event.DIED): DONE,
    (DONE, Event.EXPIRED): ABSENT,
    (UNKNOWN, Event.FORWARDED): UNKNOWN,
    (UNKNOWN, Event.ANSWERED): DONE,
    (UNKNOWN, Event.RELEASED): ABSENT,
    (UNKNOWN, Event.LOST): UNKNOWN,
    (UNKNOWN, Event.DIED): UNKNOWN,
    (UNKNOWN, Event.EXPIRED): ABSENT,
}
FIRST = Answer(200, [], [], b"first")
SECOND = Answer(200, [], [], b"second")


def record(state: State, nonce: str = "mine") -> ClaimRecord:
    return ClaimRecord(state, b"print", "h", 1, nonce, 0.0, 100.0, FIRST if state is DONE else None, "because")


def test_there_is_a_test_for_every_cell() -> None:
    assert set(CELLS) == set(itertools.product(State, Event))


@pytest.mark.parametrize(("state", "event"), CELLS)
def test_the_table(state: State, event: Event) -> None:
    assert (after(state, event) or state) is CELLS[state, event]


@pytest.mark.parametrize(("state", "event"), CELLS)
@pytest.mark.parametrize("nonce", ["mine", "another"])
async def test_the_same_in_a_store(state: State, event: Event, nonce: str) -> None:
    """FORWARDED is a write of its own, made only where the claim is still absent; all else is told by `tell`."""
    shelf = Shelf(MemoryStore(), "h", 1, lambda: 0.0)
    if state is not ABSENT:
        assert await shelf.store.write([Change(CLAIMS, "id", encode(record(state)), 0)]) == [True]
    before, _ = await shelf.read("id")
    if event is Event.FORWARDED:
        assert await shelf.forward("id", record(IN_FLIGHT, nonce), 0) is (state is ABSENT)
        found, _ = await shelf.read("id")
        assert found is not None
        assert found.nonce == (nonce if state is ABSENT else "mine")
    else:
        told = await shelf.tell("id", event, nonce=nonce, answer=SECOND if event is Event.ANSWERED else None)
        found, _ = await shelf.read("id")
        assert told == found
    is_anothers = nonce == "another" and event in (Event.ANSWERED, Event.RELEASED, Event.LOST)
    expected = state if is_anothers else CELLS[state, event]
    assert (found.state if found is not None else ABSENT) is expected
    if is_anothers:
        assert found == before
    if expected is DONE:
        assert found is not None
        # What was answered once stays what was answered.
        assert found.answer == (FIRST if state is DONE else SECOND)


def test_a_step_says_what_to_write() -> None:
    assert step(record(IN_FLIGHT), Event.RELEASED, nonce="mine") is DELETED
    assert step(record(IN_FLIGHT), Event.EXPIRED) is None
    lost = step(record(IN_FLIGHT), Event.LOST, nonce="mine", why="who knows")
    assert isinstance(lost, ClaimRecord)
    assert (lost.state, lost.why, lost.answer) == (UNKNOWN, "who knows", None)


def test_a_record_is_what_was_written_and_damage_is_told() -> None:
    one = msgspec.structs.replace(
        record(DONE), answer=Answer(200, [(b"a", b"\xff")], [], b"\x00\xff", 3, 9, True, b"7")
    )
    assert decode(encode(one), "id") == one
    for value in (b"", b"\x00", encode(one)[:-3], b"[]"):
        with pytest.raises(StoreCorrupt, match="claim id"):
            decode(value, "id")
