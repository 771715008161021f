"""Who wants to hear of which object: one watch on the store for all of them, for as long as there is one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from meshd.engines.port import StoreError
from meshd.state.record import OBJECTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.engines.port import Store
    from meshd.state.objects import Objects


class Watching:
    """See the module. A change may be told late, twice, or as one with the next."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._by_key: dict[str, set[Callable[[], None]]] = {}
        self._watched: Store | None = None
        self._end: Callable[[], None] | None = None
        self._lock = asyncio.Lock()

    @property
    def count(self) -> int:
        """How many watch."""
        return sum(map(len, self._by_key.values()))

    async def listen(self, key: str, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` soon after an object changes; return what ends that. Raises StoreError."""
        self._by_key.setdefault(key, set()).add(changed)

        def end() -> None:
            self._by_key.get(key, set()).discard(changed)
            if not self._by_key.get(key):
                self._by_key.pop(key, None)
            if not self._by_key and self._end is not None:
                self._end()
                self._end, self._watched = None, None

        try:
            await self._watch()
        except BaseException:
            end()
            raise
        return end

    async def _watch(self) -> None:
        async with self._lock:
            store = self._objects.store
            if store is not self._watched:
                if self._end is not None:
                    self._end()
                self._end, self._watched = await store.watch(OBJECTS, self._tell), store
                if not self._by_key:  # all have gone meanwhile
                    self._end()
                    self._end, self._watched = None, None

    async def look(self) -> None:
        """See that the store in use is the one that is watched: it may have been opened late. Never raises."""
        try:
            await self._watch()
        except StoreError:
            pass  # whoever reads is told

    def _tell(self, key: str) -> None:
        # An empty one says that some were missed: all look again.
        told = self._by_key.get(key, ()) if key else [one for some in self._by_key.values() for one in some]
        for changed in tuple(told):
            changed()
