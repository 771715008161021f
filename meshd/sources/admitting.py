"""What a source says is screened, held against its pins, and only then put into the catalogue.

What is quarantined is in no catalogue at all: nobody is shown it, and nobody finds it by its name.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.discovery.entry import Origin
from meshd.discovery.pins import Judged, PinsDamaged, Why, approve, judge
from meshd.discovery.screening import Finding, Screened, screen, shown
from meshd.engines.port import StoreError
from meshd.sources.asking import Failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshd.discovery.catalogue import Catalogue
    from meshd.discovery.entry import Entry, Sort
    from meshd.discovery.pins import Pin
    from meshd.sources.pinned import Shelf

log = logging.getLogger("meshd.discovery")

OWN: Final = frozenset({Origin.SESSION})
"""Of agents beside the sidecar, which change what they offer with each of their versions."""
_MANY_BYTES: Final = 32_768
"""Of what is read in entries from which on they are screened in a thread: some 50 ms."""


class Quarantined(NamedTuple):
    """An entry that is not offered."""

    entry: Entry
    why: Why
    findings: tuple[Finding, ...]


class Standing(NamedTuple):
    """What became of what one source said last."""

    offered: tuple[Entry, ...] = ()
    quarantined: tuple[Quarantined, ...] = ()
    refused: tuple[Finding, ...] = ()
    noted: tuple[Finding, ...] = ()


class NotThere(Exception):
    """There is nothing of this name in quarantine, or it is not any more what was looked at."""


class Admitting:
    """One for the process."""

    def __init__(self, catalogue: Catalogue, shelf: Shelf, clock: Callable[[], float]) -> None:
        """`clock` returns unix seconds."""
        self._catalogue = catalogue
        self._shelf = shelf
        self._clock = clock
        self._said: dict[tuple[str, Origin], tuple[Entry, ...]] = {}
        """As each source said it last: what is the same is not screened again, and clients list often."""
        self._screened: dict[tuple[str, Origin], Screened] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self.standings: dict[tuple[str, Origin], Standing] = {}
        self.held: dict[str, frozenset[tuple[str, str]]] = {}
        """By owner: the sort and the name of all that is in quarantine; owners without any are not in it."""
        self.flaws: dict[str, int] = {}
        """Found since the start of the process, by what they are; each time that a source says something new."""

    async def take(self, owner: str, origin: Origin, entries: list[Entry]) -> Standing:
        """Let in what a source offers now. Raises Failed where nobody knows what was seen of it before."""
        async with self._lock(owner):
            key, said = (owner, origin), tuple(entries)
            if self._said.get(key) != said:
                screened = screen(said) if _size(said) < _MANY_BYTES else await asyncio.to_thread(screen, said)
                self._said[key], self._screened[key] = said, screened
                self._tell(owner, screened)
            return await self._judge(owner, origin)

    async def judge_again(self, owner: str) -> None:
        """Somebody has changed the pins of an owner. Raises Failed."""
        async with self._lock(owner):
            for known, origin in list(self._screened):
                if known == owner:
                    await self._judge(owner, origin)

    def drop(self, owner: str, origin: Origin) -> None:
        """Forget what a source said. What was seen of it stays pinned."""
        self._said.pop((owner, origin), None)
        self._screened.pop((owner, origin), None)
        self.standings.pop((owner, origin), None)
        self._hold(owner)
        self._catalogue.drop(owner, origin)

    def quarantined(self, owner: str, name: str = "", sort: Sort | None = None) -> list[Quarantined]:
        """Return what of an owner is in quarantine; of one name, or all of it."""
        return [
            one
            for (known, _), standing in self.standings.items()
            if known == owner
            for one in standing.quarantined
            if name in ("", one.entry.name) and sort in (None, one.entry.sort)
        ]

    async def approve(self, owner: str, name: str, digest: str, sort: Sort | None = None) -> list[Entry]:
        """Offer what is in quarantine under a name, if it is what its digest says. Raises NotThere and Failed."""
        found = [one.entry for one in self.quarantined(owner, name, sort)]
        if not found:
            raise NotThere(f"{owner} has nothing of the name {shown(name)!r} in quarantine")
        same = [entry for entry in found if entry.digest() == digest]
        if not same:
            raise NotThere(f"{owner}/{shown(name)} is not any more what was looked at: look at it again")
        async with self._lock(owner):
            now_s = self._clock()
            await self._change(owner, lambda pins: approve(pins, same, now_s))
            for entry in same:
                if (owner, entry.origin) in self._screened:
                    await self._judge(owner, entry.origin)
        return same

    # ------------------------------------------------------------------ within

    def _lock(self, owner: str) -> asyncio.Lock:
        return self._locks.setdefault(owner, asyncio.Lock())

    async def _judge(self, owner: str, origin: Origin) -> Standing:
        screened = self._screened[owner, origin]
        judged: Judged | None = None

        def decide(pins: dict[str, Pin]) -> dict[str, Pin]:
            nonlocal judged
            judged = judge(screened.kept, screened.held, pins, self._clock(), is_own=origin in OWN)
            return judged.pins

        if origin is Origin.POLICY:
            judged = Judged(screened.kept, (), {})  # The operator's own words are approved by being there.
        elif origin in OWN and not screened.held:
            judged = Judged(screened.kept, (), {})  # Nothing that a pin would change.
        else:
            await self._change(owner, decide)
        assert judged is not None
        quarantined = tuple(
            Quarantined(entry, why, screened.held.get(entry.key, ())) for entry, why in judged.quarantined
        )
        standing = Standing(judged.offered, quarantined, screened.refused, screened.noted)
        before = self.standings.get((owner, origin), Standing())
        self.standings[owner, origin] = standing
        self._hold(owner)
        self._warn(owner, before, standing)
        self._catalogue.replace(owner, origin, judged.offered)
        return standing

    def _hold(self, owner: str) -> None:
        found = frozenset((one.entry.sort.value, one.entry.name) for one in self.quarantined(owner))
        if found:
            self.held[owner] = found
        else:
            self.held.pop(owner, None)

    async def _change(self, owner: str, decide: Callable[[dict[str, Pin]], dict[str, Pin]]) -> None:
        try:
            await self._shelf.change(owner, decide)
        except (StoreError, PinsDamaged) as error:
            raise Failed(f"what it said before cannot be looked up: {error}", "store") from None

    def _tell(self, owner: str, screened: Screened) -> None:
        found = [*screened.refused, *screened.noted, *(one for held in screened.held.values() for one in held)]
        for one in found:
            self.flaws[one.flaw.value] = self.flaws.get(one.flaw.value, 0) + 1
        for one in screened.refused[:10]:
            log.warning("%s/%s is left out of the catalogue: %s", owner, one.name, one.detail)

    def _warn(self, owner: str, before: Standing, now: Standing) -> None:
        known = {(one.entry.key, one.why) for one in before.quarantined}
        for one in now.quarantined[:20]:
            if (one.entry.key, one.why) not in known:
                name = shown(one.entry.name)
                log.warning("%s/%s is in quarantine: %s", owner, name, words(one))


def _size(entries: tuple[Entry, ...]) -> int:
    return sum(len(one.description) + len(one.input_schema) + len(one.output_schema) + 64 for one in entries)


def words(one: Quarantined) -> str:
    """Return why an entry is in quarantine, for an operator."""
    if one.why is Why.CHANGED:
        return "it is not what it was when it was first seen"
    if one.why is Why.FULL:
        return "its server has offered too many names before"
    return "; ".join(finding.detail for finding in one.findings)


def count(standings: Iterable[Standing]) -> int:
    """Return how many entries are in quarantine."""
    return sum(len(one.quarantined) for one in standings)
