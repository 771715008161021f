"""How a file of the log is laid out.

    head         120 bytes: format, size, epoch, number, first sequence, sidecar, boot, hash of the record before
    frames       each at a multiple of 8: length, checksum, sequence, hash of the record before, then the payload
    zeros        to the end: nothing was written there yet

A frame is one record. Its payload is one event, or an array of those that were written together; the sequence is that
of the first of them, and they have one hash.

The hash of a record covers its sequence, the hash before it and its payload: who changes one record must change all
that follow it, here and in what peers were told. The checksum is the hash's first bytes: it tells what a crash or a bad
page has done, and costs nothing.

A segment is made whole before it is used and mapped into memory: what is stored there belongs to the operating system
at once, and a process that is killed loses none of it.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.ledger.journal import allocate, told

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = 2
"""The first one had one event in each record, and is read as it was."""
SEGMENT_BYTES: Final = 4 * 2**20
"""Of one segment: some 15,000 events."""
MAGIC: Final = b"meshd-tr"
HEAD: Final = struct.Struct("<8sIIQQQ8s36s32sI")
HEAD_BYTES: Final = HEAD.size
FRAME: Final = struct.Struct("<I4sQ32s")
FRAME_BYTES: Final = FRAME.size
CHECKED_AT: Final = 8
"""Where in a frame begins what its checksum and its hash cover."""
SEQUENCE_AND_HASH: Final = struct.Struct("<Q32s")
LENGTH_AND_CHECK: Final = struct.Struct("<I4s")
CHECK_BYTES: Final = 4
"""Of a record's hash."""
PAYLOAD_BYTES_MAX: Final = 2**16
"""Of one record: texts stand beside the log, so what is longer is damage."""
MANY: Final = 0xDC
"""The first byte of a payload that is an array of events: msgpack's array of up to 65,535, whose length follows."""
MANY_BYTES: Final = 3
FRAME_BYTES_MAX: Final = FRAME_BYTES + PAYLOAD_BYTES_MAX
NEW: Final = "log.new"
BEGINNING: Final = bytes(32)
"""In place of a hash before the first record."""


class Head(NamedTuple):
    """What a segment says of itself."""

    size: int
    """Bytes of the file when it was made; one that is full or closed is cut to what it holds."""
    epoch: int
    segment: int
    """Counts all segments of a sidecar."""
    first: int
    """Sequence of the first record to come."""
    sidecar: str
    boot_id: str
    before: bytes
    """Hash of the record before the first."""

    def encode(self) -> bytes:
        """Return the segment's first bytes."""
        sidecar, boot_id = self.sidecar.encode("ascii"), self.boot_id.encode()[:36]
        fields: tuple[Any, ...] = (FORMAT, self.size, self.epoch, self.segment, self.first, sidecar, boot_id)
        bare = HEAD.pack(MAGIC, *fields, self.before, 0)[:-4]
        return bare + struct.pack("<I", zlib.crc32(bare))


class HeadNewer(ValueError):
    """A segment of a newer meshd."""


def head_of(data: bytes) -> Head | None:
    """Return what a segment's first bytes say; None where they are damaged. Raises HeadNewer."""
    if len(data) < HEAD_BYTES:
        return None
    magic, written, size, epoch, segment, first, sidecar, boot_id, before, crc = HEAD.unpack_from(data)
    if magic != MAGIC:
        return None
    if written > FORMAT:
        raise HeadNewer(f"format {written}, and this meshd knows {FORMAT}")
    if crc != zlib.crc32(data[: HEAD_BYTES - 4]):
        return None
    name, boot = sidecar.rstrip(b"\0").decode("ascii"), boot_id.rstrip(b"\0").decode("ascii", "replace")
    return Head(size, epoch, segment, first, name, boot, before)


def name_of(epoch: int, segment: int) -> str:
    """Return the name of a segment's file, without its suffix."""
    return f"log-{epoch:08d}-{segment:08d}"


def aligned(at: int) -> int:
    """Return the place of the frame that follows what ends at `at`."""
    return (at + 7) & ~7


def hash_of(checked: bytes | memoryview) -> bytes:
    """Return the hash of a record: 32 bytes, of its frame from CHECKED_AT on."""
    return sha256(checked).digest()


def count_of(payload: bytes | memoryview) -> int:
    """Return how many events a record's payload says that it holds."""
    if len(payload) > MANY_BYTES and payload[0] == MANY:
        return payload[1] << 8 | payload[2]
    return 1


def begin(directory: Path, head: Head) -> tuple[mmap.mmap, int, Path]:
    """Make a segment; return its memory, its descriptor and its path. Raises StoreError."""
    path = directory / f"{name_of(head.epoch, head.segment)}.seg"
    new = directory / NEW
    fd = -1
    try:
        fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        allocate(fd, head.size)
        mapped = mmap.mmap(fd, head.size)
        mapped[:HEAD_BYTES] = head.encode()
        # Only now does it have the name of a segment: a reader never meets half of one.
        new.rename(path)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
            new.unlink(missing_ok=True)
        raise told(error, path) from error
    return mapped, fd, path
