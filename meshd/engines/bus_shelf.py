"""The part of a bus that differs: what an engine does with events, in steps that never wait for another subscriber."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from meshd.engines.port import StoreFull

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.engines.bus_port import DeadLetter, Delivery, Event, Position, Published, Verdict
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


class Attempt(NamedTuple):
    """One attempt at the event of a place."""

    place: int
    number: int


class Shelf(Protocol):
    """What an engine does. `group` is a number that it gave; each method is one step, made whole or not at all."""

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
        """End an attempt."""
        ...

    async def give_back(self, group: int, attempts: Sequence[Attempt], *, is_unseen: bool) -> None:
        """End attempts of which nothing will be heard; those that are unseen were not even begun."""
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


def full(terms: Terms, behind: str) -> StoreFull:
    """Say that there is no room, and what makes some. `behind`: the group that has come least far, empty for none."""
    return StoreFull(
        f"the bus holds {terms.keep_bytes} bytes of events and dead letters that are still needed, and takes more once "
        f"groups have handled some{f' (furthest behind is {behind})' if behind else ''} or they are too old"
    )
