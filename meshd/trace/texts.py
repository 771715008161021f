"""What agents say of themselves, beside the log: there it can be erased, and the log still holds its digest.

A file of texts belongs to each segment of the log, and goes with it. A text is a length, a checksum, its SHA-256 and
its bytes, which are its own only where they have that digest: a checksum anybody can make fit. An erased one keeps its
length and its digest, and has zeros in place of its bytes.
"""

from __future__ import annotations

import os
import struct
import zlib
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.ledger.journal import told

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FRONT: Final = struct.Struct("<II32s")
TEXT_BYTES_MAX: Final = 2**20
FILE_BYTES: Final = 2**23
"""A file that has so much is full: what a segment's records say may be a hundred times what they take, and only whole
segments are let go."""
SUFFIX: Final = ".txt"


class Text(NamedTuple):
    """A text in its file."""

    at: int
    digest: bytes
    """SHA-256."""
    data: bytes
    """Empty where it was erased, or has another digest."""
    is_erased: bool = False


class Texts:
    """The file of texts that is written to. Not safe against other threads."""

    __slots__ = ("_at", "_fd", "_path")

    def __init__(self) -> None:
        self._path: Path | None = None
        self._fd = -1
        self._at = 0

    def append(self, path: Path, data: bytes) -> tuple[bytes, int]:
        """Keep a text in a file that is made where there is none; return its digest and its place. Raises
        StoreError."""
        digest = sha256(data).digest()
        try:
            if path != self._path:
                self.close()
                self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                self._path, self._at = path, os.fstat(self._fd).st_size
            at = self._at
            frame = _FRONT.pack(len(data), zlib.crc32(data), digest) + data
            if os.write(self._fd, frame) != len(frame):
                os.ftruncate(self._fd, at)
                raise OSError(28, os.strerror(28))
            self._at = at + len(frame)
        except OSError as error:
            raise told(error, path) from error
        return digest, at

    def is_full(self, path: Path) -> bool:
        """Say whether this file, where it is the one that is written to, has enough."""
        return self._at >= FILE_BYTES and path == self._path

    def sync(self) -> None:
        """Have what was written on disk. Raises OSError."""
        if self._fd >= 0:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._path = -1, None


def read_text(path: Path, at: int) -> Text | None:
    """Return the text at a place; None where there is none."""
    try:
        with path.open("rb") as stream:
            stream.seek(at)
            return _next(stream.read(_FRONT.size), at, stream.read)
    except OSError:
        return None


def texts_in(path: Path) -> Iterator[Text]:
    """Yield the texts of a file, oldest first; what is cut off at its end is no text."""
    with path.open("rb") as stream:
        at = 0
        while (found := _next(stream.read(_FRONT.size), at, stream.read)) is not None:
            yield found
            at = stream.tell()


def files_in(directory: Path, suffix: str, prefix: str = "") -> list[Path]:
    """Return a directory's files of a name, in their order; none where it is not there. Raises OSError: what cannot be
    listed is not empty, as `Path.glob` takes it to be."""
    try:
        paths = sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    return [path for path in paths if path.name.startswith(prefix) and path.name.endswith(suffix)]


def erase(directory: Path, digest: bytes) -> int:
    """Overwrite every copy of the text with this digest; return how many there were. Raises OSError."""
    count = 0
    for path in files_in(directory, SUFFIX):
        places = [text.at for text in texts_in(path) if text.digest == digest and not text.is_erased]
        if not places:
            continue
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            for at in places:
                length = _FRONT.unpack(os.pread(fd, _FRONT.size, at))[0]
                os.pwrite(fd, bytes(length), at + _FRONT.size)
                count += 1
            os.fdatasync(fd)
        finally:
            os.close(fd)
    return count


def _next(front: bytes, at: int, read: object) -> Text | None:
    if len(front) < _FRONT.size:
        return None
    length, _, digest = _FRONT.unpack(front)
    if length > TEXT_BYTES_MAX:
        return None
    data: bytes = read(length)  # type: ignore[operator]
    if len(data) < length:
        return None
    return Text(at, digest, data if sha256(data).digest() == digest else b"", not any(data))
