"""All that this sidecar knows of what can be called.

It is filled owner by owner: whoever learns what a server offers hands in all of it, in place of what was known before
from the same origin. So what a server no longer has is gone, and no server can touch what is another's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from meshd.discovery.entry import Entry, Origin, Sort


class Catalogue:
    """Entries by owner and origin."""

    __slots__ = ("_by_key", "_held", "_listeners", "generation")

    def __init__(self) -> None:
        self._held: dict[str, dict[Origin, tuple[Entry, ...]]] = {}
        """Owners in the order in which they came. A change costs what its owner has, however many others there are."""
        self._by_key: dict[tuple[Sort, str, str], Entry] = {}
        self._listeners: list[Callable[[str], None]] = []
        self.generation = 0
        """Grows with each change: what was worked out of an older one is stale."""

    def replace(self, owner: str, origin: Origin, entries: Iterable[Entry]) -> None:
        """Take `entries` for all that `owner` offers, as known from `origin`. Of two of one name the first stands."""
        found: dict[tuple[Sort, str, str], Entry] = {}
        for entry in entries:
            if entry.owner != owner or entry.origin is not origin:
                raise ValueError(f"{entry.name!r} is of {entry.owner} ({entry.origin.value}), not of {owner}")
            found.setdefault(entry.key, entry)
        new = tuple(found.values())
        held = self._held.setdefault(owner, {})
        if held.get(origin, ()) == new:
            if not held:
                del self._held[owner]
            return
        for before in held.values():
            for entry in before:
                self._by_key.pop(entry.key, None)
        if new:
            held[origin] = new
        else:
            del held[origin]
            if not held:
                del self._held[owner]
        for now in held.values():
            for entry in now:
                self._by_key.setdefault(entry.key, entry)
        self.generation += 1
        for listener in tuple(self._listeners):
            listener(owner)

    def drop(self, owner: str, origin: Origin) -> None:
        """Forget what is known of `owner` from `origin`."""
        self.replace(owner, origin, ())

    def get(self, sort: Sort, owner: str, name: str) -> Entry | None:
        """Return one by its name."""
        return self._by_key.get((sort, owner, name))

    def of(self, owner: str, sort: Sort | None = None) -> list[Entry]:
        """Return what one owner offers, in its own order."""
        held = self._held.get(owner, {})
        return [
            entry
            for entries in held.values()
            for entry in entries
            if sort in (None, entry.sort) and self._by_key.get(entry.key) is entry
        ]

    def origins(self, owner: str) -> list[Origin]:
        """Return from where something is known of an owner."""
        return list(self._held.get(owner, ()))

    def owners(self) -> list[str]:
        """Return who offers something, in the order in which they came."""
        return list(self._held)

    def listen(self, changed: Callable[[str], None]) -> Callable[[], None]:
        """Call `changed(owner)` after each change; return what ends that."""
        self._listeners.append(changed)

        def end() -> None:
            if changed in self._listeners:
                self._listeners.remove(changed)

        return end

    def __iter__(self) -> Iterator[Entry]:
        for owner in self._held:
            yield from self.of(owner)

    def __len__(self) -> int:
        return len(self._by_key)
