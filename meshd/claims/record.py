"""A claim as it stands in the store."""

from __future__ import annotations

from typing import Final

import msgspec

from meshd.claims.states import BY_HOLDER, Event, State, after
from meshd.engines.port import StoreCorrupt

FORMAT: Final = 1


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """What was answered. The body stands here where it is short; of a long one the rest is in pieces of its own."""

    status: int
    headers: list[tuple[bytes, bytes]]
    trailers: list[tuple[bytes, bytes]]
    body: bytes = b""
    """How the body begins: all of it, where it is short."""
    pieces: int = 0
    """How many pieces the rest of it is in."""
    size: int = 0
    """Bytes of the whole body."""
    is_too_long: bool = False
    """It was longer than is kept: only that it was given is known."""
    rpc_id: bytes = b""
    """The JSON-RPC id in the answer, as it stands in JSON; empty where it has none."""
    sums: tuple[int, ...] = ()
    """CRC-32 of each piece."""
    rpc_at: int = -1
    """Where that id stands in a long body that is one message; -1 where it does not, or nobody has looked."""


class ClaimRecord(msgspec.Struct, array_like=True, frozen=True):
    """A claim that is not absent."""

    state: State
    fingerprint: bytes
    holder: str
    epoch: int
    nonce: str
    """By it the holder knows its own: unique among all claims."""
    begun_s: float
    """Unix seconds at which its call was forwarded."""
    ends_s: float
    """Unix seconds at which it may be forgotten, unless it is in flight."""
    answer: Answer | None = None
    why: str = ""
    """Of one that is unknown: what is known, for whoever is told."""
    format: int = FORMAT


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ClaimRecord).decode


def encode(record: ClaimRecord) -> bytes:
    """Return the record's value."""
    return _encode(record)


def decode(value: bytes, key: str) -> ClaimRecord:
    """Return the record of a value. Raises StoreCorrupt."""
    try:
        return _decode(value)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(f"the claim {key} in the store is damaged: {error}") from error


class Nothing:
    """In place of a record: it is to be deleted."""


DELETED: Final = Nothing()


def step(
    record: ClaimRecord, event: Event, *, nonce: str = "", answer: Answer | None = None, why: str = ""
) -> ClaimRecord | Nothing | None:
    """Return the record after `event`, DELETED, or None where the event changes nothing.

    What only a holder may tell needs the `nonce` of the record: whoever has another tells of another claim.
    """
    if event in BY_HOLDER and nonce != record.nonce:
        return None
    state = after(record.state, event)
    if state is None:
        return None
    if state is State.ABSENT:
        return DELETED
    return msgspec.structs.replace(record, state=state, answer=answer, why=why)
