"""Objects on a store, with a clock that the test moves."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from meshd.state.deciding import Conflict, Keep
from meshd.state.keys import key_of
from meshd.state.objects import Objects, Place, Wish, place_of
from meshd.state.record import Lease, Version

if TYPE_CHECKING:
    from meshd.engines.port import Store

KEEP = Keep(versions=4, bytes=3 * 2**20)
LONG = 600_000
"""Bytes of a value in three pieces."""


class World:
    """One sidecar's view of a store. `now_s` is its clock, in unix seconds."""

    def __init__(self, store: Store, now_s: float = 1_000_000.0) -> None:
        self.now_s = now_s
        self.store = store
        self.objects = Objects(lambda: self.store, clock=lambda: self.now_s, random=os.urandom)

    async def commit(
        self,
        key: str | Place,
        value: bytes = b"",
        base: int = 0,
        *,
        lease: str = "",
        commit: str = "",
        is_deleted: bool = False,
        ends_s: float = 0.0,
        keep: Keep = KEEP,
        writer: str = "ann",
        workflow: str = "w",
    ) -> Version | Conflict:
        draft = Version(0, 0, writer, workflow, self.now_s, commit=commit, is_deleted=is_deleted)
        place = key if isinstance(key, Place) else place_of(key_of(key))
        return await self.objects.commit(place, Wish(draft, value, base, lease), keep, ends_s)

    async def made(self, key: str, value: bytes = b"", base: int = 0, **more: object) -> int:
        """Commit, and return the version, which must have been made."""
        found = await self.commit(key, value, base, **more)  # type: ignore[arg-type]
        assert isinstance(found, Version), found
        return found.number

    async def conflict(self, key: str, value: bytes = b"", base: int = 0, **more: object) -> Conflict:
        found = await self.commit(key, value, base, **more)  # type: ignore[arg-type]
        assert isinstance(found, Conflict), found
        return found

    async def read(self, key: str, number: int = 0) -> tuple[int, bytes] | None:
        found = await self.objects.get(place_of(key_of(key)), number)
        return None if found is None else (found[0].number, found[1])

    async def check_out(self, key: str, id: str, lasts_s: float = 60.0, agent: str = "ann") -> Lease:
        lease = Lease(id, agent, "w", self.now_s + lasts_s)
        return (await self.objects.check_out(place_of(key_of(key)), lease))[1]

    async def release(self, key: str, id: str, agent: str = "ann") -> bool:
        return await self.objects.release(place_of(key_of(key)), Lease(id, agent, "w", 0.0))

    async def history(self, key: str) -> list[int]:
        return [one.number for one in (await self.objects.living(place_of(key_of(key)))).versions if not one.is_deleted]

    async def kept(self, *spaces: str) -> list[str]:
        """Every record of these spaces."""
        return [key for space in spaces for key in await self.store.keys(space)]
