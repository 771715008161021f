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


def read(sources: Sources) -> Reading:
    """Ask every source. Call it on the loop's thread. Never raises."""
    breakers = sources.breakers
    return Reading(
        rule_hits=dict(_ask(sources.rule_hits) or {}),
        breakers=_ask(None if breakers is None else lambda: list(breakers())) or [],
        overload=_ask(sources.overload) or OverloadReading(),
        budget=_ask(sources.budget),
        approvals=_ask(sources.approvals),
        claims=dict(_ask(sources.claims) or {}),
        # A store that cannot even be asked is not up.
        is_store_up=None if sources.store is None else bool(_ask(sources.store)),
        turns=_ask(sources.turns),
    )


def _ask(source: Callable[[], T] | None) -> T | None:
    if source is None:
        return None
    try:
        return source()
    except Exception:  # noqa: BLE001
        _log.exception("a source of metrics failed")
        return None
