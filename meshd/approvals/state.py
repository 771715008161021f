"""Where an approval stands, and the one table of what may happen to it. Whatever is not in the table is not done."""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(str, Enum):
    """Where an approval stands."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    USED = "used"
    CANCELLED = "cancelled"


class Event(str, Enum):
    """What happens to an approval."""

    ALLOW = "allow"
    """Somebody allows it, and more must."""
    GRANT = "grant"
    """Somebody allows it, and that is enough."""
    DENY = "deny"
    """Somebody says no: one decides alone, and until the call has gone out also after others have allowed it."""
    LAPSE = "lapse"
    """Its time is over: nobody decided, or nobody used what was allowed."""
    USE = "use"
    """A call is about to go out with it."""
    GIVE_BACK = "give_back"
    """That call never went out."""
    CANCEL = "cancel"
    """Nobody wants it any more."""


TABLE: Final[dict[tuple[State, Event], State]] = {
    (State.PENDING, Event.ALLOW): State.PENDING,
    (State.PENDING, Event.GRANT): State.APPROVED,
    (State.PENDING, Event.DENY): State.DENIED,
    (State.PENDING, Event.LAPSE): State.EXPIRED,
    (State.PENDING, Event.CANCEL): State.CANCELLED,
    (State.APPROVED, Event.DENY): State.DENIED,
    (State.APPROVED, Event.LAPSE): State.EXPIRED,
    (State.APPROVED, Event.USE): State.USED,
    (State.APPROVED, Event.CANCEL): State.CANCELLED,
    # The only way back, and only for the call that used it: see `Desk.settled`.
    (State.USED, Event.GIVE_BACK): State.APPROVED,
}


class Impossible(Exception):
    """This cannot happen to an approval that stands so."""

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"{event.value} does nothing to an approval that is {state.value}")
        self.state = state
        self.event = event


def step(state: State, event: Event) -> State:
    """Return where an approval stands after an event. Raises Impossible."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise Impossible(state, event) from None
