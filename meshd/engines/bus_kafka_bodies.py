"""Data of events on Kafka that is read again, and that of dead letters, which goes to a topic of its own."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from meshd.engines.bus_event import sequence_text
from meshd.engines.bus_kafka_index import event_of, headers_of
from meshd.engines.bus_kafka_journal import Moved
from meshd.engines.bus_port import EventMalformed
from meshd.engines.bus_shelf import ordinal
from meshd.engines.port import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.engines.bus_kafka_log import Log
    from meshd.engines.bus_kafka_rows import Letter, Rows
    from meshd.engines.bus_port import Event

log = logging.getLogger("meshd")


class Bodies:
    """See the module."""

    def __init__(self, log_: Log) -> None:
        self.log = log_
        self._moving: set[int] = set()
        """Dead letters whose bodies are on their way to their topic."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def events(self, places: Sequence[tuple[int, int]]) -> list[Event | None]:
        """Return the events of places; `body_at` of a dead letter says where it is when it is no longer an event."""
        found: dict[int, Event] = {}
        lacking: dict[tuple[str, int], dict[int, int]] = {}
        for place, body_at in places:
            if (event := self.log.index.cached(place)) is not None:
                found[place] = event
            elif body_at:
                lacking.setdefault((self.log.names.dead, 0), {})[body_at - 1] = place
            else:
                partition, offset = self.log.index.spot(place)
                lacking.setdefault((self.log.names.events, partition), {})[offset] = place
        for (topic, partition), offsets in lacking.items():
            records = await self.log.shelves.read(topic, partition, list(offsets), self.log.timeout_s)
            for offset, record in records.items():
                is_event = topic == self.log.names.events
                place = self.log.index.place(partition, offset) if is_event else offsets.get(offset, 0)
                event = event_of(record, sequence_text(place)) if place else None
                if event is not None:
                    found[place] = event
                    if is_event and self.log.index.entry(place) is not None:
                        self.log.index.cache(place, event)  # others will be asked for soon
        return [found.get(place) for place, _ in places]

    def note_dead(self, *, by_me: bool) -> None:
        """Take over the bodies of what has just died, where it was this sidecar that said so."""
        for rows, id in self.log.journal.died:
            log.warning("event %d is a dead letter of the group %s (%s)", rows.letters[id].place, rows.name, rows.topic)
            if by_me:
                self.move(rows, id)

    def move(self, rows: Rows, id: int) -> None:
        if id not in self._moving and not self._is_closed:
            self._moving.add(id)
            self.run(self._move_body(rows, id))

    async def _move_body(self, rows: Rows, id: int) -> None:
        """Write the body of a dead letter to the topic of those, where it outlives its event."""
        try:
            letter = rows.letters.get(id)
            if letter is None or letter.body_at:
                return
            (event,) = await self.events([(letter.place, 0)])
            if event is None:
                return
            at = await self._write_letter(rows, letter, event)
            if at >= 0:
                await self.log.ask(Moved(*self.log.head(), rows.number, id, at + 1))
        except (StoreError, EventMalformed) as error:
            log.warning("a dead letter is not in its topic yet: %s", error)
        finally:
            self._moving.discard(id)

    async def _write_letter(self, rows: Rows, letter: Letter, event: Event) -> int:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def written(offset: int, error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(offset)
            else:
                future.set_exception(error)

        headers = [
            *headers_of(event),
            ("group", rows.name.encode()),
            ("topic", rows.topic.encode()),
            ("attempts", b"%d" % ordinal(letter.attempts)),
            ("reason", letter.reason.encode()),
        ]
        key = rows.name.encode()
        self.log.events.send(
            self.log.names.dead, event.data, written, key=key, headers=headers, at_ms=self.log.now_ms()
        )
        return await future

    def run(self, what: Any) -> None:
        """Do something that nobody waits for."""
        task = asyncio.get_running_loop().create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        self._is_closed = True
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=self.log.timeout_s)
