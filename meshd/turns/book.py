"""The workflows of one sidecar, as many as fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.turns.workflow import Workflow

if TYPE_CHECKING:
    from collections.abc import Callable

WORKFLOWS_MAX: Final = 4096
HOUR_S: Final = 3600


def key_of(workflow: str, account: str, wall_s: float) -> str:
    """Return under which key turns are counted. What belongs to no workflow is counted by the hour: an agent that
    says nothing of its tasks is not stopped for the rest of the day by what it did in the morning."""
    return workflow or f"{account}/{int(wall_s // HOUR_S) % 24}"


class Book:
    """By key; the one that was used last at the end."""

    __slots__ = ("_key", "_last", "dropped", "workflows")

    def __init__(self) -> None:
        self.workflows: dict[str, Workflow] = {}
        self._key = ""
        self._last: Workflow | None = None
        self.dropped: Callable[[str, Workflow], None] | None = None
        """Told what had to make room."""

    def of(self, key: str) -> Workflow:
        """Return what is known of a workflow, whether or not anything is."""
        last = self._last
        if last is not None and key == self._key:
            return last
        workflows = self.workflows
        found = workflows.pop(key, None)
        if found is None:
            if len(workflows) >= WORKFLOWS_MAX:
                oldest = next(iter(workflows))
                gone = workflows.pop(oldest)
                if self.dropped is not None:
                    self.dropped(oldest, gone)
            found = Workflow()
        workflows[key] = self._last = found
        self._key = key
        return found

    def forget(self, before_s: float) -> None:
        """Drop what has had no turn since."""
        stale = [key for key, one in self.workflows.items() if one.last_s < before_s]
        for key in stale:
            del self.workflows[key]
        self._last, self._key = None, ""
