"""The holder's log: every reservation is in it before its call goes out.

A journal is a row of segment files of one epoch. A segment is made whole before it is used: its blocks are reserved
(so a full disk shows then, and never as a fault of memory) and it is mapped into memory. What is stored there
belongs to the operating system at once: a process that is killed loses nothing. A host that crashes may.

A segment is a header and records of 16 bytes. A record says what one lease owes from now on: all that was spent under
it, and all that is reserved. So the last record of a lease says everything, whatever became of those before it. Each
has a checksum seeded with its header and its place, so that leftovers of another file or another place never pass.
Bytes that are all zero end the log.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.engines.port import StoreError, StoreFull, StoreNewer, StoreReadOnly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

FORMAT: Final = 3
SEGMENT_BYTES: Final = 2**20
"""Of one segment: some 32,000 calls, read again in some 50 ms at a start."""
TOKENS_MAX: Final = 2**48
"""Most that one attempt is charged: what upstreams report is not ours, and must fit into a record many times over."""

_HEADER: Final = struct.Struct("<8sIIQQQ36sI")
_MAGIC: Final = b"meshd-jl"
_BODY: Final = struct.Struct("<IQ")
_RECORD: Final = struct.Struct("<IQI")
RECORD_BYTES: Final = _RECORD.size
_WHOLE: Final = 0x8000_0000
"""Set in every checksum: a whole record never ends in zero, so one cut short can be told from one that was changed."""
_SEALED: Final = 0
"""In place of a slot, which begin at 1: nothing follows in this segment."""
_NEW: Final = "journal.new"
_FS_IOC_GETVERSION: Final = 0x8008_7601

_body: Final = _BODY.pack
_put: Final = struct.Struct("<12sI").pack_into
_crc32: Final = zlib.crc32


class Head(NamedTuple):
    """What a segment says of itself."""

    epoch: int
    segment: int
    boot_id: str
    size: int
    """Bytes of the file."""
    mark: int
    """Of the file when it was made: a copy has another, and may be older than what was spent."""

    def encode(self) -> bytes:
        """Return the segment's first bytes."""
        boot_id = self.boot_id.encode()[:36]
        bare = _HEADER.pack(_MAGIC, FORMAT, self.size, self.epoch, self.segment, self.mark, boot_id, 0)
        return bare[:-4] + struct.pack("<I", zlib.crc32(bare[:-4]))


def _nothing() -> Iterable[tuple[int, int]]:
    return ()


class Journal:
    """The open journal of one epoch. Not safe against other threads; `fileno` may be synced by one.

    Raises StoreError where a segment cannot be made: what was written before stays as it is.
    """

    __slots__ = (
        "_at", "_boot_id", "_directory", "_end", "_epoch", "_map", "_seed", "_segment_bytes", "carried", "fileno",
        "paths", "retire",
    )  # fmt: skip

    def __init__(self, directory: Path, epoch: int, boot_id: str, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._directory = directory
        self._epoch = epoch
        self._boot_id = boot_id
        self._segment_bytes = segment_bytes
        self.carried: Callable[[], Iterable[tuple[int, int]]] = _nothing
        """Returns slot and tokens owed of every lease with an open reservation: with these a new segment begins."""
        self.retire: Callable[[int], None] = os.close
        """Told whenever a new segment was begun; the old one's descriptor is its to close."""
        self.paths: list[Path] = []
        """Segments that are still needed, oldest first; the last is written to."""
        self.fileno = -1
        """The file descriptor of the segment that is written to."""
        self._at = self._end = self._seed = 0
        self._map = self._begin(0)

    @property
    def segment(self) -> int:
        """Number of the segment that is written to."""
        return _number(self.paths[-1])

    def note(self, slot: int, owed: int) -> None:
        """Log what the lease in `slot` owes from now on, in tokens: on return a killed process loses it no more.

        Raises StoreError, and nothing is logged, where a new segment is needed and cannot be made.
        """
        at = self._at
        if at >= self._end:
            self.rotate()
            at = self._at
        body = _body(slot, owed)
        _put(self._map, at, body, _crc32(body, self._seed ^ at) | _WHOLE)
        self._at = at + RECORD_BYTES

    def seal(self) -> None:
        """End this segment early: the next record begins a new one."""
        if self._at < self._end:
            self.note(_SEALED, 0)
        self._end = 0

    def rotate(self) -> None:
        """Begin a new segment with what is carried over. Until `forget` is called all segments count."""
        old, was_mapped = self.fileno, self._map
        self._map = self._begin(self.segment + 1)
        was_mapped.close()
        self.retire(old)

    def forget(self, before: int) -> None:
        """Delete the segments with a number below `before`: a checkpoint has what they said."""
        while _number(self.paths[0]) < before:
            self.paths[0].unlink(missing_ok=True)
            del self.paths[0]

    def close(self) -> None:
        """Close the file; nothing is left to write."""
        if self.fileno >= 0:
            self._map.close()
            os.close(self.fileno)
            self.fileno = -1

    def _begin(self, number: int) -> mmap.mmap:
        carried = list(self.carried())
        size = max(self._segment_bytes, _HEADER.size + 2 * RECORD_BYTES * (len(carried) + 1))
        path = self._directory / f"journal-{self._epoch:010d}-{number:08d}.log"
        new = self._directory / _NEW
        fd = -1
        try:
            fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            allocate(fd, size)
            mapped = mmap.mmap(fd, size)
            head = Head(self._epoch, number, self._boot_id, size, _mark_of(fd)).encode()
            seed = _seed_of(head)
            mapped[: len(head)] = head
            at = len(head)
            for slot, owed in carried:
                body = _body(slot, owed)
                _put(mapped, at, body, _crc32(body, seed ^ at) | _WHOLE)
                at += RECORD_BYTES
            # Only now does it have the name of a segment: a start never meets half of one.
            new.rename(path)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
                new.unlink(missing_ok=True)
            raise told(error, path) from error
        self.paths.append(path)
        self.fileno, self._seed, self._at = fd, seed, at
        self._end = size - RECORD_BYTES + 1
        return mapped


def allocate(fd: int, size: int) -> None:
    """Have the blocks of a file reserved, and its pages at hand.

    Storing into a hole of a full disk would kill the process. To store into a page that was never written costs 6 us,
    in a fault of its own; written as zeros before, all at once, 0.2 us.
    """
    try:
        os.posix_fallocate(fd, 0, size)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    if os.pwrite(fd, bytes(size), 0) != size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _mark_of(fd: int) -> int:
    """Return a number that no copy of this file has: its inode, and the generation where the file system counts them.

    The number of an inode that was freed is used again at once, its generation is not (ioctl_iflags(2) and its kin).
    """
    try:
        generation = int.from_bytes(fcntl.ioctl(fd, _FS_IOC_GETVERSION, bytes(8))[:4], "little")
    except OSError:
        generation = 0
    return (os.fstat(fd).st_ino ^ (generation << 32)) & 0xFFFF_FFFF_FFFF_FFFF


@dataclass(slots=True)
class Replay:
    """What a journal says of the leases of its epoch."""

    epoch: int = 0
    boot_id: str = ""
    segments: list[int] = field(default_factory=list)
    owed: dict[int, int] = field(default_factory=dict)
    """By slot: tokens that must count as spent: all that were settled, and open reservations at their bound."""
    torn: set[int] = field(default_factory=set)
    """Slots whose last record was cut short."""
    has_gap: bool = False
    """Records are missing before the end: what a crash of the host leaves of unsynced pages, and nothing else does."""
    damage: str = ""
    """Why the journal as a whole cannot be trusted; empty where it can."""


def segments_in(directory: Path) -> list[Path]:
    """Return the journal's files, of any epoch, oldest first."""
    return sorted(directory.glob("journal-*.log"))


def replay(paths: list[Path]) -> Replay:
    """Read the newest epoch among `paths`, oldest segment first.

    Nonsense never raises: it is named in `damage`, and the reader must count whole leases as spent. Raises
    StoreNewer for a journal of a newer meshd, StoreError where a file cannot be read.
    """
    result = Replay()
    heads: list[tuple[Head, bytes, Path]] = []
    for path in paths:
        try:
            with path.open("rb") as stream:
                content, mark = stream.read(), _mark_of(stream.fileno())
        except OSError as error:
            raise told(error, path) from error
        head = _head(content, path)
        if head is None:
            result.damage = f"{path.name} has no readable head"
        elif head.mark != mark:
            result.damage = f"{path.name} is a copy, which may be older than what was spent"
        else:
            heads.append((head, content, path))
    if not heads:
        return result
    heads.sort(key=lambda one: (one[0].epoch, one[0].segment))
    last = heads[-1][0]
    result.epoch, result.boot_id = last.epoch, last.boot_id
    for head, content, path in heads:
        if head.epoch != result.epoch:
            continue
        if result.segments and head.segment != result.segments[-1] + 1:
            result.damage = f"a segment before {path.name} is missing"
        result.segments.append(head.segment)
        if len(content) != head.size:
            result.damage = f"{path.name} has {len(content)} bytes in place of {head.size}"
        _take_in(content[: head.size], path, result, is_last=head is last)
    return result


def _take_in(content: bytes, path: Path, result: Replay, *, is_last: bool) -> None:
    """Take in all whole records of one segment, and tell what else it holds."""
    seed, at, owed_by = _seed_of(content[: _HEADER.size]), _HEADER.size, result.owed
    written = len(content.rstrip(b"\0"))
    is_sealed = False
    bad: list[int] = []
    while at < written and at + RECORD_BYTES <= len(content):
        slot, owed, check = _RECORD.unpack_from(content, at)
        if check == _crc32(content[at : at + _BODY.size], seed ^ at) | _WHOLE:
            if slot == _SEALED:
                is_sealed = True
            else:
                owed_by[slot] = owed
        elif slot or owed or check:
            bad.append(at)
        else:
            result.has_gap = True
        at += RECORD_BYTES
    if not is_last and not is_sealed and at + RECORD_BYTES <= len(content):
        result.has_gap = True
    if bad or at < written:
        _judge(content, bad, at, path, result, is_last=is_last)


def _judge(content: bytes, bad: list[int], end: int, path: Path, result: Replay, *, is_last: bool) -> None:
    """Tell a last record that was cut short, which any crash may leave, from damage.

    A record that is not whole belongs to a call that was never forwarded. Its lease is counted as spent all the same:
    nothing proves that a crash cut it, and not another hand.
    """
    slot = int.from_bytes(content[end - RECORD_BYTES : end - RECORD_BYTES + 4], "little")
    if not is_last or bad != [end - RECORD_BYTES] or content[end - 1] or any(content[end:]):
        result.damage = f"{path.name} holds something else than records before its end"
    elif slot:
        result.torn.add(slot)
    else:
        result.damage = f"{path.name} ends in a piece of a record that is too short to name its account"


def _head(content: bytes, path: Path) -> Head | None:
    if len(content) < _HEADER.size:
        return None
    raw = content[: _HEADER.size]
    magic, written, size, epoch, segment, mark, boot_id, crc = _HEADER.unpack(raw)
    if magic != _MAGIC:
        return None
    if written > FORMAT:
        raise StoreNewer(
            f"{path} was written by a newer meshd (format {written}, this one knows {FORMAT}); "
            "run that version, or start with another state directory"
        )
    if written != FORMAT or crc != zlib.crc32(raw[:-4]):
        return None
    return Head(epoch, segment, boot_id.rstrip(b"\0").decode("ascii", "replace"), size, mark)


def _seed_of(head: bytes) -> int:
    # Not over the whole: the CRC of anything followed by its own CRC is the same for all.
    return zlib.crc32(head[:-4])


def _number(path: Path) -> int:
    return int(path.stem.rsplit("-", 1)[1])


def told(error: OSError, path: Path) -> StoreError:
    """Say in an operator's words what the operating system said of `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreFull(f"{path} cannot grow: the disk is full")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreReadOnly(f"{path} may not be written")
    return StoreError(f"{path} cannot be used: {error.strerror or error}")
