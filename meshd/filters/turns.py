"""Turns: agents that go in circles are stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.call import Call


class Turns:
    """Counts the turns of a workflow."""

    __slots__ = ()

    name = "turns"

    def admit(self, call: Call) -> None:
        """See `Filter.admit`."""

    def explain(self, call: Call) -> str:
        """See `Filter.explain`."""
        return "no turns are counted yet"
