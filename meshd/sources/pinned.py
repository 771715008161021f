"""Pins in the store: a record for each owner, changed by compare-and-set, so that sidecars that share a store agree on
what was seen first."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Final

from meshd.discovery.pins import Pin, decode, encode
from meshd.engines.port import Change, StoreClosed, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.engines.port import Store

SPACE: Final = "pins"
MARK: Final = "@"
"""Between an owner and the hash of its address."""
TRIES_MAX: Final = 16


class Shelf:
    """Every method raises StoreError where the store does not answer, and PinsDamaged for a record that is none."""

    def __init__(self, store: Callable[[], Store | None], place: Callable[[str], str] = lambda _: "") -> None:
        """`store` returns the one that is in use, None while it cannot be opened; `place` the URL of an owner."""
        self._store = store
        self._place = place

    def key(self, owner: str) -> str:
        """Return under what key the pins of an owner stand. Sidecars of different policies may call different servers
        by one name: each address has pins of its own."""
        place = self._place(owner)
        return f"{owner}{MARK}{sha256(place.encode()).hexdigest()[:16]}" if place else owner

    @property
    def store(self) -> Store:
        """The store. Raises StoreError where there is none."""
        store = self._store()
        if store is None:
            raise StoreClosed("the store is not open, so nobody knows which definitions were seen before")
        return store

    async def change(self, owner: str, decide: Callable[[dict[str, Pin]], dict[str, Pin]]) -> None:
        """Keep what `decide` makes of an owner's pins. It may be called several times, where others change them."""
        store, key = self.store, self.key(owner)
        for _ in range(TRIES_MAX):
            record = (await store.read(SPACE, (key,))).get(key)
            pins = {} if record is None else decode(record.value)
            changed = decide(pins)
            if changed == pins:
                return
            version = 0 if record is None else record.version
            if (await store.write([Change(SPACE, key, encode(changed), version)]))[0]:
                return
        raise StoreError(f"the pins of {owner} were changed by others {TRIES_MAX} times in a row")
