"""The part of a bus that differs: what an engine does with events, in steps that never wait for another subscriber."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from meshd.engines.bus_event import sequence_text
from meshd.engines.bus_port import Delivery, StartGone, Verdict
from meshd.engines.port import StoreError, StoreFull, StoreUnable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from meshd.engines.bus_port import DeadLetter, Event, Position, Published, Start, Topic
    from meshd.engines.bus_terms import Terms


class HandedOut(NamedTuple):
    """What a group gets."""

    deliveries: list[Delivery]
    due_s: float | None
    """When the next retry, or the next handler's end, is due; None where nothing is."""
    is_more: bool
    """Only a part of what is kept was looked at."""


class Settled(NamedTuple):
    """What a verdict did."""

    counted: bool
    is_freed: bool = False
    """Something can be handed out that could not before."""
    due_s: float | None = None
    """When this one is handed out again."""


LIFE: Final = 1_000_000
"""Attempts at an event that is redriven are numbered from beyond the next multiple of this: none has the number of one
before, of which something may yet be said."""


class Attempt(NamedTuple):
    """One attempt at the event of a place."""

    place: int
    number: int
    """See `LIFE`."""

    @classmethod
    def of(cls, delivery: Delivery) -> Attempt:
        """Return the one that a delivery is."""
        return cls(delivery.place, delivery.life * LIFE + delivery.attempt)

    def handed(self, event: Event, *, is_marked: bool) -> Delivery:
        """Return it as its subscriber gets it."""
        return Delivery(event, ordinal(self.number), is_marked, self.place, self.number // LIFE)


def ordinal(number: int) -> int:
    """Return which attempt has this number, from 1, since the event was published or redriven."""
    return number % LIFE


def redriven(number: int) -> int:
    """Return the number that an event has when it is redriven, whose last attempt had this one: the next one's is one
    more."""
    return number - number % LIFE + LIFE


_LIVES_OF_DEFERRED: Final = 1000
"""By so many lives an attempt that is set aside goes on: nothing is redriven as often, so that nothing else waits under
such a number, and what is said late of an attempt of another life is never taken for what is said of this one."""
AGAIN: Final = frozenset({Verdict.RETRY, Verdict.DEFER})
"""Verdicts after which the event is handed out again."""


def deferred(number: int) -> int:
    """Return the number that an event has whose attempt of this number was set aside: the next one's is one more, and
    it is the same attempt of those that are counted."""
    return number + _LIVES_OF_DEFERRED * LIFE - 1


class Unheard(NamedTuple):
    """A dead letter of which no handler knows."""

    group: str
    """Its name."""
    letter: int


UNHEARD: Final = "nothing was heard of the last attempt"
UNHEARD_MAX: Final = 10_000
"""So many are remembered until somebody looks."""


def none_unheard() -> deque[Unheard]:
    """Return room for them."""
    return deque(maxlen=UNHEARD_MAX)


class AtOnce(Protocol):
    """What an engine may offer beside `Shelf.hand_out`, where it can do the same without a turn of the loop."""

    def __call__(self, group: int, handling_s: Sequence[float], tell: Callable[[HandedOut | StoreError], None]) -> bool:
        """As `hand_out`, where nothing need be waited for but a server's word, and return True; else do nothing.

        `tell` is called with what comes, in the moment in which it comes, which may be now; it does not raise.
        """
        ...


class Shelf(Protocol):
    """What an engine does. `group` is a number that it gave; each method is one step, made whole or not at all."""

    @property
    def unheard(self) -> deque[Unheard]:
        """What steps of this sidecar have made dead letters of since nothing was heard of the last attempt; whoever
        looks takes it out."""
        ...

    @property
    def sure_s(self) -> float:
        """For how long at least, from when it was asked for, an attempt is this sidecar's even where the engine takes
        that for gone. Nothing but its handling time ends it before."""
        ...

    async def is_held(self, group: int, attempt: Attempt) -> bool:
        """Ask the engine whether an attempt is under way, and this sidecar's."""
        ...

    @property
    def is_crowded(self) -> bool:
        """Less than an eighth of what may be kept is free."""
        ...

    async def keep(self, events: Sequence[Event]) -> list[Published]:
        """Keep events that are complete."""
        ...

    async def join(self, group: str, topic: str, *, starts_at_oldest: bool) -> int:
        """Find a group or make it; return its number."""
        ...

    async def hand_out(self, group: int, handling_s: Sequence[float]) -> HandedOut:
        """Begin up to as many attempts as there are times in `handling_s`."""
        ...

    async def settle(
        self, group: int, attempt: Attempt, verdict: Verdict, retry_after_s: float | None, reason: str
    ) -> Settled:
        """End an attempt; or, with RETRY or DEFER, the wait of one that was set aside (`deferred`): it then counts, or
        waits anew."""
        ...

    async def give_back(self, group: int, attempts: Sequence[Attempt], *, is_unseen: bool) -> None:
        """End attempts of which nothing will be heard; those that are unseen were not even begun.

        Where it fails an engine that can makes up for it, and else it is their handling time that ends them.
        """
        ...

    async def dead_letters(self, group: str, after: int, limit: int) -> list[DeadLetter]:
        """As the bus's."""
        ...

    async def redrive(self, group: str, ids: Sequence[int]) -> list[int]:
        """Return, for each that there was, the number of its group."""
        ...

    async def positions(self) -> list[Position]:
        """As the bus's."""
        ...

    async def trim(self) -> bool:
        """Let go of some of what is too old; return whether there is more."""
        ...

    async def close(self) -> None:
        """Let go."""
        ...


class Patient:
    """The part of a shelf whose engine takes no sidecar for gone: attempts are ended by their handling time alone."""

    sure_s: Final = math.inf

    async def is_held(self, group: int, attempt: Attempt) -> bool:
        """Say so until that is over."""
        return True


class Replays(Shelf, Protocol):
    """A shelf of an engine with `Ability.REPLAYS`."""

    async def join_from(self, group: str, topic: str, start: Start) -> int:
        """Find a group, or make one that begins at `start`; return its number. Raises as `check_place` does."""
        ...

    async def kept(self, topic: str, after: int, limit: int) -> list[Event]:
        """As the bus's."""
        ...

    async def behind(self, topic: str, after: int, most: int) -> int:
        """As the bus's."""
        ...

    async def topics(self) -> list[Topic]:
        """As the bus's."""
        ...


def check_place(after: int, latest: int, *, is_whole: bool) -> None:
    """Raises StartGone where no new group can begin behind a place.

    `latest`: the last place of the bus; `is_whole`: nothing was removed from behind `after`.
    """
    if after > latest:
        raise StartGone(
            f"starts_after: {sequence_text(after)} is no event of this bus, whose last one is {sequence_text(latest)}"
        )
    if after and not is_whole:
        raise StartGone(
            f"starts_after: some of what was published behind {sequence_text(after)} is kept no more; begin at a "
            "moment (starts_at), or with the oldest event (starts_at_oldest)"
        )


def unable(bus: str) -> StoreUnable:
    """Say that a bus is no engine with `Ability.REPLAYS`."""
    return StoreUnable(
        f"the {bus} bus cannot begin a group at a moment or a place, nor show what it keeps: a new group begins with "
        "what is published from now on, or with the oldest event that is kept"
    )


async def kept_in_parts(
    look: Callable[[int, int], Awaitable[tuple[list[Event], int]]], after: int, limit: int
) -> list[Event]:
    """Return up to `limit` events that are kept behind a place. `look` returns some of at most so many, and where to
    look on, 0 for nowhere: a part at a time, so that whoever publishes meanwhile does not wait for all of it."""
    found: list[Event] = []
    while True:
        some, after = await look(after, limit - len(found))
        found += some
        if not after or len(found) >= limit:
            return found


async def counted_in_parts(look: Callable[[int], Awaitable[tuple[int, int]]], after: int, most: int) -> int:
    """Return how many events there are behind a place, `most` at most. `look` counts some, likewise."""
    found = 0
    while True:
        some, after = await look(after)
        found += some
        if not after or found >= most:
            return min(found, most)


def full(terms: Terms, behind: str) -> StoreFull:
    """Say that there is no room, and what makes some. `behind`: the group that has come least far, empty for none."""
    return StoreFull(
        f"the bus holds {terms.keep_bytes} bytes of events and dead letters that are still needed, and takes more once "
        f"groups have handled some{f' (furthest behind is {behind})' if behind else ''} or they are too old"
    )
