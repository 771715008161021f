"""A JSON array that is written while it grows, as Gemini streams it without `alt=sse`: where an element ends.

Pure: bytes in, raw pieces out, none changed, so that all of them together are the body that came. A piece is one
element with the bracket or comma before it; the bracket that closes the array is a piece of its own. A body that is
one object and no array (an error, say) is one piece. Only brackets and strings are looked at: whether it is JSON is
for whoever reads the elements.
"""

from __future__ import annotations

import re
from typing import Final

from meshd.wire.sse import EVENT_BYTES_MAX, EventTooLarge

_OUTSIDE: Final = re.compile(rb'["{}\[\]]')
_INSIDE: Final = re.compile(rb'["\\]')
_QUOTE: Final = 0x22
_BRACKET: Final = 0x5B
_BRACE: Final = 0x7B


class Splitter:
    """Cuts an array into its elements. Holds at most `event_bytes_max` bytes beside what it was just fed."""

    __slots__ = ("_depth", "_event_bytes_max", "_is_escaped", "_is_string", "_level", "_pending")

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._pending = bytearray()
        self._depth = 0
        self._level = -1
        """Depth to which an element returns: 1 in an array, 0 where the body is no array, -1 before its first byte."""
        self._is_string = False
        self._is_escaped = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the pieces that `data` completes, in order and unchanged.

        Raises EventTooLarge once a piece, complete or not, is longer than `event_bytes_max`; the splitter is of no use
        after that.
        """
        pieces: list[bytes] = []
        begin = at = 0
        size = len(data)
        while at < size:
            if self._is_escaped:
                self._is_escaped = False
                at += 1
                continue
            found = (_INSIDE if self._is_string else _OUTSIDE).search(data, at)
            if found is None:
                break
            at = found.end()
            if self._ends_piece(data[at - 1]):
                self._take(data[begin:at])
                pieces.append(bytes(self._pending))
                self._pending.clear()
                begin = at
        self._take(data[begin:])
        return pieces

    def _ends_piece(self, byte: int) -> bool:
        if self._is_string:
            if byte == _QUOTE:
                self._is_string = False
            else:
                self._is_escaped = True
            return False
        if byte == _QUOTE:
            self._is_string = True
            return False
        if byte in (_BRACKET, _BRACE):
            if self._level < 0:
                self._level = 1 if byte == _BRACKET else 0
            self._depth += 1
            return False
        self._depth = max(0, self._depth - 1)
        return self._depth <= self._level

    def _take(self, piece: bytes) -> None:
        self._pending += piece
        if len(self._pending) > self._event_bytes_max:
            raise EventTooLarge(self._event_bytes_max)

    def rest(self) -> bytes:
        """Return what ended no piece, and forget it: blanks behind the array, or half an element."""
        rest = bytes(self._pending)
        self._pending.clear()
        return rest
