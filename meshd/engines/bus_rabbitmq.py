"""Events on RabbitMQ: sidecars that name the same server, virtual host and prefix share topics and groups.

What RabbitMQ keeps is one log, a stream, of what sidecars asked: keep these events, hand out, this verdict. Every
sidecar reads all of it and carries it out on tables of its own, which are the embedded bus's (bus_rabbitmq_replica).
What stands where in the log is the one thing that is decided, and the server decides it. So what holds for one process
with one file holds for all sidecars together: an event is handed to one of them, two of a key never at once, a verdict
that is in the log is final, a (source, id) is known for as long as the tables know it, a batch is kept whole or not.

Why no queue per group, as is usual: with queues nothing of that holds. An acknowledgement has no answer, and one that
is lost makes a handler run again; a message that waits for its retry gives up its place before the next of its key; a
queue knows no identifiers, no positions, no oldest event for those who come late, and nothing of a verdict that comes
after its delivery was taken back. Single active consumers keep the order of a queue until one of them dies.

- A sidecar that is killed loses its connection, and a message that it holds comes back and tells another
  (bus_rabbitmq_server.leave_will): what it had is handed out again, marked. One that comes back in time keeps it.
- A connection that breaks: what was asked is in the log or, from the first entry of the next connection on, never will
  be (bus_rabbitmq_log). No verdict is lost, and nothing is done twice.
- Time is the sidecars', as long as it is the server's to within two seconds; else the server's. In the log it does not
  go back, and where it must, no retry waits for longer.
- Stirred by what it reads, a sidecar asks for events; it does not poll. Where many wait in one group, all ask, and one
  gets the event: that is the price.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from meshd.engines import bus_rabbitmq_server as server
from meshd.engines.bus_front import BusFront
from meshd.engines.bus_rabbitmq_log import GONE_AFTER_S, Log
from meshd.engines.bus_rabbitmq_shelf import LogShelf
from meshd.engines.bus_terms import Terms
from meshd.engines.port import Ability
from meshd.engines.url import CONNECT_TIMEOUT_S, TIMEOUT_S

if TYPE_CHECKING:
    from meshd.engines.bus_port import Event, Published
    from meshd.engines.bus_rabbitmq_entry import Applied
    from meshd.engines.bus_terms import Clock
    from meshd.engines.url import StoreUrl

log = logging.getLogger("meshd")


class RabbitBus(BusFront):
    """See the module. All of it belongs to the loop on which it was opened."""

    name = "rabbitmq"

    def __init__(self, url: StoreUrl, terms: Terms, clock: Clock | None, gone_s: float, sizes: server.Sizes) -> None:
        """Use `open`."""
        self.check(url)
        self.abilities = frozenset({Ability.SHARED, Ability.REPLAYS})
        self.caution = "RabbitMQ leaves syncing a stream to the operating system: a power cut may take the last events"
        where = f"the rabbitmq bus at {url.host}:{server.port(url)}"
        time = clock or server.ServerClock()
        self._log = Log(url, where, terms, time, self._heard, gone_s, sizes)
        self._remote = LogShelf(self._log, terms, gone_s)
        super().__init__(self._remote, terms, time)

    @staticmethod
    def check(url: StoreUrl) -> None:
        """Refuse what an AMQP URL cannot say. Raises StoreUnable."""
        server.check(url)
        url.seconds("timeout", TIMEOUT_S)
        url.seconds("connect_timeout", CONNECT_TIMEOUT_S)

    @classmethod
    async def open(
        cls,
        url: StoreUrl,
        *,
        terms: Terms | None = None,
        clock: Clock | None = None,
        gone_s: float = GONE_AFTER_S,
        sizes: server.Sizes | None = None,
    ) -> RabbitBus:
        """Connect, make the log where there is none, and read it. Raises StoreError or one of its kinds.

        `gone_s`: how long another sidecar that has lost its connection may take to make a new one.
        """
        bus = cls(url, terms or Terms(), clock, gone_s, sizes or server.Sizes())
        try:
            await bus._log.open()
        except BaseException:
            await bus._log.close()
            raise
        return bus

    async def close(self) -> None:
        self._log.stop_waiting()
        await super().close()

    async def _keep(self, events: list[Event]) -> list[Published]:
        # Who waits here asks in the same entry, behind what is published: that saves them a way there and back.
        self._stir({event.topic for event in events})
        return await self._remote.keep(events)

    def _heard(self, applied: Applied) -> None:
        """Wake those whom something concerns that was read in the log."""
        if applied.unheard:
            self._remote.unheard.extend(applied.unheard)
            self.tell()
        if applied.topics:
            self._stir(applied.topics)
        for group in applied.freed:
            line = self._lines.get(self._remote.numbers.get(group, -1))
            if line is not None:
                line.stir()
        for group, due_ms in applied.dues.items():
            line = self._lines.get(self._remote.numbers.get(group, -1))
            if line is not None:
                line.arm(due_ms / 1000)
