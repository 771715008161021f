"""Events on NATS JetStream: sidecars that name the same server and the same streams share topics and groups.

An event is a message of a stream, under its topic's subject, and acknowledged when the server has written it. What a
group has done with it is not left to JetStream's consumers, for two reasons. What they have acknowledged is written up
to a second later: of 500 acknowledgements that NATS 2.9 had confirmed, 499 were forgotten when it was killed, and
each would have been an acknowledged handler that runs again. And they know nothing of keys: a consumer per key, or
claims beside it, lose the order where a server or a sidecar dies between two writes.

So each group has a journal, one subject of a stream of files. Its entries say which events are begun with, by whom, for
the how many-eth time, what waits for a retry and what behind what. An entry is written only where the last one is the
one that the writer knows (`Nats-Expected-Last-Subject-Sequence`), so every sidecar has the same rows in the same order,
whoever wrote them, and no two can begin with one event, or with the second of a key before the first is settled.
An attempt is written before it is handed out, and a verdict before `settle` returns: a message of a stream is written
to its file before it is acknowledged, and survives a killed server. What is asked while an entry is under way makes the
next one, so that many attempts and verdicts share a write.

Consumers are what events are read by: of each group and sidecar one, which takes nothing away (meshd.engines.
bus_nats_reader). Times are the server's, so that sidecars agree on when something is due.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING, Final

from meshd.engines import bus_nats_streams
from meshd.engines import nats_server as server
from meshd.engines.bus_front import BusFront
from meshd.engines.bus_nats_replay import ReplayingShelf
from meshd.engines.bus_nats_streams import Streams
from meshd.engines.bus_terms import SteadyClock, Terms
from meshd.engines.link import Link
from meshd.engines.port import Ability, StoreError
from meshd.engines.url import CONNECT_TIMEOUT_S, TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.engines.bus_nats_shelf import Out
    from meshd.engines.bus_terms import Clock, Timer
    from meshd.engines.nats_wire import Message, Wire
    from meshd.engines.url import StoreUrl

log = logging.getLogger("meshd")

_ABILITIES: Final = frozenset({Ability.SHARED, Ability.REPLAYS})
ABSENT_S: Final = 5.0
"""How often it is asked whether those are there who have events; who is not twice in a row is gone."""


class ServerClock:
    """A clock (`meshd.engines.bus_terms.Clock`) that says the server's time."""

    __slots__ = ("_ahead_s", "_steady")

    def __init__(self) -> None:
        self._steady = SteadyClock()
        self._ahead_s = 0.0

    def set(self, server_s: float) -> None:
        self._ahead_s = server_s - self._steady.now_s()

    def now_s(self) -> float:
        return self._steady.now_s() + self._ahead_s

    def wall_ns(self) -> int:
        return self._steady.wall_ns()

    def at(self, when_s: float, call: Callable[[], None]) -> Timer:
        return self._steady.at(when_s - self._ahead_s, call)


class NatsBus(BusFront):
    """See the module. All of it belongs to the loop on which it was opened."""

    name = "nats"

    def __init__(self, url: StoreUrl, terms: Terms, clock: Clock | None, absent_s: float) -> None:
        """Use `open`."""
        self.check(url)
        self.abilities = _ABILITIES
        self.caution = ""
        self._url = url
        self._where = f"the nats bus at {url.host}:{url.port or server.PORT}"
        self._timeout_s = url.seconds("timeout", TIMEOUT_S)
        self._connect_timeout_s = url.seconds("connect_timeout", CONNECT_TIMEOUT_S)
        self._absent_s = absent_s
        self._sidecar = secrets.token_hex(4)
        self._server_clock = None if clock is not None else ServerClock()
        self._link: Link[Wire] = Link(
            self._where, self._dial, timeout_s=self._connect_timeout_s, restored=self._restored
        )
        self._streams = Streams(url, self._where, self._link, self._timeout_s)
        self._streams.knows_longer = clock is not None  # whose hours are not the server's
        time = clock or self._server_clock or ServerClock()
        self._rows = ReplayingShelf(self._streams, terms, time, self._sidecar, self._stir_group, absent_s)
        self._watching: asyncio.Task[None] | None = None
        self._silent: dict[str, Out] = {}
        """Of other sidecars that did not answer when last asked, what their subscribers had then."""
        super().__init__(self._rows, terms, time, self._rows.hand_out_at_once)

    @staticmethod
    def check(url: StoreUrl) -> None:
        """Refuse what a NATS URL of a bus cannot say. Raises StoreUnable."""
        bus_nats_streams.check(url)

    @classmethod
    async def open(
        cls, url: StoreUrl, *, terms: Terms | None = None, clock: Clock | None = None, absent_s: float = ABSENT_S
    ) -> NatsBus:
        """Connect, make the streams where there are none, and look at what they promise. Raises StoreError."""
        bus = cls(url, terms or Terms(), clock, absent_s)
        try:
            await bus._link.open()
            await bus._rows.look_at_clock()
        except BaseException:
            await bus.close()
            raise
        bus._watching = asyncio.get_running_loop().create_task(bus._watch())
        return bus

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await super().close()
        await self._link.close()

    def _stir_group(self, number: int) -> None:
        if (line := self._lines.get(number)) is not None:
            line.stir()

    # The connection.

    async def _dial(self) -> Wire:
        inbox = f"_INBOX.{secrets.token_hex(12)}"
        wire = await server.connected(self._url, self._where, self._timeout_s, inbox, self._link.lost)
        try:
            promise = await self._streams.make(wire, self._terms, self._connect_timeout_s)
            if self._server_clock is not None:
                self._server_clock.set(await self._streams.clock_s(wire))
            wire.subscribe(self._presence(self._sidecar), lambda message: wire.publish(message.reply))
        except BaseException:
            wire.abort(StoreError(f"{self._where} cannot be used"))
            raise
        self.caution = promise.caution
        self.abilities = _ABILITIES | {Ability.DURABLE} if promise.is_durable else _ABILITIES
        return wire

    def _restored(self) -> None:
        self._rows.restored()

    # Who is there.

    def _presence(self, sidecar: str) -> str:
        return f"{self._streams.name}.here.{sidecar}"

    async def _watch(self) -> None:
        """Hand out anew what sidecars had that have ended: the server says at once that nobody answers there."""
        while True:
            await asyncio.sleep(self._absent_s)
            try:
                await self._look()
            except StoreError as error:
                log.warning("it is not known who still handles events: %s", error)

    async def _look(self) -> None:
        """Ask the others whether they are there, and hand out anew what those had, the last time too, who are not."""
        others = self._rows.out_elsewhere()
        wire = self._streams.wire
        silent: set[str] = set()

        def heard(sidecar: str, message: Message) -> None:
            # Whoever is slow, or frozen, does not answer at all: that is left to its handling time.
            if message.status == 503:
                silent.add(sidecar)

        sids = []
        for sidecar in others:
            inbox = wire.new_inbox()
            sids.append(wire.subscribe(inbox, lambda message, sidecar=sidecar: heard(sidecar, message)))  # type: ignore[misc]
            wire.publish(self._presence(sidecar), reply=inbox)
        if others:
            # Behind these: the server has answered them where it answers this.
            await self._streams.info(self._streams.groups)
        for sid in sids:
            wire.unsubscribe(sid)
        # Not what it was handed since: it was there meanwhile, and is sure of that (`Shelf.sure_s`).
        lost = {sidecar: others[sidecar] & self._silent.get(sidecar, set()) for sidecar in silent}
        self._silent = {sidecar: others[sidecar] for sidecar in silent}
        if gone := sorted(sidecar for sidecar, some in lost.items() if some):
            log.warning("sidecars that had events are gone: %s", ", ".join(gone))
            await self._rows.lose(set().union(*lost.values()))
