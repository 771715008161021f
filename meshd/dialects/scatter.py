"""Of a call that goes to several agents at once: whatever its body means, each of them is told the same."""

from __future__ import annotations

from typing import Final

from meshd.dialects.plain import Plain

SCATTER: Final = "scatter"


class Scatter(Plain):
    """Has its body read whole. Made for one call; no upstream speaks it."""

    def __init__(self, targets: tuple[str, ...], path: str) -> None:
        """`targets` are names of upstreams; `path` is what each is sent to, below its own base path."""
        self.targets = targets
        self.path = path

    def recognise(self, method: str, path: str) -> str | None:
        """See `Dialect.recognise`: everything is."""
        return SCATTER
