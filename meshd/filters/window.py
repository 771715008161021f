"""The span of time for which a budget holds: when it began, when it ends, what its accounts are called.

Windows stand still, in UTC: one of a whole number of minutes, hours or days begins at a multiple of its length since
1970-01-01 00:00, so `1d` at midnight, `1h` on the hour and `7d` on a Thursday; `month` is a calendar month. A call
belongs to the window in which it began, to its last attempt.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

PATTERN: Final = r"^(?:[1-9][0-9]{0,4}[mhd]|month)$"
MONTH: Final = "month"
DAYS_MAX: Final = 366
_TEXT: Final = re.compile(PATTERN[:-1] + r"\Z")
_SECONDS: Final = {"m": 60, "h": 3600, "d": 86_400}


def length_s(text: str) -> int:
    """Return the seconds of a window such as `90m`, `1h` or `7d`; 0 for `month`. Raises ValueError otherwise."""
    if _TEXT.match(text) is None:
        raise ValueError(f'expected a window such as "1h", "1d", "7d", "30d" or "month", not "{text[:40]}"')
    if text == MONTH:
        return 0
    seconds = int(text[:-1]) * _SECONDS[text[-1]]
    if seconds > DAYS_MAX * 86_400:
        raise ValueError(f"a window is at most {DAYS_MAX}d long")
    return seconds


class Window:
    """A budget's windows, one after the other. It remembers the one that was asked for last: all calls share it."""

    __slots__ = ("_length_s", "account", "end_s", "start_s", "text")

    def __init__(self, text: str) -> None:
        """Raise ValueError where `text` is no window."""
        self.text = text
        self._length_s = length_s(text)
        self.start_s = 0.0
        """Unix seconds."""
        self.end_s = 0.0
        self.account = ""
        """What sets this window's accounts apart: `1d/2026-11-26T00:00`."""

    def at(self, wall_s: float) -> str:
        """Move to the window of a moment, and return `account`. `wall_s` is in unix seconds."""
        if not self.start_s <= wall_s < self.end_s:
            self._move(wall_s)
        return self.account

    def _move(self, wall_s: float) -> None:
        wall_s = min(max(wall_s, 0.0), 32_503_680_000.0)  # the year 3000: no clock may break a budget
        if self._length_s:
            start_s = int(wall_s // self._length_s) * self._length_s
            end_s = start_s + self._length_s
        else:
            first = datetime.fromtimestamp(wall_s, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
            start_s, end_s = int(first.timestamp()), int(following.timestamp())
        self.start_s, self.end_s = float(start_s), float(end_s)
        self.account = f"{self.text}/{datetime.fromtimestamp(start_s, UTC):%Y-%m-%dT%H:%M}"

    def resets(self, wall_s: float) -> str:
        """Return when the window of a moment ends, as people write it: `2026-11-27 00:00 UTC`."""
        self.at(wall_s)
        return f"{datetime.fromtimestamp(self.end_s, UTC):%Y-%m-%d %H:%M} UTC"
