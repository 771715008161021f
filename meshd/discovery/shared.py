"""What sidecars tell each other of what they have, as records of a store.

Each sidecar writes one head and some parts. The head says which parts there are, by their hashes, and is written anew
with each heartbeat; parts hold entries, cut to what they are found by: schemas stay with the sidecar that has them.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final

import msgspec

from meshd.discovery.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable

SPACE: Final = "catalogue"
FORMAT: Final = 1
PART_BYTES_MAX: Final = 131_072
"""Above this a part is closed: engines have a limit for one record (NATS: 1 MB)."""
DESCRIPTION_CHARACTERS_MAX: Final = 600
INTENTS_MAX: Final = 16
INTENT_CHARACTERS_MAX: Final = 120
NAME_CHARACTERS_MAX: Final = 2048
PARTS_MAX: Final = 256
HASH_DIGITS: Final = 16


class Head(msgspec.Struct, frozen=True):
    """What one sidecar says of itself."""

    format: int
    agent: str
    """The agent beside it."""
    beat: int
    """Grows with each heartbeat: who looks needs no clock of the other's."""
    until_s: float
    """Unix seconds until which it holds, by the clock of who wrote it; for cleaning up what nobody renews."""
    parts: tuple[str, ...] = ()
    unhealthy: tuple[str, ...] = ()
    """Owners that did not answer it the last time."""


class SharedDamaged(Exception):
    """A record is not what a sidecar of this format writes."""


def part_key(sidecar: str, number: int) -> str:
    """Return under which key a part stands."""
    return f"{sidecar}.{number}"


def hash_of(part: bytes) -> str:
    """Return by what a part is known."""
    return sha256(part).hexdigest()[:HASH_DIGITS]


def slim(entry: Entry) -> Entry:
    """Return an entry as others get it."""
    return Entry(
        entry.sort,
        entry.owner,
        entry.name,
        entry.description[:DESCRIPTION_CHARACTERS_MAX],
        entry.title[:INTENT_CHARACTERS_MAX],
        entry.origin,
        entry.version[:INTENT_CHARACTERS_MAX],
        tuple(one[:INTENT_CHARACTERS_MAX] for one in entry.intents[:INTENTS_MAX]),
        is_read_only=entry.is_read_only,
    )


def encode_parts(entries: Iterable[Entry]) -> list[bytes]:
    """Return the parts that hold these entries; the same entries in the same order give the same parts."""
    parts: list[bytes] = []
    pieces: list[bytes] = []
    size = 0
    for entry in entries:
        piece = msgspec.json.encode(slim(entry))
        if pieces and size + len(piece) > PART_BYTES_MAX:
            parts.append(b"[" + b",".join(pieces) + b"]")
            pieces, size = [], 0
        pieces.append(piece)
        size += len(piece) + 1
    if pieces:
        parts.append(b"[" + b",".join(pieces) + b"]")
    return parts[:PARTS_MAX]


def decode_part(part: bytes) -> list[Entry]:
    """Return the entries of a part. Raises SharedDamaged."""
    try:
        found = _PART.decode(part)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise SharedDamaged(f"a part of the catalogue is damaged: {str(error)[:120]}") from None
    # Whoever wrote it may not be one of ours: no more is kept of an entry than would have been written.
    return [
        entry if _is_slim(entry) else slim(entry)
        for entry in found
        if entry.owner and 0 < len(entry.name) <= NAME_CHARACTERS_MAX
    ]


_PART: Final = msgspec.json.Decoder(list[Entry])


def _is_slim(entry: Entry) -> bool:
    return (
        len(entry.description) <= DESCRIPTION_CHARACTERS_MAX
        and len(entry.title) <= INTENT_CHARACTERS_MAX
        and len(entry.version) <= INTENT_CHARACTERS_MAX
        and len(entry.intents) <= INTENTS_MAX
        and all(len(one) <= INTENT_CHARACTERS_MAX for one in entry.intents)
        and not (entry.input_schema or entry.output_schema or entry.annotations or entry.definition)
    )


def encode_head(head: Head) -> bytes:
    """Return a head as the store keeps it."""
    return msgspec.json.encode(head)


def decode_head(value: bytes) -> Head:
    """Return a head. Raises SharedDamaged."""
    try:
        head = msgspec.json.decode(value, type=Head)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise SharedDamaged(f"the head of a catalogue is damaged: {str(error)[:120]}") from None
    if head.format != FORMAT or len(head.parts) > PARTS_MAX:
        raise SharedDamaged(f"the head of a catalogue is of another format ({head.format})")
    return head
