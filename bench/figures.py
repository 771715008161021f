"""The arithmetic of the tables: medians, percentiles, ratios, goals. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def median(values: Sequence[float]) -> float:
    """Return the middle value, or the mean of the two middle ones. Raises ValueError on nothing."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0 to 1) of all values do not pass: the nearest rank.

    Raises ValueError on no values or a share that is none.
    """
    if not values or not 0 <= share <= 1:
        raise ValueError("needs values, and a share from 0 to 1")
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * round(share * 10_000) // 10_000))
    return ordered[rank - 1]


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """Return the names with another one first each turn, so that none always has the warm or the cold place."""
    start = turn % len(names) if names else 0
    return [*names[start:], *names[:start]]


def rise(values: Sequence[float]) -> float:
    """Return the largest factor by which a later value passes any value before it; 1.0 where nothing rises."""
    worst, least = 1.0, values[0] if values else 0.0
    for value in values[1:]:
        if least > 0:
            worst = max(worst, value / least)
        least = min(least, value)
    return worst


class Bound(StrEnum):
    """Which side of a goal is the good one."""

    AT_MOST = "<="
    AT_LEAST = ">="
    BELOW = "<"


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should be, in the unit of that figure."""

    bound: Bound
    value: float

    def is_met(self, figure: float) -> bool:
        """Compare the figure as measured: rounding for display never turns a miss into a hit."""
        if self.bound is Bound.AT_LEAST:
            return figure >= self.value
        return figure < self.value if self.bound is Bound.BELOW else figure <= self.value


def verdict(goal: Goal | None, figure: float | None, is_valid: bool = True) -> str:
    """Return the word for a table's cell: met, MISSED, invalid, not measured, or nothing where no goal is set."""
    if figure is None:
        return "not measured" if goal else ""
    if not is_valid:
        return "INVALID"
    if goal is None:
        return ""
    return "met" if goal.is_met(figure) else "MISSED"


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """Return ours over theirs; None where either is missing or theirs is nothing, so an absent peer is never beaten."""
    if ours is None or not theirs:
        return None
    return ours / theirs
