"""What keeps the books from being kept: said once when it begins, and once when it is over."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshd.engines.port import StoreError

_log = logging.getLogger("meshd.ledger")


class Faults:
    """The faults of now, at most one of each source."""

    __slots__ = ("of_now",)

    def __init__(self) -> None:
        self.of_now: dict[str, StoreError] = {}

    def say(self, fault: StoreError | None, source: str = "journal") -> None:
        """Note that a write to `source` failed, or that it succeeded (None)."""
        if fault is None:
            if self.of_now.pop(source, None) is not None:
                _log.warning("the %s can be written again", source)
        else:
            if str(self.of_now.get(source)) != str(fault):
                _log.error("budgets cannot be kept: %s", fault)
            self.of_now[source] = fault

    def __str__(self) -> str:
        return "; ".join(map(str, self.of_now.values()))
