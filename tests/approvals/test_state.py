"""Every state meets every event."""

from __future__ import annotations

import itertools

import pytest

from meshd.approvals.state import TABLE, Event, Impossible, State, step

P, A, D, X, U, C = State.PENDING, State.APPROVED, State.DENIED, State.EXPIRED, State.USED, State.CANCELLED

# Written out anew: rows are events, columns the states of ORDER; None where nothing may happen.
ORDER = (P, A, D, X, U, C)
CELLS: dict[Event, tuple[State | None, ...]] = {
    Event.ALLOW: (P, None, None, None, None, None),
    Event.GRANT: (A, None, None, None, None, None),
    Event.DENY: (D, D, None, None, None, None),
    Event.LAPSE: (X, X, None, None, None, None),
    Event.USE: (None, U, None, None, None, None),
    Event.GIVE_BACK: (None, None, None, None, A, None),
    Event.CANCEL: (C, C, None, None, None, None),
}


def test_the_cells_are_all_there_are() -> None:
    assert set(CELLS) == set(Event)
    assert set(ORDER) == set(State)
    assert all(len(row) == len(ORDER) for row in CELLS.values())


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_a_cell(state: State, event: Event) -> None:
    expected = CELLS[event][ORDER.index(state)]
    if expected is None:
        assert (state, event) not in TABLE
        with pytest.raises(Impossible):
            step(state, event)
    else:
        assert step(state, event) is expected


def test_nothing_that_was_refused_or_used_is_ever_used() -> None:
    for state in (D, X, C):
        assert not [event for event in Event if (state, event) in TABLE]
    assert [event for event in Event if (U, event) in TABLE] == [Event.GIVE_BACK]
