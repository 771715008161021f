"""Agents that register by themselves, without a session: held for a lease, renewed with a secret, one holder a name.

Who holds a name stands in the store, so that a name which is held at one sidecar is not given away at another. Secrets
are kept as hashes.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.discovery.entry import Origin
from meshd.engines.port import Change, StoreClosed, StoreError
from meshd.refusal import Reason, Refused
from meshd.sources.asking import Failed

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from meshd.discovery.entry import Entry
    from meshd.engines.port import Store
    from meshd.sources.admitting import Admitting

log = logging.getLogger("meshd.discovery")

SPACE: Final = "names"
LEASE_S: Final = 60.0
LEASE_MIN_S: Final = 1.0
LEASE_MAX_S: Final = 86_400.0
AGENTS_MAX: Final = 1024
"""Registered here at once."""
TRIES_MAX: Final = 8


class _Held(msgspec.Struct, frozen=True):
    secret: str
    """SHA-256, in hexadecimal."""
    until_s: float
    """Unix seconds."""


class Registering:
    """One for the process."""

    def __init__(
        self,
        store: Callable[[], Store | None],
        admitting: Admitting,
        *,
        wall_clock: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        """`wall_clock` returns unix seconds; `spawn` does something beside all else."""
        self._spawn = spawn
        self._store_of = store
        self._admitting = admitting
        self._wall_clock = wall_clock
        self._until_s: dict[str, float] = {}
        """Of those who are registered here, in unix seconds."""

    async def register(self, name: str, entries: list[Entry], lease_s: float, secret: str) -> str:
        """Put an agent into the catalogue for `lease_s` seconds; return the secret by which it is renewed.

        Raises Refused where the name is held by another, or there is no room, or what it says is refused; StoreError
        where nobody knows who holds the name.
        """
        self.expire()
        if name not in self._until_s and len(self._until_s) >= AGENTS_MAX:
            raise Refused(Reason.OVERLOADED, f"{AGENTS_MAX} agents are registered here, and it takes no more.")
        secret = await self._hold(name, lease_s, secret)
        try:
            standing = await self._admitting.take(name, Origin.SESSION, entries)
        except Failed as failed:
            raise StoreError(str(failed)) from None
        for finding in standing.refused[:1]:
            raise Refused(Reason.MALFORMED, f"{finding.name}: {finding.detail} ({finding.flaw.value}).")
        self._until_s[name] = self._wall_clock() + lease_s
        return secret

    def is_registered(self, name: str) -> bool:
        """Say whether an agent of this name is registered here."""
        return name in self._until_s

    def yield_to(self, name: str) -> None:
        """An agent of this name has opened a session: what it says there stands."""
        self._until_s.pop(name, None)

    def expire(self) -> None:
        """Forget those whose lease is over."""
        now_s = self._wall_clock()
        for name, until_s in list(self._until_s.items()):
            if until_s <= now_s:
                log.warning("the agent %s has not renewed its registration: it is gone", name)
                del self._until_s[name]
                self._admitting.drop(name, Origin.SESSION)
                self._spawn(self._free(name))

    async def _free(self, name: str) -> None:
        """Remove the claim on a name, if nobody has renewed it elsewhere: names must not pile up in the store."""
        store = self._store_of()
        try:
            record = None if store is None else (await store.read(SPACE, (name,))).get(name)
            if store is None or record is None:
                return
            held = _read(record.value)
            if held is None or held.until_s <= self._wall_clock():
                await store.write([Change(SPACE, name, None, record.version)])
        except StoreError as error:
            log.debug("the claim on the name %s stays: %s", name, error)

    async def _hold(self, name: str, lease_s: float, secret: str) -> str:
        store = self._store_of()
        if store is None:
            raise StoreClosed("the store is not open, so nobody knows who holds which name")
        for _ in range(TRIES_MAX):
            record = (await store.read(SPACE, (name,))).get(name)
            held = _read(record.value) if record is not None else None
            now_s = self._wall_clock()
            given = _hash(secret)
            if held is not None and held.until_s > now_s and not hmac.compare_digest(held.secret, given):
                raise Refused(
                    Reason.NOT_ALLOWED,
                    f"The name {name} is held by another agent. It is renewed with the `registration` that its first "
                    "answer gave, and free once its lease is over.",
                )
            new = secret or secrets.token_urlsafe(24)
            value = msgspec.json.encode(_Held(_hash(new), now_s + lease_s))
            version = 0 if record is None else record.version
            if (await store.write([Change(SPACE, name, value, version)]))[0]:
                return new
        raise StoreError(f"the name {name} was changed by others {TRIES_MAX} times in a row")


def _hash(secret: str) -> str:
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _read(value: bytes) -> _Held | None:
    try:
        return msgspec.json.decode(value, type=_Held)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None  # A damaged claim is nobody's.
