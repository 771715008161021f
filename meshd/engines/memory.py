"""A store in memory: the model that the other engines are tested against, and the one `meshd explain` uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.engines.port import Change, Record, StoreClosed, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence


class MemoryStore:
    """Keeps records in a dict. Nothing survives the process."""

    name = "memory"
    is_durable = False

    def __init__(self) -> None:
        self._spaces: dict[str, dict[str, Record]] = {}
        self._version = 0
        self._is_closed = False
        self.fault: StoreError | None = None
        """Raised by every operation while set: how tests and drills make a store fail."""

    async def read(self, space: str, keys: Sequence[str]) -> dict[str, Record]:
        self._check()
        records = self._spaces.get(space, {})
        return {key: records[key] for key in keys if key in records}

    async def write(self, changes: Sequence[Change]) -> bool:
        self._check()
        # Changes of one batch see each other, as statements of one transaction do: judge them on a copy.
        spaces = {change.space: dict(self._spaces.get(change.space, {})) for change in changes}
        version = self._version
        for space, key, value, expected in changes:
            records = spaces[space]
            current = records[key].version if key in records else 0
            if expected is not None and expected != current:
                return False
            if value is None:
                records.pop(key, None)
            else:
                version += 1
                records[key] = Record(version, value)
        self._spaces.update(spaces)
        self._version = version
        return True

    async def keys(self, space: str, after: str = "", limit: int = 1000) -> list[str]:
        self._check()
        found = (key for key in self._spaces.get(space, {}) if key.encode() > after.encode())
        return sorted(found, key=str.encode)[:limit]

    async def close(self) -> None:
        self._is_closed = True

    def _check(self) -> None:
        if self._is_closed:
            raise StoreClosed("the store in memory was closed")
        if self.fault is not None:
            raise self.fault
