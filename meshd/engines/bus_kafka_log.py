"""The records of a bus on Kafka, as one sidecar follows them: events into its index, commands into its journal.

What this sidecar wrote itself it need not read again: when Kafka has said at which offset a record stands, and all
before it have been looked at, it is taken over at once. Where another sidecar wrote in between, it is read.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import zlib
from typing import TYPE_CHECKING, Any, Final

from meshd.engines.bus_kafka_index import Index
from meshd.engines.bus_kafka_journal import AnyCommand, Begin, Begun, GiveBack, Journal
from meshd.engines.bus_kafka_wire import Ends, Record, Sender, Shelves, Tail
from meshd.engines.bus_shelf import UNHEARD, Unheard, none_unheard
from meshd.engines.link import Look, answered_within
from meshd.engines.port import StoreClosed, StoreCorrupt, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka.admin import AdminClient

    from meshd.engines.bus_kafka_server import Names, Promise
    from meshd.engines.bus_port import Event
    from meshd.engines.bus_terms import Clock, Terms

log = logging.getLogger("meshd")

INSIST_S: Final = 300.0
"""How long a verdict that could not be written is tried again, as long as the sidecar runs."""
SNAPSHOT_BYTES: Final = 2**20
"""After so many bytes of commands there is another snapshot."""
PART_BYTES: Final = 512 * 1024


CATCH_UP_S: Final = 60.0
"""For so long at least a sidecar reads up to what was written before it is asked."""


class Waits:
    """Those who wait until a partition has been looked at up to an offset."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, int], list[tuple[int, asyncio.Future[None]]]] = {}

    async def until(self, one: tuple[str, int], at: int, offset: int) -> None:
        if at < offset:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(one, []).append((offset, future))
            await future

    def reached(self, one: tuple[str, int], at: int) -> None:
        if waiting := self._waiting.get(one):
            self._waiting[one] = [(offset, future) for offset, future in waiting if offset > at]
            for offset, future in waiting:
                if offset <= at and not future.done():
                    future.set_result(None)

    def fail(self, error: StoreError) -> None:
        for waiting in self._waiting.values():
            for _, future in waiting:
                if not future.done():
                    future.set_exception(type(error)(*error.args))
        self._waiting.clear()


class Log:
    """See the module. `changed(topic)` is called for a new event, `done(command, result)` for each command."""

    def __init__(
        self,
        config: dict[str, Any],
        admin: AdminClient,
        names: Names,
        promise: Promise,
        terms: Terms,
        clock: Clock,
        sidecar: str,
        where: str,
        *,
        timeout_s: float,
        fetch_wait_s: float,
    ) -> None:
        self.names = names
        self.sidecar = sidecar
        self.where = where
        self.timeout_s = timeout_s
        self.stride = promise.partitions
        self.terms = terms
        self.record_bytes = promise.record_bytes
        self.index = Index(promise.partitions, where, int(max(terms.keep_s, terms.repeat_s) * 1000))
        self.journal = Journal(terms, promise.partitions, where)
        self.changed: Callable[[str], None] = lambda topic: None
        self.done: Callable[[AnyCommand, Any], None] = lambda command, done: None
        self.error: StoreError | None = None
        """Why nothing goes on any more."""
        self._clock = clock
        self.events = Sender(config, where, timeout_s)
        self.commands = Sender(config, where, INSIST_S)
        self.tail = Tail(config, where, fetch_wait_s)
        self.ends = Ends(admin, where, timeout_s)
        self.shelves = Shelves(config, where, fetch_wait_s)
        self._waits = Waits()
        self._serials = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self.unheard = none_unheard()
        self._parts: dict[int, dict[int, bytes]] = {}
        """Of snapshots that are being read, by what they are as of."""
        self._newest: tuple[int, bytes] = (-2, b"")
        self._turn = 0
        """Of the newest snapshot that is whole; the next one has the other."""
        self._is_restored = False
        self._snapshots_next = 0
        self._since_bytes = 0
        self.snapshot_bytes = SNAPSHOT_BYTES
        self._is_closed = False

    def now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)

    def partitions(self) -> list[tuple[str, int]]:
        return [(self.names.events, number) for number in range(self.stride)]

    # The beginning.

    async def open(self) -> None:
        """Read the newest snapshot, and then everything up to where it ends now. Raises StoreError."""
        snapshots, groups = (self.names.snapshots, 0), (self.names.groups, 0)
        ones = [snapshots, groups, *self.partitions()]
        begins, ends = await self.ends.first(ones), await self.ends.next(ones)
        await self._read_snapshots(begins[snapshots], ends[snapshots])
        if self._newest[0] == -2:
            self._write_snapshot()  # which says how many partitions there are
        else:
            self.journal.restore(self._newest[1])
        self._check_end(ends[groups], self.journal.as_of)
        first = begins[groups]
        if self.journal.as_of < first - 1:
            # By Kafka's retention, which is longer than any event is kept: what is lacking was about events long gone.
            if first:
                log.warning("what groups did before offset %d of %s is forgotten", first, self.names.groups)
            self.journal.as_of = first - 1
        for _, number in self.partitions():
            self.index.next[number] = begins[self.names.events, number]
        starts = {one: self.index.next[one[1]] for one in self.partitions()}
        starts |= {groups: self.journal.as_of + 1, snapshots: ends[snapshots]}
        self._snapshots_next = ends[snapshots]
        self._is_restored = True
        self.tail.start(starts, self._read, self._fail)
        await self.catch_up({one: end for one, end in ends.items() if one != snapshots})

    async def _read_snapshots(self, first: int, end: int) -> None:
        for offset in range(first, end):
            if offset < self._snapshots_next:
                continue
            records = await self.shelves.read(self.names.snapshots, 0, [offset], self.timeout_s)
            for at in sorted(records):
                if at >= self._snapshots_next:
                    self._look_at_part(records[at])
            if offset not in records:
                self._snapshots_next = max([offset, *records]) + 1

    async def catch_up(self, ends: dict[tuple[str, int], int], within_s: float = CATCH_UP_S) -> None:
        """Wait until everything up to these offsets has been looked at. Raises StoreError."""
        self.check()
        try:
            async with answered_within(max(within_s, self.timeout_s)):
                for one, end in ends.items():
                    await self._waits.until(one, self._at(one), end)
        except TimeoutError:
            raise StoreError(f"{self.where} does not answer") from None

    async def barrier(self, *, with_events: bool = False, within_s: float = CATCH_UP_S) -> None:
        """Wait until all has been looked at that has been acknowledged to anybody. Raises StoreError."""
        ones = [(self.names.groups, 0), *(self.partitions() if with_events else ())]
        as_of = self.journal.as_of
        ends = await self.ends.next(ones)
        try:
            self._check_end(ends[self.names.groups, 0], as_of)
        except StoreCorrupt as error:
            self._fail(error)
            raise
        await self.catch_up(ends, within_s)

    def _check_end(self, end: int, as_of: int) -> None:
        """Refuse a journal that ends before what was carried out when its end was asked for."""
        if end <= as_of:
            raise StoreCorrupt(
                f"the groups in {self.where} have lost what they had acknowledged (an unclean election, or a topic "
                f"that was made anew): remove {self.names.snapshots}, and groups begin anew"
            )

    def _at(self, one: tuple[str, int]) -> int:
        if one[0] == self.names.events:
            return self.index.next[one[1]]
        return self.journal.as_of + 1

    # Events.

    async def looked_at(self, partition: int, offset: int) -> None:
        """Wait until an event has been looked at, whoever wrote it."""
        await self._waits.until((self.names.events, partition), self.index.next[partition], offset + 1)

    def written(self, event: Event, partition: int, offset: int, at_ms: int) -> None:
        """Take over what this sidecar wrote, where all before it have been looked at."""
        if self.index.next[partition] == offset:
            self._new(self.index.add(event, partition, offset, at_ms), partition)

    def _new(self, event: Event | None, partition: int) -> None:
        self._waits.reached((self.names.events, partition), self.index.next[partition])
        if event is not None:
            self.changed(event.topic)

    # Commands.

    def head(self) -> tuple[str, int, int, int]:
        """Return how the next command begins."""
        return self.sidecar, next(self._serials), self.now_ms(), self.terms.attempts_max

    async def ask(self, command: AnyCommand) -> Any:
        """Write a command; return what came of it. Raises StoreError.

        Where that says that nobody answers, the command may be carried out all the same, some time later.
        """
        self.check()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[command.serial] = future
        timer = Look(self.timeout_s, self.timeout_s / 4, lambda: self._expire(command.serial))
        try:
            self._write(command)
            done = await future
        finally:
            timer.cancel()
            self._asked.pop(command.serial, None)
        if isinstance(done, StoreError):
            raise type(done)(*done.args)
        return done

    def _write(self, command: AnyCommand) -> None:
        value = self.journal.encode(command)

        def written(offset: int, error: Exception | None) -> None:
            if error is not None:
                future = self._asked.get(command.serial)
                if future is not None and not future.done():
                    future.set_exception(error)
            elif offset == self.journal.as_of + 1:
                self._carry_out(offset, command, len(value))

        self.commands.send(self.names.groups, value, written, at_ms=command.now_ms)

    def _expire(self, serial: int) -> None:
        future = self._asked.get(serial)
        if future is not None and not future.done():
            future.set_exception(StoreError(f"{self.where} does not answer"))

    def _carry_out(self, offset: int, command: AnyCommand, size: int) -> None:
        done = self.journal.carry_out(offset, command)
        before, self._since_bytes = self._since_bytes, self._since_bytes + size
        self._waits.reached((self.names.groups, 0), offset + 1)
        if command.sender == self.sidecar:
            died = [Unheard(rows.name, id) for rows, id in self.journal.died if rows.letters[id].reason is UNHEARD]
            self.unheard.extend(died)
            future = self._asked.get(command.serial)
            if future is not None and not future.done():
                future.set_result(done)
            elif isinstance(command, Begin) and isinstance(done, Begun) and done.rows and not self._is_closed:
                # Nobody waits for these any more.
                attempts = [(place, row.attempt) for place, row in done.rows]
                self.write_quietly(GiveBack(*self.head(), command.group, attempts, is_unseen=True))
            if before // self.snapshot_bytes != self._since_bytes // self.snapshot_bytes:
                self._write_snapshot()
        self.done(command, done)

    def write_quietly(self, command: AnyCommand) -> None:
        """Write a command of which nobody waits to hear."""
        try:
            self._write(command)
        except StoreError as error:
            log.warning("an event that nobody took is handed out again once its time is over: %s", error)

    # Snapshots.

    def _write_snapshot(self) -> None:
        """Write a snapshot in parts. Two are kept, by turns: the last whole one is there while this is written."""
        data = zlib.compress(self.journal.snapshot(), 1)
        as_of = self.journal.as_of
        parts = [data[start : start + PART_BYTES] for start in range(0, len(data), PART_BYTES)]
        try:
            for number, part in enumerate(parts):
                key = f"{1 - self._turn}:{number}".encode()
                headers = [("part", f"{as_of}:{number}:{len(parts)}".encode())]
                self.commands.send(self.names.snapshots, part, _ignore, key=key, headers=headers)
        except StoreError as error:
            log.warning("a snapshot of the groups could not be written: %s", error)

    def _look_at_part(self, record: Record) -> None:
        self._snapshots_next = record.offset + 1
        try:
            text = dict(record.headers)["part"].decode()
            as_of, number, many = map(int, text.split(":"))
            turn = int((record.key or b"").partition(b":")[0])
        except (KeyError, ValueError):
            log.warning("another program's records in %s are no snapshot", self.names.snapshots)
            return
        parts = self._parts.setdefault(as_of, {})
        parts[number] = record.value or b""
        if len(parts) < many or as_of <= self._newest[0]:
            return
        self._turn = turn
        self._parts = {other: parts for other, parts in self._parts.items() if other > as_of}
        if self._is_restored:
            self._newest = (as_of, b"")
            self._since_bytes = 0
            return
        try:
            self._newest = (as_of, zlib.decompress(b"".join(parts[one] for one in range(many))))
        except (zlib.error, KeyError):
            log.warning("a snapshot in %s is damaged", self.names.snapshots)

    # What is read.

    def _read(self, records: list[Record]) -> None:
        if self.error is not None or self._is_closed:
            return
        now_ms = self.now_ms()
        try:
            for record in records:
                self._look_at(record, now_ms)
        except StoreError as error:
            self._fail(error)

    def _look_at(self, record: Record, now_ms: int) -> None:
        if record.topic == self.names.events:
            at = self.index.next[record.partition]
            if record.is_end:
                self.index.next[record.partition] = max(at, record.offset)
                self._new(None, record.partition)
            elif record.offset >= at:
                self._new(self.index.look_at(record, now_ms), record.partition)
        elif record.topic == self.names.snapshots:
            if not record.is_end:
                self._look_at_part(record)
        elif not record.is_end and record.offset > self.journal.as_of:
            if record.offset != self.journal.as_of + 1:
                raise StoreCorrupt(f"the groups in {self.where} lack what stood before offset {record.offset}")
            command = self.journal.decode(record.value or b"", record.offset)
            self._carry_out(record.offset, command, len(record.value or b""))

    def _fail(self, error: StoreError) -> None:
        log.error("events can no longer be handled: %s", error)
        self.error = error
        self._end_all(error)

    def _end_all(self, error: StoreError) -> None:
        self._waits.fail(error)
        for future in self._asked.values():
            if not future.done():
                future.set_exception(type(error)(*error.args))

    def check(self) -> None:
        if self._is_closed:
            raise StoreClosed("the bus was closed")
        if self.error is not None:
            raise type(self.error)(*self.error.args)

    async def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._end_all(StoreClosed("the bus was closed"))
            closing = (self.events, self.commands, self.tail, self.shelves, self.ends)
            await asyncio.gather(*(one.close() for one in closing))


def _ignore(offset: int, error: Exception | None) -> None:
    if error is not None:
        log.warning("a snapshot of the groups could not be written: %s", error)
