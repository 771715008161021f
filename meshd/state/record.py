"""An object as the store keeps it: one record, its head, which every change puts another one in the place of."""

from __future__ import annotations

from typing import Final

import msgspec

from meshd.engines.port import StoreCorrupt, StoreNewer

OBJECTS: Final = "state"
"""Space of the heads, by key."""
SHADOWS: Final = "state-shadow"
"""Space of tentative objects, by workflow and key."""
PIECES: Final = "state-piece"
"""Space of the pieces of long values, by nonce and number."""
DRAFTS: Final = "state-draft"
"""Space of what says, before pieces are written, which head is to name them; by second and nonce."""
DUE: Final = "state-due"
"""Space of what expires, by second, space and key."""
FORMAT: Final = 1
INLINE_BYTES_MAX: Final = 2048
"""Of a value that stands in the head itself: with 64 versions a head stays under 180 kB, which every engine takes."""


class Version(msgspec.Struct, array_like=True, frozen=True):
    """One version. Nothing of it changes once it is written."""

    number: int
    size: int
    writer: str
    workflow: str
    written_s: float
    """Unix seconds."""
    content_type: str = ""
    clock: bytes = b""
    commit: str = ""
    """The id under which it was asked for; empty for none."""
    value: bytes = b""
    """Where it is short."""
    nonce: str = ""
    """Names the pieces of a long value; empty where it stands here."""
    pieces: int = 0
    checksum: int = 0
    """CRC-32 of the value."""
    is_deleted: bool = False
    base: int = 0
    """Of a tentative one: the object's version that it was made from."""
    told: bytes = b""
    """Where the trace has that it was written, and what its writer's sidecar knew, signed; empty where none is kept."""


class Lease(msgspec.Struct, array_like=True, frozen=True):
    """Who may commit the next version."""

    id: str
    agent: str
    workflow: str
    until_s: float
    """Unix seconds."""


class Head(msgspec.Struct, array_like=True, frozen=True):
    """An object. One without versions has been swept, or only checked out."""

    last: int = 0
    """The newest number that was ever given."""
    versions: tuple[Version, ...] = ()
    """Newest first; of a deleted object its deletion alone."""
    lease: Lease | None = None
    dropped: tuple[tuple[str, int], ...] = ()
    """Nonces and counts of pieces that the last change has made superfluous: removed after it, and before the next."""
    ends_s: float = 0.0
    """Unix seconds at which it may be forgotten; 0 for never."""
    format: int = FORMAT
    promoting: tuple[str, ...] = ()
    """Of tentative versions: ids of commits that the newest of them was to become. Written ahead of these, and known to
    have been made by the object's own versions alone. An earlier meshd passes over it, and drops it."""

    @property
    def newest(self) -> Version | None:
        """The newest version; None where there is no such object."""
        return self.versions[0] if self.versions and not self.versions[0].is_deleted else None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Head).decode


def encode(head: Head) -> bytes:
    """Return the record's value."""
    return _encode(head)


def decode(value: bytes, key: str) -> Head:
    """Return the head of a record's value. Raises StoreCorrupt and StoreNewer."""
    try:
        head = _decode(value)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(f"the object {key} in the store is damaged: {error}") from error
    if head.format != FORMAT:
        raise StoreNewer(f"the object {key} in the store was written by a newer meshd (format {head.format})")
    return head


def named_by(head: Head) -> tuple[tuple[str, int], ...]:
    """Return nonces and counts of all pieces that a head names."""
    return (*head.dropped, *pieces_of(head.versions))


def pieces_of(versions: tuple[Version, ...]) -> tuple[tuple[str, int], ...]:
    """Return nonces and counts of the pieces of versions."""
    return tuple((one.nonce, one.pieces) for one in versions if one.pieces)
