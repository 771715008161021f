"""The part of a bus that every engine has: who waits for which group, and who is woken by what.

An engine keeps events and says which come next (`Shelf`); nobody polls it. A line asks it for as many events as `next`
wait there, when it has been stirred: by an event of its topic, by one that was settled, or by a time that has come.
A bus belongs to the loop on which it is used.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final, cast

from meshd.engines.bus_event import (
    HANDLING_S_LEAST,
    REASON_CHARACTERS_MAX,
    check_group,
    check_pattern,
    check_seconds,
    completed,
    matcher,
)
from meshd.engines.bus_port import HANDLING_S, PLACE_MAX, EventMalformed
from meshd.engines.bus_shelf import Attempt, unable
from meshd.engines.port import Ability, StoreClosed, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from meshd.engines.bus_port import DeadLetter, Delivery, Event, Position, Published, Start, Topic, Verdict
    from meshd.engines.bus_shelf import HandedOut, Replays, Shelf
    from meshd.engines.bus_terms import Clock, Terms, Timer

log = logging.getLogger("meshd")

TRIM_S: Final = 60.0
"""How often what is too old is looked for."""
AHEAD_S: Final = 60.0
"""So far ahead another clock may be: a moment that is to come by no more than that is now."""
ASKED_MAX: Final = 256
"""How many events a line asks for at once."""


class _Waiter:
    __slots__ = ("future", "subscriber")

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.future: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()


class Line:
    """Those who wait for the events of one group."""

    __slots__ = (
        "_clock",
        "_due_s",
        "_is_ended",
        "_is_stirred",
        "_shelf",
        "_task",
        "_timer",
        "_waiting",
        "group",
        "is_for",
    )

    def __init__(self, shelf: Shelf, clock: Clock, group: int, is_for: Callable[[str], bool]) -> None:
        self.group = group
        self.is_for = is_for
        """Whether a topic is one of the group's."""
        self._shelf = shelf
        self._clock = clock
        self._waiting: deque[_Waiter] = deque()
        self._is_stirred = True
        """There may be something to hand out."""
        self._task: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        self._due_s = 0.0
        self._is_ended = False

    def join(self, waiter: _Waiter) -> None:
        """Wait for an event. Raises StoreClosed."""
        if self._is_ended:
            raise StoreClosed("the bus was closed")
        self._waiting.append(waiter)
        self._look()

    def stir(self) -> None:
        """Say that there may be something to hand out."""
        self._is_stirred = True
        self._look()

    def leave(self, waiter: _Waiter) -> None:
        """Wait no more."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)

    def arm(self, due_s: float | None) -> None:
        """Stir at `due_s`, or at what was planned before, where that is earlier."""
        if due_s is None or (self._timer is not None and self._due_s <= due_s):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due_s = due_s
        self._timer = self._clock.at(due_s, self._fall_due)

    async def end(self) -> None:
        """Send everybody away, and be done with what is under way."""
        self._is_ended = True
        for waiter in self._waiting:
            if not waiter.future.done():
                waiter.future.set_exception(StoreClosed("the bus was closed"))
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await asyncio.wait((self._task,))

    def _fall_due(self) -> None:
        self._timer = None
        self.stir()

    def _look(self) -> None:
        if self._task is None and self._is_stirred and self._waiting:
            self._task = asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> None:
        try:
            while self._is_stirred and self._waiting:
                self._is_stirred = False
                asked = [waiter for waiter, _ in zip(self._waiting, range(ASKED_MAX), strict=False)]
                try:
                    times = [waiter.subscriber.handling_s for waiter in asked]
                    handed = await self._shelf.hand_out(self.group, times)
                    await self._give(asked, handed)
                except StoreError as error:
                    self._is_stirred = True  # for the next who asks
                    self._fail(asked, error)
        finally:
            self._task = None

    async def _give(self, asked: list[_Waiter], handed: HandedOut) -> None:
        if handed.is_more or len(handed.deliveries) == len(asked):
            self._is_stirred = True
        self.arm(handed.due_s)
        unseen: list[Attempt] = []
        for waiter, delivery in zip(asked, handed.deliveries, strict=False):
            self.leave(waiter)
            attempt = Attempt(delivery.place, delivery.attempt)
            if waiter.future.done():
                unseen.append(attempt)
            else:
                waiter.subscriber.under_way.add(attempt)
                waiter.future.set_result(delivery)
        if unseen:
            self._is_stirred = True
            await self._shelf.give_back(self.group, unseen, is_unseen=True)

    def _fail(self, asked: list[_Waiter], error: StoreError) -> None:
        for waiter in asked:
            self.leave(waiter)
            if not waiter.future.done():
                waiter.future.set_exception(type(error)(*error.args))


class Subscriber:
    """One subscriber of a group (`Subscription`)."""

    __slots__ = ("_is_closed", "_line", "_shelf", "_waiters", "group", "handling_s", "under_way")

    def __init__(self, shelf: Shelf, line: Line, group: str, handling_s: float) -> None:
        self.group = group
        self.handling_s = handling_s
        self.under_way: set[Attempt] = set()
        self._shelf = shelf
        self._line = line
        self._waiters: set[_Waiter] = set()
        self._is_closed = False

    async def next(self) -> Delivery:
        self._check()
        waiter = _Waiter(self)
        self._line.join(waiter)
        self._waiters.add(waiter)
        try:
            delivery = await waiter.future
        except asyncio.CancelledError:
            self._line.leave(waiter)
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                # It was handed out in the turn of the loop in which its taker was cancelled.
                await self._return(waiter.future.result())
            raise
        finally:
            self._waiters.discard(waiter)
        self._check()
        return delivery

    async def settle(
        self, delivery: Delivery, verdict: Verdict, *, retry_after_s: float | None = None, reason: str = ""
    ) -> bool:
        self._check()
        if retry_after_s is not None:
            check_seconds("retry_after", retry_after_s)
        attempt = Attempt(delivery.place, delivery.attempt)
        reason = reason[:REASON_CHARACTERS_MAX].encode("utf-8", "replace").decode()
        settled = await self._shelf.settle(self._line.group, attempt, verdict, retry_after_s, reason)
        self.under_way.discard(attempt)
        self._line.arm(settled.due_s)
        if settled.is_freed:
            self._line.stir()
        return settled.counted

    async def give_back(self, delivery: Delivery, *, is_unseen: bool) -> None:
        attempt = Attempt(delivery.place, delivery.attempt)
        if attempt in self.under_way:
            if is_unseen:
                # Whatever comes of it: the next attempt has the same number, and may be somebody else's at any moment.
                self.under_way.discard(attempt)
            try:
                await self._shelf.give_back(self._line.group, (attempt,), is_unseen=is_unseen)
                if not is_unseen:
                    self.under_way.discard(attempt)
            finally:
                self._line.stir()

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        for waiter in self._waiters:
            self._line.leave(waiter)
            if not waiter.future.done():
                waiter.future.set_exception(StoreClosed("the subscription was closed"))
        if self.under_way:
            attempts, self.under_way = sorted(self.under_way), set()
            await self._shelf.give_back(self._line.group, attempts, is_unseen=False)
            self._line.stir()

    def _check(self) -> None:
        if self._is_closed:
            raise StoreClosed("the subscription was closed")

    async def _return(self, delivery: Delivery) -> None:
        try:
            await self.give_back(delivery, is_unseen=True)
        except StoreError as error:
            log.warning("an event that nobody took waits until it can be given back, or its time is over: %s", error)


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

    def __init__(self, shelf: Shelf, terms: Terms, clock: Clock) -> None:
        self._shelf = shelf
        self._terms = terms
        self._clock = clock
        self._lines: dict[int, Line] = {}
        self._trimming: Timer | None = None
        self._trim_task: asyncio.Task[None] | None = None
        self._is_closed = False

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
        line = self._lines.get(number)
        if line is None:
            line = self._lines[number] = Line(self._shelf, self._clock, number, matcher(topic))
        return Subscriber(self._shelf, line, group, handling_s)

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

    async def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            if self._trimming is not None:
                self._trimming.cancel()
            for line in self._lines.values():
                await line.end()
            if self._trim_task is not None:
                await asyncio.wait((self._trim_task,))
        await self._shelf.close()

    def _check(self) -> None:
        if self._is_closed:
            raise StoreClosed("the bus was closed")
        if self._trimming is None:
            self._trimming = self._clock.at(self._clock.now_s() + TRIM_S, self._trim)

    def _trim(self) -> None:
        self._trimming = self._clock.at(self._clock.now_s() + TRIM_S, self._trim)
        self._begin_to_trim()

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
