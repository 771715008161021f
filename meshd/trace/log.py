"""The open log of one sidecar: an append is a plain function call that stores into mapped memory.

No task, no await, no call to the system but for a new segment. What the proxy appends within one turn of its loop
becomes one record, which is stored before the first byte of that turn goes out: a hash costs as much for eight events
as for one. Where the log is durable, `whole` waits until everything that was appended before is on disk; all that wait
while one sync runs share the next.

Beside the segments a file `head` says how far the log goes: where its end is missing, that tells.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import struct
import zlib
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from meshd.engines.port import StoreError
from meshd.ledger.journal import allocate, told
from meshd.trace.segment import (
    CHECKED_AT,
    FRAME_BYTES,
    HEAD_BYTES,
    LENGTH_AND_CHECK,
    MANY,
    MANY_BYTES,
    PAYLOAD_BYTES_MAX,
    SEGMENT_BYTES,
    SEQUENCE_AND_HASH,
    Head,
    begin,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEAD_FILE: Final = "head"
HEAD_FILE_BYTES: Final = 4096
GATHERED_BYTES_MAX: Final = 2**15
"""Of one record of several events."""
GATHERED_MAX: Final = 256
_PLACE: Final = struct.Struct("<QQ32s")
_PLACE_BYTES: Final = _PLACE.size + 4
_PLACE_AT: Final = (64, 192)
"""Two places, written in turn: a process that is killed within a store leaves the other one whole."""

_crc32: Final = zlib.crc32
_sha256: Final = sha256
_pack_checked: Final = SEQUENCE_AND_HASH.pack
_pack_front: Final = LENGTH_AND_CHECK.pack
_pack_place: Final = _PLACE.pack
_pack_many: Final = struct.Struct(">BH").pack


class Log:
    """Not safe against other threads, but for `fdatasync` of its descriptors."""

    __slots__ = (
        "_at", "_boot_id", "_end", "_fd", "_gathered", "_gathered_bytes", "_head", "_head_fd", "_heads", "_is_second",
        "_map", "_run", "_segment_bytes", "_stale", "_waiting", "bytes_written", "directory", "epoch", "events",
        "is_gathering", "on_segment", "path", "segment", "sequence", "sidecar",
    )  # fmt: skip

    def __init__(
        self,
        directory: Path,
        *,
        sidecar: str,
        epoch: int,
        boot_id: str,
        segment: int,
        sequence: int,
        head: bytes,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """`sequence` is that of the event before, `head` the hash of its record, `segment` the number of the first to
        make.

        Raises StoreError where its files cannot be made.
        """
        self.directory = directory
        self.sidecar = sidecar
        self.epoch = epoch
        self.sequence = sequence
        """Of the last event."""
        self._head = head
        self._gathered: list[bytes] = []
        """Events that are not stored yet, the last of which has this sequence."""
        self._gathered_bytes = 0
        self.is_gathering = False
        """Whoever set it calls `commit` before anything leaves the process."""
        self._is_second = False
        self.segment = segment
        self.events = 0
        """Appended since the start."""
        self.bytes_written = 0
        self.on_segment: Callable[[], None] | None = None
        """Told whenever a new segment was begun."""
        self._boot_id = boot_id
        self._segment_bytes = segment_bytes
        self._stale: list[int] = []
        """Descriptors of segments that are full, and not synced yet."""
        self._waiting: asyncio.Future[None] | None = None
        self._run: Any = None
        self._fd = -1
        self._at = self._end = 0
        self._heads, self._head_fd = _head_map(directory)
        self.path = directory
        self._map = self._begin()
        for at in _PLACE_AT:
            self._heads[at : at + 52] = _place(epoch, sequence, head)

    @property
    def head(self) -> bytes:
        """Hash of the last record, once it is stored."""
        if self._gathered:
            self.commit()
        return self._head

    def append(self, event: bytes) -> int:
        """Append an event, and return its sequence: on return, or on `commit` where `is_gathering`, a killed process
        loses it no more.

        Raises StoreError, and nothing is appended, where a new segment is needed and cannot be made, or it is closed.
        """
        if self._fd < 0:
            raise StoreError("the trace is closed")
        length, gathered = len(event), self._gathered
        if gathered and (
            self._gathered_bytes + length > GATHERED_BYTES_MAX
            or len(gathered) >= GATHERED_MAX
            or self._at + FRAME_BYTES + MANY_BYTES + self._gathered_bytes + length > self._end
        ):
            self.commit()
        if self._at + FRAME_BYTES + length > self._end:
            self._rotate(FRAME_BYTES + length)
        self.sequence = sequence = self.sequence + 1
        self.events += 1
        gathered.append(event)
        self._gathered_bytes += length
        if not self.is_gathering:
            self.commit()
        return sequence

    def commit(self) -> None:
        """Store what was gathered, as one record."""
        gathered = self._gathered
        count = len(gathered)
        if not count:
            return
        sequence = self.sequence
        payload = gathered[0] if count == 1 else _pack_many(MANY, count) + b"".join(gathered)
        gathered.clear()
        self._gathered_bytes = 0
        checked = _pack_checked(sequence - count + 1, self._head) + payload
        self._head = head = _sha256(checked).digest()
        length = CHECKED_AT + len(checked)
        at = self._at
        # Of the hash, as much as a checksum takes.
        self._map[at : at + length] = _pack_front(length, head) + checked
        self._at = (at + length + 7) & ~7
        self.bytes_written += length
        self._is_second = is_second = not self._is_second
        at = _PLACE_AT[is_second]
        self._heads[at : at + 52] = _place(self.epoch, sequence, head)

    async def whole(self) -> None:
        """Return once everything that was appended is on disk. Raises StoreError where it cannot be."""
        self.commit()
        waiting = self._waiting
        if waiting is None:
            loop = asyncio.get_running_loop()
            waiting = self._waiting = loop.create_future()
            if self._run is None:
                self._run = loop.create_task(self._sync())
        await asyncio.shield(waiting)

    async def _sync(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting is not None:
                waiting, self._waiting = self._waiting, None
                stale, self._stale = self._stale, []
                try:
                    await loop.run_in_executor(None, sync, stale, self._fd)
                except OSError as error:
                    # Nothing is known of what a failed sync has written: those who wait must not go on.
                    waiting.set_exception(told(error, self.path))
                    waiting.exception()
                else:
                    waiting.set_result(None)
        finally:
            self._run = None

    def turn(self) -> None:
        """Begin the next segment, whatever this one has room for. Raises StoreError."""
        self.commit()
        self._rotate(0)

    def _rotate(self, length: int) -> None:
        if length > FRAME_BYTES + PAYLOAD_BYTES_MAX:
            raise StoreError(f"an event of {length} bytes does not fit into the trace")
        was, fd, used = self._map, self._fd, self._at
        self._map = self._begin()
        was.close()
        os.ftruncate(fd, used)
        self._retire(fd)
        if self.on_segment is not None:
            self.on_segment()

    def _retire(self, fd: int) -> None:
        if self._waiting is None and self._run is None:
            os.close(fd)
        else:
            self._stale.append(fd)

    def _begin(self) -> mmap.mmap:
        head = Head(
            self._segment_bytes, self.epoch, self.segment, self.sequence + 1, self.sidecar, self._boot_id, self._head
        )
        mapped, self._fd, self.path = begin(self.directory, head)
        self.segment += 1
        self._at = HEAD_BYTES
        self._end = self._segment_bytes
        return mapped

    def close(self) -> None:
        """Sync, cut the last segment to what it holds, and close. A second call changes nothing."""
        if self._fd < 0:
            return
        self.commit()
        fd, self._fd = self._fd, -1
        self._map.close()
        self._heads.close()
        try:
            os.ftruncate(fd, self._at)
            sync(self._stale, fd)
            os.fdatasync(self._head_fd)
        except OSError:
            pass  # What can be kept is kept: a start finds out how far it goes.
        os.close(fd)
        os.close(self._head_fd)
        self._stale = []


def _place(epoch: int, sequence: int, head: bytes) -> bytes:
    """Return how far the log goes, with a checksum of it all."""
    place = _pack_place(epoch, sequence, head)
    return place + _crc32(place).to_bytes(4, "little")


def sync(stale: list[int], fd: int) -> None:
    """Sync full segments, which are closed then, and the one that is written to. Raises OSError."""
    for old in stale:
        try:
            os.fdatasync(old)
        finally:
            os.close(old)
    os.fdatasync(fd)


def _head_map(directory: Path) -> tuple[mmap.mmap, int]:
    path = directory / HEAD_FILE
    fd = -1
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        allocate(fd, HEAD_FILE_BYTES)
        return mmap.mmap(fd, HEAD_FILE_BYTES), fd
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise told(error, path) from error


def said_head(directory: Path) -> tuple[int, int, bytes] | None:
    """Return epoch, sequence and hash of the last record as the file `head` says; None where it says nothing."""
    try:
        data = (directory / HEAD_FILE).read_bytes()
    except OSError:
        return None
    best: tuple[int, int, bytes] | None = None
    for at in _PLACE_AT:
        place = data[at : at + _PLACE_BYTES]
        if len(place) < _PLACE_BYTES or not any(place):
            continue
        epoch, sequence, head = _PLACE.unpack_from(place)
        # An earlier meshd took half of the two numbers into it.
        checks = (_crc32(place[: _PLACE.size]), _crc32(head, (epoch + sequence) & 0xFFFF_FFFF))
        is_whole = int.from_bytes(place[_PLACE.size :], "little") in checks
        if is_whole and (best is None or sequence >= best[1]):
            best = (epoch, sequence, head)
    return best


assert LENGTH_AND_CHECK.size == CHECKED_AT
