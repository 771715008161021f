"""What has expired is removed, and what crashes have left: pieces of values that no head came to name."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from meshd.engines.port import Change, StoreCorrupt, StoreError, StoreNewer
from meshd.state import pieces
from meshd.state.deciding import EMPTY_S
from meshd.state.objects import Place
from meshd.state.record import DRAFTS, DUE, Head, named_by

if TYPE_CHECKING:
    from meshd.engines.port import Store
    from meshd.state.objects import Objects

SWEEP_S: Final = 60.0
DRAFT_S: Final = 600.0
"""How old a note must be before the pieces that it tells of are taken for left."""
SWEPT_MAX: Final = 200
"""Of one sweep."""
_log = logging.getLogger("meshd.state")


class Sweeping:
    """Any number of sidecars may sweep one store at once."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    async def run(self) -> None:
        """Sweep for ever, about once a minute. What cannot be done is left to the next time."""
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                while await self.sweep() >= SWEPT_MAX:
                    pass
            except StoreError as error:
                _log.debug("the state was not swept: %s", error)

    async def sweep(self) -> int:
        """Sweep once; return at how much it was looked. Raises StoreError."""
        store, now_s, count = self._objects.store, self._objects.clock(), 0
        for key in await store.keys(DUE, limit=SWEPT_MAX):
            due, _, rest = key.partition("/")
            if not due.isdigit() or int(due) > now_s:
                break
            count += 1
            space, _, name = rest.partition("/")
            if await self._expire(store, Place(space, name), now_s):
                await store.write([Change(DUE, key, None)])
        for note in await store.keys(DRAFTS, limit=SWEPT_MAX):
            begun = note.partition("/")[0]
            if not begun.isdigit() or int(begun) + DRAFT_S > now_s:
                break
            try:
                await self._undo(store, note)
            except StoreNewer:
                continue  # whoever wrote it sweeps it
            except StoreCorrupt as error:
                _log.error("%s; what the note %s tells of is left as it is", error, note)
                await store.write([Change(DRAFTS, note, None)])
            count += 1
        return count

    async def _expire(self, store: Store, place: Place, now_s: float) -> bool:
        """Remove what has expired; False where it changed meanwhile, and is to be looked at again."""
        try:
            head, version = await self._objects.read(place)
        except (StoreCorrupt, StoreNewer) as error:
            _log.error("%s; it is left as it is", error)
            return True
        # One that was changed since ends later, and has a line of its own.
        if head is None or not head.ends_s or now_s < head.ends_s:
            return True
        if not (await store.write([Change(*place, None, version)]))[0]:
            return False
        await pieces.remove(store, named_by(head))
        return True

    async def _undo(self, store: Store, note: str) -> None:
        found = (await store.read(DRAFTS, (note,))).get(note)
        if found is None:
            return
        draft = pieces.draft_of(found.value, note)
        place = Place(draft.space, draft.key)
        head, version = await self._objects.read(place)
        if head is None or all(one.nonce != draft.nonce for one in head.versions):
            # The head is written anew: a writer that was paused finds another version of it than it read, and begins
            # again with pieces of another name.
            touched = head or Head(ends_s=self._objects.clock() + EMPTY_S)
            if not await self._objects.put(place, head, touched, version):
                return  # it changed meanwhile: the next sweep looks again
            await pieces.remove(store, [(draft.nonce, draft.pieces)])
        await store.write([Change(DRAFTS, note, None)])
