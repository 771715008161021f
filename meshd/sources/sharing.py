"""The catalogue of the mesh: what this sidecar has, and what others say that they have, by the store that they share.

Local first: an owner that this sidecar knows itself is what it knows of it, whatever others say. Of an owner that
several others know, the one that is healthy and whose id comes first counts, so that all choose alike.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.discovery.shared import (
    FORMAT,
    SPACE,
    Head,
    SharedDamaged,
    decode_head,
    decode_part,
    encode_head,
    encode_parts,
    hash_of,
    part_key,
)
from meshd.engines.port import Ability, Change, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshd.discovery.catalogue import Catalogue
    from meshd.discovery.entry import Entry, Origin
    from meshd.engines.port import Store

log = logging.getLogger("meshd.discovery")

BYTES_MAX: Final = 32 << 20
"""Of what all others say, as it is written: what does not fit is left out."""
BATCH: Final = 4
"""Parts that are read at once."""
RETRY_S: Final = (0.5, 2.0)
"""Until a store that failed is asked again."""
OLD_S: Final = 3600.0
"""What nobody has renewed for so long is removed."""
_PAGE: Final = 1000


class ShareTerms(NamedTuple):
    """How often."""

    beat_s: float = 20.0
    """Between two heartbeats."""
    lease_s: float = 60.0
    """A sidecar whose head has not changed for so long is gone, with all that it has."""
    gather_s: float = 0.2
    """How long changes are gathered before they are written or read."""


TERMS: Final = ShareTerms()


class Peer:
    """Another sidecar."""

    __slots__ = ("entries", "head", "parts", "seen_s", "size")

    def __init__(self, head: Head, seen_s: float) -> None:
        self.head = head
        self.seen_s = seen_s
        """Monotonic seconds at which its head changed last."""
        self.parts: dict[str, tuple[int, list[Entry]]] = {}
        """By hash: bytes as written, and what stands in it."""
        self.entries: dict[str, dict[Origin, list[Entry]]] = {}
        """By owner."""
        self.size = 0

    def gather(self) -> None:
        """Put together what its parts hold."""
        self.entries = {}
        self.size = sum(size for size, _ in self.parts.values())
        for _, entries in self.parts.values():
            for entry in entries:
                self.entries.setdefault(entry.owner, {}).setdefault(entry.origin, []).append(entry)


class Sharing:
    """One sidecar's part in it."""

    def __init__(
        self,
        store: Callable[[], Store | None],
        local: Catalogue,
        wide: Catalogue,
        *,
        sidecar: str,
        agent: Callable[[], str],
        unhealthy: Callable[[], Iterable[str]] = tuple,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        terms: ShareTerms = TERMS,
    ) -> None:
        """`sidecar` is a random id, without dots; `clock` returns monotonic seconds, `wall_clock` unix ones."""
        self._store_of = store
        self._local = local
        self._wide = wide
        self.sidecar = sidecar
        self._agent = agent
        self._unhealthy = unhealthy
        self._clock = clock
        self._wall_clock = wall_clock
        self._terms = terms
        self._store: Store | None = None
        self._end_watch: Callable[[], None] = lambda: None
        self._wake = asyncio.Event()
        self._is_changed = True
        self._is_all_asked = True
        self._dirty: set[str] = set()
        self._written: list[str] = []
        self._beat = 0
        self._beat_due_s = 0.0
        self.peers: dict[str, Peer] = {}
        self.left_out = 0
        """Parts of others that do not fit."""
        self.fault = ""
        """Why the store was not reached the last time; empty where it was."""
        self._end_local = local.listen(self._local_changed)
        for owner in local.owners():
            self._settle(owner)

    # ------------------------------------------------------------------ local first

    def _local_changed(self, owner: str) -> None:
        self._settle(owner)
        self._is_changed = True
        self._wake.set()

    def _settle(self, owner: str) -> None:
        """Decide what stands in the wide catalogue for an owner."""
        wanted: dict[Origin, list[Entry]] = {}
        for entry in self._local.of(owner):
            wanted.setdefault(entry.origin, []).append(entry)
        if not wanted and (sidecar := self.holder(owner)):
            wanted = self.peers[sidecar].entries[owner]
        for origin in dict.fromkeys((*self._wide.origins(owner), *wanted)):
            self._wide.replace(owner, origin, wanted.get(origin, ()))

    def holder(self, owner: str) -> str:
        """Return which other sidecar counts for an owner; empty where none has it."""
        having = [(owner in peer.head.unhealthy, id) for id, peer in self.peers.items() if owner in peer.entries]
        return min(having)[1] if having else ""

    # ------------------------------------------------------------------ the task

    async def run(self) -> None:
        """Tell, hear, and forget who is gone: until it is cancelled."""
        while True:
            wait_s, is_fine = self._terms.beat_s, True
            try:
                if await self._open():
                    await self.turn()
                    wait_s = max(0.0, self._beat_due_s - self._clock())
                self.fault = ""
            except StoreError as error:
                if str(error) != self.fault:
                    log.warning("the catalogue is not shared now: %s", error)
                self.fault, is_fine = str(error), False
            self.forget()
            if not is_fine:
                # All sidecars notice at the same moment, and must not all come back at one.
                await asyncio.sleep(random.uniform(*RETRY_S))  # noqa: S311 - no secret
                continue
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
                    await asyncio.sleep(self._terms.gather_s)
            except TimeoutError:
                pass
            self._wake.clear()

    async def _open(self) -> bool:
        """Watch the store that is in use. False where nobody else can see it."""
        store = self._store_of()
        if store is self._store:
            return store is not None
        self._end_watch()
        self._end_watch = lambda: None
        self._store = None
        if store is None or Ability.SHARED not in store.abilities:
            return False
        self._end_watch = await store.watch(SPACE, self._heard)
        self._store, self._is_all_asked, self._written = store, True, []
        return True

    def _heard(self, key: str) -> None:
        if not key:
            self._is_all_asked = True
        elif "." in key or key == self.sidecar:
            return  # A part counts when the head says so.
        else:
            self._dirty.add(key)
        self._wake.set()

    async def turn(self) -> None:
        """Write what has changed here, read what has changed elsewhere. Raises StoreError."""
        store = self._store
        assert store is not None
        if self._is_changed or self._clock() >= self._beat_due_s:
            await self._publish(store)
        if self._is_all_asked:
            self._is_all_asked = False  # before the wait, in which it may be asked again
            try:
                self._dirty |= await self._all(store)
            except StoreError:
                self._is_all_asked = True
                raise
        dirty, self._dirty = self._dirty, set()
        try:
            await self._read(store, sorted(dirty - {self.sidecar}))
        except StoreError:
            self._dirty |= dirty
            raise

    # ------------------------------------------------------------------ telling

    async def _publish(self, store: Store) -> None:
        is_changed, self._is_changed = self._is_changed, False
        changes: list[Change] = []
        hashes = self._written
        try:
            if is_changed or not hashes:
                parts = encode_parts(self._local)
                hashes = [hash_of(part) for part in parts]
                for number, part in enumerate(parts):
                    if number >= len(self._written) or self._written[number] != hashes[number]:
                        changes.append(Change(SPACE, part_key(self.sidecar, number), part))
            self._beat += 1
            now_s = self._wall_clock()
            head = Head(
                FORMAT,
                self._agent(),
                self._beat,
                now_s + self._terms.lease_s,
                tuple(hashes),
                tuple(sorted(self._unhealthy()))[:256],
            )
            # The head behind its parts: who reads it finds them.
            changes.append(Change(SPACE, self.sidecar, encode_head(head)))
            gone = range(len(hashes), len(self._written))
            changes += [Change(SPACE, part_key(self.sidecar, number), None) for number in gone]
            await store.write(changes)
        except StoreError:
            self._is_changed, self._written = True, []
            raise
        self._written = hashes
        self._beat_due_s = self._clock() + self._terms.beat_s

    # ------------------------------------------------------------------ hearing

    async def _all(self, store: Store) -> set[str]:
        """Return the ids of all who have written, and remove what is old."""
        heads: set[str] = set()
        old: list[str] = []
        after = ""
        while page := await store.keys(SPACE, after, _PAGE):
            heads |= {key for key in page if "." not in key}
            old += [key for key in page if "." in key]
            after = page[-1]
        stale = {key for key in old if key.partition(".")[0] not in heads}
        for key, record in (await store.read(SPACE, sorted(heads - {self.sidecar}))).items():
            try:
                is_old = decode_head(record.value).until_s + OLD_S < self._wall_clock()
            except SharedDamaged:
                is_old = False  # Of a newer format, perhaps.
            if is_old:
                stale |= {key, *(part for part in old if part.startswith(f"{key}."))}
                heads.discard(key)
        if stale:
            await store.write([Change(SPACE, key, None) for key in sorted(stale)])
        for sidecar in self.peers.keys() - heads:
            self._lose(sidecar)
        return heads

    async def _read(self, store: Store, sidecars: list[str]) -> None:
        found = await store.read(SPACE, sidecars) if sidecars else {}
        wanted: list[tuple[str, str, str]] = []
        changed: set[str] = set()
        for sidecar in sidecars:
            record = found.get(sidecar)
            if record is None:
                self._lose(sidecar)
                continue
            try:
                head = decode_head(record.value)
            except SharedDamaged as error:
                log.warning("sidecar %s: %s", sidecar[:64], error)
                continue
            parts = self._headed(sidecar, head)
            if parts is not None:
                changed.add(sidecar)
                wanted += parts
        for at in range(0, len(wanted), BATCH):
            await self._read_parts(store, wanted[at : at + BATCH])
        for sidecar in changed & self.peers.keys():
            peer = self.peers[sidecar]
            before = set(peer.entries)
            peer.gather()
            for owner in before | peer.entries.keys():
                self._settle(owner)

    def _headed(self, sidecar: str, head: Head) -> list[tuple[str, str, str]] | None:
        """Take a head. Returns the parts to read (sidecar, key, hash), or None where nothing but the beat is new."""
        peer = self.peers.get(sidecar)
        if peer is None:
            if head.until_s + OLD_S < self._wall_clock():
                return None
            peer = self.peers[sidecar] = Peer(head, self._clock())
        elif peer.head.beat != head.beat or peer.head.parts != head.parts:
            peer.seen_s = self._clock()
        is_same = peer.head.unhealthy == head.unhealthy and all(one in peer.parts for one in head.parts)
        if is_same and len(peer.parts) == len(set(head.parts)):
            peer.head = head
            return None
        peer.head = head
        peer.parts = {one: held for one, held in peer.parts.items() if one in head.parts}
        return [
            (sidecar, part_key(sidecar, number), one) for number, one in enumerate(head.parts) if one not in peer.parts
        ]

    async def _read_parts(self, store: Store, wanted: list[tuple[str, str, str]]) -> None:
        found = await store.read(SPACE, [key for _, key, _ in wanted])
        for sidecar, key, digest in wanted:
            peer, record = self.peers.get(sidecar), found.get(key)
            # A part that is not what the head says is newer: the next head says so.
            if peer is None or record is None or hash_of(record.value) != digest:
                continue
            if self.size + len(record.value) > BYTES_MAX:
                self.left_out += 1
                log.warning("what other sidecars have is over %d bytes: a part of it is left out", BYTES_MAX)
                continue
            try:
                peer.parts[digest] = len(record.value), decode_part(record.value)
            except SharedDamaged as error:
                log.warning("sidecar %s: %s", sidecar[:64], error)

    @property
    def size(self) -> int:
        """Bytes, as written, of what is known of others."""
        return sum(size for peer in self.peers.values() for size, _ in peer.parts.values())

    # ------------------------------------------------------------------ forgetting

    def forget(self) -> None:
        """Forget sidecars whose lease is over. While the store is away nobody can renew one, so nobody is forgotten."""
        now_s = self._clock()
        if self.fault:
            for peer in self.peers.values():
                peer.seen_s = now_s
            return
        for sidecar, peer in list(self.peers.items()):
            if now_s - peer.seen_s > self._terms.lease_s:
                log.warning("the sidecar of %s (%s) is gone", peer.head.agent[:64], sidecar[:64])
                self._lose(sidecar)

    def _lose(self, sidecar: str) -> None:
        peer = self.peers.pop(sidecar, None)
        for owner in peer.entries if peer is not None else ():
            self._settle(owner)

    async def close(self) -> None:
        """Take back what was told; who cannot be told finds out by the lease."""
        self._end_watch()
        self._end_local()
        if self._store is not None and self._beat:
            keys = [self.sidecar, *(part_key(self.sidecar, number) for number in range(len(self._written)))]
            try:
                async with asyncio.timeout(2.0):
                    await self._store.write([Change(SPACE, key, None) for key in keys])
            except (StoreError, TimeoutError) as error:
                log.debug("the catalogue was not taken back: %s", error)
