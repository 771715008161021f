"""Values beside their heads: long ones lie in pieces, each a record of its own that is written once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from zlib import crc32

import msgspec
from msgspec.structs import replace

from meshd.engines.port import Change, StoreCorrupt
from meshd.state.record import DRAFTS, INLINE_BYTES_MAX, PIECES, Version

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.engines.port import Store

PIECE_BYTES: Final = 256 * 1024
"""What every engine takes as one record: DynamoDB the least, 400 kB."""


class Draft(msgspec.Struct, array_like=True, frozen=True):
    """What is about to be named by a head."""

    space: str
    key: str
    nonce: str
    pieces: int


class Gone(Exception):
    """The pieces are not there any more: the head that was read is an old one."""


def placed(place: tuple[str, str], draft: Version, value: bytes, nonce: str) -> tuple[Version, list[Change], str]:
    """Return the version that names a value, what must be written before a head has it, in this order, and the key of
    the first of that: a note that pieces may lie there without a head, which goes when the head is written. Nothing and
    empty where the value stands in the version itself. `place` is the head's."""
    if len(value) <= INLINE_BYTES_MAX:
        return replace(draft, value=value), [], ""
    made = replace(draft, nonce=nonce, pieces=-(-len(value) // PIECE_BYTES))
    note = f"{int(draft.written_s):012d}/{nonce}"
    changes = [Change(DRAFTS, note, msgspec.msgpack.encode(Draft(*place, nonce, made.pieces)))]
    for number in range(made.pieces):
        piece = value[number * PIECE_BYTES : (number + 1) * PIECE_BYTES]
        changes.append(Change(PIECES, name_of(nonce, number), piece))
    return made, changes, note


async def read(store: Store, version: Version, key: str) -> bytes:
    """Return a version's value. Raises Gone; StoreCorrupt, and StoreError."""
    value = version.value
    if version.pieces:
        names = [name_of(version.nonce, number) for number in range(version.pieces)]
        parts: list[bytes] = []
        for name in names:
            found = await store.read(PIECES, (name,))
            if name not in found:
                raise Gone
            parts.append(found[name].value)
        value = b"".join(parts)
    if len(value) != version.size or crc32(value) != version.checksum:
        raise StoreCorrupt(f"the value of {key}@{version.number} in the store is damaged")
    return value


async def remove(store: Store, dropped: Iterable[tuple[str, int]], note: str = "") -> None:
    """Remove pieces that no head names, and then a note. Removing twice is fine. Raises StoreError."""
    changes = [Change(PIECES, name_of(nonce, number), None) for nonce, count in dropped for number in range(count)]
    if note:
        changes.append(Change(DRAFTS, note, None))
    if changes:
        await store.write(changes)


def draft_of(value: bytes, note: str) -> Draft:
    """Return what a note says. Raises StoreCorrupt."""
    try:
        return msgspec.msgpack.decode(value, type=Draft)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(f"the note {note} of a value in the store is damaged: {error}") from error


def name_of(nonce: str, number: int) -> str:
    """Return the key of a piece."""
    return f"{nonce}/{number:04d}"
