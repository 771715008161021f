"""How much one agent, or one workflow, has asked of people lately: what it may add to that is bounded.

Counted are the questions that wait, and those of the last hour that nobody had to answer in the end: taken back, or
expired undecided. Who asks and takes back in a loop so reaches its bound in a moment, though nothing of it ever waits
for long. What people have decided counts for nothing. Pure: the clock is handed in; each sweep counts anew from the
store, so that neither a restart nor another sidecar forgets it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.approvals.state import State

if TYPE_CHECKING:
    from meshd.approvals.record import Approval

OPEN_MAX: Final = 2_000
"""Questions that wait or have expired within the window: more than people look through in a day."""
OPEN_BYTES_MAX: Final = 64 * 2**20
"""Of the arguments of those that wait, as they are shown."""
TAKEN_BACK_MAX: Final = 100
"""Questions that were taken back within the window."""
WINDOW_S: Final = 3600.0
_ABANDONED: Final = frozenset({State.CANCELLED, State.EXPIRED})


class Crowd:
    """The questions of all agents and workflows, as far as they count."""

    __slots__ = ("_of",)

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], dict[str, tuple[State, float, int]]] = {}
        """By agent and by workflow: of each question that counts its state, when it ends to count, and its bytes."""

    def note(self, approval: Approval, now_s: float) -> None:
        """Take note of where a question stands."""
        state = approval.state_at(now_s)
        until_s = 0.0
        if state is State.PENDING:
            until_s = approval.expires_s + WINDOW_S
        elif state in _ABANDONED and not approval.decisions:
            until_s = (approval.ended_s or approval.expires_s) + WINDOW_S
        for whose in _places(approval.agent, approval.workflow):
            found = self._of.setdefault(whose, {})
            if until_s > now_s:
                found[approval.id] = (state, until_s, len(approval.arguments))
            else:
                found.pop(approval.id, None)
            if not found:
                del self._of[whose]

    def full(self, agent: str, workflow: str, now_s: float) -> str:
        """Say, in words that follow "Nobody can be asked now: ", why there is no room for another question; empty where
        there is."""
        for whose in _places(agent, workflow):
            found = self._of.get(whose)
            if found is None or (len(found) < TAKEN_BACK_MAX and not _is_heavy(found)):
                continue
            if words := _words(found, now_s):
                return f"{words} of the {whose[0]} {whose[1]}"
        return ""


def _places(agent: str, workflow: str) -> tuple[tuple[str, str], ...]:
    return (("agent", agent), ("workflow", workflow)) if workflow else (("agent", agent),)


def _is_heavy(found: dict[str, tuple[State, float, int]]) -> bool:
    return sum(size for state, _, size in found.values() if state is State.PENDING) >= OPEN_BYTES_MAX


def _words(found: dict[str, tuple[State, float, int]], now_s: float) -> str:
    for id in [id for id, (_, until_s, _) in found.items() if until_s <= now_s]:
        del found[id]
    taken_back = sum(1 for state, _, _ in found.values() if state is State.CANCELLED)
    if taken_back >= TAKEN_BACK_MAX:
        return f"{taken_back} questions were taken back within the last hour"
    if len(found) - taken_back >= OPEN_MAX:
        return f"{len(found) - taken_back} questions wait for a decision or got none within the last hour"
    return f"questions with {OPEN_BYTES_MAX >> 20} MB of arguments wait for a decision" if _is_heavy(found) else ""
