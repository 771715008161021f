"""Events on Kafka: sidecars that name the same cluster and the same topics share topics and groups.

An event is a record of one topic, keyed by its partition key, and acknowledged when all replicas in sync have it. What
a group has done with it is not left to Kafka's consumer groups, for three reasons. They give a partition to one member:
events would lie with a sidecar at which nobody waits while somebody does at another. They commit one offset: what is
settled beyond it would have to fit the 4 KB of its metadata, or be handled again. And a member that is slow to hear
that it has lost a partition goes on settling what another hands out meanwhile. So groups are what a journal says, in
the one order that Kafka gives it (meshd.engines.bus_kafka_journal).
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any

from meshd.engines import bus_kafka_server as server
from meshd.engines.bus_front import BusFront
from meshd.engines.bus_kafka_journal import GiveBack, is_freed
from meshd.engines.bus_kafka_log import CATCH_UP_S, Log
from meshd.engines.bus_kafka_replay import ReplayingShelf
from meshd.engines.bus_terms import SteadyClock, Terms
from meshd.engines.port import Ability
from meshd.engines.url import CONNECT_TIMEOUT_S

if TYPE_CHECKING:
    from meshd.engines.bus_kafka_journal import AnyCommand
    from meshd.engines.bus_kafka_server import Promise
    from meshd.engines.bus_terms import Clock
    from meshd.engines.url import StoreUrl


class KafkaBus(BusFront):
    """See the module. All of it belongs to the loop on which it was opened."""

    name = "kafka"

    def __init__(self, log: Log, promise: Promise, terms: Terms, clock: Clock) -> None:
        """Use `open`."""
        self.abilities = frozenset(
            {Ability.SHARED}
            | ({Ability.DURABLE} if promise.is_durable else set())
            # Of several partitions each has an order of its own, and a place says nothing of the others.
            | ({Ability.REPLAYS} if promise.partitions == 1 else set())
        )
        self.caution = promise.caution
        self._log = log
        self._rows = ReplayingShelf(log, terms, clock)
        log.changed = self._changed
        log.done = self._done
        super().__init__(self._rows, terms, clock)

    @staticmethod
    def check(url: StoreUrl) -> None:
        """Raises StoreUnable where a URL asks for what cannot be done."""
        server.check(url)

    @classmethod
    async def open(cls, url: StoreUrl, *, terms: Terms | None = None, clock: Clock | None = None) -> KafkaBus:
        """Connect, make topics where there are none, look at what they promise, and read them. Raises StoreError."""
        server.check(url)
        terms, clock = terms or Terms(), clock or SteadyClock()
        where = f"the kafka bus at {url.host}:{url.port or server.PORT}"
        names = server.Names.of(url.options.get("prefix", "meshd"))
        config = server.settings(url)
        promise, admin = await asyncio.to_thread(server.make_topics, config, url, names, terms, where)
        log = Log(
            config, admin, names, promise, terms, clock, secrets.token_hex(4), where,
            timeout_s=max(url.seconds("timeout", server.TIMEOUT_S), 0.01),
            fetch_wait_s=url.seconds("fetch_wait", server.FETCH_WAIT_S),
        )  # fmt: skip
        try:
            bus = cls(log, promise, terms, clock)
            await asyncio.wait_for(log.open(), max(60.0, url.seconds("connect_timeout", CONNECT_TIMEOUT_S)))
            # What has become too old meanwhile goes before anybody is handed it.
            await bus._rows.trim(CATCH_UP_S)
        except BaseException:
            await log.close()
            raise
        return bus

    def _changed(self, topic: str) -> None:
        self._stir((topic,))

    def _done(self, command: AnyCommand, done: Any) -> None:
        """A command was carried out, this sidecar's or another's: wake whom it concerns."""
        is_mine = command.sender == self._log.sidecar
        if self._log.journal.died:
            self._rows.bodies.note_dead(by_me=is_mine)
        if is_mine and not is_freed(done) and not isinstance(command, GiveBack):
            return
        for line in self._lines.values():
            rows = self._log.journal.groups[line.group]
            due_ms = rows.due_ms()
            line.arm(None if due_ms is None else due_ms / 1000)
            if rows.ready(1):
                line.stir()
