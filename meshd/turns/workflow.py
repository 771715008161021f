"""One workflow: judge a turn before it goes out, and learn what was asked and answered.

A turn brings something new where its question was not asked before, or its answer is another one than before. One that
does counts a tenth of a turn. Whatever is new for an agent takes one round back from the questions that it asks again:
to be told `approved` between two steps of honest work is no loop.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from meshd.turns.counting import AGAIN_TENTHS, EDGES_MAX, FRESH_SHARE, TENTHS, Counting
from meshd.turns.heeding import TIMES, Refusals
from meshd.turns.patience import (
    MODEL_SLOW_S,
    PATIENCE,
    UNHURRIED_S,
    is_timed,
    is_waiting_for,
    judged_again,
    polled,
    sampled_again,
)
from meshd.turns.said import DECORATED, DIFFERENT, EXACT, Said, is_old
from meshd.turns.seen import Seen
from meshd.turns.turn import AGENT, COUNTED, LLM, LOOP, PASSED, STOPS, Judgement, Limits, Turn

if TYPE_CHECKING:
    from meshd.turns.edge import Edge
    from meshd.turns.question import Question

STEPS_MAX: Final = 48
ASKED_MAX: Final = 32
KEPT_BYTES_MAX: Final = 32_768
"""Of payloads whose features nobody needed yet."""


class Workflow(Counting):
    """What one sidecar knows of the turns of one workflow."""

    __slots__ = (
        "_kept_bytes", "_numbers", "_refusals", "asked_models", "grace", "is_changed", "is_read", "is_stopped",
        "last_s", "let_in", "model_calls", "seen", "stale_tokens", "steps", "told", "version",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.steps: deque[int] = deque(maxlen=STEPS_MAX)
        """What was asked and answered, oldest first: equal numbers for the same question with the same answer."""
        self.seen = Seen()
        self.asked_models: deque[int] = deque(maxlen=ASKED_MAX)
        """How much was new for the caller at each of its last calls of a model."""
        self.model_calls: dict[str, int] = {}
        """How many, by agent."""
        self.stale_tokens = 0
        """Spent since anything new was said."""
        self.grace = 0
        """Turns that a supervisor gave beyond every limit."""
        self.told: set[tuple[str, str]] = set()
        """Edges of which the model has been told that they are refused."""
        self.let_in = 0
        """How often an agent had been on the way of an event already that a supervisor let out all the same."""
        self.is_stopped = False
        """A supervisor has stopped it."""
        self.last_s = 0.0
        self.is_changed = False
        """There is something that the store does not know yet."""
        self.is_read = False
        """What the store knows of it was asked for."""
        self.version = 0
        """Of the record in the store; 0 for none."""
        self._numbers = 0
        self._kept_bytes = 0
        self._refusals = Refusals()

    # ------------------------------------------------------------------ before a turn

    def judge(self, turn: Turn, limits: Limits) -> Judgement:
        """Say what is to be done with a turn, and count it. Where that is not PASS or WAIT, call `withdraw`."""
        if self.is_stopped:
            return Judgement(LOOP, "stopped")
        judgement = self._judge(turn, limits)
        if self.grace and judgement.verdict in STOPS:
            self.grace -= 1
            return PASSED
        return judgement

    def trial(self, turn: Turn, limits: Limits) -> Judgement:
        """Say what other limits would have made of a turn that was judged; nothing is counted for it."""
        edge, question = turn.edge, turn.question
        again = turn.path.count(turn.target) + (1 if turn.source == turn.target else 0)
        if turn.kind in COUNTED and again > limits.reentry:
            return Judgement(LOOP, "reentry", 0.0, again, limits.reentry, turn.path)
        if edge is not None and turn.is_counted:
            own = edge.own
            edge.own -= turn.tenths
            over = self._counted(edge, limits)
            edge.own = own
            if over is not None:
                return over
        if turn.kind == LLM and limits.stale_tokens and self.stale_tokens >= limits.stale_tokens and turn.is_known:
            return Judgement(LOOP, "spending", 0.0, self.stale_tokens, limits.stale_tokens)
        if question is not None and question.rounds >= limits.periods and not turn.is_read_only and turn.nearness:
            return Judgement(LOOP, "repetition", 0.0, question.rounds, limits.periods)
        return PASSED

    def begun(self, turn: Turn) -> None:
        """A turn whose answer nobody will see asks something new: that is news enough."""
        question = turn.question
        if question is not None:
            turn.question = None
            question.open -= 1
            question.rounds = 1
        self.stale_tokens = 0

    def passed_over(self, turn: Turn) -> None:
        """A turn takes place that was found to be a loop: its end changes nothing."""
        question = turn.question
        if question is not None:
            turn.question = None
            question.open -= 1

    def _judge(self, turn: Turn, limits: Limits) -> Judgement:
        source, target, kind = turn.source, turn.target, turn.kind
        is_turn = kind in COUNTED
        if is_turn and (turn.path or source == target):
            again = turn.path.count(target) + (1 if source == target else 0)
            if again > limits.reentry:
                at = turn.path.index(target) if target in turn.path else len(turn.path)
                return Judgement(LOOP, "reentry", 0.0, again, limits.reentry, (*turn.path[at:], source))
        edge = self._edge(source, target, kind)
        if kind == LLM and self._has_gone_round(turn, limits.periods) and edge.gap_s(turn.at_s) < MODEL_SLOW_S:
            return Judgement(LOOP, "history", 0.0, turn.rounds, limits.periods)
        if kind == LLM and not turn.is_many:
            refusals, most = self._refusals.count(source, turn.at_s), limits.periods * TIMES
            if refusals >= most:
                return Judgement(LOOP, "unheeded", 0.0, refusals, most)
        turn.edge = edge
        self.last_s = turn.at_s
        if is_turn and not turn.is_read_only:
            over = self._counted(edge, limits)
            if over is not None:
                return over
            edge.fresh += 1
            if edge.is_circle or edge.fresh % FRESH_SHARE == 1:
                edge.own += 1
                turn.tenths = 1
            turn.is_counted = self.is_changed = True
        if turn.payload is None:
            return PASSED
        return self._asks(turn, edge, turn.payload, limits)

    def _has_gone_round(self, turn: Turn, periods: int) -> bool:
        """Say whether a request's history goes round, and nothing new came meanwhile of which it does not tell."""
        if turn.is_many:
            return turn.rounds >= periods
        calls_of = self.model_calls
        if turn.source in calls_of or len(calls_of) < EDGES_MAX:
            calls_of[turn.source] = calls_of.get(turn.source, 0) + 1
        news = self.news.get(turn.source, 0)
        asked = self.asked_models
        asked.append(news)
        if turn.rounds < periods:
            return False
        calls = (periods - 1) * (turn.period // 2)
        return len(asked) <= calls or asked[-1 - calls] == news

    def needs_payload(self, turn: Turn, limits: Limits) -> bool:
        """Say whether a turn whose payload streams can only be judged with it: something was asked too often there."""
        if turn.is_read_only:
            return False
        edge = self.edges.get((turn.source, turn.target))
        if edge is None:
            return False
        if edge.unasked:
            unasked, edge.unasked = edge.unasked, []
            for hearing in unasked:
                hearing.tell()
        for question in edge.questions:
            if question.mark == turn.mark and (
                question.rounds + question.open >= limits.periods or question.failures >= limits.periods
            ):
                return True
        return edge.may_go_round(limits.periods)

    def withdraw(self, turn: Turn) -> None:
        """The turn does not take place: it is counted no longer."""
        question, edge = turn.question, turn.edge
        if question is not None:
            turn.question = None
            question.open -= 1
        if edge is None:
            return
        if turn.round is not None and turn.round in edge.rounds:
            # It goes on with the same rounds, whatever was refused in between.
            edge.rounds.remove(turn.round)
            turn.round = None
        if turn.is_counted:
            turn.is_counted = False
            self._count(turn, edge, 0)

    def refused(self, turn: Turn) -> None:
        """The turn was refused, and its caller is told so."""
        if turn.kind != LLM:
            self._refusals.note(turn.source, turn.at_s)

    @staticmethod
    def _count(turn: Turn, edge: Edge, tenths: int) -> None:
        """Count a turn for so much in place of what it was counted for."""
        edge.own += tenths - turn.tenths
        turn.tenths = tenths

    # ------------------------------------------------------------------ what is asked

    def asked(self, turn: Turn, payload: bytes) -> None:
        """Learn what a turn asks that was judged without."""
        if turn.question is None and turn.edge is not None:
            self._ask(turn, turn.edge, payload)

    def _ask(self, turn: Turn, edge: Edge, payload: bytes) -> tuple[Question, int]:
        asked = Said(payload)
        self._numbers += 1
        if edge.questions and edge.kind in COUNTED and asked.grows_from(edge.questions[-1].asked):
            # It may quote what was said so far: only what nobody has said is new in it.
            self._learn_all()
        question, nearness = edge.ask(asked, turn.mark, self.seen, self._numbers)
        turn.question = question
        turn.nearness = nearness
        turn.is_known = nearness > DECORATED
        is_quiet = False
        if nearness > DIFFERENT:
            news = self.news_of(edge)
            is_quiet = news <= question.news_at
            if turn.is_counted and turn.is_known:
                self._count(turn, edge, AGAIN_TENTHS if news > question.news_at else TENTHS)
            if news > question.news_at and question.rounds > 1:
                question.rounds = max(1, question.rounds - (news - question.news_at))
            question.news_at = news
        else:
            if edge.kind == LLM:
                edge.fresh += 1
            question.news_at = self.news_of(edge)
            self._keep(asked)
        question.came(turn.at_s, self.model_calls.get(edge.source, 0), self._numbers)
        if turn.is_counted and turn.is_known and is_timed(turn, edge, question):
            self._count(turn, edge, 1)
        if edge.kind != LLM and not turn.is_read_only:
            turn.round = edge.begin(asked, turn.mark, turn.at_s, is_quiet=is_quiet)
        return question, nearness

    def _keep(self, said: Said) -> None:
        """Count bytes that are kept; beyond the limit only their features are."""
        self._kept_bytes += said.kept_bytes
        if self._kept_bytes > KEPT_BYTES_MAX:
            # Much of it is gone already, with the questions that were forgotten.
            kept = 0
            for edge in self.edges.values():
                for question in edge.questions:
                    kept += question.asked.kept_bytes
                    if question.answer is not None:
                        kept += question.answer.kept_bytes
            self._kept_bytes = kept
            if kept > KEPT_BYTES_MAX // 2:
                self._learn_all()

    def _learn_all(self) -> None:
        self._kept_bytes = 0
        for edge in self.edges.values():
            for question in edge.questions:
                question.asked.learn(self.seen)
                if question.answer is not None:
                    question.answer.learn(self.seen)

    def _asks(self, turn: Turn, edge: Edge, payload: bytes, limits: Limits) -> Judgement:
        question, nearness = self._ask(turn, edge, payload)
        periods = limits.periods
        if len(edge.rounds) > periods and edge.goes_round(turn, periods, self.edges.values()):
            return Judgement(LOOP, "repetition", 0.0, periods, periods, (edge.source, edge.target))
        if nearness == DIFFERENT:
            return PASSED
        gap_s = question.gap_s
        if turn.is_read_only:
            return polled(question, limits, turn.at_s)
        if turn.is_many and turn.kind != AGENT:
            # The turns of many tasks stand together: that some of them ask the same is no loop yet.
            periods *= PATIENCE
        if turn.kind == LLM:
            if turn.is_many:
                return PASSED
            if limits.stale_tokens and self.stale_tokens >= limits.stale_tokens:
                return Judgement(LOOP, "spending", 0.0, self.stale_tokens, limits.stale_tokens)
            if turn.is_sampled and nearness == EXACT:
                return sampled_again(question, limits, self.stale_tokens)
        if not turn.is_counted and question.rounds < periods and question.failures < periods and not question.changes:
            return PASSED
        is_waiting = is_waiting_for(turn, edge, question, gap_s)
        if is_waiting and turn.is_counted and not edge.is_circle:
            self._count(turn, edge, 1)
        return judged_again(turn, edge, question, periods, limits, self.steps, is_waiting=is_waiting)

    # ------------------------------------------------------------------ what is answered

    def answered(
        self, turn: Turn, answer: bytes | None, tokens: int = 0, *, is_failed: bool = False, is_underway: bool = False
    ) -> bool:
        """Learn how a turn ended: with this answer (None: nobody saw it), for so many tokens.

        `is_failed`: in a way that another attempt may mend; `is_underway`: its status says that nothing is there yet.
        Returns whether it brought something new.
        """
        question, edge = turn.question, turn.edge
        is_news = question is None
        if question is not None and edge is not None:
            turn.question = None
            question.open -= 1
            if is_failed:
                question.failures += 1
                is_news = not turn.is_known
            else:
                question.failures = 0
                is_news = self._learn(turn, question, edge, answer, is_underway)
        if is_news:
            self.stale_tokens = 0
            if edge is not None and edge.kind != LLM:
                self.bring(edge)
                self._refusals.forget(edge.source, edge.target)
                if question is not None:
                    question.news_at += 2
        else:
            self.stale_tokens += tokens
        return is_news

    def _learn(self, turn: Turn, question: Question, edge: Edge, answer: bytes | None, is_underway: bool) -> bool:
        """Take an answer; return whether there is something new in it, or in the question."""
        if answer is None:
            if not turn.is_known:
                question.rounds = 1
            return not turn.is_known
        said = Said(answer, True)
        if turn.round is not None:
            turn.round.answer = said
            turn.round.is_underway = is_underway
            turn.round = None
        if turn.nearness == DIFFERENT:
            question.answer, question.rounds = said, 1
            self._keep(said)
            self._step(question, said)
            return True
        is_same = question.is_same(said, self.seen, edge.kind)
        found = said.features() if not is_same or question.rounds < 2 else None
        if is_same:
            if question.answer is None:
                question.answer = said
            if is_underway or (
                found is not None and (found.is_underway or (found.is_not_yet and question.gap_s >= UNHURRIED_S))
            ):
                question.changes += 1
                self._take_back(turn, edge)
                return False
            if not turn.is_read_only:
                question.rounds += 1
                if turn.is_counted and not turn.is_known:
                    self._count(turn, edge, TENTHS)
                    turn.is_known = True
                self.is_changed = True
                self._step(question, question.answer)
            return False
        is_heard = edge.kind == AGENT and turn.is_known and found is not None and is_old(found, self.seen)
        said.learn(self.seen)
        question.answer = said
        question.rounds = 1
        if not turn.is_known:
            return True
        question.changes += 1
        if is_heard and found is not None and not found.is_underway:
            # Another answer than the last one, and nothing that nobody has said: that is no polling of an agent.
            self._step(question, said)
            return False
        self._take_back(turn, edge)
        if not turn.is_read_only and not (found is not None and found.is_underway):
            self._step(question, said)
        return True

    def _take_back(self, turn: Turn, edge: Edge) -> None:
        """What was counted as a whole turn brought something new: it counts a tenth."""
        if turn.is_counted:
            self._count(turn, edge, 1)

    def _step(self, question: Question, said: Said) -> None:
        mark = (said.loose if said.is_known else said.mark) & 0xFFFFFFFF
        self.steps.append(question.number << 32 | mark)
