"""Idempotency: a call that is made again gets the answer of the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.call import Call


class Idempotency:
    """Knows calls that are made again."""

    __slots__ = ()

    name = "idempotency"

    def admit(self, call: Call) -> None:
        """See `Filter.admit`."""

    def explain(self, call: Call) -> str:
        """See `Filter.explain`."""
        return "no claim is made yet"
