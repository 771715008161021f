"""JSON, one value a line, as Ollama streams it (`application/x-ndjson`): where a line ends.

Pure: bytes in, whole raw lines out, none changed. JSON escapes a line feed inside a string, so each one ends a line.
"""

from __future__ import annotations

from typing import Final

from meshd.wire.sse import EVENT_BYTES_MAX, EventTooLarge

_LF: Final = 0x0A


class Splitter:
    """Cuts a byte stream into lines. Holds at most `event_bytes_max` bytes beside what it was just fed."""

    __slots__ = ("_event_bytes_max", "_pending")

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes, each with its line feed, in order and unchanged.

        Raises EventTooLarge once a line, complete or not, is longer than `event_bytes_max`; the splitter is of no use
        after that.
        """
        end = data.find(_LF)
        if not self._pending and end != -1 and end == len(data) - 1 < self._event_bytes_max:
            # The common case: one write of the upstream is one line. No copy.
            return [data]
        lines: list[bytes] = []
        begin = 0
        while end != -1:
            self._take(data[begin : end + 1])
            lines.append(bytes(self._pending))
            self._pending.clear()
            begin = end + 1
            end = data.find(_LF, begin)
        self._take(data[begin:])
        return lines

    def _take(self, piece: bytes) -> None:
        self._pending += piece
        if len(self._pending) > self._event_bytes_max:
            raise EventTooLarge(self._event_bytes_max)

    def rest(self) -> bytes:
        """Return what no line feed has ended, and forget it."""
        rest = bytes(self._pending)
        self._pending.clear()
        return rest
