"""The shared state of one sidecar, put together: the objects, who watches them, what workflows know, and the sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.clocks import sidecar_id
from meshd.state.knowing import Knowing
from meshd.state.objects import Objects
from meshd.state.shadows import Shadows
from meshd.state.sweeping import Sweeping
from meshd.state.watching import Watching

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.engines.port import Store


class Keeping:
    """One for the process."""

    def __init__(
        self,
        store: Callable[[], Store | None],
        holder: Callable[[], tuple[str, int]],
        *,
        clock: Callable[[], float],
        random: Callable[[int], bytes],
    ) -> None:
        """`store` returns the one in use; `holder` the name under which this sidecar is known in it, and how often it
        was started."""
        self.objects = Objects(store, clock=clock, random=random)
        self.shadows = Shadows(self.objects)
        self.watching = Watching(self.objects)
        self.sweeping = Sweeping(self.objects)
        self.counts: dict[tuple[str, str], int] = {}
        """Operations since the start, by what was asked and what became of it."""
        self._holder = holder
        self._knowing: Knowing | None = None

    @property
    def knowing(self) -> Knowing:
        """What workflows know here. Asked for only once the store has answered: before, nobody knows its name."""
        if self._knowing is None:
            name, epoch = self._holder()
            self._knowing = Knowing(sidecar_id(name), epoch)
        return self._knowing

    def count(self, operation: str, result: str) -> None:
        """Count an operation."""
        self.counts[operation, result] = self.counts.get((operation, result), 0) + 1
