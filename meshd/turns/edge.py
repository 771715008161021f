"""Who calls whom, how often, and what was asked of late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.turns.question import ALIKE, DIFFERENT, EXACT, Question, Said

if TYPE_CHECKING:
    from meshd.turns.seen import Seen

QUESTIONS_MAX: Final = 8
"""Of one edge that are kept, those that were asked last."""


class Edge:
    """From one agent to another, to a tool or to a model, within one workflow."""

    __slots__ = ("elsewhere", "kind", "own", "questions", "source", "target")

    def __init__(self, source: str, target: str, kind: str) -> None:
        self.source = source
        self.target = target
        self.kind = kind
        self.own = 0
        """Tenths of turns that this sidecar counted."""
        self.elsewhere: dict[int, int] = {}
        """The same by the other sidecars, as they last said."""
        self.questions: list[Question] = []
        """The one that was asked last at the end."""

    @property
    def tenths(self) -> int:
        """Tenths of turns, over all sidecars."""
        return self.own + sum(self.elsewhere.values()) if self.elsewhere else self.own

    def find(self, asked: Said, operation: str, seen: Seen) -> tuple[Question | None, int]:
        """Return the question that this is again, and how near it is; None and DIFFERENT where it is a new one."""
        questions = self.questions
        best: Question | None = None
        best_nearness = DIFFERENT
        for question in reversed(questions):
            before = question.asked
            if asked.mark == before.mark != 0 and asked.size == before.size and question.operation == operation:
                return question, EXACT
        for question in reversed(questions):
            if question.operation != operation:
                continue
            nearness = asked.nearness(question.asked, seen, self.kind)
            if nearness > best_nearness:
                best, best_nearness = question, nearness
                if nearness == EXACT:
                    break
        return best, best_nearness

    def ask(self, asked: Said, operation: str, seen: Seen, number: int) -> tuple[Question, int]:
        """Return the question that this is, an old or a new one, now the last; and how near it is to what was asked."""
        question, nearness = self.find(asked, operation, seen)
        questions = self.questions
        if question is None:
            question = Question(asked, operation, number)
            if len(questions) >= QUESTIONS_MAX:
                self._drop()
        else:
            if nearness == ALIKE:
                # Words that came with it are old from now on; the question drifts with them.
                asked.learn(seen)
                question.asked = asked
            if questions[-1] is question:
                return question, nearness
            questions.remove(question)
        questions.append(question)
        return question, nearness

    def _drop(self) -> None:
        """Forget the question that says least: of those that were asked once, the oldest."""
        questions = self.questions
        for at, question in enumerate(questions):
            if question.rounds < 2 and not question.open:
                del questions[at]
                return
        del questions[0]
