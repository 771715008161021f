"""Who waits for which group of a bus, and who is woken by what: the lines of a group, and the subscribers in them.

Nobody polls. A line asks the engine for as many events as `next` wait there, when it has been stirred: by an event of
its topic, by one that was settled, or by a time that has come.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from meshd.engines.bus_event import REASON_CHARACTERS_MAX, check_seconds
from meshd.engines.bus_shelf import Attempt
from meshd.engines.port import StoreClosed, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.engines.bus_port import Delivery, Verdict
    from meshd.engines.bus_shelf import AtOnce, HandedOut, Shelf
    from meshd.engines.bus_terms import Clock, Timer

log = logging.getLogger("meshd")

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
        "_at_once",
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

    def __init__(
        self, shelf: Shelf, clock: Clock, group: int, is_for: Callable[[str], bool], at_once: AtOnce | None = None
    ) -> None:
        self.group = group
        self.is_for = is_for
        """Whether a topic is one of the group's."""
        self._shelf = shelf
        self._at_once = at_once
        self._clock = clock
        self._waiting: deque[_Waiter] = deque()
        self._is_stirred = True
        """There may be something to hand out."""
        self._task: asyncio.Future[None] | None = None
        """The shelf is asked; done once it has answered, and nothing is to be given back."""
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
        # Whoever comes to wait may come with others of the same turn, and all ask as one; what there is to hand out is
        # what somebody waits for.
        if self._at_once is None or self._task is not None or not self._ask_at_once(self._at_once):
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
        while self._task is not None:
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
                asked = self._first()
                if not asked:
                    self._is_stirred = True
                    break
                try:
                    times = [waiter.subscriber.handling_s for waiter in asked]
                    handed = await self._shelf.hand_out(self.group, times)
                    if unseen := self._give(asked, handed):
                        await self._shelf.give_back(self.group, unseen, is_unseen=True)
                except StoreError as error:
                    self._is_stirred = True  # for the next who asks
                    self._fail(asked, error)
        finally:
            self._task = None

    def _ask_at_once(self, at_once: AtOnce) -> bool:
        """Ask without a task of our own; return False where that cannot be."""
        asked = self._first()
        if not asked:
            return False
        self._is_stirred = False
        done = self._task = asyncio.get_running_loop().create_future()

        def tell(handed: HandedOut | StoreError) -> None:
            self._task = None
            done.set_result(None)
            if isinstance(handed, StoreError):
                self._is_stirred = True  # for the next who asks
                self._fail(asked, handed)
            elif unseen := self._give(asked, handed):
                self._task = asyncio.get_running_loop().create_task(self._give_back(unseen))
                return
            self._look()

        if at_once(self.group, [waiter.subscriber.handling_s for waiter in asked], tell):
            return True
        self._task, self._is_stirred = None, True
        return False

    async def _give_back(self, unseen: list[Attempt]) -> None:
        try:
            await self._shelf.give_back(self.group, unseen, is_unseen=True)
        except StoreError as error:
            log.warning("an event that nobody took waits until it can be given back, or its time is over: %s", error)
        finally:
            self._task = None
        self._look()

    def _first(self) -> list[_Waiter]:
        """Return who is asked for next: not who was cancelled, and leaves with the next turn of the loop."""
        waiting = (waiter for waiter in self._waiting if not waiter.future.done())
        return [waiter for waiter, _ in zip(waiting, range(ASKED_MAX), strict=False)]

    def _give(self, asked: list[_Waiter], handed: HandedOut) -> list[Attempt]:
        """Hand it to who waits; return what nobody waits for any more."""
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
        return unseen

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
