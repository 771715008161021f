"""How far a group has come on Kafka, as the commands of the journal make it (meshd.engines.bus_kafka_journal).

The place of the record of offset O in partition P is `O * stride + P + 1`, where `stride` is how many partitions the
events have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from meshd.engines.bus_event import matcher
from meshd.engines.bus_rows import GroupRows, Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class Letter(NamedTuple):
    """A dead letter of a group."""

    place: int
    key: bytes
    is_marked: bool
    died_ms: int
    attempts: int
    reason: str
    body_at: int = 0
    """One more than the offset in the topic of dead letters at which its body is; 0 until it is there."""


class Kept(msgspec.Struct, array_like=True):
    """A group as a snapshot keeps it."""

    number: int
    name: str
    topic: str
    upto: dict[int, int]
    dropped: int
    expired: int
    rows: dict[int, Row]
    letters: dict[int, Letter]
    gone: list[int]
    since_ms: int


class Rows(GroupRows[Letter]):
    """See the module. `attempts_max` is what the command says that is carried out."""

    def __init__(self, number: int, name: str, topic: str, upto: Mapping[int, int], stride: int, since_ms: int) -> None:
        super().__init__(attempts_max=0)
        self.number = number
        self.name = name
        self.topic = topic
        self.is_for = matcher(topic)
        self.upto = dict(upto)
        """By partition, the offset up to which every event is in a row or settled."""
        self.gone: set[int] = set()
        """Given up beyond `upto`."""
        self.since_ms = since_ms
        """When it began."""
        self._stride = stride

    # Snapshots.

    def kept(self) -> Kept:
        return Kept(
            self.number, self.name, self.topic, self.upto, self.dropped, self.expired, self.rows, self.letters,
            sorted(self.gone), self.since_ms,
        )  # fmt: skip

    @classmethod
    def of(cls, kept: Kept, stride: int) -> Rows:
        rows = cls(kept.number, kept.name, kept.topic, kept.upto, stride, kept.since_ms)
        rows.dropped, rows.expired = kept.dropped, kept.expired
        rows.letters, rows.gone = kept.letters, set(kept.gone)
        for place, row in kept.rows.items():
            rows.put(place, row)
        return rows

    # What is next.

    def is_beyond(self, place: int) -> bool:
        """Say whether the group has not come to an event yet."""
        return self._is_beyond_upto(place) and place not in self.gone

    def _is_beyond_upto(self, place: int) -> bool:
        offset, partition = divmod(place - 1, self._stride)
        return offset > self.upto.get(partition, -1)

    # What is done to rows.

    def take_all_in(self, taken: Iterable[tuple[int, bytes]], upto: Mapping[int, int]) -> bool:
        """Make rows of events that the group comes to; return whether it had come to none of them before."""
        are_new = True
        for place, key in taken:
            if self.is_beyond(place):
                self.take_in(place, key)
            else:
                are_new = False
        self.advance(upto)
        return are_new

    def advance(self, upto: Mapping[int, int]) -> None:
        for partition, offset in upto.items():
            self.upto[partition] = max(self.upto.get(partition, -1), offset)
        if self.gone:
            self.gone = {place for place in self.gone if self._is_beyond_upto(place)}

    def begin_all(self, waits_ms: Sequence[int], now_ms: int, owner: str) -> list[tuple[int, Row]]:
        """Begin the next attempts at what is ready; return places and rows as they are then."""
        ready = zip(self.ready(len(waits_ms)), waits_ms, strict=False)
        return [(place, self.begin(place, now_ms + wait, owner, wait_ms=wait)) for place, wait in ready]

    def body_of(self, number: int, letter: Letter) -> int:
        return letter.body_at

    def expire(self, places: Sequence[int], floor: Mapping[int, int], gone_ms: int) -> None:
        """Give up events that are too old and are the group's; what lies up to `floor` is gone for everybody."""
        for place in places:
            if place in self.rows:
                if not self.is_kept(place, gone_ms):
                    self.finish(place)
                    self.expired += 1
            elif self.is_beyond(place):
                self.gone.add(place)
                self.expired += 1
        self.advance(floor)

    def set_back(self, now_ms: int) -> None:
        self.since_ms = min(self.since_ms, now_ms)
        super().set_back(now_ms)
