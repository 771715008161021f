"""Which events there are in Kafka: what a sidecar knows of each without its data, and the data of the latest.

The first record of a (source, id) within a partition is the event; each that comes after it is none, for every sidecar.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import zlib
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from meshd.engines.bus_event import sequence_text, size_of
from meshd.engines.bus_port import Event

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.engines.bus_kafka_rows import Rows
    from meshd.engines.bus_kafka_wire import Headers, Record

log = logging.getLogger("meshd")

HEADER: Final = "meshd"
DATA_CACHED_BYTES: Final = 64 * 2**20
SCAN_MAX: Final = 2000
"""How many events of a group are taken in by one command."""
LOOKED_AT_MAX: Final = 4000
"""How many are looked at in one turn of the loop."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Event).decode


class Entry(NamedTuple):
    """What is known of an event."""

    topic: str
    key: bytes
    """Digest of the partition key; empty for none."""
    at_ms: int
    bytes: int


class Found(NamedTuple):
    """Events that a group comes to."""

    taken: list[tuple[int, bytes]]
    upto: dict[int, int]
    is_more: bool


def headers_of(event: Event) -> Headers:
    """Return an event's headers: those that the Kafka binding of CloudEvents demands, and all attributes for meshd."""
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", event.id.encode()),
        ("ce_source", event.source.encode()),
        ("ce_type", event.type.encode()),
        ("content-type", event.data_content_type.encode()),
        (HEADER, _encode(msgspec.structs.replace(event, data=b"", sequence=""))),
    ]


def event_of(record: Record, sequence: str) -> Event | None:
    """Return the event of a record; None for one that meshd did not write."""
    for name, text in record.headers:
        if name == HEADER:
            try:
                event = _decode(text)
            except msgspec.MsgspecError:
                return None
            return msgspec.structs.replace(event, data=record.value or b"", sequence=sequence)
    return None


def partition_of(event: Event, partitions: int) -> int:
    """Return where an event belongs: with the others of its key; without one, by its source and id."""
    if partitions == 1:
        return 0
    return zlib.crc32((event.partition_key or f"{event.source}\0{event.id}").encode()) % partitions


def digest_of(event: Event) -> bytes:
    return hashlib.blake2b(f"{len(event.source)} {event.source}{event.id}".encode(), digest_size=16).digest()


class Index:
    """See the module."""

    def __init__(self, stride: int, where: str, known_ms: int) -> None:
        self.stride = stride
        self.next = [0] * stride
        """By partition, the offset of the first record that has not been looked at."""
        self.removed = [-1] * stride
        """By partition, the last offset of which it is known, or must be assumed, that an event was removed."""
        self._where = where
        self._known_ms = known_ms
        """For how long a (source, id) is the same event, by the times that the two records have."""
        self._entries: list[dict[int, Entry]] = [{} for _ in range(stride)]
        self._known: list[dict[bytes, tuple[int, int]]] = [{} for _ in range(stride)]
        """Places, and when they were published."""
        self._ages: list[deque[tuple[int, bytes]]] = [deque() for _ in range(stride)]
        """Of what is known: when it was published."""
        self._data: OrderedDict[int, Event] = OrderedDict()
        self._data_bytes = 0
        self._passed: dict[int, dict[int, int]] = {}
        """By group, how far it has been looked for in vain, beyond where the group is."""
        self._is_warned = False

    def place(self, partition: int, offset: int) -> int:
        return offset * self.stride + partition + 1

    def spot(self, place: int) -> tuple[int, int]:
        """Return partition and offset."""
        offset, partition = divmod(place - 1, self.stride)
        return partition, offset

    def known(self, partition: int, digest: bytes, at_ms: int) -> int | None:
        """Return the place of the event that has this source and id, for a record of that time."""
        found = self._known[partition].get(digest)
        return None if found is None or found[1] <= at_ms - self._known_ms else found[0]

    def entry(self, place: int) -> Entry | None:
        partition, offset = self.spot(place)
        return self._entries[partition].get(offset)

    def look_at(self, record: Record, now_ms: int) -> Event | None:
        """Take note of a record of the events; return its event, where there is one that is new."""
        if not self.next[record.partition]:
            # What Kafka keeps no more was there.
            self.removed[record.partition] = record.offset - 1
        self.next[record.partition] = record.offset + 1
        place = self.place(record.partition, record.offset)
        event = event_of(record, sequence_text(place))
        if event is None:
            if not self._is_warned:
                self._is_warned = True
                log.warning(
                    "another program's records in %s belong to no topic (offset %d)", self._where, record.offset
                )
            return None
        return self.add(event, record.partition, record.offset, min(record.at_ms, now_ms))

    def add(self, event: Event, partition: int, offset: int, at_ms: int) -> Event | None:
        """Take note of an event; return it, where it is new."""
        self.next[partition] = offset + 1
        digest = digest_of(event)
        place = self.place(partition, offset)
        if self.known(partition, digest, at_ms) is not None:
            return None
        self._known[partition][digest] = (place, at_ms)
        self._ages[partition].append((at_ms, digest))
        key = hashlib.blake2b(event.partition_key.encode(), digest_size=8).digest() if event.partition_key else b""
        self._entries[partition][offset] = Entry(sys.intern(event.topic), key, at_ms, size_of(event))
        self.cache(place, msgspec.structs.replace(event, sequence=sequence_text(place)))
        return event

    # Data.

    def cache(self, place: int, event: Event) -> None:
        if place not in self._data:
            self._data[place] = event
            self._data_bytes += len(event.data) + 500
            while self._data_bytes > DATA_CACHED_BYTES:
                self._data_bytes -= len(self._data.popitem(last=False)[1].data) + 500

    def cached(self, place: int) -> Event | None:
        return self._data.get(place)

    def kept(self, offset: int, end: int) -> tuple[list[tuple[int, Entry]], int]:
        """Return some events of the first partition, by place, from `offset` to before `end`, and where to look on."""
        entries = self._entries[0]
        offset = max(offset, next(iter(entries), end))
        upto = min(offset + LOOKED_AT_MAX, end)
        found = ((one, entries.get(one)) for one in range(offset, upto))
        return [(self.place(0, one), entry) for one, entry in found if entry is not None], upto

    # What a group comes to.

    def scan(self, group: Rows, many: int) -> Found:
        """Look for up to so many events that the group can be handed, and those of their keys that it comes past."""
        taken: list[tuple[int, bytes]] = []
        upto: dict[int, int] = {}
        fresh: set[bytes] = set()
        lacking = many
        for looked_at, place in enumerate(self._beyond(group)):
            if looked_at == LOOKED_AT_MAX:
                self._passed[group.number] = {} if taken else self._passed.get(group.number, {}) | upto
                return Found(taken, upto, is_more=True)
            partition, offset = self.spot(place)
            entry = self._entries[partition].get(offset)
            if entry is not None and group.is_for(entry.topic) and group.is_beyond(place):
                if len(taken) == SCAN_MAX:
                    return Found(taken, upto, is_more=True)
                taken.append((place, entry.key))
                if not group.is_held(entry.key) and entry.key not in fresh:
                    lacking -= 1
                    if entry.key:
                        fresh.add(entry.key)
            upto[partition] = offset
            if not lacking:
                return Found(taken, upto, is_more=True)
        return Found(taken, upto, is_more=False)

    def _beyond(self, group: Rows) -> Iterator[int]:
        """Return the places beyond where a group is, by offset, of all partitions in turns."""
        starts, passed = [], self._passed.get(group.number, {})
        for partition in range(self.stride):
            first = next(iter(self._entries[partition]), self.next[partition])
            starts.append(max(group.upto.get(partition, -1) + 1, passed.get(partition, -1) + 1, first))
        for offset in range(min(starts), max(self.next)):
            for partition in range(self.stride):
                if starts[partition] <= offset < self.next[partition]:
                    yield self.place(partition, offset)

    # What is too old.

    def older(self, gone_ms: int) -> list[int]:
        """Return the places of events that are too old."""
        found = []
        for partition, entries in enumerate(self._entries):
            for offset, entry in entries.items():
                if entry.at_ms > gone_ms:
                    break
                found.append(self.place(partition, offset))
        return found

    def forget(self, places: list[int]) -> dict[int, int]:
        """Let go of events; return, by partition, the offset up to which there is none any more."""
        for place in places:
            partition, offset = self.spot(place)
            self._entries[partition].pop(offset, None)
            self.removed[partition] = max(self.removed[partition], offset)
            event = self._data.pop(place, None)
            if event is not None:
                self._data_bytes -= len(event.data) + 500
        return {p: next(iter(entries), self.next[p]) - 1 for p, entries in enumerate(self._entries)}

    def forget_ids(self, gone_ms: int) -> None:
        """Let go of ids that are too old to be known."""
        for ages, known in zip(self._ages, self._known, strict=True):
            while ages and ages[0][0] <= gone_ms:
                at_ms, digest = ages.popleft()
                if digest in known and known[digest][1] == at_ms:
                    del known[digest]
