"""What is read only at a scrape: totals that other rooms keep anyway.

The daemon hands in plain functions; each is called on the loop's thread, so that none has to be safe against
another thread. One that raises leaves its metrics out and is counted as a log line, never as a failed scrape.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from meshd.telemetry.budgets import ScopeSums
    from meshd.telemetry.series import Histogram

T = TypeVar("T")
_log = logging.getLogger("meshd.telemetry")


class BreakerReading(NamedTuple):
    """One breaker: its upstream, its state (closed, half_open or open), and how many attempts it has let in."""

    upstream: str
    state: str
    limit: int | None = None
    """None where nothing limits them."""
    in_flight: int = 0
    queued: int = 0


class OverloadReading(NamedTuple):
    """Counts since the start of the process, by upstream and the second word of each key."""

    shed: tuple[tuple[tuple[str, str], int], ...] = ()
    """Attempts that were refused because there was no room, by why."""
    turned: tuple[tuple[tuple[str, str], int], ...] = ()
    """Breakers that came into a state, by that state."""


class BudgetReading(NamedTuple):
    """Sums over all accounts, in tokens and in micro-dollars; counts since the start of the process."""

    spent: int = 0
    refused: int = 0
    bound_violations: int = 0
    stranded: int = 0
    """Counted as spent at the start, since nobody could say that it was not."""
    scopes: tuple[ScopeSums, ...] = ()
    counted: int = 0
    uncounted: int = 0
    models_raised: int = 0
    """Now."""
    spent_microdollars: int = 0
    warned: tuple[tuple[str, int], ...] = ()
    """By rule, as are the next two."""
    degraded: tuple[tuple[str, int], ...] = ()
    unpriced: tuple[tuple[str, int], ...] = ()


class ResultReading(NamedTuple):
    """Of tools' results that came through the MCP gateway: counts since the start of the process, by server."""

    tokens: tuple[tuple[str, Histogram], ...] = ()
    bytes: tuple[tuple[str, int], ...] = ()
    clipped: tuple[tuple[str, int], ...] = ()
    left_out: tuple[tuple[str, int], ...] = ()
    """Tokens."""
    kept: int = 0
    """Now, as is the next."""
    kept_bytes: int = 0


class McpReading(NamedTuple):
    """Of the MCP gateway."""

    sessions: int = 0
    """Now."""
    tokens_saved: int = 0
    results: ResultReading = ResultReading()


class TurnsReading(NamedTuple):
    """Counts since the start of the process."""

    decisions: tuple[tuple[str, int], ...] = ()
    detectors: tuple[tuple[str, int], ...] = ()


class ApprovalReading(NamedTuple):
    """What waits for people now, and counts since the start of the process."""

    pending: int
    held: int
    """Calls."""
    results: tuple[tuple[str, int], ...]
    """What became of approvals here."""
    held_seconds: Histogram
    keys_refused: int
    told: int
    """Notices that were taken."""
    untold: int
    """Tries that failed."""


class EventsReading(NamedTuple):
    """What was done with events: counts since the start of the process; of the groups, how they stood last."""

    published: tuple[tuple[tuple[str, str], int], ...] = ()
    handed: tuple[tuple[tuple[str], int], ...] = ()
    settled: tuple[tuple[tuple[str, str], int], ...] = ()
    refused: tuple[tuple[tuple[str, str], int], ...] = ()
    led: tuple[tuple[tuple[str], int], ...] = ()
    dead: tuple[tuple[tuple[str, str], int], ...] = ()
    lag: tuple[tuple[tuple[str, str], int], ...] = ()


class CatalogueReading(NamedTuple):
    """The catalogue now, and counts since the start of the process."""

    sorts: tuple[tuple[str, int], ...] = ()
    """Entries of this sidecar, by what they are."""
    sources: tuple[tuple[str, int], ...] = ()
    """Servers that are asked, by how they stand."""
    looks: tuple[tuple[str, int], ...] = ()
    """How asking them ended."""
    flaws: tuple[tuple[str, int], ...] = ()
    quarantined: int = 0
    shared_entries: int = 0
    """Of other sidecars."""
    shared_sidecars: int = 0
    shared_bytes: int = 0


class TraceReading(NamedTuple):
    """Of the trace: counts since the start of the process, and what it takes on disk."""

    records: int = 0
    bytes: int = 0
    missed: int = 0
    """Events that could not be written."""
    kept_bytes: int = 0
    """Now."""


@dataclass(slots=True)
class Sources:
    """Where the scrape finds what the hot path does not count. A source that is None has no metrics."""

    rule_hits: Callable[[], Mapping[str, int]] | None = None
    breakers: Callable[[], Iterable[BreakerReading]] | None = None
    overload: Callable[[], OverloadReading] | None = None
    budget: Callable[[], BudgetReading] | None = None
    claims: Callable[[], Mapping[str, int]] | None = None
    store: Callable[[], bool] | None = None
    """True while the store answers."""
    turns: Callable[[], TurnsReading] | None = None
    approvals: Callable[[], ApprovalReading] | None = None
    mcp: Callable[[], McpReading] | None = None
    catalogue: Callable[[], CatalogueReading] | None = None
    intents: Callable[[], Mapping[str, int]] | None = None
    """Calls that said what they want, by what was decided for them."""
    trace: Callable[[], TraceReading] | None = None
    events: Callable[[], EventsReading] | None = None
    state: Callable[[], Mapping[tuple[str, str], int]] | None = None
    """What was done with shared state, by operation and result."""


@dataclass(slots=True)
class Reading:
    """What the sources said at one moment."""

    rule_hits: dict[str, int] = field(default_factory=dict)
    breakers: list[BreakerReading] = field(default_factory=list)
    overload: OverloadReading = field(default_factory=OverloadReading)
    budget: BudgetReading | None = None
    claims: dict[str, int] = field(default_factory=dict)
    is_store_up: bool | None = None
    turns: TurnsReading | None = None
    approvals: ApprovalReading | None = None
    mcp: McpReading = field(default_factory=lambda: McpReading())
    catalogue: CatalogueReading | None = None
    intents: dict[str, int] = field(default_factory=dict)
    trace: TraceReading | None = None
    events: EventsReading = field(default_factory=lambda: EventsReading())
    state: dict[tuple[str, str], int] = field(default_factory=dict)


def read(sources: Sources) -> Reading:
    """Ask every source. Call it on the loop's thread. Never raises."""
    breakers = sources.breakers
    return Reading(
        rule_hits=dict(_ask(sources.rule_hits) or {}),
        breakers=_ask(None if breakers is None else lambda: list(breakers())) or [],
        overload=_ask(sources.overload) or OverloadReading(),
        budget=_ask(sources.budget),
        approvals=_ask(sources.approvals),
        catalogue=_ask(sources.catalogue),
        intents=dict(_ask(sources.intents) or {}),
        events=_ask(sources.events) or EventsReading(),
        state=dict(_ask(sources.state) or {}),
        claims=dict(_ask(sources.claims) or {}),
        # A store that cannot even be asked is not up.
        is_store_up=None if sources.store is None else bool(_ask(sources.store)),
        turns=_ask(sources.turns),
        trace=_ask(sources.trace),
        mcp=_ask(sources.mcp) or McpReading(),
    )


def _ask(source: Callable[[], T] | None) -> T | None:
    if source is None:
        return None
    try:
        return source()
    except Exception:  # noqa: BLE001
        _log.exception("a source of metrics failed")
        return None
