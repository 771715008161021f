"""What the demo claims, and whether it was so: it checks itself, and ends with 1 where a claim does not hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from demo.screen import Screen


class Checks:
    """Counts claims and writes each as it is checked."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self.held = 0
        self.broken: list[str] = []

    def claim(self, is_so: bool, text: str, found: object = None) -> None:
        """Check one claim. `found` says what was seen instead, where that is not in the text."""
        if is_so:
            self.held += 1
            self._screen.good(text)
            return
        self.broken.append(text)
        self._screen.bad(text if found is None else f"{text}: found {found!r}")
