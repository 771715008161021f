"""The holder's log: every reservation is in it before its call goes out.

A journal is a row of segment files of one epoch. A segment is a header and records of 32 bytes, each with a checksum
that is seeded with its header, so that leftovers of another file never pass. Two kinds of record:

    reserve   slot, serial, bound            open until a settle record of the same serial
    settle    slot, serial, spent            `spent` is the lease's total so far, not a difference

Totals only grow, so reading a record twice, or a segment that a checkpoint has made superfluous, changes nothing.
Settle records wait in memory for the next reservation or flush: one that is lost leaves a reservation open, and an
open one counts as spent at its bound.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from meshd.engines.port import StoreError, StoreFull, StoreNewer, StoreReadOnly

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FORMAT = 1

RESERVE = 1
SETTLE = 2

_HEADER = struct.Struct("<8sIIQQ36sI")
_MAGIC = b"meshd-jl"
_BODY = struct.Struct("<BxxxIQQ")
_TAIL = struct.Struct("<I4s")
# Never zero at its end, so that a record that was cut short can be told from one that was changed.
_END = b"\r\n\xa5\n"
RECORD_BYTES = _BODY.size + _TAIL.size
_body = _BODY.pack
_tail = _TAIL.pack
_crc32 = zlib.crc32


class Head(NamedTuple):
    """What a segment says of itself."""

    epoch: int
    segment: int
    boot_id: str

    def encode(self) -> bytes:
        """Return the segment's first bytes."""
        boot_id = self.boot_id.encode()[:36]
        bare = _HEADER.pack(_MAGIC, FORMAT, 0, self.epoch, self.segment, boot_id, 0)
        return bare[:-4] + struct.pack("<I", zlib.crc32(bare[:-4]))


class Journal:
    """The open journal of one epoch. Not safe against other threads; `fileno` may be synced by one.

    Every method that writes raises StoreError when it cannot, and leaves the file as it was before.
    """

    __slots__ = ("_boot_id", "_broken_at", "_directory", "_epoch", "_fd", "_pending", "_seed", "paths", "size")

    def __init__(self, directory: Path, epoch: int, boot_id: str) -> None:
        self._directory = directory
        self._epoch = epoch
        self._boot_id = boot_id
        self._pending = bytearray()
        self._broken_at: int | None = None
        self.paths: list[Path] = []
        """Segments that are still needed, oldest first; the last is written to."""
        self._fd, self._seed, self.size = self._segment(0, b"")

    @property
    def fileno(self) -> int:
        """The file descriptor that is written to."""
        return self._fd

    @property
    def segment(self) -> int:
        """Number of the segment that is written to."""
        return int(self.paths[-1].stem.rsplit("-", 1)[1])

    @property
    def is_pending(self) -> bool:
        """Settle records wait for a flush."""
        return bool(self._pending)

    def reserve(self, slot: int, serial: int, bound: int) -> None:
        """Log a reservation: on return the operating system has it, so a killed process loses nothing."""
        body = _body(RESERVE, slot, serial, bound)
        pending = self._pending
        pending += body + _tail(_crc32(body, self._seed), _END)
        try:
            self.flush()
        except StoreError:
            del pending[-RECORD_BYTES:]
            raise

    def settle(self, slot: int, serial: int, spent: int) -> None:
        """Note that a reservation ended and what its lease has spent so far; written with the next flush."""
        body = _body(SETTLE, slot, serial, spent)
        self._pending += body + _tail(_crc32(body, self._seed), _END)

    def shrink(self, slot: int, serial: int, bound: int) -> None:
        """Note a smaller bound of an open reservation; written with the next flush."""
        body = _body(RESERVE, slot, serial, bound)
        self._pending += body + _tail(_crc32(body, self._seed), _END)

    def flush(self) -> None:
        """Write what waits."""
        pending = self._pending
        if self._broken_at is not None:
            self._mend()
        try:
            written = os.write(self._fd, pending)
        except OSError as error:
            raise told(error, self.paths[-1]) from error
        if written != len(pending):
            self._broken_at = self.size
            self._mend()
            raise StoreFull(f"{self.paths[-1]} cannot grow: the disk is full")
        self.size += written
        pending.clear()

    def rotate(self, carried: Iterable[tuple[int, int, int]]) -> int:
        """Start a new segment with the open reservations (slot, serial, bound); return the old descriptor.

        Until `forget` is called both segments count: the union of the two is always complete.
        """
        segment = self.segment + 1
        if self._pending:
            self.flush()
        seed = _seed_of(Head(self._epoch, segment, self._boot_id).encode())
        bodies = (_body(RESERVE, *one) for one in carried)
        first = b"".join(body + _tail(_crc32(body, seed), _END) for body in bodies)
        old = self._fd
        self._fd, self._seed, self.size = self._segment(segment, first)
        self._broken_at = None
        return old

    def forget(self) -> None:
        """Delete all segments but the last: a checkpoint has what they said."""
        while len(self.paths) > 1:
            self.paths[0].unlink(missing_ok=True)
            del self.paths[0]

    def close(self) -> None:
        """Close the file. What waits is not written: flush first."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _segment(self, number: int, first: bytes) -> tuple[int, int, int]:
        head = Head(self._epoch, number, self._boot_id).encode()
        path = self._directory / f"journal-{self._epoch:010d}-{number:08d}.log"
        content = head + first
        fd = -1
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            if os.write(fd, content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            if fd >= 0:
                os.close(fd)
                path.unlink(missing_ok=True)
            raise told(error, path) from error
        self.paths.append(path)
        return fd, _seed_of(head), len(content)

    def _mend(self) -> None:
        """Take back a record that was written in part: what is appended after one could not be read."""
        if self._broken_at is None:
            return
        try:
            os.ftruncate(self._fd, self._broken_at)
        except OSError as error:
            raise told(error, self.paths[-1]) from error
        self._broken_at = None


@dataclass(slots=True)
class Replay:
    """What a journal says of the leases of its epoch."""

    epoch: int = 0
    boot_id: str = ""
    segments: list[int] = field(default_factory=list)
    spent: dict[int, int] = field(default_factory=dict)
    """By slot: tokens spent in all, open reservations aside."""
    open: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By serial: slot and bound of reservations that were never settled."""
    torn: set[int] = field(default_factory=set)
    """Slots whose last record was cut short."""
    is_tail_blank: bool = False
    """It ends in zeros: what a file system leaves of unsynced writes when the host crashes, and nothing else does."""
    damage: str = ""
    """Why the journal as a whole cannot be trusted; empty where it can."""

    spent_with_open: dict[int, int] = field(default_factory=dict)
    """By slot: what must count as spent: all that was settled, and the open reservations at their bound."""


def segments_in(directory: Path) -> list[Path]:
    """Return the journal's files, of any epoch, oldest first."""
    return sorted(directory.glob("journal-*.log"))


def replay(paths: list[Path]) -> Replay:
    """Read the newest epoch among `paths`, oldest segment first.

    Nonsense never raises: it is named in `damage`, and the reader must count whole leases as spent. Raises
    StoreNewer for a journal of a newer meshd, StoreError where a file cannot be read.
    """
    result = Replay()
    settled: set[int] = set()
    heads: list[tuple[Head, bytes, Path]] = []
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise told(error, path) from error
        head = _head(content, path)
        if head is None:
            result.damage = f"{path.name} has no readable head"
        else:
            heads.append((head, content, path))
    if not heads:
        return result
    heads.sort(key=lambda one: (one[0].epoch, one[0].segment))
    result.epoch, _, result.boot_id = heads[-1][0]
    current = [one for one in heads if one[0].epoch == result.epoch]
    for head, content, path in current:
        if result.segments and head.segment != result.segments[-1] + 1:
            result.damage = f"a segment before {path.name} is missing"
        result.segments.append(head.segment)
        rest = _records(content, _seed_of(content[: _HEADER.size]), result, settled)
        if rest:
            _judge(rest, path, result, is_last=path == current[-1][2])
    result.spent_with_open = dict(result.spent)
    for slot, bound in result.open.values():
        result.spent_with_open[slot] = result.spent_with_open.get(slot, 0) + bound
    return result


def _records(content: bytes, seed: int, result: Replay, settled: set[int]) -> bytes:
    """Take in all whole records; return what follows the last of them."""
    spent, opened = result.spent, result.open
    at, end = _HEADER.size, len(content)
    while at + RECORD_BYTES <= end:
        body = content[at : at + _BODY.size]
        if content[at + _BODY.size : at + RECORD_BYTES] != _tail(_crc32(body, seed), _END):
            break
        kind, slot, serial, amount = _BODY.unpack(body)
        if kind == SETTLE:
            opened.pop(serial, None)
            settled.add(serial)
            if amount > spent.get(slot, 0):
                spent[slot] = amount
        elif kind != RESERVE:
            break
        elif serial not in settled:
            opened[serial] = (slot, amount)
        at += RECORD_BYTES
    return content[at:]


def _judge(rest: bytes, path: Path, result: Replay, *, is_last: bool) -> None:
    """Tell a last record that was cut short, which any crash may leave, from damage.

    A record that is not whole belongs to a call that was never forwarded. Its lease is counted as spent all the same:
    nothing proves that a crash cut it, and not another hand.
    """
    written = rest.rstrip(b"\0")
    if not is_last or len(written) >= RECORD_BYTES:
        result.damage = f"{path.name} holds something else than records before its end"
    elif not written:
        result.is_tail_blank = True
    elif len(rest) >= 8:
        result.torn.add(int.from_bytes(rest[4:8], "little"))
    else:
        result.damage = f"{path.name} ends in a piece of a record that is too short to name its account"


def _head(content: bytes, path: Path) -> Head | None:
    if len(content) < _HEADER.size:
        return None
    raw = content[: _HEADER.size]
    magic, written, _, epoch, segment, boot_id, crc = _HEADER.unpack(raw)
    if magic != _MAGIC:
        return None
    if written > FORMAT:
        raise StoreNewer(
            f"{path} was written by a newer meshd (format {written}, this one knows {FORMAT}); "
            "run that version, or start with another state directory"
        )
    if crc != zlib.crc32(raw[:-4]):
        return None
    return Head(epoch, segment, boot_id.rstrip(b"\0").decode("ascii", "replace"))


def _seed_of(head: bytes) -> int:
    # Not over the whole: the CRC of anything followed by its own CRC is the same for all.
    return zlib.crc32(head[:-4])


def told(error: OSError, path: Path) -> StoreError:
    """Say in an operator's words what the operating system said of `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreFull(f"{path} cannot grow: the disk is full")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreReadOnly(f"{path} may not be written")
    return StoreError(f"{path} cannot be used: {error.strerror or error}")
