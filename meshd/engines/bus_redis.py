"""Redis as a bus that many sidecars share: events in a stream, all else in scripts (bus_redis_keys has the map).

Nobody polls. What one sidecar publishes or frees is told to all by PUBLISH, and of what comes due later the earliest
alarm; for that each sidecar has a timer of its own. Time is the server's, so that sidecars whose clocks differ agree.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from meshd.engines import redis_server
from meshd.engines.bus_front import BusFront
from meshd.engines.bus_port import HANDLING_S
from meshd.engines.bus_redis_replay import ReplayingShelf
from meshd.engines.bus_terms import Clock, SteadyClock, Terms
from meshd.engines.link import Link
from meshd.engines.port import Ability, StoreError
from meshd.engines.redis_asking import Asking
from meshd.engines.url import CONNECT_TIMEOUT_S, TIMEOUT_S

if TYPE_CHECKING:
    from meshd.engines.bus_line import Subscriber
    from meshd.engines.bus_port import Event, Published, Start
    from meshd.engines.redis_wire import Wire
    from meshd.engines.url import StoreUrl

log = logging.getLogger("meshd")

_ABILITIES: Final = frozenset({Ability.SHARED, Ability.REPLAYS})
LOSS: Final = "an event that is thrown away is never handled"


class RedisBus(BusFront):
    """Events in one Redis. All of it belongs to the loop on which it was opened."""

    name = "redis"

    def __init__(self, url: StoreUrl, *, terms: Terms | None = None, clock: Clock | None = None) -> None:
        """Use `open`. With a `clock` that is handed in, its time takes the place of the server's."""
        self.check(url)
        self._url = url
        self._where = redis_server.place(url, "bus")
        self._timeout_s = url.seconds("timeout", TIMEOUT_S)
        connect_timeout_s = url.seconds("connect_timeout", CONNECT_TIMEOUT_S)
        self.abilities = _ABILITIES
        self.caution = ""
        terms, hands = terms or Terms(), clock or SteadyClock()
        self._remote = ReplayingShelf(
            lambda scripts: Asking(
                self._where, self._dial, scripts, connect_timeout_s=connect_timeout_s, restored=self._is_back
            ),
            f"{url.options.get('prefix', 'meshd')}:bus",
            redis_server.database(url),
            terms,
            hands,
            is_time_own=clock is not None,
        )
        ear = f"the wake-up of {self._where}"
        self._ear = Link(ear, self._dial_ear, timeout_s=connect_timeout_s, restored=self._missed)
        self._ear_is_open = False
        self._ear_lock = asyncio.Lock()
        self._mending: asyncio.Task[None] | None = None
        super().__init__(self._remote, terms, hands)

    @staticmethod
    def check(url: StoreUrl) -> None:
        """Refuse what a Redis URL of a bus cannot say. Raises StoreUnable."""
        redis_server.check(url, "bus")
        url.seconds("timeout", TIMEOUT_S)
        url.seconds("connect_timeout", CONNECT_TIMEOUT_S)

    @classmethod
    async def open(cls, url: StoreUrl, *, terms: Terms | None = None, clock: Clock | None = None) -> RedisBus:
        """Connect and look at what the server promises. Raises StoreError or one of its kinds."""
        bus = cls(url, terms=terms, clock=clock)
        try:
            await bus._remote.asking.link.open()
        except BaseException:
            await bus.close()
            raise
        return bus

    async def subscribe(
        self,
        topic: str,
        group: str,
        *,
        starts_at_oldest: bool = False,
        handling_s: float = HANDLING_S,
        start: Start | None = None,
    ) -> Subscriber:
        if not self._is_closed and not self._ear_is_open:
            # A sidecar that only publishes hears nothing of the others.
            async with self._ear_lock:
                if not self._ear_is_open:
                    await self._ear.open()
                    self._ear_is_open = True
        return await super().subscribe(
            topic, group, starts_at_oldest=starts_at_oldest, handling_s=handling_s, start=start
        )

    async def close(self) -> None:
        if self._mending is not None:
            self._mending.cancel()
            await asyncio.gather(self._mending, return_exceptions=True)
            self._mending = None
        await super().close()
        await self._ear.close()

    async def _keep(self, events: list[Event]) -> list[Published]:
        # Who waits here asks in the same write, behind what is published: that saves them a round trip.
        self._stir({event.topic for event in events})
        return await self._remote.keep(events)

    async def _dial(self) -> Wire:
        wire = await redis_server.connected(self._url, self._where, self._timeout_s, self._remote.asking.link.lost)
        try:
            found = await redis_server.looked_at(wire, self._where, LOSS)
            await self._remote.begin(wire, found.run)
        except BaseException:
            wire.abort(StoreError(f"{self._where} cannot be used"))
            raise
        self.caution = found.caution
        self.abilities = _ABILITIES | {Ability.DURABLE} if found.is_durable else _ABILITIES
        wire.keep_alive()
        return wire

    async def _dial_ear(self) -> Wire:
        where = self._ear.where
        wire = await redis_server.connected(self._url, where, self._timeout_s, self._ear.lost, self._heard)
        try:
            await redis_server.asked(wire, where, "SUBSCRIBE", self._remote.channel)
        except BaseException:
            wire.abort(StoreError(f"{where} cannot be used"))
            raise
        wire.keep_alive()
        return wire

    def _heard(self, _: bytes, message: bytes) -> None:
        who, _, rest = message.partition(b" ")
        what, *words = rest.split(b" ")
        if who == self._remote.taker:
            return  # the front knows
        if what == b"e":
            topics = [word.decode(errors="replace") for word in words]
            self._stir(topics)
            return
        known = self._lines.get(self._remote.handle_of(words[0])) if words else None
        if known is None:
            return
        if what == b"d" and len(words) == 2 and words[1].isdigit():
            known.arm(self._clock.now_s() + int(words[1]) / 1000)
        else:
            known.stir()

    def _is_back(self) -> None:
        self._ear.hurry()
        if not self._is_closed:
            self._mending = asyncio.get_running_loop().create_task(self._mend())

    async def _mend(self) -> None:
        try:
            await self._remote.mend()
        except StoreError as error:
            log.warning("what was under way when the connection was lost could not be looked at: %s", error)
        self._stir_all()

    def _missed(self) -> None:
        self._remote.asking.link.hurry()
        if self._remote.asking.link.is_up:  # else they look when it is
            self._stir_all()

    def _stir_all(self) -> None:
        for line in self._lines.values():
            line.stir()
