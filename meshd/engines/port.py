"""The store port: versioned records, changed all or none by compare-and-set. It fits on one screen on purpose.

A record is bytes under (space, key). Its version is a number that only grows over the life of the store, so a record
that was deleted and made again never has a version that it had before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence


class Record(NamedTuple):
    """A value and the version under which it was written."""

    version: int
    value: bytes


class Change(NamedTuple):
    """One record to write, or to delete where `value` is None. Deleting what is absent does nothing."""

    space: str
    key: str
    value: bytes | None
    expected: int | None = None
    """The version that must stand there now; 0 for "none"; None for "whatever it is"."""


class Store(Protocol):
    """What an engine that keeps state offers. Every method may raise StoreError, and nothing else."""

    name: str
    is_durable: bool
    """What it has acknowledged survives a crash of its host."""

    async def read(self, space: str, keys: Sequence[str]) -> dict[str, Record]:
        """Return the records that exist among `keys`."""
        ...

    async def write(self, changes: Sequence[Change]) -> bool:
        """Make all changes or none; False where a version was not the expected one."""
        ...

    async def keys(self, space: str, after: str = "", limit: int = 1000) -> list[str]:
        """Return up to `limit` keys of a space in byte order, from the first beyond `after`."""
        ...

    async def close(self) -> None:
        """Finish what was asked for and let go. Closing twice is fine; anything else afterwards is StoreClosed."""
        ...


class StoreError(Exception):
    """The store cannot do its work; the message says why in words for an operator."""


class StoreLocked(StoreError):
    """Another process holds it."""


class StoreCorrupt(StoreError):
    """What it holds is not what was written."""


class StoreNewer(StoreError):
    """It was written by a newer meshd."""


class StoreFull(StoreError):
    """There is no room left to write."""


class StoreReadOnly(StoreError):
    """It may not be written."""


class StoreClosed(StoreError):
    """It was closed."""
