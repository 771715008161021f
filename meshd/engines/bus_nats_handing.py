"""Handing out the events of one group on NATS: what is read, begun with in its journal, and then given to who waits.

Where all that is needed was read already, it is done at once: in the moment in which an event arrives the entry that
begins with it is sent, and in the moment in which that is confirmed the event is handed over. Else a task waits for it.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Final

from meshd.engines.bus_event import matcher
from meshd.engines.bus_nats_reader import PULLED_MAX, Reader
from meshd.engines.bus_rows import OUT
from meshd.engines.bus_shelf import Attempt, HandedOut
from meshd.engines.link import relayed
from meshd.engines.port import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.engines.bus_nats_group import Group
    from meshd.engines.bus_nats_message import Found
    from meshd.engines.bus_nats_streams import Streams
    from meshd.engines.bus_port import Delivery, Event
    from meshd.engines.bus_rows import Row
    from meshd.engines.bus_terms import Clock
    from meshd.engines.nats_wire import Wire

ROW_BYTES: Final = 64
"""What a row takes in a journal's whole entry, at most."""

Begun = list[tuple[int, "Row"]]
"""Places, and what their rows are now."""


class Known:
    """A group that this sidecar has asked for, and what it reads of it once it has subscribers."""

    def __init__(
        self, number: int, group: Group, topic: str, streams: Streams, clock: Clock, keep_s: float, sidecar: str
    ) -> None:
        self.number = number
        self.group = group
        self.is_for = matcher(topic)
        self.reader: Reader | None = None
        self._scan = 1
        """How many events to read at least: more, where all that was read waits behind others of its key."""
        self._streams = streams
        self._clock = clock
        self._keep_s = keep_s
        self._sidecar = sidecar

    async def hand_out(self, handling_s: Sequence[float]) -> HandedOut:
        """As the shelf's."""
        group, reader, wire = self.group, self.reader, self._streams.wire
        assert reader is not None
        lacking = self._lacking(len(handling_s), wire)
        if lacking:
            await reader.fill(lacking, group.rows.position, self._gone_ms())
        read = self._read(wire)
        begun = await group.ask(lambda now_ms: self._begin(read, handling_s, now_ms))
        return await self._fetched(read, begun, len(handling_s), wire)

    def hand_out_at_once(self, handling_s: Sequence[float], tell: Callable[[HandedOut | StoreError], None]) -> bool:
        """`meshd.engines.bus_shelf.AtOnce`."""
        reader = self.reader
        if reader is None or not self._streams.is_connected:
            return False
        wire = self._streams.wire
        lacking = self._lacking(len(handling_s), wire)
        if lacking and not reader.fill_at_once(lacking, self.group.rows.position, self._gone_ms()):
            return False
        read = self._read(wire)

        drafts: list[Begun] = []
        prepared: list[list[Delivery] | None] = []

        def begin(now_ms: int) -> Begun:
            drafts.append(self._begin(read, handling_s, now_ms))
            return drafts[-1]

        def told(begun: Begun | StoreError) -> None:
            if isinstance(begun, StoreError):
                tell(begun)
                return
            is_first = bool(prepared) and begun is drafts[0]
            if (deliveries := prepared[0] if is_first else _deliveries(read, begun)) is not None:
                tell(self._handed(len(handling_s), len(begun), deliveries, wire))
            else:
                task = asyncio.get_running_loop().create_task(self._fetched(read, begun, len(handling_s), wire))
                task.add_done_callback(relayed(tell))

        if not self.group.ask_at_once(begin, told):
            return False
        # While the server is at it: what is made ready now is not waited for then.
        prepared.append(_deliveries(read, drafts[0]))
        return True

    # What is read.

    def _may_read(self, wire: Wire) -> bool:
        return len(self.group.rows.rows) < wire.payload_max // ROW_BYTES

    def _lacking(self, many: int, wire: Wire) -> int:
        """Return how many events to read, of `many` that are wanted."""
        lacking = many - len(self.group.rows.ready(many))
        return max(lacking, self._scan) if lacking and self._may_read(wire) else 0

    def _gone_ms(self) -> int:
        return int((self._clock.now_s() - self._keep_s) * 1000)

    def _read(self, wire: Wire) -> dict[int, Found]:
        assert self.reader is not None
        return {one.place: one for one in self.reader.buffer} if self._may_read(wire) else {}

    # What is begun with.

    def _begin(self, read: dict[int, Found], handling_s: Sequence[float], now_ms: int) -> Begun:
        group, rows = self.group, self.group.rows
        group.give_back_lost(self._sidecar)
        rows.fall_due(now_ms)
        ends_ms = [now_ms + int(one * 1000) for one in handling_s]
        begun: Begun = []
        for place in rows.ready(len(ends_ms)):
            begun.append((place, rows.begin(place, ends_ms[len(begun)], self._sidecar)))
        for one in read.values():
            if len(begun) == len(ends_ms):
                break
            if one.place > rows.position:
                row = rows.begin_new(one.place, one.key, ends_ms[len(begun)], self._sidecar)
                if row is not None:
                    begun.append((one.place, row))
        return begun

    async def _fetched(self, read: dict[int, Found], begun: Begun, wanted: int, wire: Wire) -> HandedOut:
        """Return what is handed out, once what was not read is fetched, and what is no event refused."""
        group = self.group
        deliveries = _deliveries(read, begun)
        if deliveries is None:
            deliveries = []
            try:
                for (place, row), (event, why) in zip(begun, await self._events(read, begun), strict=True):
                    if why:
                        await group.ask(functools.partial(self._refuse, Attempt(place, row.attempt), why))
                    else:
                        deliveries.append(Attempt(place, row.attempt).handed(event, is_marked=row.is_marked))
            except StoreError:
                group.is_in_doubt = True  # what was begun has been seen by nobody
                raise
        return self._handed(wanted, len(begun), deliveries, wire)

    async def _events(self, read: dict[int, Found], begun: Begun) -> list[tuple[Event, str]]:
        lacking = [(place, row) for place, row in begun if place not in read or row.letter]
        got = await asyncio.gather(*(self.group.event(place, row.letter) for place, row in lacking))
        events = {place: event for (place, _), event in zip(lacking, got, strict=True)}
        return [events[place] if place in events else (read[place].event, read[place].why) for place, _ in begun]

    def _refuse(self, attempt: Attempt, why: str, _: int) -> None:
        rows = self.group.rows
        row = rows.rows.get(attempt.place)
        if row is not None and row.state == OUT and row.attempt == attempt.number:
            rows.bury(attempt.place, why)

    def _handed(self, wanted: int, begun: int, deliveries: list[Delivery], wire: Wire) -> HandedOut:
        """Take note of what is handed out, of what was begun, and return it: the connection may be gone by now."""
        group, reader = self.group, self.reader
        assert reader is not None
        group.live.update(dict.fromkeys(map(Attempt.of, deliveries), wire))
        is_more = begun < wanted and self._may_read(wire) and not reader.is_waiting(group.rows.position)
        self._scan = min(self._scan * 4, PULLED_MAX) if is_more else 1
        due_ms = group.rows.due_ms()
        return HandedOut(deliveries, None if due_ms is None else due_ms / 1000, is_more or len(deliveries) < begun)


def _deliveries(read: dict[int, Found], begun: Begun) -> list[Delivery] | None:
    """Return what is handed out, where all that was begun with was read, and is as it was published."""
    deliveries = []
    for place, row in begun:
        one = read.get(place)
        if one is None or one.why or row.letter:
            return None
        deliveries.append(Attempt(place, row.attempt).handed(one.event, is_marked=row.is_marked))
    return deliveries
