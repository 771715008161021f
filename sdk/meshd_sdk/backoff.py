"""How long to wait before the next attempt to connect: twice as long each time, with full jitter. Pure."""

from __future__ import annotations

from typing import Final

FIRST_S: Final = 0.05
MOST_S: Final = 5.0


def delay_s(attempt: int, draw: float) -> float:
    """Return the seconds before an attempt, counted from 0; `draw` is a random number from 0 to 1.

    Full jitter (all of the time is random) keeps agents that lost one sidecar from coming back all at once.
    """
    return min(MOST_S, FIRST_S * 2.0 ** min(attempt, 16)) * draw
