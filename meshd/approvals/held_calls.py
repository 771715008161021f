"""Calls that were answered with a task while a person is waited for: kept in the store until they are carried out.

A record stands beside the approval, under its id. What it takes to make the call again is in it, and no credential:
those come with whoever asks for the task. Once it was allowed, one sidecar claims the call, carries it out and writes
the answer down. It beats while it does: a claim that beats no more was of a sidecar that ended, and whether the call
was carried out is then what its approval says (used, or not).

Long bodies stand in pieces, the pieces before the record: a record never names what is not there.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Final

import msgspec

from meshd.engines.port import Change

if TYPE_CHECKING:
    from meshd.approvals.shelf import Shelf

log = logging.getLogger("meshd.approvals")

SPACE: Final = "held-call"
PIECES: Final = "held-call-piece"
PIECE_BYTES: Final = 128 * 1024
"""Every engine can carry a record of that size."""
BODY_BYTES_MAX: Final = 1 << 20
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
    direction: str
    protocol: str
    method: str
    path: str
    asked_s: float
    ttl_s: float
    pieces: int
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
        if record is None:
            return None
        try:
            call = msgspec.json.decode(record.value, type=HeldCall)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            log.error("the held call %s in the store is damaged: %s", id, error)
            return None
        return Kept(call, record.version) if call.id == id and call.version == 1 else None

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
        """Write down how a call ended."""
        await self._write_pieces(id, "answer", answer)
        while (kept := await self.read(id)) is not None and kept.call.state != ENDED:
            ended = msgspec.structs.replace(
                kept.call, state=ENDED, answer_pieces=count_of(answer), failure=failure, other=other, changed_s=now_s
            )
            if await self.change(kept, ended):
                return

    async def forget(self, id: str) -> None:
        """Delete the call of an approval that is forgotten too."""
        kept = await self.read(id)
        if kept is None:
            return
        call = kept.call
        keys = [f"{id}/body/{at}" for at in range(call.pieces)]
        keys += [f"{id}/answer/{at}" for at in range(call.answer_pieces)]
        await self._shelf.store.write([Change(SPACE, id, None), *(Change(PIECES, key, None) for key in keys)])

    async def _write_pieces(self, id: str, what: str, data: bytes) -> None:
        pieces = [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]
        if pieces:
            changes = [Change(PIECES, f"{id}/{what}/{at}", piece) for at, piece in enumerate(pieces)]
            await self._shelf.store.write(changes)

    async def _read_pieces(self, id: str, what: str, count: int) -> bytes | None:
        keys = [f"{id}/{what}/{at}" for at in range(count)]
        found = await self._shelf.store.read(PIECES, keys) if keys else {}
        return b"".join(found[key].value for key in keys) if len(found) == count else None


def count_of(data: bytes) -> int:
    """Return how many pieces it takes."""
    return -(-len(data) // PIECE_BYTES)


def new_task(prefix: str, id: str) -> str:
    """Return the id of a task: that of its approval, and 128 random bits."""
    return f"{prefix}{id}-{secrets.token_hex(16)}"
