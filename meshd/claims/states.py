"""What may become of a claim: a table, every cell of which has a test.

A claim is absent until its call's forwarding is written down. From then on it is carried out at most once: only the
one who wrote it down may say how it ended, and where nobody can say it is unknown, which is never run again.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(str, Enum):
    """Where a claim stands."""

    ABSENT = "absent"
    IN_FLIGHT = "in_flight"
    """Its call was about to be forwarded by a holder in an epoch, and may have been carried out since."""
    DONE = "done"
    UNKNOWN = "unknown"
    """Its call may have been carried out, and nobody can say whether it was."""


class Event(str, Enum):
    """What happens to a claim."""

    FORWARDED = "forwarded"
    """The next that happens is its first byte on the way to the upstream."""
    ANSWERED = "answered"
    """The holder has an answer that will not change."""
    RELEASED = "released"
    """The holder knows that nothing was carried out, or that it may be carried out again."""
    LOST = "lost"
    """The holder does not know whether it was carried out."""
    DIED = "died"
    """The holder is gone."""
    EXPIRED = "expired"
    """It was kept for as long as the policy says."""


TABLE: Final[dict[tuple[State, Event], State]] = {
    (State.ABSENT, Event.FORWARDED): State.IN_FLIGHT,
    (State.IN_FLIGHT, Event.ANSWERED): State.DONE,
    (State.IN_FLIGHT, Event.RELEASED): State.ABSENT,
    (State.IN_FLIGHT, Event.LOST): State.UNKNOWN,
    (State.IN_FLIGHT, Event.DIED): State.UNKNOWN,
    (State.DONE, Event.EXPIRED): State.ABSENT,
    # A holder that was taken for dead, and was only slow: nobody has run it since, so its word still holds.
    (State.UNKNOWN, Event.ANSWERED): State.DONE,
    (State.UNKNOWN, Event.RELEASED): State.ABSENT,
    (State.UNKNOWN, Event.EXPIRED): State.ABSENT,
}
"""The state after an event; where there is none, the event changes nothing."""

BY_HOLDER: Final = frozenset({Event.ANSWERED, Event.RELEASED, Event.LOST})
"""Events that only the one who forwarded the call may tell of it."""


def after(state: State, event: Event) -> State | None:
    """Return the state after `event`; None where it changes nothing."""
    return TABLE.get((state, event))
