"""The events of a workflow, from files that another process may still write to.

A segment that is full is indexed once: which of its events belong to which workflow, in a file beside it that its first
reader makes. So a workflow of a hundred thousand events is read one event after the other, and no other workflow's are.
What is damaged is passed over and counted; `verifying` says what it is.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import zlib
from array import array
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from meshd.trace import kinds
from meshd.trace.record import Event, Payload, decoder
from meshd.trace.segment import (
    CHECK_BYTES,
    CHECKED_AT,
    FRAME,
    FRAME_BYTES,
    FRAME_BYTES_MAX,
    HEAD_BYTES,
    Head,
    HeadNewer,
    aligned,
    hash_of,
    head_of,
)
from meshd.trace.texts import SUFFIX, read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

INDEX_FORMAT: Final = 1
INDEX_SUFFIX: Final = ".idx"


class Frame(NamedTuple):
    """One whole frame of a segment."""

    at: int
    sequence: int
    before: bytes
    """Hash of the record before."""
    head: bytes
    """Its own."""
    payload: memoryview


class Part(msgspec.Struct, array_like=True):
    """What a segment has of one workflow."""

    first_us: int
    last_us: int
    calls: int = 0
    refused: int = 0
    tokens: int = 0
    events: int = 0
    places: bytes = b""
    """Offsets of its events, four bytes each."""


class Index(msgspec.Struct, array_like=True):
    """Of one segment."""

    format: int
    size: int
    """Bytes of the segment when it was indexed."""
    parts: dict[str, Part]


class Segment:
    """One file of a log, as it is read. Close it."""

    __slots__ = ("_bytes", "_map", "head", "path", "size")

    def __init__(self, path: Path, head: Head, mapped: mmap.mmap) -> None:
        self.path = path
        self.head = head
        self._map = mapped
        self._bytes = memoryview(mapped)
        self.size = len(mapped)

    @property
    def data(self) -> memoryview:
        """All of its bytes."""
        return self._bytes

    def frame(self, at: int) -> Frame | None:
        """Return the whole frame at a place; None where there is none."""
        data = self._bytes
        if at + FRAME_BYTES > self.size:
            return None
        length, check, sequence, before = FRAME.unpack_from(data, at)
        if not FRAME_BYTES <= length <= FRAME_BYTES_MAX or at + length > self.size:
            return None
        head = hash_of(data[at + CHECKED_AT : at + length])
        if head[:CHECK_BYTES] != check:
            return None
        return Frame(at, sequence, before, head, data[at + FRAME_BYTES : at + length])

    def frames(self, at: int = HEAD_BYTES) -> Iterator[Frame]:
        """Yield all whole frames from a place on, also those behind damage."""
        while at + FRAME_BYTES <= self.size:
            found = self.frame(at)
            if found is None:
                following = self.next_whole(at)
                if following is None:
                    return
                at = following
                continue
            yield found
            at = aligned(at + FRAME_BYTES + len(found.payload))

    def next_whole(self, at: int) -> int | None:
        """Return the place of the next whole frame behind damage, None where there is none."""
        data, zeros = self._bytes, bytes(4096)
        at = aligned(at + 1)
        while at + FRAME_BYTES <= self.size:
            if data[at : at + 4096] == zeros[: self.size - at]:
                at += 4096
                continue
            if self.frame(at) is not None:
                return at
            at += 8
        return None

    def event(self, frame: Frame) -> Event | None:
        """Return what a frame holds; None where that is no event."""
        payload = payload_of(frame)
        if payload is None:
            return None
        return Event(self.head.sidecar, self.head.epoch, frame.sequence, frame.head, payload)

    def index(self, *, is_full: bool) -> Index:
        """Return its index. That of a full segment is kept beside it, where that can be written."""
        path = self.path.with_suffix(INDEX_SUFFIX)
        if is_full and (found := _kept_index(path, self.size)) is not None:
            return found
        indexing = Indexing()
        for frame in self.frames():
            indexing.take(frame.at, frame.payload)
        made = indexing.made(self.size)
        if is_full:
            _keep_index(path, made)
        return made

    def kept_index(self) -> Index | None:
        """Return the index that stands beside it, None where there is none that readers go by."""
        return _kept_index(self.path.with_suffix(INDEX_SUFFIX), self.size)

    def close(self) -> None:
        """Let go of the file."""
        self._bytes.release()
        with contextlib.suppress(BufferError):
            self._map.close()


class Indexing:
    """Makes an index, record by record."""

    __slots__ = ("_parts", "_places")

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}
        self._places: dict[str, array[int]] = {}

    def take(self, at: int, data: memoryview) -> None:
        """Take a record: where it is, and what it holds. What is no event is left out."""
        try:
            payload = decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return
        workflow = payload.workflow
        part = self._parts.get(workflow)
        if part is None:
            part = self._parts[workflow] = Part(payload.hlc_us, payload.hlc_us)
            self._places[workflow] = array("I")
        _count(part, payload)
        self._places[workflow].append(at)

    def made(self, size: int) -> Index:
        """Return the index of a segment of `size` bytes."""
        for workflow, part in self._parts.items():
            part.places = self._places[workflow].tobytes()
        return Index(INDEX_FORMAT, size, self._parts)


def _count(part: Part, payload: Payload) -> None:
    part.events += 1
    part.first_us = min(part.first_us, payload.hlc_us)
    part.last_us = max(part.last_us, payload.hlc_us)
    if payload.kind in (kinds.FORWARDED, kinds.ARRIVED):
        part.calls += 1
    elif payload.kind == kinds.REFUSED:
        part.refused += 1
    elif payload.kind == kinds.ENDED and len(payload.facts) > 5:
        part.tokens += max(payload.facts[4], 0) + max(payload.facts[5], 0)


def payload_of(frame: Frame) -> Payload | None:
    """Return what a frame holds; None where that is no event of a form that is known here."""
    try:
        return decoder.decode(frame.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _kept_index(path: Path, size: int) -> Index | None:
    try:
        data = path.read_bytes()
        found = msgspec.msgpack.decode(data[4:], type=Index)
    except (OSError, msgspec.MsgspecError):
        return None
    is_whole = zlib.crc32(data[4:]) == int.from_bytes(data[:4], "little")
    return found if is_whole and found.format == INDEX_FORMAT and found.size == size else None


def _keep_index(path: Path, index: Index) -> None:
    data = msgspec.msgpack.encode(index)
    draft = path.with_suffix(f".{os.getpid()}.new")
    try:
        draft.write_bytes(zlib.crc32(data).to_bytes(4, "little") + data)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)


class Unreadable(NamedTuple):
    """A file that looks like a segment, and is none."""

    path: Path
    why: str
    is_newer: bool = False
    """It may be one of a newer meshd."""


def segment_paths(directory: Path) -> list[Path]:
    """Return the files of a log, oldest first."""
    return sorted(directory.glob("log-*.seg"))


def open_segment(path: Path) -> Segment | Unreadable | None:
    """Open a segment to read it; None where it is gone."""
    try:
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return Unreadable(path, str(getattr(error, "strerror", None) or error))
    try:
        head = head_of(mapped[:HEAD_BYTES])
    except HeadNewer as error:
        return Unreadable(path, f"it was written by a newer meshd ({error})", is_newer=True)
    if head is None:
        return Unreadable(path, "its head is damaged")
    return Segment(path, head, mapped)


def first_of(path: Path) -> int:
    """Return the first sequence of a segment; one beyond all where its head cannot be read."""
    try:
        with path.open("rb") as stream:
            head = head_of(stream.read(HEAD_BYTES))
    except (OSError, HeadNewer):
        head = None
    return head.first if head is not None else 2**62


class Reader:
    """The log in one directory, read anew with every question: whoever writes it need not run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def sidecar(self) -> str:
        """Whose log it is; empty where that cannot be read."""
        for segment, _ in self.segments():
            return segment.head.sidecar
        return ""

    def open_segments(self, after: int = -1) -> Iterator[tuple[Segment, bool]]:
        """Yield each readable segment that may have events beyond `after`, oldest first, with whether it is full. Who
        asks closes them."""
        paths = segment_paths(self.directory)
        for path, following in zip(paths, [*paths[1:], None], strict=True):
            if following is not None and after >= 0 and first_of(following) - 1 <= after:
                continue
            found = open_segment(path)
            if isinstance(found, Segment):
                yield found, following is not None

    def segments(self, after: int = -1) -> Iterator[tuple[Segment, bool]]:
        """Do the same; each is closed when the next is asked for."""
        for segment, is_full in self.open_segments(after):
            try:
                yield segment, is_full
            finally:
                segment.close()

    def workflows(self) -> dict[str, Part]:
        """Return what the log has of each workflow, without places."""
        return together(segment.index(is_full=is_full).parts for segment, is_full in self.segments())

    def events(self, workflow: str | None, after: int = -1) -> Iterator[Event]:
        """Yield a workflow's events (None: all), oldest first, of those with a sequence beyond `after`."""
        for segment, is_full in self.segments(after):
            if workflow is None:
                for frame in segment.frames():
                    if frame.sequence > after and (event := segment.event(frame)) is not None:
                        yield event
                continue
            part = segment.index(is_full=is_full).parts.get(workflow)
            if part is None:
                continue
            places = array("I")
            places.frombytes(part.places)
            for at in places:
                found = segment.frame(at)
                if found is not None and found.sequence > after:
                    event = segment.event(found)
                    if event is not None:
                        yield event

    def find(self, text: str) -> Event | None:
        """Return the first event with this id, or of this call, trace or span: hex digits, or a traceparent."""
        trace = text.split("-")[1] if text.count("-") == 3 and text.startswith("00-") else text
        try:
            ids = bytes.fromhex(trace) if len(trace) in (16, 32) else b""
        except ValueError:
            ids = b""
        for event in self.events(None):
            payload = event.payload
            if text in (payload.call, event.id):
                return event
            if ids and (payload.span[:16] == ids or payload.span[16:24] == ids):
                return event
        return None

    def said(self, workflow: str, count: int, bytes_max: int) -> list[bytes]:
        """Return what agents said of a workflow and was not erased: the newest, oldest first, within both bounds."""
        newest: deque[Event] = deque(maxlen=count)
        for event in self.events(workflow):
            if kinds.STEP <= event.payload.kind <= kinds.NOTE:
                newest.append(event)
        found: list[bytes] = []
        size = 0
        for event in reversed(newest):
            data = self.text(event)
            size += len(data)
            if size > bytes_max:
                break
            if data:
                found.append(data)
        return found[::-1]

    def text(self, event: Event) -> bytes:
        """Return what an agent said with an event; empty where it was erased, or is no longer there."""
        facts = event.facts
        name, at = facts.get("text_segment"), facts.get("text_at")
        if not isinstance(name, str) or not isinstance(at, int) or "/" in name or not name:
            return b""
        found = read_text(self.directory / f"{name}{SUFFIX}", at)
        return found.data if found is not None and found.digest == event.payload.digest else b""


def together(parts: Iterable[dict[str, Part]]) -> dict[str, Part]:
    """Add up what several segments, or several logs, have of each workflow; places are left out."""
    found: dict[str, Part] = {}
    for one in parts:
        for workflow, part in one.items():
            known = found.get(workflow)
            if known is None:
                found[workflow] = msgspec.structs.replace(part, places=b"")
                continue
            known.first_us, known.last_us = min(known.first_us, part.first_us), max(known.last_us, part.last_us)
            known.calls += part.calls
            known.refused += part.refused
            known.tokens += part.tokens
            known.events += part.events
    return found
