"""`ctx.state`: versioned objects that agents share. No write is lost to another one. Stdlib only.

await ctx.state.put("plan", {"steps": []})             this workflow's short-term memory
await ctx.state.put("habits", {...}, scope="agent")    this agent's long-term memory
found = await ctx.state.get("tenant/acme/quotes")      any key that says itself whose it is
await ctx.state.commit("plan", {...}, found)           the next version, made from `found`

async with ctx.state.checkout("plan") as held:         nobody else commits meanwhile
    await held.commit(improved(held.value))
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from meshd_sdk.bodies import encode
from meshd_sdk.errors import LeaseHeld, LeaseLost, MeshError, StateConflict
from meshd_sdk.link import new_id
from meshd_sdk.log import log
from meshd_sdk.state_values import ORDERS, State, Wish, Written, key_of, number_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from meshd_sdk.link import Link

LEASE_S: Final = 60.0


class SharedState:
    """See the module. Methods raise `Refused` (a key of a scope that is not the caller's, say), `NoSidecar`, and those
    that write StateConflict, LeaseHeld and LeaseLost.

    While the store is away they raise `Overloaded`, and what was asked for then may have been done or not. With a
    `commit_id` of the caller's own (at most 64 visible ASCII characters) it may be asked for again: it is done once.
    """

    def __init__(self, link: Link, token: Callable[[], str]) -> None:
        self._link, self._token = link, token

    async def get(
        self, key: str, version: State | int | None = None, *, scope: str = "", shadow: bool = False
    ) -> State | None:
        """Return the newest version, or a given one; None where there is none, or it is not kept.

        `key` may be a reference. With `shadow` a tentative version of this workflow goes before the newest one.
        """
        found = await self._link.state_get(self._token(), key_of(key, scope), number_of(version), shadow)
        return found if found.version else None

    async def put(
        self, key: str, value: Any = None, *, scope: str = "", content_type: str = "", commit_id: str = ""
    ) -> State:
        """Write the first version. Raises StateConflict where the object is there."""
        return await self.commit(key, value, None, scope=scope, content_type=content_type, commit_id=commit_id)

    async def commit(
        self,
        key: str,
        value: Any,
        base: State | int | None,
        *,
        scope: str = "",
        content_type: str = "",
        commit_id: str = "",
    ) -> State:
        """Write the next version, made from `base`. Raises StateConflict where another one is the newest by now."""
        payload, kind = encode(value, content_type)
        id = commit_id or new_id()
        return await self._written(Wish("commit", key_of(key, scope), id, number_of(base), payload, kind))

    async def delete(self, key: str, base: State | int, *, scope: str = "", commit_id: str = "") -> State:
        """Delete the object and its history, where `base` is still the newest version."""
        return await self._written(Wish("delete", key_of(key, scope), commit_id or new_id(), number_of(base)))

    @asynccontextmanager
    async def checkout(
        self, key: str, *, scope: str = "", lease: float = LEASE_S, lease_id: str = ""
    ) -> AsyncIterator[CheckedOut]:
        """Take the object for this block: for `lease` seconds nobody else commits it. Raises LeaseHeld where another
        one has it. A block that ends without a commit gives it back.

        Asked for again with the same `lease_id`, it is the same lease, from now on.
        """
        whole, id = key_of(key, scope), lease_id or new_id()
        state, holder = await self._link.state_check_out(self._token(), whole, id, lease)
        if holder is not None:
            raise _error(state.key or whole, Written(state, "lease_held", "", holder))
        held = CheckedOut(self, whole, id, lease, state if state.version else None)
        try:
            yield held
        finally:
            if not held.is_committed:
                try:
                    await self._link.state_release(self._token(), whole, id)
                except MeshError as error:
                    log().warning("%s was not given back, its lease runs out by itself: %s", whole, error)

    async def history(self, key: str, *, scope: str = "") -> list[State]:
        """Return the versions that are kept, newest first, without their values."""
        return await self._link.state_history(self._token(), key_of(key, scope))

    async def watch(self, key: str, known: State | int | None = None, *, scope: str = "") -> AsyncIterator[State]:
        """Yield the newest version, and again whenever it changes; with `known` only newer ones. Close it to end.

        Where it changes faster than it is read, versions between are left out. A deletion is yielded too.
        """
        async for found in self._link.state_watch(self._token(), key_of(key, scope), number_of(known)):
            yield found

    async def shadow(
        self,
        key: str,
        value: Any,
        base: State | int | None = None,
        after: State | int | None = None,
        *,
        scope: str = "",
        content_type: str = "",
        commit_id: str = "",
    ) -> State:
        """Write a tentative version that this workflow alone sees, made from the object's version `base`.

        It follows the tentative version `after`, None for the first. Raises StateConflict where it does not.
        """
        payload, kind = encode(value, content_type)
        wish = Wish("shadow", key_of(key, scope), commit_id or new_id(), number_of(base), payload, kind)
        return await self._written(wish._replace(shadow_version=number_of(after)))

    async def promote(
        self, key: str, version: State | int | None = None, *, scope: str = "", commit_id: str = ""
    ) -> State:
        """Make a tentative version, the newest one or a given one, the object's next. Raises StateConflict where the
        object is not at the version any more that it was made from: the tentative one stays."""
        id = commit_id or new_id()
        return await self._written(Wish("promote", key_of(key, scope), id, shadow_version=number_of(version)))

    async def drop(self, key: str, *, scope: str = "") -> bool:
        """Drop the tentative versions of an object; return whether there were any."""
        return await self._link.state_drop(self._token(), key_of(key, scope))

    async def _written(self, wish: Wish) -> State:
        found = await self._link.state_write(self._token(), wish)
        if found.conflict:
            raise _error(found.state.key or wish.key, found)
        return found.state

    async def _renew(self, key: str, id: str, lease_s: float) -> None:
        state, holder = await self._link.state_check_out(self._token(), key, id, lease_s)
        if holder is not None:
            raise _error(state.key or key, Written(state, "lease_lost", "", holder))


class CheckedOut:
    """An object that is checked out: see `SharedState.checkout`."""

    def __init__(self, of: SharedState, key: str, id: str, lease_s: float, state: State | None) -> None:
        self._of, self._key, self._id, self._lease_s = of, key, id, lease_s
        self._state, self._is_committed = state, False
        self._asked: tuple[bytes, str] | None = None
        self._commit_id = ""

    @property
    def state(self) -> State | None:
        """The version that was checked out; None where the object is yet to be made."""
        return self._state

    @property
    def value(self) -> Any:
        """Its value; None where the object is yet to be made."""
        return None if self._state is None else self._state.value

    @property
    def is_committed(self) -> bool:
        """Whether it was committed: the lease has ended with that."""
        return self._is_committed

    async def commit(self, value: Any, *, content_type: str = "") -> State:
        """Write the next version, and end the lease. Raises LeaseLost where it has run out: nothing is written.

        Where that was not answered, the same value may be committed again: it is written once.
        """
        payload, kind = encode(value, content_type)
        if self._asked != (payload, kind):
            self._asked, self._commit_id = (payload, kind), new_id()
        wish = Wish("commit", self._key, self._commit_id, number_of(self._state), payload, kind, self._id)
        made = await self._of._written(wish)
        self._state, self._is_committed, self._asked = made, True, None
        return made

    async def renew(self, lease: float = 0.0) -> None:
        """Have the lease run for another `lease` seconds from now. Raises LeaseLost where another one has it."""
        await self._of._renew(self._key, self._id, lease or self._lease_s)


def _error(key: str, found: Written) -> StateConflict:
    state, lease = found.state, found.lease
    current = state if state.version else None
    there = "there is no such object"
    if current is not None:
        there = f"version {current.version} is there, which {current.writer} wrote"
        there += f" in workflow {current.workflow}" if current.workflow else ""
    if found.order:
        there += f"; {ORDERS.get(found.order, found.order)}"
    holder = ""
    if lease is not None:
        until = datetime.fromtimestamp(lease.until_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        where = f" in {lease.workflow}" if lease.workflow else ""
        holder = f"{lease.agent or 'an agent'} has checked it out{where} until {until}"
    if found.conflict == "lease_held":
        return LeaseHeld(f"{key} was not written: {holder}; {there}", current=current, order=found.order, lease=lease)
    if found.conflict == "lease_lost":
        words = f"{key} was not written: the lease has run out or was given back; {holder or there}"
        return LeaseLost(words, current=current, order=found.order, lease=lease)
    return StateConflict(f"{key} was not written: {there}", current=current, order=found.order)
