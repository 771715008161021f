"""What of a path names an operation, and what belongs to the question: where there is a number in it."""

from __future__ import annotations

import re
from typing import Final

PLACES_MAX: Final = 1024
PATH_CHARACTERS_MAX: Final = 256
"""A longer path is read each time: callers write them, and would fill the memory."""
_VERSION: Final = re.compile(r"\bv\d+\w*\b")
_NUMBER: Final = re.compile(r"\d")


class Places:
    """Paths that were read."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, bytes]] = {}

    def of(self, path: str) -> tuple[str, bytes]:
        """Return the operation, and what stands before the body as a part of what is asked."""
        place = self._known.get(path)
        if place is None:
            bare = path.partition("?")[0]
            if len(bare) < len(path) or _NUMBER.search(_VERSION.sub("", bare)) is not None:
                place = ("", path.encode("utf-8", "replace") + b"\n")
            else:
                place = (path, b"")
            if len(path) <= PATH_CHARACTERS_MAX:
                if len(self._known) >= PLACES_MAX:
                    self._known.clear()
                self._known[path] = place
        return place
