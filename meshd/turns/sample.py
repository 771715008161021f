"""The beginning and the end of what streams by: enough to know it again, and never more than is asked for."""

from __future__ import annotations

from typing import Final

GAP: Final = b". "
"""Stands where something was left out: what comes behind it begins a sentence, for whoever tells names by capitals."""


class Sample:
    """Hears a body as it passes."""

    __slots__ = ("_begin", "_end", "_half", "_room", "size")

    def __init__(self, bytes_max: int) -> None:
        """Keep so many bytes: half from the beginning, half from the end."""
        self._half = bytes_max >> 1
        self._room = self._half
        self._begin = b""
        self._end = b""
        self.size = 0
        """Bytes that passed."""

    def hear(self, data: bytes) -> None:
        """Take a piece."""
        size = len(data)
        if not self.size and size <= self._room:
            # Most bodies are one piece that fits.
            self._begin = bytes(data)
            self.size = size
            self._room -= size
            return
        self.size += size
        if self._room:
            taken = bytes(data[: self._room])
            self._begin += taken
            self._room -= len(taken)
            data = data[len(taken) :]
        if len(data):
            half = self._half
            self._end = bytes(data[-half:]) if len(data) >= half else (self._end + bytes(data))[-half:]

    def taken(self) -> bytes:
        """Return what was kept."""
        if not self._end:
            return self._begin
        gap = GAP if self.size > len(self._begin) + len(self._end) else b""
        return self._begin + gap + self._end


def sampled(body: bytes, bytes_max: int) -> bytes:
    """Return the same of a body that is whole."""
    if len(body) <= bytes_max:
        return body
    half = bytes_max >> 1
    return body[:half] + GAP + body[-half:]
