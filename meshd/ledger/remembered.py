"""What was done under ids that callers chose, so that asking again does nothing again: for this UTC day and the next.

Each day has a space of its own in the store, and goes as a whole: an id is looked for in two of them, and nothing has
to be known of its age.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Final

from meshd.engines.port import Change

if TYPE_CHECKING:
    from meshd.engines.port import Store

_PAGE: Final = 500
_SWEPT_DAYS: Final = 3
"""Of the days before the last two, how many are swept: a sidecar may not have been asked on each of them."""


class Remembered:
    """Ids of one kind, such as `report`, and what was answered. Every method may raise StoreError."""

    __slots__ = ("_store", "_swept")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._swept: dict[str, str] = {}

    async def find(self, kind: str, key: str, day: str) -> bytes | None:
        """Return what was written under `key` on `day` (such as 2026-11-26) or the day before, None for nothing."""
        before = date.fromisoformat(day) - timedelta(days=1)
        for one in (day, before.isoformat()):
            if (record := (await self._store.read(_space(kind, one), (key,))).get(key)) is not None:
                return record.value
        return None

    async def write(self, kind: str, key: str, value: bytes, day: str) -> bool:
        """Write what was answered; False where somebody did so before on this day."""
        if self._swept.get(kind) != day:
            self._swept[kind] = day
            await self._sweep(kind, day)
        return (await self._store.write([Change(_space(kind, day), key, value, 0)]))[0]

    async def _sweep(self, kind: str, day: str) -> None:
        for back in range(2, 2 + _SWEPT_DAYS):
            space = _space(kind, (date.fromisoformat(day) - timedelta(days=back)).isoformat())
            while keys := await self._store.keys(space, "", _PAGE):
                await self._store.write([Change(space, key, None) for key in keys])


def _space(kind: str, day: str) -> str:
    return f"{kind}/{day}"
