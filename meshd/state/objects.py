"""The operations on objects. Each is a compare-and-set on one head, so that none of two writers loses anything.

A long value is written in this order: a note, its pieces, the head that names them; then the note goes. A crash leaves
a note, by which the sweep finds pieces that no head names.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

from msgspec.structs import replace

from meshd.engines.port import Change, StoreClosed, StoreError
from meshd.state import deciding, pieces
from meshd.state.deciding import Conflict, Done
from meshd.state.keys import Key, Scope
from meshd.state.record import DUE, OBJECTS, SHADOWS, Head, Lease, Version, decode, encode, named_by, pieces_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.engines.port import Store
    from meshd.state.deciding import Keep

TRIES_MAX: Final = 100
"""Compare-and-sets that may be lost to others before it is given up."""
DAY_S: Final = 86_400.0
HOUR_S: Final = 3600.0
_NONCE_BYTES: Final = 12


class Place(NamedTuple):
    """Where a head lies."""

    space: str
    key: str


class Wish(NamedTuple):
    """A version that somebody wants written."""

    draft: Version
    """Without its number and where its value is."""
    value: bytes
    base: int
    lease_id: str = ""


class Busy(StoreError):
    """Others change the same object all the time."""


def place_of(key: Key) -> Place:
    """Return where an object lies."""
    return Place(OBJECTS, str(key))


def shadow_of(key: Key, workflow: str) -> Place:
    """Return where a workflow's tentative versions of an object lie."""
    return Place(SHADOWS, f"{workflow}/{key}")


def ends_of(key: Key | None, deadline_s: float | None, now_s: float) -> float:
    """Return when an object that is written now ends, in unix seconds; 0 for never.

    What belongs to a workflow (None: a tentative version of any object) ends a day after its last change, rounded up to
    the hour so that not every change moves it; later, where the deadline is later. Not with a nearer deadline: that may
    be the one of a single call.
    """
    if key is not None and key.scope is not Scope.WORKFLOW:
        return 0.0
    return math.ceil(max(now_s + DAY_S, deadline_s or 0.0) / HOUR_S) * HOUR_S


class Objects:
    """Every method raises StoreError where the store does not answer."""

    def __init__(
        self, store: Callable[[], Store | None], *, clock: Callable[[], float], random: Callable[[int], bytes]
    ) -> None:
        """`store` returns the one in use, None while it cannot be opened; `clock` returns unix seconds."""
        self._store = store
        self.clock = clock
        self._random = random

    @property
    def store(self) -> Store:
        """The store. Raises StoreError where there is none."""
        store = self._store()
        if store is None:
            raise StoreClosed("the store is not open")
        return store

    def check(self) -> None:
        """Raise StoreError where there is no store."""
        _ = self.store

    async def read(self, place: Place) -> tuple[Head | None, int]:
        """Return a head as it is stored, and the store's version of it; None and 0 where there is none."""
        found = (await self.store.read(place.space, (place.key,))).get(place.key)
        return (None, 0) if found is None else (decode(found.value, place.key), found.version)

    async def living(self, place: Place) -> Head:
        """Return a head as it is now: without what time has taken from it."""
        return deciding.living((await self.read(place))[0], self.clock())

    async def get(self, place: Place, number: int = 0) -> tuple[Version, bytes] | None:
        """Return a version and its value; the newest for 0. None where it is not kept."""
        for _ in range(TRIES_MAX):
            head, _version = await self.read(place)
            found = deciding.kept(head, number, self.clock())
            if found is None:
                return None
            try:
                return found, await pieces.read(self.store, found, place.key)
            except pieces.Gone:
                continue  # the version was dropped between the two
        raise Busy(f"the pieces of {place.key} are not where its head says")

    async def value(self, place: Place, version: Version) -> bytes | None:
        """Return the value of a version that was just read; None where it was dropped since."""
        try:
            return await pieces.read(self.store, version, place.key)
        except pieces.Gone:
            return None

    async def commit(self, place: Place, wish: Wish, keep: Keep, ends_s: float = 0.0) -> Version | Conflict:
        """Write the next version; return it, or why it was not written."""
        draft = replace(wish.draft, size=len(wish.value), checksum=crc32(wish.value))
        for _ in range(TRIES_MAX):
            head, version = await self.read(place)
            decided = deciding.commit(
                head,
                draft,
                base=wish.base,
                lease_id=wish.lease_id,
                now_s=self.clock(),
                keep=keep,
                ends_s=ends_s,
            )
            if isinstance(decided, Conflict):
                return decided
            if isinstance(decided, Done):
                return decided.version
            made = await self._write(place, head, version, decided, wish.value)
            if made is not None:
                return made
        raise Busy(f"the object {place.key} was changed by others {TRIES_MAX} times in a row")

    async def _write(
        self, place: Place, before: Head | None, version: int, decided: Head, value: bytes
    ) -> Version | None:
        """Write a head whose newest version has this value; None where the head has changed since it was read.

        Pieces are written after the head was read and before it is changed, anew for each try: a sweep that takes
        them for left changes the head first, and then this write is refused.
        """
        store = self.store
        if before is not None and before.dropped:
            await pieces.remove(store, before.dropped)
        nonce = self._random(_NONCE_BYTES).hex()
        newest, first, note = pieces.placed(place, decided.versions[0], value, nonce)
        head = replace(decided, versions=(newest, *decided.versions[1:]))
        is_made = await self.put(place, before, head, version, first)
        await pieces.remove(store, decided.dropped if is_made else pieces_of((newest,)), note)
        return newest if is_made else None

    async def check_out(self, place: Place, lease: Lease, ends_s: float = 0.0) -> tuple[Head, Lease]:
        """Take a lease on the next version; return the head, and the lease that is in force: this or another's."""
        for _ in range(TRIES_MAX):
            head, version = await self.read(place)
            now_s = self.clock()
            decided = deciding.check_out(head, lease, now_s=now_s, ends_s=ends_s)
            if isinstance(decided, Lease):
                return deciding.living(head, now_s), decided
            if await self.put(place, head, decided, version):
                return decided, lease
        raise Busy(f"the object {place.key} was changed by others {TRIES_MAX} times in a row")

    async def release(self, place: Place, lease: Lease) -> bool:
        """Give a lease back; return whether it was in force."""
        for _ in range(TRIES_MAX):
            head, version = await self.read(place)
            decided = deciding.release(head, lease, self.clock())
            if decided is None:
                return False
            if await self.put(place, head, decided, version):
                return True
        raise Busy(f"the object {place.key} was changed by others {TRIES_MAX} times in a row")

    async def forget(self, place: Place, newest: Version | None = None) -> bool:
        """Remove a head with all that it names, or only where this is its newest version; return whether there was
        one."""
        for _ in range(TRIES_MAX):
            head, version = await self.read(place)
            if head is None or (newest is not None and head.newest != newest):
                return False
            if (await self.store.write([Change(*place, None, version)]))[0]:
                await pieces.remove(self.store, named_by(head))
                return deciding.living(head, self.clock()).newest is not None
        raise Busy(f"the object {place.key} was changed by others {TRIES_MAX} times in a row")

    async def put(
        self, place: Place, before: Head | None, head: Head, version: int, first: Sequence[Change] = ()
    ) -> bool:
        """Put a head in the place of the one that was read, and what it names there first; False where that one has
        changed since."""
        changes = list(first)
        if head.ends_s and (before is None or before.ends_s != head.ends_s):
            # Ahead of the head: what expires must be found.
            changes.append(Change(DUE, f"{int(head.ends_s) + 1:012d}/{place.space}/{place.key}", b""))
        changes.append(Change(*place, encode(head), version))
        return (await self.store.write(changes))[-1]
