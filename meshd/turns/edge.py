"""Who calls whom, how often, and what was asked of late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from meshd.turns.patience import AGENT_SLOW_S, HEARTBEAT_S, UNHURRIED_S
from meshd.turns.question import BURST_S, Question
from meshd.turns.rewording import ROUNDS_KEPT, Round, goes_round, goes_round_beside, is_unanswered, may_go_round
from meshd.turns.said import ALIKE, DECORATED, DIFFERENT, EXACT
from meshd.turns.turn import AGENT, TOOL

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.turns.said import Said
    from meshd.turns.seen import Seen
    from meshd.turns.turn import Turn

COUNT_MASK: Final = (1 << 24) - 1
QUESTIONS_MAX: Final = 6
"""Of one edge that are kept, those that were asked last."""


class Hears(Protocol):
    """What hears a turn's payload as it passes."""

    def tell(self) -> None:
        """Let the workflow know what has been heard so far: the next turn must be compared with it."""
        ...


class Edge:
    """From one agent to another, to a tool or to a model, within one workflow."""

    __slots__ = (
        "_looked_at", "_looked_for", "_may_go_round", "elsewhere", "fresh", "is_circle", "kind", "own", "questions",
        "rounds", "source", "target", "unasked",
    )  # fmt: skip

    def __init__(self, source: str, target: str, kind: str) -> None:
        self.source = source
        self.target = target
        self.kind = kind
        self.own = 0
        """Tenths of turns that this sidecar counted."""
        self.fresh = 0
        """How often something new was asked."""
        self.is_circle = False
        """Whoever is called here calls back, directly or through others."""
        self.elsewhere: dict[int, int] = {}
        """The same by other sidecars, as they last said: a stamp, and in the lowest bits the count."""
        self.questions: list[Question] = []
        """The one that was asked last at the end."""
        self.rounds: list[Round] = []
        """The last that were asked, with their answers, in their order."""
        self._looked_at: Round | None = None
        self._looked_for: Said | None = None
        self._may_go_round = False
        self.unasked: list[Hears] = []
        """Turns whose payload is still being heard."""

    @property
    def tenths(self) -> int:
        """Tenths of turns, over all sidecars."""
        if not self.elsewhere:
            return self.own
        return self.own + sum([count & COUNT_MASK for count in self.elsewhere.values()])

    def gap_s(self, now_s: float) -> float:
        """Seconds since something was asked here; 0 where nothing was."""
        return now_s - self.questions[-1].last_s if self.questions else 0.0

    def restore(self, question: Question) -> None:
        """Take a question as another process knows it, unless it is known here."""
        for known in self.questions:
            asked = known.asked
            if known.mark == question.mark and asked.is_known and asked.loose == question.asked.loose:
                known.rounds = max(known.rounds, question.rounds)
                return
        if len(self.questions) < QUESTIONS_MAX:
            self.questions.insert(0, question)

    def find(self, asked: Said, mark: int, seen: Seen) -> tuple[Question | None, int]:
        """Return the question that this is again, and how near it is; None and DIFFERENT where it is a new one."""
        questions = self.questions
        best: Question | None = None
        best_nearness = DIFFERENT
        for question in reversed(questions):
            before = question.asked
            if asked.mark == before.mark != 0 and asked.size == before.size and question.mark == mark:
                return question, EXACT
        for question in reversed(questions):
            if question.mark != mark:
                continue
            nearness = asked.nearness(question.asked, seen, self.kind)
            if nearness == DECORATED and not _says_no(question, seen):
                continue
            if nearness > best_nearness:
                best, best_nearness = question, nearness
                if nearness == EXACT:
                    break
        return best, best_nearness

    def ask(self, asked: Said, mark: int, seen: Seen, number: int) -> tuple[Question, int]:
        """Return the question that this is, an old or a new one, now the last; and how near it is to what was asked."""
        question, nearness = self.find(asked, mark, seen)
        questions = self.questions
        if question is None:
            question = Question(asked, mark, number)
            if len(questions) >= QUESTIONS_MAX:
                self._drop()
        else:
            question.is_decorated = nearness == DECORATED
            if nearness in (ALIKE, DECORATED):
                # Words that came with it are old from now on; the question drifts with them.
                asked.learn(seen)
                if nearness == ALIKE:
                    asked.take_over(question.asked)
                    question.asked = asked
            if questions[-1] is question:
                return question, nearness
            questions.remove(question)
        questions.append(question)
        return question, nearness

    def begin(self, asked: Said, mark: int, at_s: float, *, is_quiet: bool) -> Round:
        """Return a round that begins with a question."""
        made = Round(asked, mark, at_s, is_quiet)
        self.rounds.append(made)
        if len(self.rounds) > ROUNDS_KEPT:
            del self.rounds[0]
        return made

    def may_go_round(self, periods: int) -> bool:
        """Say whether the next question may be the same again in other words, so that it must be known."""
        rounds = self.rounds
        if len(rounds) < periods or self.kind not in (AGENT, TOOL):
            return False
        last = rounds[-1]
        if self._looked_at is not last or self._looked_for is not last.answer:
            self._looked_at, self._looked_for = last, last.answer
            self._may_go_round = may_go_round(rounds, periods, self.kind)
        return self._may_go_round

    def goes_round(self, turn: Turn, periods: int, every: Iterable[Edge]) -> bool:
        """Say whether it goes round in other words each time, by itself or beside another one of `every`."""
        rounds = self.rounds
        if turn.round is None or (turn.is_many and turn.kind == TOOL):
            return False
        gap_s = turn.at_s - rounds[-2].at_s
        if gap_s >= (HEARTBEAT_S if turn.kind == TOOL else AGENT_SLOW_S):
            return False
        if rounds[-2].answer is None:
            return turn.kind == AGENT and is_unanswered(rounds, periods, BURST_S)
        if goes_round(rounds, periods, turn.kind, is_polled=gap_s >= UNHURRIED_S):
            return True
        if turn.kind != AGENT or gap_s >= UNHURRIED_S:
            return False
        others = [one.rounds for one in every if one is not self and one.kind == AGENT and len(one.rounds) >= periods]
        return bool(others) and goes_round_beside(rounds, periods, others)

    def _drop(self) -> None:
        """Forget the question that says least: of those that were asked once, the oldest."""
        questions = self.questions
        for at, question in enumerate(questions):
            if question.rounds < 2 and not question.open:
                del questions[at]
                return
        del questions[0]


def _says_no(question: Question, seen: Seen) -> bool:
    """Say whether the last answer was that it cannot be done: then it is no other question for some words more."""
    answer = question.answer
    if answer is None:
        return False
    answer.learn(seen)
    return answer.says_no
