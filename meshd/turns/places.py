"""What of a path names an operation, and what belongs to the question: where there is a number in it."""

from __future__ import annotations

import re
from typing import Final

PLACES_MAX: Final = 1024
PATH_CHARACTERS_MAX: Final = 256
"""A longer path is read each time: callers write them, and would fill the memory."""
_VERSION: Final = re.compile(r"\bv\d+\w*\b")
_CHECKS: Final = frozenset(
    ("health", "healthz", "ready", "readyz", "live", "livez", "alive", "ping", "heartbeat", "status")
)
_NUMBER: Final = re.compile(r"\d")


class Places:
    """Paths that were read."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, bytes, bool]] = {}

    def of(self, path: str) -> tuple[str, bytes, bool]:
        """Return the operation, what stands before the body as a part of what is asked, and whether it only asks
        whether somebody is there."""
        place = self._known.get(path)
        if place is None:
            bare = path.partition("?")[0]
            is_check = bare.rpartition("/")[2].lower() in _CHECKS
            if len(bare) < len(path) or _NUMBER.search(_VERSION.sub("", bare)) is not None:
                place = ("", path.encode("utf-8", "replace") + b"\n", is_check)
            else:
                place = (path, b"", is_check)
            if len(path) <= PATH_CHARACTERS_MAX:
                if len(self._known) >= PLACES_MAX:
                    self._known.clear()
                self._known[path] = place
        return place
