"""The round that the last calls of a workflow go in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

PERIOD_MAX: Final = 12


def period_of(steps: Sequence[int], rounds: int, period_max: int = PERIOD_MAX) -> int:
    """Return the shortest period of which the last steps are `rounds` rounds; 0 where they are none."""
    count = len(steps)
    for period in range(1, min(period_max, count // rounds) + 1):
        begins = count - period * (rounds - 1)
        if all(steps[at] == steps[at - period] for at in range(count - 1, begins - 1, -1)):
            return period
    return 0
