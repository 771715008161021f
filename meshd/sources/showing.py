"""The catalogue as the admin port and a scrape see it (`meshd.admin.catalogue_view.CatalogueView`)."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.admin.catalogue_view import ApprovalGone, EntryDump, FindingDump, MatchDump, OwnerDump, PinsAway
from meshd.discovery.screening import shown
from meshd.refusal import Reason, Refused
from meshd.sources.admitting import NotThere, Quarantined, Standing, count, words
from meshd.sources.asking import Failed
from meshd.telemetry.sources import CatalogueReading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from meshd.admin.catalogue_view import RouteDump
    from meshd.discovery.catalogue import Catalogue
    from meshd.discovery.entry import Entry, Origin
    from meshd.discovery.finder import Finder
    from meshd.discovery.screening import Finding
    from meshd.filters.breaker import BreakerView
    from meshd.sources.admitting import Admitting
    from meshd.sources.sharing import Sharing
    from meshd.sources.tending import Tending

DESCRIPTION_CHARACTERS_MAX: Final = 300
"""Of an entry in a list."""
FINDINGS_MAX: Final = 50
_WORST: Final = ("closed", "half-open", "open")


class Showing:
    """One for the process."""

    def __init__(
        self,
        *,
        local: Catalogue,
        wide: Catalogue,
        finder: Finder,
        admitting: Admitting,
        sharing: Sharing,
        tended: dict[tuple[str, Origin], Tending],
        breakers: Callable[[], Iterable[BreakerView]],
        clock: Callable[[], float],
        route: Callable[[str, str], RouteDump] | None = None,
    ) -> None:
        """`tended` goes on changing; `clock` returns monotonic seconds; `route` see `CatalogueView.route`."""
        self._route = route
        self._local = local
        self._wide = wide
        self._finder = finder
        self._admitting = admitting
        self._sharing = sharing
        self._tended = tended
        self._breakers = breakers
        self._clock = clock

    # ------------------------------------------------------------------ CatalogueView

    def owners(self) -> list[OwnerDump]:
        """See `CatalogueView.owners`."""
        breakers = _worst(self._breakers())
        keys = dict.fromkeys((*self._tended, *self._admitting.standings))
        found = [self._owner(owner, origin, breakers.get(owner, "")) for owner, origin in keys]
        for owner in self._wide.owners():
            if not self._local.origins(owner):
                offered = self._wide.of(owner)
                sidecar = self._sharing.holder(owner)
                peer = self._sharing.peers.get(sidecar)
                is_well = peer is None or owner not in peer.head.unhealthy
                found.append(
                    OwnerDump(
                        owner,
                        offered[0].origin.value if offered else "",
                        "shared",
                        "" if is_well else "it did not answer its own sidecar the last time",
                        sidecar=sidecar,
                        offered=len(offered),
                    )
                )
        return found

    def _owner(self, owner: str, origin: Origin, breaker: str) -> OwnerDump:
        standing = self._admitting.standings.get((owner, origin), Standing())
        one = self._tended.get((owner, origin))
        about = one.about if one is not None else None
        return OwnerDump(
            owner,
            origin.value,
            "told" if one is None else one.state.value,
            "" if one is None else shown(one.why, 500),
            None if one is None or one.answered_s is None else round(self._clock() - one.answered_s, 1),
            "" if about is None else about.description[:DESCRIPTION_CHARACTERS_MAX],
            "" if about is None else about.version[:64],
            breaker.replace("-", "_"),
            is_listened_to=one is not None and one.is_listening,
            offered=len(standing.offered),
            quarantined=len(standing.quarantined),
            refused=_findings(standing.refused),
            noted=_findings(standing.noted),
        )

    def entries(self, *, owner: str, sorts: Sequence[str], limit: int, after: int) -> tuple[list[EntryDump], int]:
        """See `CatalogueView.entries`."""
        kept = (one for one in self._all(owner) if not sorts or _entry_of(one).sort.value in sorts)
        page = list(islice(kept, after, after + limit + 1))
        found = [self._dump(one, is_whole=False) for one in page[:limit]]
        return found, after + limit if len(page) > limit else 0

    def _all(self, owner: str) -> Iterable[Entry | Quarantined]:
        for (known, _), standing in self._admitting.standings.items():
            if owner in ("", known):
                yield from standing.quarantined
        yield from (self._wide.of(owner) if owner else self._wide)

    def entry(self, owner: str, name: str) -> list[EntryDump]:
        """See `CatalogueView.entry`."""
        return [self._dump(one, is_whole=True) for one in self._all(owner) if owner and _entry_of(one).name == name]

    def search(self, words: str, limit: int) -> list[MatchDump]:
        """See `CatalogueView.search`."""
        found = self._finder.find(words, limit)
        return [MatchDump(round(one.score, 4), self._dump(one.key, is_whole=False)) for one in found]

    def route(self, wanted: str, agent: str) -> RouteDump:
        """See `CatalogueView.route`."""
        if self._route is None:
            raise Refused(Reason.UNKNOWN_TARGET, "This sidecar leads no call by what it wants.")
        return self._route(wanted, agent)

    async def approve(self, owner: str, name: str, digest: str) -> list[EntryDump]:
        """See `CatalogueView.approve`."""
        try:
            found = await self._admitting.approve(owner, name, digest)
        except NotThere as error:
            raise ApprovalGone(str(error)) from None
        except Failed as error:
            raise PinsAway(str(error)) from None
        return [self._dump(one, is_whole=False) for one in found]

    def _dump(self, one: Entry | Quarantined, *, is_whole: bool) -> EntryDump:
        entry = _entry_of(one)
        held = one if isinstance(one, Quarantined) else None
        description = entry.description if is_whole else entry.description[:DESCRIPTION_CHARACTERS_MAX]
        return EntryDump(
            entry.sort.value,
            entry.owner,
            entry.name,
            entry.title,
            description,
            entry.origin.value,
            entry.version,
            entry.intents if is_whole else entry.intents[:5],
            entry.is_read_only,
            entry.digest(),
            is_local=held is not None or self._local.get(*entry.key) is entry,
            quarantined="" if held is None else held.why.value,
            why="" if held is None else words(held),
            findings=() if held is None else _findings(held.findings),
            input_schema=_value(entry.input_schema) if is_whole else None,
            output_schema=_value(entry.output_schema) if is_whole else None,
            annotations=_value(entry.annotations) if is_whole else None,
        )

    # ------------------------------------------------------------------ a scrape

    def reading(self) -> CatalogueReading:
        """Return what a scrape shows."""
        sorts: dict[str, int] = {}
        for entry in self._local:
            sorts[entry.sort.value] = sorts.get(entry.sort.value, 0) + 1
        states: dict[str, int] = {}
        looks: dict[str, int] = {}
        for one in self._tended.values():
            states[one.state.value] = states.get(one.state.value, 0) + 1
            for what, number in one.results.items():
                looks[what] = looks.get(what, 0) + number
        return CatalogueReading(
            sorts=tuple(sorts.items()),
            sources=tuple(states.items()),
            looks=tuple(looks.items()),
            flaws=tuple(self._admitting.flaws.items()),
            quarantined=count(self._admitting.standings.values()),
            shared_entries=max(0, len(self._wide) - len(self._local)),
            shared_sidecars=len(self._sharing.peers),
            shared_bytes=self._sharing.size,
        )


def _entry_of(one: Entry | Quarantined) -> Entry:
    return one.entry if isinstance(one, Quarantined) else one


def _findings(found: Iterable[Finding]) -> list[FindingDump]:
    return [FindingDump(one.flaw.value, one.name, one.detail) for one in islice(found, FINDINGS_MAX)]


def _value(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text) if text else None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return shown(text.decode("utf-8", "replace"))


def _worst(views: Iterable[BreakerView]) -> dict[str, str]:
    found: dict[str, str] = {}
    for view in views:
        before = found.get(view.upstream, _WORST[0])
        found[view.upstream] = max(before, view.state.value, key=_WORST.index)
    return found
