"""What each workflow knows at this sidecar, as vector clocks: who reads a version knows what its writer knew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.clocks import Clock, ClockMalformed

if TYPE_CHECKING:
    from meshd.clocks import Order
    from meshd.state.record import Version

WORKFLOWS_MAX: Final = 4096
EPOCH_COUNTS: Final = 2**24
"""Counts of one run of a sidecar: the next run begins above them, without having kept where the last one ended."""
_EPOCHS: Final = 2**18


class Knowing:
    """One for the process. What is forgotten (a restart, many workflows) makes later versions look concurrent with what
    they followed, never the other way round."""

    def __init__(self, sidecar: str, epoch: int) -> None:
        """`sidecar` is its id in clocks; `epoch` grows with each start."""
        self.sidecar = sidecar
        self._counted = epoch % _EPOCHS * EPOCH_COUNTS
        self._known: dict[str, Clock] = {}

    def known(self, workflow: str) -> Clock:
        """Return what a workflow knows here."""
        return self._known.get(workflow, Clock())

    def next(self, workflow: str) -> Clock:
        """Return the clock of what is about to be written in a workflow: known only once it is (`learn`)."""
        # One count for all workflows: none is used twice, even where one was forgotten meanwhile.
        self._counted += 1
        return self.known(workflow).tick(self.sidecar, self._counted)

    def learn(self, workflow: str, clock: Clock) -> None:
        """A workflow has heard of what this clock tells of."""
        if not workflow:
            return
        known = self._known.pop(workflow, Clock())
        self._known[workflow] = known.merged(clock)
        if len(self._known) > WORKFLOWS_MAX:
            del self._known[next(iter(self._known))]

    def read(self, workflow: str, version: Version) -> None:
        """A workflow reads a version: of another's it learns nothing, since their clocks do not compare."""
        if workflow and version.workflow == workflow:
            self.learn(workflow, clock_of(version))

    def order(self, workflow: str, version: Version) -> Order | None:
        """Say how what a workflow knows relates to what a version's writer knew; None where that says nothing."""
        if not workflow or version.workflow != workflow:
            return None
        return self.known(workflow).order(clock_of(version))


def clock_of(version: Version) -> Clock:
    """Return the clock of a version; an empty one where it cannot be read, such as that of a newer meshd."""
    try:
        return Clock.decode(version.clock) if version.clock else Clock()
    except ClockMalformed:
        return Clock()
