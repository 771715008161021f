"""The store port: versioned records, each changed by compare-and-set. It fits on one screen on purpose.

No change spans two records: an engine that could do that would rule out those that cannot, and who needs two records
writes them in an order that a crash between them does not harm.

A record is bytes under (space, key). Its version is a number that only grows over the life of the store, so a record
that was deleted and made again never has a version that it had before.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


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
    """The version that must stand there now; 0 for "none", which is put-if-absent; None for "whatever it is"."""


class Ability(str, Enum):
    """What one engine can do and another cannot."""

    DURABLE = "durable"
    """What it has acknowledged survives a crash of its host."""
    SHARED = "shared"
    """Sidecars in other processes and on other machines may use it at the same time."""
    REPLAYS = "replays"
    """Of a bus: a group may begin at a moment or behind a place, and what is kept can be looked at without a group."""


class Store(Protocol):
    """What an engine that keeps state offers. Every method may raise StoreError, and nothing else."""

    name: str
    abilities: frozenset[Ability]
    caution: str
    """Why acknowledged writes may be lost all the same, in words for an operator; empty where they may not."""

    async def read(self, space: str, keys: Sequence[str]) -> dict[str, Record]:
        """Return the records that exist among `keys`."""
        ...

    async def write(self, changes: Sequence[Change]) -> list[bool]:
        """Make each change or not, in order and each on its own; say of each whether it was made.

        One is not made where a version was not the expected one. Where an error is raised, any number of them, from
        the first on, may have been made.
        """
        ...

    async def take(self, space: str, key: str, amount: int, ceiling: int) -> int | None:
        """Add `amount` to the number kept there (0 where there is none) unless the sum would pass `ceiling`.

        Return the sum, or None where nothing was added. A number is a record: decimal digits, with a version. An
        amount below 0 gives back; a sum below 0 is StoreUnable, and nothing is changed.
        """
        ...

    async def keys(self, space: str, after: str = "", limit: int = 1000) -> list[str]:
        """Return up to `limit` keys of a space in byte order, from the first beyond `after`."""
        ...

    async def watch(self, space: str, changed: Callable[[str], None]) -> Callable[[], None]:
        """Call `changed(key)` on this loop soon after anybody changes a record of a space; return what ends that.

        Changes may be told late, twice or as one. `changed("")` says that some may have been missed: look again.
        """
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


class StoreUnable(StoreError):
    """This engine cannot do what is asked of it."""


NUMBER_MAX: Final = 10**18 - 1
"""Largest number that `Store.take` keeps."""


def sum_of(store: str, key: str, value: bytes | None, amount: int, ceiling: int) -> int | None:
    """Decide what `Store.take` decides, of the record that stands there: the sum, or None."""
    if value is not None and not (value.isdigit() and len(value) <= 18):
        raise damaged_number(store, key)
    total = int(value or b"0") + amount
    if total > min(ceiling, NUMBER_MAX):
        return None
    if total < 0:
        raise below_zero(store, key)
    return total


def damaged_number(store: str, key: str) -> StoreCorrupt:
    """Say that what should be a number is none."""
    return StoreCorrupt(f"the number under {key} in the {store} store is damaged")


def below_zero(store: str, key: str) -> StoreUnable:
    """Say that more would be given back than was taken."""
    return StoreUnable(f"the number under {key} in the {store} store would fall below 0")
