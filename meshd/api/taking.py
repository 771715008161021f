"""A stream of events for an agent that keeps no session: what the bus has for its group, as its credit allows.

An event that is not settled within its handling time goes to others, and takes none of the credit any more: so whoever
settles nothing is handed it again, and at last it is a dead letter. A SUCCESS that comes later still counts.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from meshd.api.handing import next_for
from meshd.engines.port import StoreError, StoreFull

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.api.handing import Handed
    from meshd.api.mesh import Mesh
    from meshd.engines.bus_port import Subscription

HANDED_BYTES_MAX: Final = 32 * 2**20
"""Data of events that one stream may leave unsettled, whatever credit it has."""
LATE_MAX: Final = 1024
"""Events whose time is over that are still known, so that SUCCESS can be said of them."""
AGAIN_S: Final = 1.0
"""After the bus failed, before it is asked again."""
_PASSING: Final = frozenset({StoreError, StoreFull})
"""What may be otherwise in a while: the server is away, the disk is full. Everything else ends the stream."""
log = logging.getLogger("meshd.api")


class Unsettled(NamedTuple):
    """An event that the agent has said nothing of."""

    handed: Handed
    ends_s: float
    """When its time is over, on the loop's clock."""


class Taking:
    """See the module."""

    __slots__ = (
        "_forgotten",
        "_handling_s",
        "_late",
        "_mesh",
        "_pending",
        "_room",
        "_size",
        "agent",
        "credit",
        "handed",
        "id",
        "number",
        "subscription",
        "topic",
    )

    def __init__(
        self,
        mesh: Mesh,
        agent: str,
        topic: str,
        subscription: Subscription,
        credit: int,
        handling_s: float,
        forgotten: Callable[[Handed], None],
    ) -> None:
        """`forgotten` is told of an event of which nothing can be said any more."""
        self._mesh = mesh
        self.agent = agent
        self.topic = topic
        self.subscription = subscription
        self.credit = credit
        self._handling_s = handling_s
        self._forgotten = forgotten
        self.id = os.urandom(12).hex()
        self.number = 0
        self.handed: dict[str, Unsettled] = {}
        """What is not settled and has time left, by its delivery's name."""
        self._late: dict[str, Unsettled] = {}
        """What has none left, without its data."""
        self._size = 0
        self._room = asyncio.Event()
        self._pending: asyncio.Task[tuple[str, Handed]] | None = None

    async def next(self, wait_s: float) -> tuple[str, Handed] | None:
        """Return the next event with the name of this delivery; None where there is none, or no credit, within
        `wait_s`. Raises StoreError where no waiting helps."""
        if self._pending is None:
            self._pending = asyncio.get_running_loop().create_task(self._next())
        await asyncio.wait((self._pending,), timeout=wait_s)
        if not self._pending.done():
            # It goes on: whoever cancelled it might be handed something in that very moment.
            return None
        done, self._pending = self._pending, None
        return done.result()

    def end(self) -> None:
        """Wait for nothing more; what is unsettled is forgotten."""
        if self._pending is not None:
            self._pending.cancel()
        for one in (*self.handed.values(), *self._late.values()):
            self._forgotten(one.handed)

    async def _next(self) -> tuple[str, Handed]:
        await self._has_room()
        handed = await self._from_bus()
        self.number += 1
        name = f"{self.id}.{self.number}"
        self._put(name, Unsettled(handed, asyncio.get_running_loop().time() + self._handling_s))
        return name, handed

    async def _from_bus(self) -> Handed:
        """Wait for an event, through an outage too: what was handed out before can then still be settled."""
        is_told = False
        while True:
            try:
                return await next_for(self._mesh, self.agent, self.subscription)
            except StoreError as error:
                if type(error) not in _PASSING:
                    raise
                if not is_told:
                    is_told = True
                    log.warning("the bus has nothing for a stream of %s: %s; it is asked again", self.agent, error)
                await asyncio.sleep(AGAIN_S)

    async def _has_room(self) -> None:
        now = asyncio.get_running_loop().time
        while len(self.handed) >= self.credit or self._size >= HANDED_BYTES_MAX:
            over = [name for name, one in self.handed.items() if one.ends_s <= now()]
            if over:
                for name in over:
                    self._be_late(name)
                continue
            self._room.clear()
            try:
                async with asyncio.timeout(min(one.ends_s for one in self.handed.values()) - now()):
                    await self._room.wait()
            except TimeoutError:
                continue

    def _be_late(self, name: str) -> None:
        handed, ends_s = self._out(name)
        bare = msgspec.structs.replace(handed.delivery.event, data=b"")
        self._late[name] = Unsettled(handed._replace(delivery=handed.delivery._replace(event=bare)), ends_s)
        if len(self._late) > LATE_MAX:
            self._forgotten(self._late.pop(next(iter(self._late))).handed)

    def _put(self, name: str, one: Unsettled) -> None:
        self.handed[name] = one
        self._size += len(one.handed.delivery.event.data)

    def _out(self, name: str) -> Unsettled:
        one = self.handed.pop(name)
        self._size -= len(one.handed.delivery.event.data)
        return one

    def knows(self, name: str) -> bool:
        """Say whether this stream has handed out such a delivery, settled or not."""
        number = name.removeprefix(f"{self.id}.")
        return number.isascii() and number.isdecimal() and 0 < int(number[:20]) <= self.number

    def pop(self, name: str) -> Unsettled | None:
        """Take out what is about to be settled; None where it is settled already, or nobody can say any more."""
        if name not in self.handed:
            return self._late.pop(name, None)
        self._room.set()
        return self._out(name)

    def put_back(self, name: str, one: Unsettled) -> None:
        """Keep what could not be settled: that may be said again."""
        self._put(name, one)
