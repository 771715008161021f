"""Which engine a URL names: the one list of those that carry events. A driver is imported only when it is named."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from meshd.engines.bus_port import HANDLING_S
from meshd.engines.port import StoreClosed, StoreUnable
from meshd.engines.table import Engine, driver_of
from meshd.engines.url import StoreUrl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.engines.bus_port import Bus, DeadLetter, Event, Position, Published, Start, Subscription, Topic
    from meshd.engines.port import Ability

log = logging.getLogger("meshd")


_REDIS: Final = Engine("bus_redis", "RedisBus", "redis://127.0.0.1:6379/0", "redis")
_RABBITMQ: Final = Engine("bus_rabbitmq", "RabbitBus", "amqp://127.0.0.1:5672", "rabbitmq")
_NATS: Final = Engine("bus_nats", "NatsBus", "nats://127.0.0.1:4222")
_KAFKA: Final = Engine("bus_kafka", "KafkaBus", "kafka://127.0.0.1:9092", "kafka")

# An engine that carries events gets its line here.
ENGINES: Final[dict[str, Engine]] = {
    "sqlite": Engine("bus_sqlite", "SqliteBus", "sqlite:///var/lib/meshd/bus.db"),  # the default: one file
    "memory": Engine("bus_memory", "MemoryBus", "memory:"),  # the model
    "redis": _REDIS,
    "rediss": _REDIS._replace(example="rediss://redis.example:6379/0"),  # over TLS
    "unix": _REDIS._replace(example="unix:///run/redis/redis.sock"),
    "nats": _NATS,
    "tls": _NATS._replace(example="tls://nats.example:4222"),  # as NATS itself writes it
    "amqp": _RABBITMQ,
    "amqps": _RABBITMQ._replace(example="amqps://rabbitmq.example:5671"),  # over TLS
    "kafka": _KAFKA,
    "kafka+tls": _KAFKA._replace(example="kafka+tls://kafka.example:9093"),
}
_EMBEDDED: Final = {"sqlite": frozenset({"mode"}), "memory": frozenset[str]()}
"""Options of those that run in this process. A driver on a server checks its URL by itself, and is opened with it."""
FILE_NAME: Final = "bus.db"
DEFAULT: Final = "sqlite:"
MODES: Final = ("fast", "durable")


def check_bus(text: str) -> StoreUrl:
    """Read a bus's URL. Raises StoreUnable where no driver can do what it asks; no message holds a password."""
    url = StoreUrl(text or DEFAULT, "bus")
    if url.scheme not in ENGINES:
        known = ", ".join(engine.example for engine in ENGINES.values())
        raise StoreUnable(f"this build has no bus called {url.scheme[:40]}. Engines that carry events: {known}")
    if url.scheme not in _EMBEDDED:
        driver_of(ENGINES[url.scheme], "bus").check(url)
        return url
    options = _EMBEDDED[url.scheme]
    if unknown := sorted(set(url.options) - options):
        raise StoreUnable(
            f"the {url.scheme} bus knows no option {unknown[0][:40]!r}"
            + (f"; it knows {', '.join(sorted(options))}" if options else "")
        )
    if url.options.get("mode", MODES[0]) not in MODES:
        raise StoreUnable(f"mode={url.options['mode'][:40]} is neither fast nor durable")
    if url.scheme == "sqlite" and url.host:
        raise StoreUnable("a SQLite bus is named by its path, with three slashes: sqlite:///var/lib/meshd/bus.db")
    return url


async def open_bus(text: str, home: Path) -> Bus:
    """Open the bus that a URL names. Empty, or `sqlite:` alone, is `bus.db` in the state directory `home`.

    Raises StoreUnable where no driver can do what the URL asks; another StoreError where the bus cannot be used now.
    """
    url = check_bus(text)
    driver = driver_of(ENGINES[url.scheme], "bus")
    if url.scheme not in _EMBEDDED:
        return await driver.open(url)  # type: ignore[no-any-return]
    if url.scheme == "memory":
        return driver()  # type: ignore[no-any-return]
    path = Path(url.path) if url.path.strip("/") else home / FILE_NAME
    # Opening reads the file, which may be large: not on the loop on which calls wait.
    return await asyncio.to_thread(driver, path, is_durable=url.options.get("mode") == "durable")


class LateBus:
    """A bus that is opened with the first thing that is asked of it: a sidecar that carries no events pays nothing.

    Where it cannot be opened, each that asks is told so, and the next tries again.
    """

    def __init__(self, text: str, home: Path) -> None:
        self._text = text
        self._home = home
        self._bus: Bus | None = None
        self._opening = asyncio.Lock()
        self._is_closed = False
        self.unheard: Callable[[DeadLetter], None] | None = None

    @property
    def name(self) -> str:
        """The engine's; empty until it is open, as are the two below."""
        return "" if self._bus is None else self._bus.name

    @property
    def abilities(self) -> frozenset[Ability]:
        return frozenset() if self._bus is None else self._bus.abilities

    @property
    def caution(self) -> str:
        return "" if self._bus is None else self._bus.caution

    async def publish(self, events: Sequence[Event]) -> list[Published]:
        return await (await self._opened()).publish(events)

    async def subscribe(
        self,
        topic: str,
        group: str,
        *,
        starts_at_oldest: bool = False,
        handling_s: float = HANDLING_S,
        start: Start | None = None,
    ) -> Subscription:
        bus = await self._opened()
        return await bus.subscribe(topic, group, starts_at_oldest=starts_at_oldest, handling_s=handling_s, start=start)

    async def dead_letters(self, group: str, after: int = 0, limit: int = 100) -> list[DeadLetter]:
        return await (await self._opened()).dead_letters(group, after, limit)

    async def redrive(self, group: str, ids: Sequence[int]) -> int:
        return await (await self._opened()).redrive(group, ids)

    async def positions(self) -> list[Position]:
        return await (await self._opened()).positions()

    async def kept(self, topic: str, after: int = 0, limit: int = 100) -> list[Event]:
        return await (await self._opened()).kept(topic, after, limit)

    async def behind(self, topic: str, after: int, most: int) -> int:
        return await (await self._opened()).behind(topic, after, most)

    async def topics(self) -> list[Topic]:
        return await (await self._opened()).topics()

    async def close(self) -> None:
        async with self._opening:
            self._is_closed = True
            if self._bus is not None:
                await self._bus.close()

    async def _opened(self) -> Bus:
        if self._bus is None:
            async with self._opening:
                if self._is_closed:
                    raise StoreClosed("the bus was closed")
                if self._bus is None:
                    self._bus = await open_bus(self._text, self._home)
                    self._bus.unheard = self.unheard
                    log.info("the %s bus is open%s", self.name, f": {self.caution}" if self.caution else "")
        return self._bus
