"""The part of a bus that every engine has: what is asked of it is looked at, and who waits (bus_line) is woken.

An engine keeps events and says which come next (`Shelf`). A bus belongs to the loop on which it is used.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, cast

from meshd.engines.bus_event import HANDLING_S_LEAST, check_group, check_pattern, check_seconds, completed, matcher
from meshd.engines.bus_line import Line, Subscriber
from meshd.engines.bus_port import HANDLING_S, PLACE_MAX, EventMalformed
from meshd.engines.bus_shelf import unable
from meshd.engines.port import Ability, StoreClosed, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from meshd.engines.bus_port import DeadLetter, Event, Position, Published, Start, Topic
    from meshd.engines.bus_shelf import AtOnce, Replays, Shelf
    from meshd.engines.bus_terms import Clock, Terms, Timer

log = logging.getLogger("meshd")

TRIM_S: Final = 60.0
"""How often what is too old is looked for."""
AHEAD_S: Final = 60.0
"""So far ahead another clock may be: a moment that is to come by no more than that is now."""


def check_start(start: Start, now_s: float) -> None:
    """Raises EventMalformed for what is no place to begin at on any bus, when it is `now_s`."""
    if (start.at_s is None) == (start.after is None):
        raise EventMalformed("starts_at", "a moment or a place to begin at, and not both")
    if start.at_s is not None and not 0 <= start.at_s < PLACE_MAX:  # also for NaN
        raise EventMalformed("starts_at", f"{start.at_s} is no moment in Unix seconds")
    if start.at_s is not None and start.at_s > now_s + AHEAD_S:
        raise EventMalformed("starts_at", f"is {start.at_s - now_s:.0f} s from now, and nobody begins in the future")
    if start.after is not None and not 0 <= start.after < PLACE_MAX:
        raise EventMalformed("starts_after", f"{start.after} is no place: it is the sequence of an event")


def _check_after(after: int) -> None:
    """Raises EventMalformed for what no engine has a number for."""
    if not 0 <= after < PLACE_MAX:
        raise EventMalformed("after", f"{after} is no id or place: the last one of the page before")


class BusFront:
    """A bus before its shelf. Engines derive from it, and set `name`, `abilities` and `caution`."""

    name = ""
    abilities: frozenset[Ability] = frozenset()

    def __init__(self, shelf: Shelf, terms: Terms, clock: Clock, at_once: AtOnce | None = None) -> None:
        self._shelf = shelf
        self._at_once = at_once
        self._terms = terms
        self._clock = clock
        self._lines: dict[int, Line] = {}
        self._trimming: Timer | None = None
        self._trim_task: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._is_closed = False
        self.unheard: Callable[[DeadLetter], None] | None = None

    async def publish(self, events: Sequence[Event]) -> list[Published]:
        self._check()
        wall_ns = self._clock.wall_ns()
        whole = [completed(event, wall_ns, self._terms.new_id) for event in events]
        published = await self._keep(whole)
        if self._shelf.is_crowded:
            self._begin_to_trim()
        return published

    async def _keep(self, events: list[Event]) -> list[Published]:
        """Keep them and wake who waits for them."""
        published = await self._shelf.keep(events)
        self._stir({event.topic for event, done in zip(events, published, strict=True) if not done.is_duplicate})
        return published

    def _stir(self, topics: Collection[str]) -> None:
        for line in self._lines.values():
            if any(map(line.is_for, topics)):
                line.stir()

    async def subscribe(
        self,
        topic: str,
        group: str,
        *,
        starts_at_oldest: bool = False,
        handling_s: float = HANDLING_S,
        start: Start | None = None,
    ) -> Subscriber:
        self._check()
        check_pattern(topic)
        check_group(group)
        check_seconds("handling_time", handling_s, HANDLING_S_LEAST)
        if start is not None:
            check_start(start, self._clock.now_s())
            number = await self._replays().join_from(group, topic, start)
        else:
            number = await self._shelf.join(group, topic, starts_at_oldest=starts_at_oldest)
        self._check()  # it may have been closed meanwhile, and ends no line that comes now
        line = self._lines.get(number)
        if line is None:
            at_once, is_for = self._at_once, matcher(topic)
            line = self._lines[number] = Line(self._shelf, self._clock, number, is_for, self.tell, at_once)
        return Subscriber(self._shelf, line, self._clock, group, handling_s)

    async def dead_letters(self, group: str, after: int = 0, limit: int = 100) -> list[DeadLetter]:
        self._check()
        check_group(group)
        _check_after(after)
        return await self._shelf.dead_letters(group, after, limit)

    async def redrive(self, group: str, ids: Sequence[int]) -> int:
        self._check()
        check_group(group)
        numbers = await self._shelf.redrive(group, [id for id in ids if 0 < id < PLACE_MAX])
        for number in set(numbers) & set(self._lines):
            self._lines[number].stir()
        return len(numbers)

    async def positions(self) -> list[Position]:
        self._check()
        return await self._shelf.positions()

    async def kept(self, topic: str, after: int = 0, limit: int = 100) -> list[Event]:
        self._check()
        check_pattern(topic)
        _check_after(after)
        return await self._replays().kept(topic, after, limit)

    async def behind(self, topic: str, after: int, most: int) -> int:
        self._check()
        check_pattern(topic)
        return await self._replays().behind(topic, after, most)

    async def topics(self) -> list[Topic]:
        self._check()
        return await self._replays().topics()

    def _replays(self) -> Replays:
        if Ability.REPLAYS not in self.abilities:
            raise unable(self.name)
        return cast("Replays", self._shelf)

    def tell(self) -> None:
        """Tell whoever wants to know of dead letters of which no handler knows."""
        if self._shelf.unheard and self.unheard is not None and self._telling is None:
            self._telling = asyncio.get_running_loop().create_task(self._tell(self.unheard))

    async def _tell(self, unheard: Callable[[DeadLetter], None]) -> None:
        try:
            while self._shelf.unheard:
                group, id = self._shelf.unheard.popleft()
                for letter in await self._shelf.dead_letters(group, id - 1, 1):
                    if letter.id == id:
                        unheard(letter)
        except StoreError as error:
            log.warning("a dead letter of which no handler knows could not be read: %s", error)
        finally:
            self._telling = None

    async def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            if self._trimming is not None:
                self._trimming.cancel()
            for line in self._lines.values():
                await line.end()
            for task in (self._trim_task, self._telling):
                if task is not None:
                    await asyncio.wait((task,))
        await self._shelf.close()

    def _check(self) -> None:
        if self._is_closed:
            raise StoreClosed("the bus was closed")
        if self._trimming is None:
            self._trimming = self._clock.at(self._clock.now_s() + TRIM_S, self._trim)

    def _trim(self) -> None:
        self._trimming = self._clock.at(self._clock.now_s() + TRIM_S, self._trim)
        self._begin_to_trim()
        self.tell()

    def _begin_to_trim(self) -> None:
        if self._trim_task is None:
            self._trim_task = asyncio.get_running_loop().create_task(self._trim_all())

    async def _trim_all(self) -> None:
        try:
            # A part at a time: what is asked for meanwhile runs in between.
            while not self._is_closed and await self._shelf.trim():
                pass
        except StoreError as error:
            log.warning("what is too old could not be removed from the bus: %s", error)
        finally:
            self._trim_task = None
