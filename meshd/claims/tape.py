"""What left for the caller, kept as it left: in memory up to a bound, then in a file, up to what the policy keeps."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshd.call import Headers

MEMORY_BYTES: Final = 65_536
"""Of one answer. Beyond it the answer goes into a file, which costs the stream a copy into the page cache."""


def spill_in(folder: Path | None) -> Callable[[], Any]:
    """Return what opens a file without a name in `folder`: a process that is killed leaves nothing there."""

    def spill() -> Any:
        return tempfile.TemporaryFile(dir=folder, buffering=0)

    return spill


class Tape:
    """One answer on its way. Nothing here raises: an answer that cannot be kept is one that is too long."""

    __slots__ = ("_bytes_max", "_file", "_is_closed", "_pieces", "_readers", "_spill", "headers", "is_too_long",
                 "is_whole", "size", "status", "trailers")  # fmt: skip

    def __init__(self, bytes_max: int, spill: Callable[[], Any]) -> None:
        self._bytes_max = bytes_max
        self._spill = spill
        self._pieces: list[bytes] = []
        self._file: Any = None
        self._readers = 0
        self._is_closed = False
        self.size = 0
        """Bytes of the body so far."""
        self.status = 0
        """0 until there is a head."""
        self.headers: Headers = []
        self.trailers: Headers = []
        self.is_whole = False
        self.is_too_long = False

    def head(self, status: int, headers: Headers) -> None:
        """The answer's status and fields."""
        self.status = status
        self.headers = headers

    def data(self, data: bytes) -> None:
        """A piece of the body."""
        self.size += len(data)
        if self.is_too_long:
            return
        if self.size > self._bytes_max:
            self._give_up()
        elif self._file is None and self.size <= MEMORY_BYTES:
            self._pieces.append(data)
        else:
            self._write(data)

    def end(self, trailers: Headers) -> None:
        """The last byte."""
        self.trailers = trailers
        self.is_whole = True

    def _write(self, data: bytes) -> None:
        try:
            if self._file is None:
                self._file = self._spill()
                pieces, self._pieces = self._pieces, []
                _write_all(self._file, b"".join(pieces))
            _write_all(self._file, data)
        except OSError:
            self._give_up()  # a full disk costs the answer's copy, never the answer

    def _give_up(self) -> None:
        self.is_too_long = True
        self.close()

    def read(self, at: int, size: int) -> bytes:
        """Return a part of the body; shorter where it could not be read."""
        if self._file is None:
            body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces = [body]
            return body if at == 0 and size >= len(body) else body[at : at + size]
        try:
            self._file.seek(at)
            found: bytes = self._file.read(size)
            self._file.seek(self.size)
        except OSError:
            return b""
        return found

    def body(self) -> bytes | None:
        """Return the whole body; None where it is not there any more."""
        if self.is_too_long:
            return None
        body = self.read(0, self.size)
        return body if len(body) == self.size else None

    def hold(self) -> None:
        """Keep it open, even when it is closed, until `let_go`: it is still being read."""
        self._readers += 1

    def let_go(self) -> None:
        """One who has held it has read enough."""
        self._readers -= 1
        if self._is_closed:
            self.close()

    def close(self) -> None:
        """Let go of the file, and of what is in memory, as soon as nobody reads it any more."""
        self._is_closed = True
        if self._readers:
            return
        file, self._file = self._file, None
        self._pieces = []
        if file is not None:
            file.close()


def _write_all(file: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
