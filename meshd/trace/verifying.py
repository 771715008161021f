"""The first bad record of a log, and why it is one.

A checksum tells a bad page, the chain of hashes tells who changed, left out, put in or moved a record, the file `head`
and the heads that peers were told show a tail that is gone. What is behind damage is looked at all the same, and what
stands beside the log too: the words of agents by their digests, and the indexes that readers go by.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from meshd.trace import kinds
from meshd.trace.indexing import INDEX_SUFFIX, Indexing
from meshd.trace.log import HEAD_FILE, said_head
from meshd.trace.opening import NAME_FILE, SKIPPED
from meshd.trace.reading import Reader, Segment, open_segment, segment_paths
from meshd.trace.record import event_id, parts_of, payloads_of, read_event_id
from meshd.trace.retention import number_of
from meshd.trace.segment import (
    CHECK_BYTES,
    CHECKED_AT,
    FRAME,
    FRAME_BYTES,
    FRAME_BYTES_MAX,
    HEAD_BYTES,
    MANY,
    aligned,
    count_of,
    name_of,
)
from meshd.trace.texts import SUFFIX, read_text
from meshd.trace.verified import Problem, Verified

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from meshd.trace.segment import Head

PROBLEMS_MAX: Final = 1000
TRIES_MAX: Final = 5
"""Walks over a log of which old segments are let go meanwhile: that is written down in one that was not listed yet."""
_TELLING: Final = frozenset({kinds.OPENED, kinds.RETIRED})
_ENTRIES: Final = frozenset(kinds.ENTRIES.values())
_NO_EVENT: Final = "it was changed: what it holds is no event"


Heads = dict[str, dict[int, bytes]]
"""By sidecar and sequence: hashes that peers were told."""


def heads_in(directories: Iterable[Path]) -> Heads:
    """Return what the logs of some sidecars hold of others' hashes."""
    found: Heads = {}
    for directory in directories:
        for event in Reader(directory).events(None):
            if event.payload.kind not in (kinds.ARRIVED, kinds.REPLIED, kinds.HANDED, kinds.READ):
                continue
            head, causes = event.facts.get("peer_head"), event.causes
            # What is read follows from what its reader serves as well, and that stands first.
            peer = read_event_id(causes[-1 if event.payload.kind == kinds.READ else 0]) if causes else None
            if peer is not None and isinstance(head, bytes) and head and peer[0] != event.sidecar:
                found.setdefault(peer[0], {})[peer[2]] = head
    return found


def verify(directory: Path, heads: Heads | None = None) -> Verified:
    """Go through a whole log. Raises OSError where it cannot be read at all."""
    for _ in range(TRIES_MAX):
        walk = _Walk(directory, heads or {})
        # Before the log: what is appended meanwhile makes it longer than it is said to be, never shorter.
        found = walk.run(said_head(directory))
        if not walk.has_vanished:
            break
    return found


class _Walk:
    def __init__(self, directory: Path, heads: Heads) -> None:
        self.found = Verified()
        self.has_vanished = False
        """A segment that was listed was gone when its turn came."""
        self._directory = directory
        self._heads = heads
        self._claims: dict[int, bytes] = {}
        self._sequence = 0
        """Of the last event."""
        self._record = 0
        """Of the first event of the last record: that names it."""
        self._is_read = True
        """The last record holds events, and nothing else."""
        self._epoch = 0
        self._segment = 0
        self._hash = b""
        """Of the last record; empty where it is not known, behind damage."""
        self._is_begun = False
        self._retired_to = 0
        self._first_segment = 0
        self._torn = 0
        """Bytes behind the last record."""
        self._is_put_in = False
        """No record that was cut short can be what stands there."""
        self._file = ""
        self._walked = ""
        """The file whose records were looked at last."""
        self._hashes: dict[int, bytes] = {}

    def run(self, said: tuple[int, int, bytes] | None) -> Verified:
        found, paths = self.found, segment_paths(self._directory)
        for path in paths:
            segment = open_segment(path)
            if segment is None:
                self.has_vanished = True
                continue
            self._file = path.name
            if not isinstance(segment, Segment):
                self._bad("", -1, f"it cannot be read: {segment.why}")
                self._hash, self._segment = b"", number_of(path)
                continue
            try:
                self._take(segment)
            finally:
                segment.close()
        if self._first_segment > max(self._retired_to, 1):
            self._bad("", -1, f"the segments before {self._first_segment} are missing, and no retention removed them")
        if not paths and said is None and (self._directory / NAME_FILE).exists():
            self._put(
                Problem(
                    "", str(self._directory), -1, "it has no segment: all were removed, or none could ever be written"
                )
            )
        self._end(said or said_head(self._directory))
        self._compare()
        return found

    def _end(self, said: tuple[int, int, bytes] | None) -> None:
        """Hold what the file head says against the last record, and look at what is behind that."""
        found = self.found
        if said is not None and said[1] > self._sequence:
            self._missing(said[1], "the file head says")
        elif said is not None and said[1] == self._sequence and self._hash and said[2] != self._hash:
            self._bad(self._id(self._record), -1, "it was changed: the file head has another hash of it")
        elif self._torn and self._is_put_in:
            self._behind()
        elif self._torn and found.is_sound:
            found.notes.append(f"{self._file} ends within a record ({self._torn} bytes): nothing before it is touched")
        if said is None and found.records:
            # It was made ahead of the first record, and no crash takes it.
            what = "it is missing or damaged: whether the log's tail was cut off, nobody can say"
            self._put(Problem("", HEAD_FILE, -1, what))

    def _take(self, segment: Segment) -> None:
        head, found = segment.head, self.found
        if not found.sidecar:
            found.sidecar = head.sidecar
            self._claims = self._heads.get(head.sidecar, {})
        found.segments += 1
        found.bytes += segment.file_bytes
        if not self._is_begun:
            self._is_begun, self._first_segment = True, head.segment
            self._epoch, self._sequence = head.epoch - 1, 0
            self._lost(head, _opened(segment))
            self._sequence = self._record = head.first - 1
            self._hash = head.before
        elif head.sidecar != found.sidecar:
            self._bad("", 0, f"it is of another sidecar, {head.sidecar}")
        elif head.segment != self._segment + 1:
            self._missing(head.first - 1, f"segment {self._segment + 1} is missing, and the next says")
            self._sequence = self._record = head.first - 1
            self._hash = head.before
        elif head.epoch == self._epoch:
            if head.first - 1 > self._sequence:
                self._missing(head.first - 1, "the next segment says")
            elif self._torn:
                self._behind()
            elif self._hash and head.before != self._hash:
                self._bad(self._id(self._record), -1, "it was changed: the next segment has another hash of it")
            self._sequence, self._hash = head.first - 1, head.before
        else:
            self._begin_epoch(segment)
        self._segment, self._epoch = head.segment, head.epoch
        if segment.path.stem != name_of(head.epoch, head.segment):
            self._bad("", 0, f"it is {name_of(head.epoch, head.segment)}: files were swapped or renamed")
        bad, kept = len(found.problems), segment.kept_index()
        indexing = Indexing() if kept is not None else None
        self._frames(segment, indexing)
        if indexing is not None and len(found.problems) == bad and indexing.made(segment.size) != kept:
            name = segment.path.with_suffix(INDEX_SUFFIX).name
            self._put(Problem("", name, -1, "it leaves out or moves events: remove it, and it is made anew"))

    def _begin_epoch(self, segment: Segment) -> None:
        """A start was made: its first record says how far the log went then."""
        head, facts = segment.head, _opened(segment)
        if facts:
            _, _, ended, said, _, is_same_boot = facts
            if ended > self._sequence:
                self._missing(ended, "the start after it found")
            elif self._torn and self._is_put_in:
                self._behind()
            elif self._hash and head.before != self._hash:
                self._bad(self._id(self._record), -1, "it was changed: the start after it had another hash of it")
            self._lost(head, facts)
            expected = max(ended, said) + (0 if is_same_boot else SKIPPED)
            if head.first - 1 != expected:
                self._bad(event_id(head.sidecar, head.epoch, head.first), 0, "its epoch does not begin where it must")
        if self._torn and not self._is_put_in:
            self.found.notes.append(f"before {segment.path.name} a record was cut short: it was never whole")
        self._torn = 0
        self._sequence = self._record = head.first - 1
        self._hash = head.before

    def _lost(self, head: Head, facts: tuple[Any, ...]) -> None:
        """What a start has said of the end that it found, and of the file `head`, which is whole again since."""
        if not facts:
            return
        _, _, ended, said, lost, is_same_boot = facts
        if lost and (is_same_boot or head.segment == 1):
            # A first segment is made where there is none at all: a crash leaves one that is empty.
            self._sequence = max(self._sequence, ended)
            why = ", with no crash of the host between," if is_same_boot else ""
            self._missing(said, f"the file head said at the next start{why}")
        elif lost:
            self.found.notes.append(f"{lost} records after {self._id(ended)} were lost in a crash of the host")
        if said < 0:
            what = f"it was missing or damaged as epoch {head.epoch} began: whether a tail was cut off, is not known"
            if is_same_boot:
                self._put(Problem("", HEAD_FILE, -1, what))
            else:
                self.found.notes.append(f"{HEAD_FILE}: {what}")

    def _frames(self, segment: Segment, indexing: Indexing | None) -> None:
        """The tight loop: some three microseconds a record, and one more where there is an index to compare with. What
        tells of the log itself, or has words beside it, is a record of its own."""
        data, size, at = segment.data, segment.size, HEAD_BYTES
        unpack, claims = FRAME.unpack_from, self._claims
        sequence, record, before, count = self._sequence, self._record, self._hash, 0
        last, here = size - FRAME_BYTES, -1
        while at <= last:
            length, check, number, said = unpack(data, at)
            is_sized = FRAME_BYTES <= length <= FRAME_BYTES_MAX and at + length <= size
            own = sha256(data[at + CHECKED_AT : at + length]).digest() if is_sized else b""
            if own[:CHECK_BYTES] != check:
                following = segment.next_whole(at)
                if following is None:
                    break
                self._bad(self._id(sequence + 1), at, "it is damaged: its checksum is wrong")
                at, before = following, b""
                sequence = max(unpack(data, at)[2] - 1, sequence)
                continue
            if number != sequence + 1:
                if here >= 0 and not _is_read(segment, here):
                    self._bad(self._id(record), here, _NO_EVENT)
                else:
                    self._misplaced(number, sequence, at)
                if number <= sequence:
                    at = (at + length + 7) & ~7
                    continue
            elif said != before and before:
                self._changed(segment, at, record)
            payload, events = data[at + FRAME_BYTES : at + length], 1
            if length > FRAME_BYTES + 1:
                kind = payload[1]
                if payload[0] == MANY:
                    events = self._events(payload, number, at)
                elif kind in _TELLING:
                    self._told(segment, at)
                elif kind in _ENTRIES:
                    self._words(segment, at)
            record, sequence, before, here = number, number + events - 1, own, at
            count += events
            if indexing is not None:
                indexing.take(at, payload)
            if claims:
                self._hashes.update({one: own for one in range(number, sequence + 1) if one in claims})
            at += length
            if at & 7:
                if bytes(data[at : (at + 7) & ~7]).strip(b"\0"):
                    self._bad(self._id(number), at, "something was written behind it, where nothing belongs")
                at = (at + 7) & ~7
        self._sequence, self._record, self._hash = sequence, record, before
        self._is_read = here < 0 or _is_read(segment, here)
        self.found.records += count
        self._torn = len(bytes(data[at:]).rstrip(b"\0"))
        # One that was closed is cut to what it holds, and a record has its most bytes.
        self._is_put_in = segment.file_bytes != segment.head.size or self._torn > FRAME_BYTES_MAX
        self._walked = self._file

    def _events(self, payload: memoryview, number: int, at: int) -> int:
        """Return how many events a record has; that must be as many as it says."""
        said, parts = count_of(payload), parts_of(payload)
        if len(parts) != said and parts[:1] != [None]:
            self._bad(self._id(number), at, f"it was changed: it says that it has {said} events, and has {len(parts)}")
            said = len(parts)
        return max(said, 1)

    def _behind(self) -> None:
        """Something stands behind a record that was the last one when its segment was closed."""
        what = f"something was written behind it, where nothing belongs ({self._torn} bytes)"
        self._put(Problem(self._id(self._record), self._walked, -1, what))

    def _words(self, segment: Segment, at: int) -> None:
        """What an agent said must be what it said, or erased."""
        frame = segment.frame(at)
        event = segment.events(frame)[0] if frame is not None else None
        if event is None or not (name := event.facts.get("text_segment")):
            return
        path = self._directory / f"{name}{SUFFIX}"
        text = read_text(path, event.facts["text_at"]) if "/" not in name else None
        if text is None and path.with_suffix(segment.path.suffix).exists():
            what = "what the agent said with it is missing"
        elif text is not None and (text.digest != event.payload.digest or not (text.data or text.is_erased)):
            what = "what the agent said with it was changed"
        else:
            return
        self._bad(event.id, -1, f"{what}: {path.name} at byte {event.facts['text_at']}")

    def _told(self, segment: Segment, at: int) -> None:
        frame = segment.frame(at)
        payload = payloads_of(frame.payload)[0] if frame is not None else None
        if payload is not None and payload.kind == kinds.RETIRED and payload.facts:
            self._retired_to = max(self._retired_to, payload.facts[0])

    def _misplaced(self, number: int, sequence: int, at: int) -> None:
        if number > sequence + 1:
            count = number - sequence - 1
            rest = f" and {count - 1} after it" if count > 1 else ""
            self._bad(self._id(sequence + 1), at, f"it is missing{rest}: record {number} stands in its place")
        else:
            self._bad(self._id(number), at, f"it stands here once more, or was put in: {sequence + 1} should follow")

    def _changed(self, segment: Segment, at: int, record: int) -> None:
        """The record at a place does not hold the hash of the one before: one of the two was changed, and what follows
        says which."""
        here = segment.frame(at)
        assert here is not None, "it was whole a moment ago"
        after = segment.frame(aligned(at + FRAME_BYTES + len(here.payload)))
        if after is not None and after.sequence == here.last + 1 and after.before != here.head:
            self._bad(self._id(here.sequence), at, "it was changed: the next record has another hash of it")
        else:
            self._bad(self._id(record), at, "it was changed: the next record has another hash of it")

    def _missing(self, last: int, who: str) -> None:
        if not self._is_read:
            self._bad(self._id(self._record), -1, _NO_EVENT)
            return
        first = self._sequence + 1
        what = f"it and all up to {last} are missing" if last > first else "it is missing"
        self._bad(self._id(first), -1, f"{what}: {who} that the log went to {last}")

    def _compare(self) -> None:
        """Hold what peers were told against the log."""
        found = self.found
        low = min(self._hashes, default=0)
        for sequence, head in sorted(self._claims.items()):
            own = self._hashes.get(sequence)
            if own == head:
                found.heads_held += 1
            elif own is not None:
                self._bad(self._id(sequence), -1, "it was changed: a peer holds another hash of it")
            elif sequence > self._sequence:
                self._missing(sequence, "a peer was told")
                break
            elif sequence > low and found.is_sound:
                self._bad(self._id(sequence), -1, "it is missing, and a peer holds its hash")

    def _id(self, sequence: int) -> str:
        return event_id(self.found.sidecar, self._epoch, sequence)

    def _bad(self, record: str, at: int, what: str) -> None:
        self._put(Problem(record, self._file, at, what))

    def _put(self, problem: Problem) -> None:
        if len(self.found.problems) < PROBLEMS_MAX:
            self.found.problems.append(problem)


def _is_read(segment: Segment, at: int) -> bool:
    frame = segment.frame(at)
    return frame is not None and None not in payloads_of(frame.payload)


def _opened(segment: Segment) -> tuple[Any, ...]:
    """Return what a start has written down first in its first segment; nothing where this is none, or damaged."""
    first = segment.frame(HEAD_BYTES)
    payload = payloads_of(first.payload)[0] if first is not None else None
    if payload is None or payload.kind != kinds.OPENED or len(payload.facts) < 6:
        return ()
    return payload.facts[:6]
