"""Who waits for the events of a group, and for how long whoever was given one has it.

Nobody polls an engine. A line asks it for as many events as `next` wait there, when it has been stirred: by an event of
its topic, by one that was settled, or by a time that has come.

A process may stand still at any moment, and its handling times go on: it is stopped, or its machine sleeps. When it
goes on, others may have been given what was its own, and have settled it. So nothing is handed over without a look at
the clock (`Subscriber.holds`), and where that says too little at the engine.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from meshd.engines.bus_event import REASON_CHARACTERS_MAX, check_seconds
from meshd.engines.bus_port import Verdict
from meshd.engines.bus_shelf import Attempt
from meshd.engines.port import StoreClosed, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.engines.bus_port import Delivery
    from meshd.engines.bus_shelf import AtOnce, HandedOut, Shelf
    from meshd.engines.bus_terms import Clock, Timer

log = logging.getLogger("meshd")

ASKED_MAX: Final = 256
"""How many events a line asks for at once."""
SPARE_S: Final = 4.0
"""So much of a handling time must be left when an event is handed over, or a quarter of it where that is less: it is by
another sidecar's clock that it ends, and in less there is little to be done."""


class Lease:
    """For how long an attempt is nobody else's, counted from before it was asked for."""

    __slots__ = ("ends_s", "sure_s")

    def __init__(self, asked_s: float, handling_s: float, sure_s: float) -> None:
        self.ends_s = asked_s + handling_s - min(SPARE_S, handling_s / 4)
        """Until when it may be handed over."""
        self.sure_s = asked_s + sure_s
        """Until when that is known without asking (`Shelf.sure_s`)."""


class _Waiter:
    __slots__ = ("asked_s", "future", "subscriber")

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.asked_s = 0.0
        """When the engine was asked for what it is given."""
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
        "_tell",
        "_timer",
        "_waiting",
        "group",
        "is_for",
    )

    def __init__(
        self,
        shelf: Shelf,
        clock: Clock,
        group: int,
        is_for: Callable[[str], bool],
        tell: Callable[[], None],
        at_once: AtOnce | None = None,
    ) -> None:
        """`tell` is called where the engine may have made dead letters."""
        self._tell = tell
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
        self._tell()
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

        def answered(handed: HandedOut | StoreError) -> None:
            self._task = None
            done.set_result(None)
            if isinstance(handed, StoreError):
                self._is_stirred = True  # for the next who asks
                self._fail(asked, handed)
            elif unseen := self._give(asked, handed):
                self._task = asyncio.get_running_loop().create_task(self._give_back(unseen))
                return
            self._look()

        if at_once(self.group, [waiter.subscriber.handling_s for waiter in asked], answered):
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
        """Return for whom the engine is asked now: not who was cancelled, and leaves with the next turn of the loop."""
        waiting = (waiter for waiter in self._waiting if not waiter.future.done())
        asked = [waiter for waiter, _ in zip(waiting, range(ASKED_MAX), strict=False)]
        now_s = self._clock.now_s()
        for waiter in asked:
            waiter.asked_s = now_s
        return asked

    def _give(self, asked: list[_Waiter], handed: HandedOut) -> list[Attempt]:
        """Hand it to who waits; return what nobody waits for any more."""
        if handed.is_more or len(handed.deliveries) == len(asked):
            self._is_stirred = True
        self.arm(handed.due_s)
        self._tell()
        unseen: list[Attempt] = []
        for waiter, delivery in zip(asked, handed.deliveries, strict=False):
            self.leave(waiter)
            if waiter.future.done():
                unseen.append(Attempt.of(delivery))
            else:
                waiter.subscriber.begin(delivery, waiter.asked_s)
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

    __slots__ = ("_clock", "_is_closed", "_line", "_shelf", "_waiters", "group", "handling_s", "under_way")

    def __init__(self, shelf: Shelf, line: Line, clock: Clock, group: str, handling_s: float) -> None:
        self.group = group
        self.handling_s = handling_s
        self._shelf = shelf
        self._line = line
        self._clock = clock
        self.under_way: dict[Attempt, Lease] = {}
        self._waiters: set[_Waiter] = set()
        self._is_closed = False

    def begin(self, delivery: Delivery, asked_s: float) -> None:
        """Have it from now on, for as long as it may be handled from when it was asked for."""
        self.under_way[Attempt.of(delivery)] = Lease(asked_s, self.handling_s, self._shelf.sure_s)

    async def next(self) -> Delivery:
        while True:
            delivery = await self._next()
            try:
                if await self.holds(delivery):
                    return delivery
            except asyncio.CancelledError:
                await self._return(delivery)
                raise

    async def _next(self) -> Delivery:
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

    async def holds(self, delivery: Delivery) -> bool:
        attempt = Attempt.of(delivery)
        while (lease := self.under_way.get(attempt)) is not None:
            now_s = self._clock.now_s()
            if now_s >= lease.ends_s:
                break
            if now_s < lease.sure_s:
                return True
            try:
                if not await self._shelf.is_held(self._line.group, attempt):
                    break
            except StoreError as error:
                log.warning("nobody knows whether an event is still this sidecar's: %s", error)
                break
            lease.sure_s = now_s + self._shelf.sure_s
        else:
            return False
        log.warning("an event was not handed over in its time, and goes back: %s", delivery.event.topic)
        # It ends whatever becomes of whoever waits for it here.
        await asyncio.shield(asyncio.ensure_future(self._return(delivery)))
        return False

    def is_sure(self, delivery: Delivery) -> bool:
        lease, now_s = self.under_way.get(Attempt.of(delivery)), self._clock.now_s()
        return lease is not None and now_s < lease.ends_s and now_s < lease.sure_s

    async def settle(
        self, delivery: Delivery, verdict: Verdict, *, retry_after_s: float | None = None, reason: str = ""
    ) -> bool:
        self._check()
        if retry_after_s is not None:
            check_seconds("retry_after", retry_after_s)
        return await self._settle(delivery, verdict, retry_after_s, reason)

    async def defer(self, delivery: Delivery, wait_s: float) -> bool:
        return await self._settle(delivery, Verdict.DEFER, wait_s, "")

    async def lapse(self, delivery: Delivery, reason: str) -> bool:
        return await self._settle(delivery, Verdict.RETRY, 0.0, reason)

    async def _settle(self, delivery: Delivery, verdict: Verdict, retry_after_s: float | None, reason: str) -> bool:
        attempt = Attempt.of(delivery)
        reason = reason[:REASON_CHARACTERS_MAX].encode("utf-8", "replace").decode()
        settled = await self._shelf.settle(self._line.group, attempt, verdict, retry_after_s, reason)
        self.under_way.pop(attempt, None)
        self._line.arm(settled.due_s)
        if settled.is_freed:
            self._line.stir()
        return settled.counted

    def left_s(self, delivery: Delivery) -> float:
        lease = self.under_way.get(Attempt.of(delivery))
        return 0.0 if lease is None else max(0.0, lease.ends_s - self._clock.now_s())

    async def give_back(self, delivery: Delivery, *, is_unseen: bool) -> None:
        attempt = Attempt.of(delivery)
        if attempt in self.under_way:
            if is_unseen:
                # Whatever comes of it: the next attempt has the same number, and may be somebody else's at any moment.
                del self.under_way[attempt]
            try:
                await self._shelf.give_back(self._line.group, (attempt,), is_unseen=is_unseen)
                if not is_unseen:
                    self.under_way.pop(attempt, None)
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
            attempts = sorted(self.under_way)
            self.under_way.clear()
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
