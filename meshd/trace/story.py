"""A workflow as a timeline and as a tree, over one sidecar's log or several.

A tree of a hundred thousand events is a few arrays of numbers: which event is where, and what it follows from. Each
event is read when it is shown, and let go.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.trace import kinds
from meshd.trace.indexing import PLACES, places_of
from meshd.trace.record import Event, read_event_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meshd.trace.reading import Reader, Segment

DEPTH_MAX: Final = 200
_NONE: Final = -1


def timeline(readers: Sequence[Reader], workflow: str, after: dict[str, int] | None = None) -> Iterator[Event]:
    """Yield a workflow's events by their time, over all logs; `after` has the last sequence seen of each sidecar."""
    seen = after or {}
    streams = [reader.events(workflow, seen.get(reader.sidecar, -1) if seen else -1) for reader in readers]
    return heapq.merge(*streams, key=lambda event: (event.payload.hlc_us, event.sidecar, event.sequence))


class Branch(NamedTuple):
    """An event in its tree, with what became of it."""

    depth: int
    event: Event
    ended: Event | None
    """How what began with it has ended: an attempt, an event that was handed out, a version that was to be written.
    None for other events, and where that is not known."""


class Tree:
    """The tree of one workflow. Use it as a context manager: it holds the files open."""

    def __init__(self, readers: Sequence[Reader], workflow: str) -> None:
        self._readers = readers
        self._workflow = workflow
        self._segments: list[Segment] = []
        self._files = array("I")
        self._places = array(PLACES)
        self._kinds = array("B")
        self._times = array("q")
        self._parents = array("q")

    def __enter__(self) -> Tree:
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        for segment in self._segments:
            segment.close()

    def __len__(self) -> int:
        return len(self._places)

    def branches(self) -> Iterator[Branch]:
        """Yield every event below the one that it follows from, siblings by their time."""
        first, following = self._links()
        roots = [index for index in self._by_time() if self._parents[index] == _NONE]
        stack = [(root, 0) for root in reversed(roots)]
        while stack:
            index, depth = stack.pop()
            ended, ending = _NONE, kinds.ENDINGS.get(self._kinds[index])
            children = []
            child = first[index]
            while child != _NONE:
                # What it came to stands on its own line, and what follows from that under it.
                if ended == _NONE and self._kinds[child] == ending:
                    ended = child
                    inner = first[child]
                    while inner != _NONE:
                        children.append(inner)
                        inner = following[inner]
                else:
                    children.append(child)
                child = following[child]
            yield Branch(depth, self._event(index), self._event(ended) if ended != _NONE else None)
            stack += [(one, min(depth + 1, DEPTH_MAX)) for one in reversed(children)]

    def _read(self) -> None:
        """Note where each event is, and what it follows from."""
        starts: dict[str, tuple[int, array[int]]] = {}
        foreign: dict[int, tuple[str, int]] = {}
        for reader in self._readers:
            for segment, place, event in _placed(reader, self._workflow, self._segments):
                index = len(self._places)
                start, sequences = starts.setdefault(event.sidecar, (index, array("q")))
                self._files.append(segment)
                self._places.append(place)
                self._kinds.append(min(event.payload.kind, 255))
                self._times.append(event.payload.hlc_us)
                self._parents.append(_NONE)
                sequences.append(event.sequence)
                for cause in event.payload.causes:
                    told = (event.sidecar, 0, cause) if isinstance(cause, int) else read_event_id(cause)
                    if told is None:
                        continue
                    if told[0] != event.sidecar:
                        foreign[index] = (told[0], told[2])
                        break
                    at = bisect_left(sequences, told[2])
                    if at < len(sequences) - 1 and sequences[at] == told[2]:
                        self._parents[index] = start + at
                        break
        for index, (sidecar, sequence) in foreign.items():
            if sidecar in starts:
                start, sequences = starts[sidecar]
                at = bisect_left(sequences, sequence)
                if at < len(sequences) and sequences[at] == sequence and start + at != index:
                    self._parents[index] = start + at

    def _by_time(self) -> list[int]:
        times = self._times
        return sorted(range(len(times)), key=times.__getitem__)

    def _links(self) -> tuple[array[int], array[int]]:
        """Return each event's first child, and the sibling that follows each."""
        count = len(self._places)
        first, following = array("q", [_NONE]) * count, array("q", [_NONE]) * count
        for index in reversed(self._by_time()):
            parent = self._parents[index]
            if parent != _NONE:
                following[index] = first[parent]
                first[parent] = index
        return first, following

    def _event(self, index: int) -> Event:
        segment = self._segments[self._files[index]]
        event = segment.event(self._places[index])
        assert event is not None, "it was whole a moment ago"
        return event


def _placed(reader: Reader, workflow: str, opened: list[Segment]) -> Iterator[tuple[int, int, Event]]:
    """Yield a workflow's events with where they are; the segments that have some stay open, in `opened`."""
    for segment, is_full in reader.open_segments():
        part = segment.index(is_full=is_full).parts.get(workflow)
        if part is None:
            segment.close()
            continue
        opened.append(segment)
        for place in places_of(part):
            event = segment.event(place)
            if event is not None:
                yield len(opened) - 1, place, event
