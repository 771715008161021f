"""A store in memory: the model that the other engines are tested against, and the one `meshd explain` uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.engines.port import Ability, Change, Record, StoreClosed, StoreError, sum_of
from meshd.engines.watchers import Watchers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class MemoryStore:
    """Keeps records in a dict. Nothing survives the process."""

    name = "memory"
    caution = "it keeps nothing beyond this process"

    def __init__(self) -> None:
        self.abilities: frozenset[Ability] = frozenset()
        self._spaces: dict[str, dict[str, Record]] = {}
        self._version = 0
        self._watchers = Watchers()
        self._is_closed = False
        self.fault: StoreError | None = None
        """Raised by every operation while set: how tests and drills make a store fail."""

    async def read(self, space: str, keys: Sequence[str]) -> dict[str, Record]:
        self._check()
        records = self._spaces.get(space, {})
        return {key: records[key] for key in keys if key in records}

    async def write(self, changes: Sequence[Change]) -> list[bool]:
        self._check()
        return [self._write(change) for change in changes]

    def _write(self, change: Change) -> bool:
        space, key, value, expected = change
        records = self._spaces.setdefault(space, {})
        current = records[key].version if key in records else 0
        if expected is not None and expected != current:
            return False
        if value is not None:
            self._version += 1
            records[key] = Record(self._version, value)
        elif records.pop(key, None) is None:
            return True
        self._watchers.tell(space, (key,))
        return True

    async def take(self, space: str, key: str, amount: int, ceiling: int) -> int | None:
        self._check()
        record = self._spaces.get(space, {}).get(key)
        total = sum_of(self.name, key, record.value if record is not None else None, amount, ceiling)
        if total is not None:
            self._write(Change(space, key, b"%d" % total))
        return total

    async def keys(self, space: str, after: str = "", limit: int = 1000) -> list[str]:
        self._check()
        found = (key for key in self._spaces.get(space, {}) if key.encode() > after.encode())
        return sorted(found, key=str.encode)[:limit]

    async def watch(self, space: str, changed: Callable[[str], None]) -> Callable[[], None]:
        self._check()
        return self._watchers.add(space, changed)

    async def close(self) -> None:
        self._is_closed = True

    def _check(self) -> None:
        if self._is_closed:
            raise StoreClosed("the store in memory was closed")
        if self.fault is not None:
            raise self.fault
