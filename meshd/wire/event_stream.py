"""Frames of `application/vnd.amazon.eventstream`, in which Amazon Bedrock streams.

After the published encoding of Amazon's event streams: two lengths and the CRC-32 of both, then headers, payload, and
the CRC-32 of all of it; numbers are big-endian. Pure: bytes in, whole raw frames out, none changed.
"""

from __future__ import annotations

import struct
import zlib
from typing import Final, NamedTuple

from meshd.wire.sse import EVENT_BYTES_MAX, EventTooLarge

PRELUDE_BYTES: Final = 12
OVERHEAD_BYTES: Final = 16
"""Of a frame with neither headers nor payload."""
HEADERS_BYTES_MAX: Final = 128 * 1024

_prelude: Final = struct.Struct(">III")
_number: Final = struct.Struct(">I")
_short: Final = struct.Struct(">H")
_STRING: Final = 7
_LENGTH_FIRST: Final = frozenset({6, 7})
# Bytes of a header's value by its type, where that says so: true, false, byte, short, integer, long, timestamp, UUID.
_VALUE_BYTES: Final = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}


class FrameBroken(Exception):
    """The bytes are no frames, or not the ones that were sent."""


class Frame(NamedTuple):
    """What one frame says."""

    headers: dict[str, str]
    """Those whose value is text, such as `:event-type` and `:message-type`."""
    payload: bytes


class Splitter:
    """Cuts a byte stream into whole frames. Holds at most `event_bytes_max` bytes beside what it was just fed."""

    __slots__ = ("_event_bytes_max", "_pending", "_wanted")

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._pending = bytearray()
        self._wanted = 0
        """Length of the frame that `_pending` begins; 0 before its prelude is whole."""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that `data` completes, in order and unchanged.

        Raises FrameBroken where a checksum or a length is wrong, EventTooLarge for a frame longer than
        `event_bytes_max`; the splitter is of no use after that.
        """
        pending = self._pending
        pending += data
        frames: list[bytes] = []
        begin = 0
        while True:
            if self._wanted == 0:
                if len(pending) - begin < PRELUDE_BYTES:
                    break
                self._wanted = self._length_of(bytes(pending[begin : begin + PRELUDE_BYTES]))
            if len(pending) - begin < self._wanted:
                break
            frame = bytes(pending[begin : begin + self._wanted])
            (checksum,) = _number.unpack_from(frame, len(frame) - 4)
            if zlib.crc32(memoryview(frame)[:-4]) != checksum:
                raise FrameBroken("the checksum of a frame of its event stream is wrong")
            frames.append(frame)
            begin += self._wanted
            self._wanted = 0
        del pending[:begin]
        return frames

    def _length_of(self, prelude: bytes) -> int:
        total, headers, checksum = _prelude.unpack(prelude)
        if zlib.crc32(prelude[:8]) != checksum:
            raise FrameBroken("the checksum of a frame's lengths is wrong: it is no event stream")
        if total < OVERHEAD_BYTES or headers > min(total - OVERHEAD_BYTES, HEADERS_BYTES_MAX):
            raise FrameBroken("the lengths of a frame of its event stream contradict each other")
        if total > self._event_bytes_max:
            raise EventTooLarge(self._event_bytes_max)
        return int(total)

    def rest(self) -> bytes:
        """Return the beginning of a frame that never ended, and forget it."""
        rest = bytes(self._pending)
        self._pending.clear()
        self._wanted = 0
        return rest


def decode(raw: bytes) -> Frame | None:
    """Return what a whole frame says; None where it is none, or its headers are nonsense. Checksums are not read."""
    if len(raw) < OVERHEAD_BYTES:
        return None
    total, size, _ = _prelude.unpack_from(raw)
    if total != len(raw) or size > total - OVERHEAD_BYTES:
        return None
    end = PRELUDE_BYTES + size
    headers: dict[str, str] = {}
    at = PRELUDE_BYTES
    try:
        while at < end:
            name_end = at + 1 + raw[at]
            name, kind = raw[at + 1 : name_end].decode(), raw[name_end]
            at = name_end + 1
            if kind in _LENGTH_FIRST:
                (length,) = _short.unpack_from(raw, at)
                at += 2
            else:
                length = _VALUE_BYTES[kind]
            if kind == _STRING:
                headers[name] = raw[at : at + length].decode()
            at += length
    except (IndexError, KeyError, UnicodeDecodeError, struct.error):
        return None
    return Frame(headers, raw[end:-4]) if at == end else None


def encode(headers: dict[str, str], payload: bytes) -> bytes:
    """Return a frame with text headers and a payload."""
    fields = b"".join(
        bytes((len(name),)) + name.encode() + bytes((_STRING,)) + _short.pack(len(value.encode())) + value.encode()
        for name, value in headers.items()
    )
    lengths = struct.pack(">II", len(fields) + len(payload) + OVERHEAD_BYTES, len(fields))
    frame = lengths + _number.pack(zlib.crc32(lengths)) + fields + payload
    return frame + _number.pack(zlib.crc32(frame))
