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

T = TypeVar("T")
_log = logging.getLogger("meshd.telemetry")


class BreakerReading(NamedTuple):
    """One breaker: its upstream and its state (closed, half_open or open)."""

    upstream: str
    state: str


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


@dataclass(slots=True)
class Sources:
    """Where the scrape finds what the hot path does not count. A source that is None has no metrics."""

    rule_hits: Callable[[], Mapping[str, int]] | None = None
    breakers: Callable[[], Iterable[BreakerReading]] | None = None
    budget: Callable[[], BudgetReading] | None = None
    store: Callable[[], bool] | None = None
    """True while the store answers."""
    turns: Callable[[], TurnsReading] | None = None


@dataclass(slots=True)
class Reading:
    """What the sources said at one moment."""

    rule_hits: dict[str, int] = field(default_factory=dict)
    breakers: list[BreakerReading] = field(default_factory=list)
    budget: BudgetReading | None = None
    is_store_up: bool | None = None
    turns: TurnsReading | None = None


def read(sources: Sources) -> Reading:
    """Ask every source. Call it on the loop's thread. Never raises."""
    breakers = sources.breakers
    return Reading(
        rule_hits=dict(_ask(sources.rule_hits) or {}),
        breakers=_ask(None if breakers is None else lambda: list(breakers())) or [],
        budget=_ask(sources.budget),
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
