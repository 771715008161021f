"""Where a test may have a bus, a clock that stands until it is moved on, and ways to take, settle and see nothing."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from meshd.engines.bus_kafka import KafkaBus
from meshd.engines.bus_memory import MemoryBus
from meshd.engines.bus_nats import NatsBus
from meshd.engines.bus_port import (
    HANDLING_S,
    Bus,
    DeadLetter,
    Delivery,
    Event,
    Position,
    Published,
    Start,
    Subscription,
    Topic,
    Verdict,
)
from meshd.engines.bus_rabbitmq import RabbitBus
from meshd.engines.bus_redis import RedisBus
from meshd.engines.bus_sqlite import SqliteBus
from meshd.engines.bus_terms import Terms
from meshd.engines.port import Ability, StoreClosed
from meshd.engines.url import StoreUrl
from tests.engines.kafka_mock import MockCluster, shared_cluster
from tests.engines.places import NATS, RABBITMQ, REDIS, nats_api, rabbitmq_remove, redis_command, redis_remove, require

START_S = 1_800_000_000.0
DAY_S = 86_400.0
THERE = (
    "SELECT (SELECT coalesce(sum(bytes), 0) FROM event) + (SELECT coalesce(sum(bytes), 0) FROM dead), "
    "(SELECT count(*) FROM event WHERE (body IS NULL) <> (bytes = 0))"
)
"""What a bus with the embedded one's tables keeps."""


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

    examples = 60
    """How many runs it is compared with the model in."""
    is_kept = True
    """A second bus that is opened here goes on where the first one was closed."""
    has_room = True
    """It counts what it keeps, and refuses what is more; where not, room is the server's."""
    knows_by_age = False
    """An id is known for as long as events are kept, and no longer where a group has its event for longer."""
    trims_at_start = False
    """What has become too old goes as the bus is opened, and not up to a minute later."""
    sidecars = 1
    """So many are asked in turns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Hands()

    def open(self, terms: Terms | None = None) -> Bus:
        raise NotImplementedError

    async def check(self, bus: Bus) -> None:
        """See that what must hold of what is kept, at any time, does: that it is what is counted as kept."""

    def remove(self) -> None:
        """Remove what was kept there."""


class Sidecars:
    """Buses of several sidecars on one engine, each opened with the first that is asked of any, and asked in turns."""

    name, caution = "", ""

    def __init__(
        self, open_one: Callable[[], Awaitable[Bus]], many: int, settled: Callable[[Bus], Awaitable[None]]
    ) -> None:
        """Return, of `settled`, when one of them has heard what the others have told it."""
        self._open_one = open_one
        self._many = many
        self._settled = settled
        self._buses: list[Bus] = []
        self._lock = asyncio.Lock()
        self._turn = itertools.count()
        self._is_closed = False
        self.unheard: Callable[[DeadLetter], None] | None = None

    @property
    def abilities(self) -> frozenset[Ability]:
        """What all can; empty until they are open."""
        return frozenset.intersection(*(bus.abilities for bus in self._buses)) if self._buses else frozenset()

    async def all(self) -> list[Bus]:
        async with self._lock:
            if self._is_closed and not self._buses:
                raise StoreClosed("closed before it was opened")
            while len(self._buses) < self._many:
                self._buses.append(await self._open_one())
                self._buses[-1].unheard = self.unheard
        return self._buses

    async def next(self) -> Bus:
        return (await self.all())[next(self._turn) % self._many]

    async def publish(self, events: Sequence[Event]) -> list[Published]:
        return await (await self.next()).publish(events)

    async def subscribe(
        self,
        topic: str,
        group: str,
        *,
        starts_at_oldest: bool = False,
        handling_s: float = HANDLING_S,
        start: Start | None = None,
    ) -> Subscription:
        bus = await self.next()
        return await bus.subscribe(topic, group, starts_at_oldest=starts_at_oldest, handling_s=handling_s, start=start)

    async def dead_letters(self, group: str, after: int = 0, limit: int = 100) -> list[DeadLetter]:
        return await (await self.next()).dead_letters(group, after, limit)

    async def redrive(self, group: str, ids: Sequence[int]) -> int:
        return await (await self.next()).redrive(group, ids)

    async def positions(self) -> list[Position]:
        """Ask all, and wait until each has heard what the others told it."""
        found = [await bus.positions() for bus in await self.all()]
        for bus in self._buses:
            await self._settled(bus)
        return found[-1]  # which sees what those before it have begun

    async def kept(self, topic: str, after: int = 0, limit: int = 100) -> list[Event]:
        return await (await self.next()).kept(topic, after, limit)

    async def behind(self, topic: str, after: int, most: int) -> int:
        return await (await self.next()).behind(topic, after, most)

    async def topics(self) -> list[Topic]:
        return await (await self.next()).topics()

    async def close(self) -> None:
        self._is_closed = True
        for bus in self._buses:
            await bus.close()


class Memory(BusPlace):
    is_kept = False

    def open(self, terms: Terms | None = None) -> Bus:
        return MemoryBus(terms=terms or TERMS, clock=self.clock)


class Sqlite(BusPlace):
    is_durable = False

    def open(self, terms: Terms | None = None) -> Bus:
        file = self.path / "bus.db"
        return SqliteBus(file, is_durable=self.is_durable, terms=terms or TERMS, clock=self.clock, busy_timeout_s=0.05)

    async def check(self, bus: Bus) -> None:
        shelf, ask = bus._shelf._shelf, bus._shelf._file.ask  # type: ignore[attr-defined]
        found = await ask(lambda: (*shelf.connection.execute(THERE).fetchone(), shelf.bytes_kept()), (), is_write=False)
        assert found == (found[2], 0, found[2])


class Durable(Sqlite):
    is_durable = True


class Served(BusPlace):
    """On a server, under a name of this place's own; `address`: of one that the machine runs."""

    engine = address = ""
    examples = 25  # each takes a second

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if self.address:
            require(self.engine, self.address)
        self.name = f"meshd_test_{secrets.token_hex(6)}"

    def open(self, terms: Terms | None = None) -> Bus:
        return Sidecars(lambda: self.sidecar(terms or TERMS), self.sidecars, self.settled)

    async def sidecar(self, terms: Terms) -> Bus:
        raise NotImplementedError

    async def settled(self, bus: Bus) -> None:
        """Return when a sidecar has heard what the others told it; most have when they have answered."""


class Redis(Served):
    engine, address = "redis", REDIS

    async def sidecar(self, terms: Terms) -> Bus:
        url = StoreUrl(f"redis://{REDIS}/0?prefix={self.name}&timeout=10")
        return await RedisBus.open(url, terms=terms, clock=self.clock)

    async def settled(self, bus: Bus) -> None:
        # What is told comes by a connection of its own, before the answer to what is asked on it now.
        if bus._ear_is_open:  # type: ignore[attr-defined]
            await bus._ear.current().ask("PING")  # type: ignore[attr-defined]

    async def check(self, bus: Bus) -> None:
        kept = 0
        for _, fields in self._ask("XRANGE", "events", "-", "+"):
            if len(fields) != 14 or not fields[9].isdigit():
                continue  # another program's
            kept += 128 + sum(map(len, fields[1::2])) - len(fields[9])
        for kind, ids in (("letter", "died"), ("back", "backs")):
            for id in self._ask("ZRANGE", ids, "0", "-1"):
                kept += int(self._ask("HGET", f"{kind}:{id.decode()}", "bytes"))
        assert kept == int(self._ask("HGET", "meta", "bytes"))
        for number in self._ask("ZRANGE", "positions", "0", "-1"):
            group = f"group:{number.decode()}"
            sets = [self._ask("ZCARD", f"{group}:{name}") for name in ("ready", "out", "wait", "behind")]
            assert sum(sets) == self._ask("HLEN", f"{group}:pending")

    def _ask(self, command: str, key: str, *arguments: str) -> Any:
        return redis_command(command, f"{self.name}:bus:{key}", *arguments)

    def remove(self) -> None:
        redis_remove(self.name)


class RedisPair(Redis):
    sidecars = 2


class Nats(Served):
    engine, address = "nats", NATS

    async def sidecar(self, terms: Terms) -> Bus:
        url = StoreUrl(f"nats://{NATS}?stream={self.name}&timeout=5&connect_timeout=10")
        return await NatsBus.open(url, terms=terms, clock=self.clock)

    def remove(self) -> None:
        asyncio.run(nats_remove(self.name))


class NatsPair(Nats):
    sidecars = 2


class RabbitMq(Served):
    """Removed with each test, since each stream holds files open on the server."""

    engine, address = "rabbitmq", RABBITMQ
    examples = 8

    async def sidecar(self, terms: Terms) -> Bus:
        url = StoreUrl(f"amqp://{RABBITMQ}?prefix={self.name}&timeout=30&connect_timeout=30")
        return await RabbitBus.open(url, terms=terms, clock=self.clock)

    async def check(self, bus: Bus) -> None:
        # Of the replica of each sidecar.
        for one in await bus.all() if isinstance(bus, Sidecars) else ():
            replica, file = one._log._reader._replica, one._log._reader._file  # type: ignore[attr-defined]
            kept = "SELECT value FROM counter WHERE name = 'bytes'"
            ask = replica.connection.execute
            found, counted = await file.ask(lambda: (ask(THERE).fetchone(), ask(kept).fetchone()), (), is_write=False)  # noqa: B023
            assert found == (counted[0], 0)

    def remove(self) -> None:
        rabbitmq_remove(self.name)


class RabbitMqPair(RabbitMq):
    sidecars = 2


class KafkaMock(Served):
    """Topics of its own in librdkafka's mock cluster, which stands in for Kafka and is none."""

    engine = "kafka"
    examples = 8
    has_room = False
    knows_by_age = trims_at_start = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.cluster: MockCluster = shared_cluster()
        self.cluster.make(f"{self.name}.events", 1)

    async def sidecar(self, terms: Terms) -> Bus:
        url = StoreUrl(f"kafka://{self.cluster.address}?prefix={self.name}&timeout=10&fetch_wait=0.01")
        return await KafkaBus.open(url, terms=terms, clock=self.clock)

    async def settled(self, bus: Bus) -> None:
        await bus._shelf.log.barrier(with_events=True)  # type: ignore[attr-defined]


class KafkaMockPair(KafkaMock):
    sidecars = 2


async def nats_remove(name: str) -> None:
    """Remove the streams of a bus."""
    for stream in ("events", "groups", "dead"):
        await nats_api(f"STREAM.DELETE.{name}_{stream}")


# A new engine gets its line here.
BUS_PLACES: dict[str, type[BusPlace]] = {
    "memory": Memory,
    "sqlite": Sqlite,
    "durable": Durable,
    "redis": Redis,
    "redis pair": RedisPair,
    "nats": Nats,
    "nats pair": NatsPair,
    "rabbitmq": RabbitMq,
    "rabbitmq pair": RabbitMqPair,
    "kafka mock": KafkaMock,
    "kafka mock pair": KafkaMockPair,
}
KEPT = [name for name, place in BUS_PLACES.items() if place.is_kept]
ROOMY = [name for name, place in BUS_PLACES.items() if place.has_room]
TERMS = Terms(chance=lambda: 1.0)
"""A wait that is drawn is always the whole bound."""


@contextlib.contextmanager
def bus_place(engine: str, path: Path) -> Iterator[BusPlace]:
    """Yield a place of an engine, and remove what was kept there."""
    place = BUS_PLACES[engine](path)
    try:
        yield place
    finally:
        place.remove()


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
