"""Workflows that are played turn by turn, on a clock in the test's hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from meshd.turns.turn import AGENT, LOOP, MAX_TURNS, PASSED, Judgement, Limits, Turn
from meshd.turns.workflow import Workflow

if TYPE_CHECKING:
    from collections.abc import Iterable

LIMITS = Limits()
STOPPED = (LOOP, MAX_TURNS)


def task(text: Any) -> bytes:
    """Return a body as agents post it."""
    return json.dumps({"task": text}).encode()


class Talk:
    """One workflow, and who speaks in it."""

    def __init__(self, limits: Limits = LIMITS, workflow: Workflow | None = None) -> None:
        self.limits = limits
        self.workflow = Workflow() if workflow is None else workflow
        self.now_s = 1000.0

    def ask(
        self,
        question: Any,
        answer: Any,
        *,
        source: str = "lead",
        target: str = "writer",
        kind: str = AGENT,
        after_s: float = 0.5,
        tokens: int = 0,
        is_failed: bool = False,
        **fields: Any,
    ) -> Judgement:
        """Make one call and answer it; a stopped one is withdrawn."""
        turn, judgement = self.judge(question, source=source, target=target, kind=kind, after_s=after_s, **fields)
        if judgement.verdict not in STOPPED:
            self.workflow.answered(turn, as_bytes(answer), tokens, is_failed=is_failed)
        return judgement

    def judge(
        self,
        question: Any,
        *,
        source: str = "lead",
        target: str = "writer",
        kind: str = AGENT,
        after_s: float = 0.5,
        **fields: Any,
    ) -> tuple[Turn, Judgement]:
        """Make one call that is not answered yet."""
        self.now_s += after_s
        turn = Turn(source, target, kind, fields.pop("operation", "POST /run"), as_bytes(question), **fields)
        turn.at_s = self.now_s
        judgement = self.workflow.judge(turn, self.limits)
        if judgement.verdict in STOPPED:
            self.workflow.withdraw(turn)
        return turn, judgement

    def until_stopped(self, rounds: Iterable[list[tuple[Any, Any]]], **fields: Any) -> tuple[int, Judgement]:
        """Go round after round; return in which one a call was stopped, from 1, and how; 0 where none was."""
        for number, calls in enumerate(rounds, 1):
            for at, (question, answer) in enumerate(calls):
                targets = fields.get("targets", ("writer", "critic", "editor", "checker", "planner", "printer"))
                kind = fields.get("kind", AGENT)
                judgement = self.ask(question, answer, target=targets[at], kind=kind)
                if judgement.verdict in STOPPED:
                    return number, judgement
        return 0, PASSED


def as_bytes(said: Any) -> bytes | None:
    """Return what is said as it is sent."""
    if said is None or isinstance(said, bytes):
        return said
    return task(said)
