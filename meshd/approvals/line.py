"""The calls that wait for a decision, and the changes in the store that wake them.

One watch and one reader for all of them: what a thousand calls cost is a future each.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from meshd.approvals.record import SPACE
from meshd.engines.port import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshd.approvals.shelf import Found, Shelf
    from meshd.engines.port import Store

log = logging.getLogger("meshd.approvals")

LOOK_S: Final = 15.0
"""How often those that wait are looked at though nothing was told: a watch may be lost with its connection."""
RETRY_S: Final = 0.5
BATCH: Final = 200


class Line:
    """On the loop's thread only."""

    def __init__(self, shelf: Shelf, seen: Callable[[Found], None]) -> None:
        """`seen` is told of each approval that was read because it changed."""
        self._shelf = shelf
        self._seen = seen
        self._waiting: dict[str, list[asyncio.Future[Found | None]]] = {}
        self._watched: Store | None = None
        self._unwatch: Callable[[], None] | None = None
        self._watching = asyncio.Lock()
        self._changed: set[str] = set()
        self._reading: asyncio.Task[None] | None = None
        self._is_closed = False

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    async def watch(self) -> None:
        """Hear of changes from now on, in the store that is in use now. Raises StoreError."""
        store = self._shelf.store
        if self._watched is store:
            return
        async with self._watching:
            if self._watched is not store:
                self.unwatch()
                self._unwatch = await store.watch(SPACE, self.changed)
                self._watched = store

    def unwatch(self) -> None:
        """Hear of no more changes."""
        if self._unwatch is not None:
            self._unwatch()
        self._unwatch = self._watched = None

    def join(self, id: str) -> asyncio.Future[Found | None]:
        """Return what is done when the approval has changed; whoever joins reads it once afterwards, and leaves."""
        future: asyncio.Future[Found | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(id, []).append(future)
        return future

    def leave(self, id: str, future: asyncio.Future[Found | None]) -> None:
        """Wait no more."""
        others = self._waiting.get(id)
        if others is not None and future in others:
            others.remove(future)
            if not others:
                del self._waiting[id]

    def changed(self, id: str) -> None:
        """Somebody has changed an approval; empty for any number of them."""
        if self._is_closed:
            return
        self._changed.update(self._waiting if not id else (id,) if id in self._waiting else ())
        if self._changed and self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._read())

    def tell(self, found: Found) -> None:
        """Wake whoever waits for an approval."""
        self._seen(found)
        for future in self._waiting.pop(found.approval.id, ()):
            if not future.done():
                future.set_result(found)

    async def _read(self) -> None:
        try:
            while self._changed and not self._is_closed:
                ids = [self._changed.pop() for _ in range(min(BATCH, len(self._changed)))]
                try:
                    records = await self._shelf.read_many(ids)
                except StoreError as error:
                    log.warning("approvals cannot be read, so those who wait go on waiting: %s", error)
                    self._changed.update(ids)
                    await asyncio.sleep(RETRY_S)
                    continue
                for id in ids:
                    if id in records:
                        self.tell(records[id])
                    else:
                        # Gone or damaged: whoever waits looks for itself, and asks anew.
                        self._wake(id)
        finally:
            self._reading = None

    def _wake(self, id: str) -> None:
        for future in self._waiting.pop(id, ()):
            if not future.done():
                future.set_result(None)

    def ids(self) -> Iterable[str]:
        """Return the approvals that calls wait for here."""
        return self._waiting.keys()

    async def close(self) -> None:
        """Wake nobody any more."""
        self._is_closed = True
        self.unwatch()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
