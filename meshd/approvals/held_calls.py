"""Calls that were answered with a task while a person is waited for: kept in the store until they are carried out.

A record stands beside the approval, under its id. What it takes to make the call again is in it, and no credential:
those come with whoever asks for the task. Once it was allowed, one sidecar claims the call, carries it out and writes
the answer down. It beats while it does: a claim that beats no more, or whose sidecar has begun another epoch since, was
of one that ended, and whether the call was carried out is then what its approval says (used, or not).

Long bodies stand in pieces, the pieces before the record: a record never names what is not there.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Final

import msgspec

from meshd.engines.port import Change
from meshd.ledger.desk import Desk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.approvals.shelf import Shelf
    from meshd.engines.port import Record

log = logging.getLogger("meshd.approvals")

SPACE: Final = "held-call"
PIECES: Final = "held-call-piece"
PIECE_BYTES: Final = 128 * 1024
"""Every engine can carry a record of that size."""
BODY_BYTES_MAX: Final = 1 << 20
PIECES_MAX: Final = 100
"""Of one call, its body and its answer together, and some to spare."""
BEAT_S: Final = 5.0
LOST_S: Final = 20.0
"""Without a beat for so long, whoever carried the call out is gone."""
ASKED, RUNNING, ENDED = "asked", "running", "ended"


class HeldCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """One call. Times are unix seconds."""

    id: str
    """Of its approval."""
    task: str
    """The id that its caller was given: nobody guesses it."""
    principal: str
    """Whose it is: nobody else is told of it."""
    target: str
    protocol: str
    method: str
    path: str
    """With its upstream's name before it. Where a secret stood in the query, without that."""
    asked_s: float
    ttl_s: float
    pieces: int
    workflow: str = ""
    """Where that was proven, and not concluded."""
    is_query_hidden: bool = False
    """The query comes with whoever asks for the task, as credentials do."""
    fields: tuple[tuple[str, str], ...] = ()
    token: str = ""
    """Ties it to its workflow."""
    context_id: str = ""
    state: str = ASKED
    beat_s: float = 0.0
    changed_s: float = 0.0
    answer_pieces: int = 0
    failure: str = ""
    """Why there is no answer, for good."""
    other: str = ""
    """The id of the upstream's own task, where it made one that was not over."""
    binding: str = "jsonrpc"
    """Of A2A, how it came: see `meshd.call.Rpc`."""
    holder: str = ""
    epoch: int = 0
    """Who carries it out: a sidecar as the ledger knows it, and which of its starts. Empty where nobody said."""
    version: int = 1


class Kept(msgspec.Struct, frozen=True):
    """A held call, and the version under which it stands."""

    call: HeldCall
    version: int


class HeldCalls:
    """On the loop's thread only. Every method raises StoreError where the store does not answer."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    async def read(self, id: str) -> Kept | None:
        """Return the call of an approval; None where there is none, or its record is damaged."""
        record = (await self._shelf.store.read(SPACE, (id,))).get(id)
        return None if record is None else _decoded(id, record)

    async def add(self, call: HeldCall, body: bytes) -> Kept:
        """Keep a call; return the one that was kept before, where the same was asked before."""
        known = await self.read(call.id)
        if known is not None:
            return known
        await self._write_pieces(call.id, "body", body)
        await self._shelf.store.write([Change(SPACE, call.id, msgspec.json.encode(call), 0)])
        kept = await self.read(call.id)
        return kept if kept is not None else Kept(call, 0)

    async def change(self, kept: Kept, call: HeldCall) -> bool:
        """Put a call in the place of what was read; False where that has changed since."""
        change = Change(SPACE, call.id, msgspec.json.encode(call), kept.version)
        return (await self._shelf.store.write([change]))[0]

    async def body(self, call: HeldCall) -> bytes | None:
        """Return what is to be sent; None where a piece of it is gone."""
        return await self._read_pieces(call.id, "body", call.pieces)

    async def answer(self, call: HeldCall) -> bytes | None:
        """Return what came back; None where a piece of it is gone."""
        return await self._read_pieces(call.id, "answer", call.answer_pieces)

    async def end(self, id: str, answer: bytes, failure: str, other: str, now_s: float) -> None:
        """Write down how a call ended. What it took to send it is let go."""
        await self._write_pieces(id, "answer", answer)
        while (kept := await self.read(id)) is not None and kept.call.state != ENDED:
            ended = msgspec.structs.replace(
                _emptied(kept.call),
                state=ENDED,
                answer_pieces=count_of(answer),
                failure=failure,
                other=other,
                changed_s=now_s,
            )
            if await self.change(kept, ended):
                await self._delete(_pieces_of(kept.call))
                return

    async def empty(self, id: str) -> None:
        """Let go what it would take to send a call that will never go out: whoever asks for its task is told why."""
        while (kept := await self.read(id)) is not None and kept.call.state != ENDED:
            if await self.change(kept, _emptied(kept.call)):
                await self._delete(_pieces_of(kept.call))
                return

    async def beat(self, ids: Sequence[str], now_s: float) -> None:
        """Say of calls that are being carried out that whoever does it is there."""
        changes = []
        for id, record in (await self._shelf.store.read(SPACE, ids)).items():
            kept = _decoded(id, record)
            if kept is not None and kept.call.state == RUNNING:
                call = msgspec.structs.replace(kept.call, beat_s=now_s)
                changes.append(Change(SPACE, id, msgspec.json.encode(call), kept.version))
        if changes:
            await self._shelf.store.write(changes)

    async def has_begun_anew(self, holder: str, epoch: int) -> bool:
        """See `meshd.ledger.desk.Desk.has_begun_anew`."""
        return await Desk(self._shelf.store).has_begun_anew(holder, epoch)

    async def forget(self, id: str) -> None:
        """Delete the call of an approval that is forgotten too, and what a crash has left of one."""
        beginning = f"{id}/"
        found = await self._shelf.store.keys(PIECES, beginning, PIECES_MAX)
        await self._delete([key for key in found if key.startswith(beginning)])
        await self._shelf.store.write([Change(SPACE, id, None)])

    async def _delete(self, pieces: Sequence[str]) -> None:
        if pieces:
            await self._shelf.store.write([Change(PIECES, key, None) for key in pieces])

    async def _write_pieces(self, id: str, what: str, data: bytes) -> None:
        pieces = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
        if pieces:
            changes = [Change(PIECES, f"{id}/{what}/{at}", piece) for at, piece in enumerate(pieces)]
            await self._shelf.store.write(changes)

    async def _read_pieces(self, id: str, what: str, count: int) -> bytes | None:
        keys = [f"{id}/{what}/{at}" for at in range(count)]
        found = await self._shelf.store.read(PIECES, keys) if keys else {}
        return b"".join(found[key].value for key in keys) if len(found) == count else None


def _decoded(id: str, record: Record) -> Kept | None:
    try:
        call = msgspec.json.decode(record.value, type=HeldCall)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        log.error("the held call %s in the store is damaged: %s", id, error)
        return None
    return Kept(call, record.version) if call.id == id and call.version == 1 else None


def _pieces_of(call: HeldCall) -> list[str]:
    return [f"{call.id}/body/{at}" for at in range(call.pieces)]


def _emptied(call: HeldCall) -> HeldCall:
    return msgspec.structs.replace(call, pieces=0, fields=(), token="")


def count_of(data: bytes) -> int:
    """Return how many pieces it takes."""
    return -(-len(data) // PIECE_BYTES)


def new_task(prefix: str, id: str) -> str:
    """Return the id of a task: that of its approval, and 128 random bits."""
    return f"{prefix}{id}-{secrets.token_hex(16)}"
