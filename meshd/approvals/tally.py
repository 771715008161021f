"""How many approvals were asked for, and what became of them."""

from __future__ import annotations


class Tally:
    """Counts since the start of the process."""

    __slots__ = ("asked", "results")

    def __init__(self) -> None:
        self.asked = 0
        self.results: dict[str, int] = {}

    def count(self, result: str) -> None:
        """Count what became of an approval, where this desk has seen to it."""
        self.results[result] = self.results.get(result, 0) + 1
