"""Which events of a segment belong to which workflow, in a file beside it."""

from __future__ import annotations

import os
import zlib
from array import array
from typing import TYPE_CHECKING, Final

import msgspec

from meshd.trace import kinds
from meshd.trace.record import Payload, payloads_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

INDEX_FORMAT: Final = 2
INDEX_SUFFIX: Final = ".idx"
PLACES: Final = "Q"
"""The type of a place: where a record is, and in the lowest 16 bits which of its events is meant, from 0."""


class Part(msgspec.Struct, array_like=True):
    """What a segment has of one workflow."""

    first_us: int
    last_us: int
    calls: int = 0
    refused: int = 0
    tokens: int = 0
    events: int = 0
    places: bytes = b""
    """Of its events: see PLACES."""


class Index(msgspec.Struct, array_like=True):
    """Of one segment."""

    format: int
    size: int
    """Bytes of the segment when it was indexed."""
    parts: dict[str, Part]


class Indexing:
    """Makes an index, record by record."""

    __slots__ = ("_parts", "_places")

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}
        self._places: dict[str, array[int]] = {}

    def take(self, at: int, data: memoryview) -> None:
        """Take a record: where it is, and what it holds. What is no event is left out."""
        for place, payload in enumerate(payloads_of(data), at << 16):
            if payload is None:
                continue
            workflow = payload.workflow
            part = self._parts.get(workflow)
            if part is None:
                part = self._parts[workflow] = Part(payload.hlc_us, payload.hlc_us)
                self._places[workflow] = array(PLACES)
            _count(part, payload)
            self._places[workflow].append(place)

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


def kept_index(path: Path, size: int) -> Index | None:
    """Return the index of a segment of that size; None where there is none, or it is another's."""
    try:
        data = path.read_bytes()
        found = msgspec.msgpack.decode(data[4:], type=Index)
    except (OSError, msgspec.MsgspecError):
        return None
    is_whole = zlib.crc32(data[4:]) == int.from_bytes(data[:4], "little")
    return found if is_whole and found.format == INDEX_FORMAT and found.size == size else None


def keep_index(path: Path, index: Index) -> None:
    """Keep an index, where that can be written."""
    data = msgspec.msgpack.encode(index)
    draft = path.with_suffix(f".{os.getpid()}.new")
    try:
        draft.write_bytes(zlib.crc32(data).to_bytes(4, "little") + data)
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)


def places_of(part: Part) -> array[int]:
    """Return where a workflow's events are: for `Segment.event`."""
    places = array(PLACES)
    places.frombytes(part.places)
    return places


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
