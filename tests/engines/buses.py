"""Where a test may have a bus, a clock that stands until it is moved on, and ways to take, settle and see nothing."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from meshd.engines.bus_memory import MemoryBus
from meshd.engines.bus_port import Bus, Delivery, Event, Subscription, Verdict
from meshd.engines.bus_sqlite import SqliteBus
from meshd.engines.bus_terms import Terms

START_S = 1_800_000_000.0
DAY_S = 86_400.0


class _Timer:
    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Hands:
    """A clock (`meshd.engines.bus_terms.Clock`) whose hands the test moves."""

    def __init__(self, now_s: float = START_S) -> None:
        self._now_s = now_s
        self._planned: list[tuple[float, int, _Timer]] = []
        self._count = itertools.count()

    def now_s(self) -> float:
        return self._now_s

    def wall_ns(self) -> int:
        return int(self._now_s * 1e9)

    def at(self, when_s: float, call: Callable[[], None]) -> _Timer:
        timer = _Timer(call)
        heapq.heappush(self._planned, (when_s, next(self._count), timer))
        return timer

    def move(self, seconds: float) -> None:
        """Let time pass, and do what falls due meanwhile."""
        end_s = self._now_s + seconds
        while self._planned and self._planned[0][0] <= end_s:
            self._now_s, _, timer = heapq.heappop(self._planned)
            if timer.call is not None:
                timer.call()
        self._now_s = end_s


class BusPlace:
    """Where one test has its bus."""

    is_kept = True
    """A second bus that is opened here goes on where the first one was closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Hands()

    def open(self, terms: Terms | None = None) -> Bus:
        raise NotImplementedError


class Memory(BusPlace):
    is_kept = False

    def open(self, terms: Terms | None = None) -> Bus:
        return MemoryBus(terms=terms or TERMS, clock=self.clock)


class Sqlite(BusPlace):
    is_durable = False

    def open(self, terms: Terms | None = None) -> Bus:
        file = self.path / "bus.db"
        return SqliteBus(file, is_durable=self.is_durable, terms=terms or TERMS, clock=self.clock, busy_timeout_s=0.05)


class Durable(Sqlite):
    is_durable = True


# A new engine gets its line here.
BUS_PLACES: dict[str, type[BusPlace]] = {"memory": Memory, "sqlite": Sqlite, "durable": Durable}
KEPT = [name for name, place in BUS_PLACES.items() if place.is_kept]
TERMS = Terms(chance=lambda: 1.0)
"""A wait that is drawn is always the whole bound."""


def event(topic: str = "task.done", **attributes: object) -> Event:
    """Return an event of the agent `me`."""
    return Event(topic, "me", **attributes)  # type: ignore[arg-type]


async def quiet(bus: Bus) -> None:
    """Return when everything is done that was begun: one more question waits behind all that were asked."""
    for _ in range(6):
        await asyncio.sleep(0)
        await bus.positions()


async def take(subscription: Subscription, many: int) -> list[Delivery]:
    """Return the next deliveries, one after the other."""
    return [await subscription.next() for _ in range(many)]


async def handle(subscription: Subscription, many: int) -> list[str]:
    """Settle the next events with SUCCESS; return their ids."""
    found = []
    for _ in range(many):
        delivery = await subscription.next()
        assert await subscription.settle(delivery, Verdict.SUCCESS)
        found.append(delivery.event.id)
    return found


async def is_waiting(bus: Bus, *subscriptions: Subscription) -> bool:
    """Say whether there is nothing now for any of these subscribers."""
    asked = [asyncio.ensure_future(one.next()) for one in subscriptions]
    await quiet(bus)
    is_idle = not any(one.done() for one in asked)
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    return is_idle


async def fail(subscription: Subscription, clock: Hands, attempts: Sequence[int], reason: str = "no") -> None:
    """Answer attempts, which must have these numbers, with RETRY, and wait for each further one."""
    for number in attempts:
        delivery = await subscription.next()
        assert delivery.attempt == number
        assert await subscription.settle(delivery, Verdict.RETRY, reason=reason)
        clock.move(300.0)
