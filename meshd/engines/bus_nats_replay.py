"""A bus on NATS, looked at without a group, and groups that begin anywhere in it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from meshd.engines.bus_event import sequence_text
from meshd.engines.bus_nats_listing import listed, looked_at
from meshd.engines.bus_nats_message import found
from meshd.engines.bus_nats_shelf import Shelf
from meshd.engines.bus_port import Topic
from meshd.engines.bus_shelf import check_place

if TYPE_CHECKING:
    from meshd.engines.bus_nats_message import Found
    from meshd.engines.bus_port import Event, Start
    from meshd.engines.nats_consumer import Numbers
    from meshd.engines.nats_wire import Message

STEP: Final = 500
"""How many events are looked at in one go; without their bodies, ten times as many."""
APART_MS: Final = 2000
"""So much earlier at most may an event count as kept than one before it: sidecars' clocks differ a little."""


class ReplayingShelf(Shelf):
    """`meshd.engines.bus_shelf.Replays`."""

    async def join_from(self, group: str, topic: str, start: Start) -> int:
        return await self.join_at(group, topic, functools.partial(self._begins, start))

    async def _begins(self, start: Start) -> int:
        state = (await self.streams.info(self.streams.events)).state
        marks, _ = await self.marks()
        at_ms = start.at_ms
        if at_ms is None:
            after = start.after or 0
            removed = max(marks.last_removed, state.first_seq - 1)
            check_place(after, state.last_seq, is_whole=after >= removed)
            return after
        low, high = state.first_seq, state.last_seq + 1
        while low < high:
            middle = (low + high) // 2
            some = await listed(self.streams, middle, 1)
            if not some or marks.age_ms(some[0]) >= at_ms - APART_MS:
                high = middle
            else:
                low = some[0].place + 1
        while some := await listed(self.streams, low, STEP):
            for one in some:
                if marks.age_ms(one) >= at_ms:
                    return one.place - 1
            low = some[-1].place + 1
        return state.last_seq

    async def kept(self, topic: str, after: int, limit: int) -> list[Event]:
        self.check()
        streams = self.streams

        def read(message: Message, told: Numbers) -> Found:
            return found(streams.topics, message.subject, message.headers, message.data, told.sequence)

        events: list[Event] = []
        while len(events) < limit:
            many = min(STEP, limit - len(events))
            some = await looked_at(streams, topic, after + 1, many, read, is_whole=True)
            if not some:
                break
            events += [one.event for one in some if not one.why]
            after = some[-1].place
        return events

    async def behind(self, topic: str, after: int, most: int) -> int:
        self.check()
        # Listed, since NATS 2.9 counts more than there is where something was removed; it says 0 where there is none.
        many = 0
        while many < most and (some := await listed(self.streams, after + 1, most - many, topic)):
            many += sum(one.is_own for one in some)
            after = some[-1].place
        return many

    async def topics(self) -> list[Topic]:
        self.check()
        topics: dict[str, Topic] = {}
        place = 1
        while some := await listed(self.streams, place, 10 * STEP):
            for one in some:
                if one.is_own:
                    before = topics.get(one.topic, Topic(one.topic, 0, 0, ""))
                    size = before.bytes + one.bytes
                    topics[one.topic] = Topic(one.topic, before.events + 1, size, sequence_text(one.place))
            place = some[-1].place + 1
        return sorted(topics.values())
