"""Tentative versions: each workflow's own, beside an object, until they are promoted or dropped.

A promotion changes two records: the object gets the version, then the tentative ones are dropped. A crash between the
two must not leave one that was promoted in front of what others write afterwards. So the tentative head says first
under which id it is being promoted, and whoever finds that there looks for the id among the object's versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from meshd.state import deciding
from meshd.state.objects import TRIES_MAX, Busy

if TYPE_CHECKING:
    from meshd.state.objects import Objects, Place
    from meshd.state.record import Version


class Shadows:
    """`shadow` is where the tentative versions lie, `place` where the object does. Every method raises StoreError."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    async def get(self, shadow: Place, place: Place) -> tuple[Version, bytes] | None:
        """Return the tentative version that stands in front of the object, and its value; None for the object's own."""
        for _ in range(TRIES_MAX):
            head = await self._objects.living(shadow)
            newest = head.newest
            if newest is None:
                return None
            if head.promoting and not deciding.is_in_front(head, await self._objects.living(place)):
                return None
            value = await self._objects.value(shadow, newest)
            if value is not None:
                return newest, value
        raise Busy(f"the pieces of {shadow.key} are not where its head says")

    async def clear(self, shadow: Place, place: Place) -> Version | None:
        """Drop the tentative versions of which the newest was promoted, and a crash kept them from being dropped;
        return what it has become. None where that is not so."""
        head = await self._objects.living(shadow)
        newest = head.newest
        made = deciding.promoted(head, await self._objects.living(place)) if head.promoting else None
        if newest is not None and made is not None:
            await self.drop(shadow, newest)
        return made

    async def begin(self, shadow: Place, version: Version, commit: str) -> None:
        """Say that a tentative version is about to be promoted under this id, if it is the newest."""
        await self._mark(shadow, version, commit, is_begun=True)

    async def give_up(self, shadow: Place, version: Version, commit: str) -> None:
        """Take back what `begin` has said: nothing was promoted."""
        await self._mark(shadow, version, commit, is_begun=False)

    async def drop(self, shadow: Place, version: Version) -> None:
        """Drop tentative versions, unless a newer one than this was written meanwhile."""
        await self._objects.forget(shadow, version)

    async def _mark(self, shadow: Place, version: Version, commit: str, *, is_begun: bool) -> None:
        for _ in range(TRIES_MAX):
            head, number = await self._objects.read(shadow)
            if head is None or head.newest != version or (commit in head.promoting) is is_begun:
                return
            others = tuple(one for one in head.promoting if one != commit)
            marked = replace(head, promoting=(*others, commit) if is_begun else others)
            if await self._objects.put(shadow, head, marked, number):
                return
        raise Busy(f"the object {shadow.key} was changed by others {TRIES_MAX} times in a row")
