"""The events of a workflow, from files that another process may still write to.

A segment that is full is indexed once: which of its events belong to which workflow, in a file beside it that its first
reader makes. So a workflow of a hundred thousand events is read one event after the other, and no other workflow's are.
What is damaged is passed over and counted; `verifying` says what it is.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.trace import kinds
from meshd.trace.indexing import INDEX_SUFFIX, Index, Indexing, Part, keep_index, kept_index, places_of, together
from meshd.trace.record import Event, payloads_of
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
    count_of,
    hash_of,
    head_of,
)
from meshd.trace.texts import SUFFIX, files_in, read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

PAGE_BYTES: Final = 4096


class Frame(NamedTuple):
    """One whole frame of a segment: a record."""

    at: int
    sequence: int
    """Of its first event."""
    before: bytes
    """Hash of the record before."""
    head: bytes
    """Its own."""
    payload: memoryview

    @property
    def last(self) -> int:
        """Sequence of its last event."""
        return self.sequence + max(count_of(self.payload), 1) - 1


class Segment:
    """One file of a log, as it is read. Close it."""

    __slots__ = ("_bytes", "_last", "_map", "file_bytes", "head", "path", "size")

    def __init__(self, path: Path, head: Head, data: mmap.mmap | bytes, file_bytes: int) -> None:
        self.path = path
        self.head = head
        self._map = data
        self._bytes = memoryview(data)
        self._last: tuple[int, list[Event | None]] = (-1, [])
        self.size = len(data)
        """Of what is read: what was written to, at least."""
        self.file_bytes = file_bytes

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

    def events(self, frame: Frame) -> list[Event | None]:
        """Return what a frame holds; None for each part of it that is no event."""
        sidecar, epoch = self.head.sidecar, self.head.epoch
        return [
            None if payload is None else Event(sidecar, epoch, sequence, frame.head, payload)
            for sequence, payload in enumerate(payloads_of(frame.payload), frame.sequence)
        ]

    def event(self, place: int) -> Event | None:
        """Return the event at a place; None where there is none. Those of one frame are read once, in their order."""
        at, number = place >> 16, place & 0xFFFF
        if self._last[0] != at:
            frame = self.frame(at)
            self._last = (at, [] if frame is None else self.events(frame))
        events = self._last[1]
        return events[number] if number < len(events) else None

    def index(self, *, is_full: bool) -> Index:
        """Return its index. That of a full segment is kept beside it, where that can be written."""
        path = self.path.with_suffix(INDEX_SUFFIX)
        if is_full and (found := kept_index(path, self.size)) is not None:
            return found
        indexing = Indexing()
        for frame in self.frames():
            indexing.take(frame.at, frame.payload)
        made = indexing.made(self.size)
        if is_full:
            keep_index(path, made)
        return made

    def kept_index(self) -> Index | None:
        """Return the index that stands beside it, None where there is none that readers go by."""
        return kept_index(self.path.with_suffix(INDEX_SUFFIX), self.size)

    def close(self) -> None:
        """Let go of the file."""
        self._bytes.release()
        if isinstance(self._map, mmap.mmap):
            with contextlib.suppress(BufferError):
                self._map.close()


class Unreadable(NamedTuple):
    """A file that looks like a segment, and is none."""

    path: Path
    why: str
    is_newer: bool = False
    """It may be one of a newer meshd."""


def segment_paths(directory: Path) -> list[Path]:
    """Return the files of a log, oldest first; none where there is no directory. Raises OSError."""
    return files_in(directory, ".seg", "log-")


def open_segment(path: Path) -> Segment | Unreadable | None:
    """Open a segment to read it; None where it is gone."""
    try:
        with path.open("rb") as stream:
            fd = stream.fileno()
            size, head = os.fstat(fd).st_size, head_of(os.pread(fd, HEAD_BYTES, 0))
            if head is None:
                return Unreadable(path, "its head is damaged" if size else "it is empty")
            # One that was cut to what it holds is not cut again. The others may be while they are read, and to touch
            # memory that is mapped to what is no longer there ends the process.
            is_cut = size != head.size
            data = mmap.mmap(fd, 0, prot=mmap.PROT_READ) if is_cut else _copied(fd, size)
    except FileNotFoundError:
        return None
    except HeadNewer as error:
        return Unreadable(path, f"it was written by a newer meshd ({error})", is_newer=True)
    except (OSError, ValueError) as error:
        return Unreadable(path, str(getattr(error, "strerror", None) or error))
    return Segment(path, head, data, size)


def _copied(fd: int, size: int) -> bytes:
    """Return what was written to a segment that another process may still write to, without the zeros at its end.

    The last page is read first: whatever it has was written after all before it, which is read later.
    """
    zeros = bytes(PAGE_BYTES)
    pages: list[bytes] = []
    for at in range((size - 1) // PAGE_BYTES * PAGE_BYTES, -1, -PAGE_BYTES):
        page = os.pread(fd, PAGE_BYTES, at)
        if pages or page != zeros[: len(page)]:
            pages.append(page)
    return b"".join(reversed(pages))


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
        self.unreadable: dict[str, str] = {}
        """Files that were met and could not be read, and why."""

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
        for path, following in zip(paths, [*paths[1:], None], strict=False):
            if following is not None and after >= 0 and first_of(following) - 1 <= after:
                continue
            found = open_segment(path)
            if isinstance(found, Segment):
                yield found, following is not None
            elif found is not None:
                self.unreadable[path.name] = found.why

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
                    if frame.last > after:
                        yield from _later(segment.events(frame), after)
                continue
            part = segment.index(is_full=is_full).parts.get(workflow)
            if part is not None:
                yield from _later(map(segment.event, places_of(part)), after)

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


def _later(events: Iterable[Event | None], after: int) -> Iterator[Event]:
    for event in events:
        if event is not None and event.sequence > after:
            yield event
