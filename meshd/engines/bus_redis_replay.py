"""A bus on Redis, looked at without a group, and groups that begin anywhere in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.engines.bus_event import sequence_text
from meshd.engines.bus_port import Topic
from meshd.engines.bus_redis_look import KEPT, TOPICS
from meshd.engines.bus_redis_shelf import RedisShelf, lua_pattern

if TYPE_CHECKING:
    from meshd.engines.bus_port import Event, Start


class ReplayingShelf(RedisShelf):
    """`meshd.engines.bus_shelf.Replays`."""

    async def join_from(self, group: str, topic: str, start: Start) -> int:
        if start.at_ms is None:
            return await self.join_at(group, topic, "after", start.after or 0)
        return await self.join_at(group, topic, "at", start.at_ms)

    async def kept(self, topic: str, after: int, limit: int) -> list[Event]:
        found: list[Event] = []
        cursor, pattern = f"{after}-0", lua_pattern(topic)
        while cursor:
            next_, _, some = await self.ask(KEPT, pattern, cursor, limit - len(found), 0)
            read = [self.event(int(place), *parts) for place, *parts in some]
            found += [one for one in read if one is not None]
            cursor = next_.decode() if len(found) < limit else ""
        return found

    async def behind(self, topic: str, after: int, most: int) -> int:
        found, cursor, pattern = 0, f"{after}-0", lua_pattern(topic)
        while cursor:
            next_, many, _ = await self.ask(KEPT, pattern, cursor, most - found, 1)
            found += many
            cursor = next_.decode() if found < most else ""
        return found

    async def topics(self) -> list[Topic]:
        found: dict[str, Topic] = {}
        cursor = "0-0"
        while cursor:
            next_, *some = await self.ask(TOPICS, cursor)
            cursor = next_.decode()
            for name, many, size, latest in some:
                topic = name.decode(errors="replace")
                before = found.get(topic, Topic(topic, 0, 0, ""))
                found[topic] = Topic(topic, before.events + many, before.bytes + size, sequence_text(int(latest)))
        return sorted(found.values())
