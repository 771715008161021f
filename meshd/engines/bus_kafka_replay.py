"""A bus on Kafka, looked at without a group, and groups that begin anywhere in it: of one partition, since only in that
is there one order.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from meshd.engines.bus_event import matcher, sequence_text
from meshd.engines.bus_kafka_shelf import Shelf
from meshd.engines.bus_port import Topic
from meshd.engines.bus_shelf import check_place

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meshd.engines.bus_kafka_index import Entry
    from meshd.engines.bus_port import Event, Start


class ReplayingShelf(Shelf):
    """`meshd.engines.bus_shelf.Replays`."""

    async def join_from(self, group: str, topic: str, start: Start) -> int:
        # Another sidecar may know the group, and then its start is not looked at.
        await self.log.barrier()
        return await self.join_behind(group, topic, lambda: self._before(start))

    async def _before(self, start: Start) -> dict[int, int]:
        """Return up to where a group that begins at `start` has nothing to do."""
        await self.log.barrier(with_events=True)
        index = self.log.index
        end = index.next[0]
        at_ms = start.at_ms
        if at_ms is None:
            after = start.after or 0
            check_place(after, end, is_whole=after > index.removed[0])
            return {0: after - 1}
        async for place, entry in self._kept(0):
            if entry.at_ms >= at_ms:
                return {0: index.spot(place)[1] - 1}
        return {0: end - 1}

    async def kept(self, topic: str, after: int, limit: int) -> list[Event]:
        await self.log.barrier(with_events=True)
        is_for = matcher(topic)
        places: list[tuple[int, int]] = []
        async for place, entry in self._kept(after):
            if is_for(entry.topic):
                if len(places) == limit:
                    break
                places.append((place, 0))
        return [event for event in await self.bodies.events(places) if event is not None]

    async def behind(self, topic: str, after: int, most: int) -> int:
        await self.log.barrier(with_events=True)
        is_for = matcher(topic)
        many = 0
        async for _, entry in self._kept(after):
            if many == most:
                break
            many += is_for(entry.topic)
        return many

    async def topics(self) -> list[Topic]:
        await self.log.barrier(with_events=True)
        found: dict[str, Topic] = {}
        async for place, entry in self._kept(0):
            before = found.get(entry.topic, Topic(entry.topic, 0, 0, ""))
            found[entry.topic] = Topic(entry.topic, before.events + 1, before.bytes + entry.bytes, sequence_text(place))
        return sorted(found.values())

    async def _kept(self, offset: int) -> AsyncIterator[tuple[int, Entry]]:
        """Yield events by place, some in each turn of the loop. What stands behind place P begins with offset P."""
        end = self.log.index.next[0]
        while offset < end:
            some, offset = self.log.index.kept(offset, end)
            for one in some:
                yield one
            await asyncio.sleep(0)
