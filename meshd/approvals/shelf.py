"""Approvals in the store: the records by id, and for each call the id that is in force.

A new approval takes two writes. The index first, by compare-and-set: of two sidecars that are asked the same, one
chooses the id. Then the record, if it is absent: whoever finds an index without its record, since a crash lay between
the two, writes it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.approvals.record import INDEX, SPACE, Approval, Damaged, decode, encode, new_id
from meshd.approvals.state import State
from meshd.engines.port import Change, StoreClosed, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from meshd.engines.port import Store

log = logging.getLogger("meshd.approvals")

TRIES_MAX: Final = 32
"""Compare-and-sets that may be lost to others before it is given up."""
PAGE: Final = 200
_IN_FORCE: Final = frozenset({State.PENDING, State.APPROVED})


class Found(NamedTuple):
    """An approval, and the version under which it stands."""

    approval: Approval
    version: int


class Busy(StoreError):
    """Others change the same record all the time."""


class Shelf:
    """Every method raises StoreError where the store does not answer."""

    def __init__(self, store: Callable[[], Store | None], random: Callable[[int], bytes]) -> None:
        """`store` returns the one that is in use, None while it cannot be opened."""
        self._store = store
        self._random = random

    @property
    def store(self) -> Store:
        """The store. Raises StoreError where there is none."""
        store = self._store()
        if store is None:
            raise StoreClosed("the store is not open")
        return store

    async def read(self, id: str) -> Found | None:
        """Return an approval. Raises Damaged too."""
        record = (await self.store.read(SPACE, (id,))).get(id)
        return None if record is None else Found(decode(record.value, id), record.version)

    async def read_many(self, ids: Sequence[str]) -> dict[str, Found]:
        """Return those that there are; a damaged one is left out, and logged."""
        found = {}
        for id, record in (await self.store.read(SPACE, ids)).items():
            try:
                found[id] = Found(decode(record.value, id), record.version)
            except Damaged as error:
                log.error("%s", error)
        return found

    async def in_force(self, digest: str, now_s: float, key: str = "") -> tuple[Found | None, int, str]:
        """Return the approval that is in force for a call, the version of its index, and the id that this names where
        no record stands under it yet.

        One that is pending, or allowed and not used, is in force until its time is over; so is a denial, lest who was
        told no asks until somebody says yes, and one that a call with `key` is being sent with. Anything else must be
        asked anew.
        """
        index = (await self.store.read(INDEX, (digest,))).get(digest)
        if index is None:
            return None, 0, ""
        id = index.value.decode("ascii", "replace")
        try:
            found = await self.read(id)
        except Damaged as error:
            log.error("%s: the call must ask anew", error)
            return None, index.version, ""
        if found is None:
            return None, index.version, id
        approval = found.approval
        if approval.digest != digest:
            log.error("the approval %s is not of the call that its index names: the call must ask anew", id)
            return None, index.version, ""
        is_denial = approval.state is State.DENIED and now_s < approval.expires_s
        if approval.state_at(now_s) in _IN_FORCE or is_denial or approval.is_sending(key, now_s):
            return found, index.version, ""
        return None, index.version, ""

    async def add(
        self, draft: Callable[[str], Approval], digest: str, now_s: float, key: str = ""
    ) -> tuple[Found, bool]:
        """Return the approval in force for a call, and whether it is new: `draft` makes it, of an id."""
        for _ in range(TRIES_MAX):
            found, version, id = await self.in_force(digest, now_s, key)
            if found is not None:
                return found, False
            if not id:
                id = new_id(self._random)
                if not (await self.store.write([Change(INDEX, digest, id.encode(), version)]))[0]:
                    continue
            # Where an index names it, whoever chose it may be writing it this very moment: one of both does.
            approval = draft(id)
            is_made = (await self.store.write([Change(SPACE, id, encode(approval), 0)]))[0]
            if is_made and (made := await self.read(id)) is not None:
                return made, True
        raise Busy(f"the approval of one call was changed by others {TRIES_MAX} times in a row")

    async def change(self, found: Found, approval: Approval) -> bool:
        """Put an approval in the place of what was found; False where that has changed since."""
        change = Change(SPACE, approval.id, encode(approval), found.version)
        return (await self.store.write([change]))[0]

    async def all(self) -> AsyncIterator[list[tuple[str, Found | None]]]:
        """Yield every approval, page by page, by id; None for a damaged one."""
        after = ""
        while keys := await self.store.keys(SPACE, after, PAGE):
            records = await self.read_many(keys)
            yield [(key, records.get(key)) for key in keys]
            after = keys[-1]

    async def forget(self, found: Found) -> None:
        """Delete an approval that is long over, and what names it."""
        approval = found.approval
        index = (await self.store.read(INDEX, (approval.digest,))).get(approval.digest)
        if index is not None and index.value == approval.id.encode():
            # The index first: without its record it would name an approval that is to be written.
            await self.store.write([Change(INDEX, approval.digest, None, index.version)])
        await self.store.write([Change(SPACE, approval.id, None, found.version)])
