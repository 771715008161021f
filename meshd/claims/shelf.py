"""The records of claims in a store, each changed by compare-and-set, and who of their holders is alive.

Of a long answer all but the beginning stands in pieces of its own, written before the record that names them: a crash
between the two leaves pieces that the sweep removes. The same holds for the index by which the sweep finds what has
expired: it stands before the claim does.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final
from zlib import crc32

import msgspec

from meshd.claims.record import DELETED, ClaimRecord, decode, encode, step
from meshd.claims.replay import is_event_stream
from meshd.claims.rest import PIECE_BYTES, PIECES, START_BYTES, Pieces, RestBroken, piece_name
from meshd.claims.rpc import place_of_id
from meshd.claims.states import Event, State
from meshd.engines.port import Ability, Change, StoreCorrupt
from meshd.ledger.desk import Desk

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.claims.record import Answer
    from meshd.claims.rest import Rest
    from meshd.claims.tape import Tape
    from meshd.engines.port import Store

CLAIMS: Final = "claim"
DUE: Final = "claim-due"
HOLDERS: Final = "claim-holder"
BEAT_S: Final = 5.0
"""How often a holder with claims in flight says that it is alive."""
DEAD_S: Final = 20.0
"""A holder that has said nothing for so long, by the observer's own clock, is taken for dead. It is never more than a
guess, and harms nothing: what it has in flight becomes unknown, which is never run again, and its word still counts."""
SWEPT_MAX: Final = 200
LOOK_AGAIN_S: Final = 3600.0
PIECES_MAX: Final = 1024
"""As many as the longest answer has that a policy may keep (256 MB)."""
TRIES_MAX: Final = 100
DOUBTED_MAX: Final = 1024

DIED: Final = "the sidecar that forwarded the call has ended since"

_log = logging.getLogger("meshd.claims")


class Shelf:
    """The claims of all sidecars that share a store, as one of them sees them. Every method may raise StoreError."""

    __slots__ = ("_beat", "_beaten_s", "_clock", "_doubted", "_seen", "epoch", "holder", "is_shared", "store")

    def __init__(self, store: Store, holder: str, epoch: int, clock: Callable[[], float]) -> None:
        self.store = store
        self.holder = holder
        self.epoch = epoch
        self.is_shared = Ability.SHARED in store.abilities
        self._clock = clock
        self._beat = 0
        self._beaten_s = -BEAT_S
        self._doubted: set[str] = set()
        """Nonces of answers that a replay could not read to their end."""
        self._seen: dict[str, tuple[int, float]] = {}
        """By holder: the version of its last sign of life, and when it was first seen."""

    async def read(self, identity: str) -> tuple[ClaimRecord | None, int]:
        """Return a claim and its version; None and 0 where it is absent."""
        found = (await self.store.read(CLAIMS, (identity,))).get(identity)
        return (None, 0) if found is None else (decode(found.value, identity), found.version)

    async def forward(self, identity: str, record: ClaimRecord, version: int) -> bool:
        """Write down that a call goes out, where the claim still is as it was at `version`."""
        changes = [Change(DUE, _due(record.ends_s, identity), b"")]
        changes += self._signs()
        changes.append(Change(CLAIMS, identity, encode(record), version))
        return (await self.store.write(changes))[-1]

    def _signs(self) -> list[Change]:
        now_s = self._clock()
        if not self.is_shared or now_s - self._beaten_s < BEAT_S:
            return []
        self._beaten_s = now_s
        self._beat += 1
        return [Change(HOLDERS, self.holder, b"%d" % self._beat)]

    async def beat(self) -> None:
        """Say that this holder is alive."""
        await self.store.write(self._signs())

    async def tell(
        self, identity: str, event: Event, *, nonce: str = "", answer: Answer | None = None, why: str = ""
    ) -> ClaimRecord | None:
        """Let something happen to a claim; return the record as it stands then, None where it is absent."""
        for _ in range(TRIES_MAX):
            record, version = await self.read(identity)
            if record is None:
                return None
            changed = step(record, event, nonce=nonce, answer=answer, why=why)
            if changed is None:
                return record
            if isinstance(changed, ClaimRecord):
                if (await self.store.write([Change(CLAIMS, identity, encode(changed), version)]))[0]:
                    return changed
            elif (await self.store.write([Change(CLAIMS, identity, None, version)]))[0]:
                await self.store.write([Change(DUE, _due(record.ends_s, identity), None)])
                return None
        raise StoreCorrupt(f"the claim {identity} changes under every write")

    async def keep(self, identity: str, nonce: str, answer: Answer, tape: Tape) -> ClaimRecord | None:
        """Write down an answer with its body."""
        if not answer.is_too_long:
            start = tape.read(0, min(START_BYTES, answer.size))
            if len(start) != min(START_BYTES, answer.size):
                answer = msgspec.structs.replace(answer, is_too_long=True)
            else:
                answer = msgspec.structs.replace(answer, body=start)
            if len(start) < answer.size and not answer.is_too_long:
                answer = await self._keep_pieces(nonce, answer, tape)
        return await self.tell(identity, Event.ANSWERED, nonce=nonce, answer=answer)

    async def _keep_pieces(self, nonce: str, answer: Answer, tape: Tape) -> Answer:
        sums: list[int] = []
        for at in range(START_BYTES, answer.size, PIECE_BYTES):
            size = min(PIECE_BYTES, answer.size - at)
            piece = tape.read(at, size)
            if len(piece) != size:
                return msgspec.structs.replace(answer, body=b"", is_too_long=True)
            await self.store.write([Change(PIECES, piece_name(nonce, len(sums)), piece)])
            sums.append(crc32(piece))
        at = -1
        if answer.rpc_id and not is_event_stream(answer.headers):
            at = place_of_id(tape.body() or b"", answer.rpc_id)
        return msgspec.structs.replace(answer, pieces=len(sums), sums=tuple(sums), rpc_at=at)

    async def rest_of(self, record: ClaimRecord, answer: Answer) -> Rest | None:
        """Return what follows the beginning of an answer, None where that is all.

        It is read while it is sent. Where that has failed before, it is looked through first. Raises RestBroken.
        """
        if not answer.pieces:
            return None
        if len(answer.sums) != answer.pieces:
            raise RestBroken("the kept answer says nothing of its pieces")
        if record.nonce in self._doubted:
            look = Pieces(self, record, answer)
            while await look.next():
                pass
            self._doubted.discard(record.nonce)
        return Pieces(self, record, answer)

    def doubt(self, nonce: str) -> None:
        """An answer could not be read to its end: the next who asks for it is told before it begins."""
        if len(self._doubted) >= DOUBTED_MAX:
            self._doubted.clear()
        self._doubted.add(nonce)

    async def is_dead(self, record: ClaimRecord, *, is_known: Callable[[str], bool]) -> bool:
        """Say whether the holder of a claim in flight is gone. `is_known`: whether this process has that nonce."""
        if record.holder == self.holder:
            # Of an earlier run of this sidecar, or of none that it knows of.
            return record.epoch != self.epoch or not is_known(record.nonce)
        if not self.is_shared:
            return True  # Only this process may have the store.
        if await Desk(self.store).has_begun_anew(record.holder, record.epoch):
            return True
        sign = (await self.store.read(HOLDERS, (record.holder,))).get(record.holder)
        version = 0 if sign is None else sign.version
        now_s = self._clock()
        seen = self._seen.get(record.holder)
        if seen is None or seen[0] != version:
            if len(self._seen) >= 1024:
                self._seen.clear()
            self._seen[record.holder] = (version, now_s)
            return False
        return now_s - seen[1] > DEAD_S

    async def sweep(self, now_s: float, *, is_known: Callable[[str], bool]) -> int:
        """Remove claims that were kept for long enough, some at a time; return how many were looked at.

        `now_s` is in Unix seconds, `is_known` as in `is_dead`.
        """
        keys = await self.store.keys(DUE, limit=SWEPT_MAX)
        count = 0
        for key in keys:
            due, _, identity = key.partition("/")
            if not due.isdigit() or int(due) > now_s:
                break
            count += 1
            await self._sweep(key, identity, now_s, is_known)
        return count

    async def _sweep(self, key: str, identity: str, now_s: float, is_known: Callable[[str], bool]) -> None:
        try:
            record, version = await self.read(identity)
        except StoreCorrupt as error:
            _log.error("%s; it is removed", error)
            await self.store.write([Change(CLAIMS, identity, None), Change(DUE, key, None)])
            return
        changes: list[Change] = []
        if record is not None and record.ends_s <= now_s:
            if record.state is State.IN_FLIGHT:
                # Nobody may run it while its holder may live: looked at again later.
                if await self.is_dead(record, is_known=is_known):
                    await self.tell(identity, Event.DIED, why=DIED)
                changes.append(Change(DUE, _due(now_s + LOOK_AGAIN_S, identity), b""))
            elif step(record, Event.EXPIRED) is DELETED:
                changes.append(Change(CLAIMS, identity, None, version))
                if record.answer is None or record.answer.pieces:
                    changes += [Change(PIECES, name, None) for name in await self._pieces_of(record.nonce)]
        await self.store.write([*changes, Change(DUE, key, None)])

    async def _pieces_of(self, nonce: str) -> list[str]:
        """Return the names of all pieces of an answer, of one that was never written to its end too."""
        found = await self.store.keys(PIECES, after=f"{nonce}/", limit=PIECES_MAX)
        return [name for name in found if name.startswith(f"{nonce}/")]


def _due(ends_s: float, identity: str) -> str:
    return f"{int(ends_s) + 1:012d}/{identity}"
