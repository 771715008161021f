"""Who asks the same again because time must pass, or for another sample: polling, heartbeats, back-off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.turns.periods import period_of
from meshd.turns.said import LOOSE
from meshd.turns.turn import AGENT, LLM, LOOP, PASSED, TOOL, WAIT, Judgement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.turns.edge import Edge
    from meshd.turns.question import Question
    from meshd.turns.turn import Limits, Turn

RETRIES: Final = 3
"""A call that failed may be made so many times as often as one that was answered, before it is a loop."""
PATIENCE: Final = 3
"""Times as many rounds as within a workflow."""
BACKS_OFF: Final = 2
"""Gaps that have grown so often in a row are a back-off."""
UNHURRIED_S: Final = 5.0
"""Who waits so long before it tries again does not hammer."""
UNHURRIED_PROGRAM_S: Final = 1.0
"""The same of a program: who asks a tool again and no model in between is one."""
STEADY_MIN: Final = 2
"""Gaps that were like the one before so often in a row are those of a clock."""
SAMPLES_SHARE: Final = 5
"""Equal samples of a model may cost so small a share of what may be spent without anything new."""
SAMPLES_MAX: Final = 100
"""Without a budget."""
APART_S: Final = 0.5
"""Calls that begin within so many seconds may be a fan-out."""
HEARTBEAT_S: Final = 20.0
"""A tool that is called the same no more often than this is watched, or told that somebody is alive."""
AGENT_SLOW_S: Final = 60.0
"""The same of an agent: what holds for it then are the counts."""
MODEL_SLOW_S: Final = 300.0
"""The same of a model, whose every call costs."""
WAIT_S_MAX: Final = 1.0


def sampled_again(question: Question, limits: Limits, stale_tokens: int) -> Judgement:
    """Judge one more sample of what a model may answer: how many are drawn is limited by what they cost."""
    stale = limits.stale_tokens // SAMPLES_SHARE
    if stale and stale_tokens >= stale:
        return Judgement(LOOP, "spending", 0.0, stale_tokens, stale)
    if not stale and question.rounds >= SAMPLES_MAX:
        return Judgement(LOOP, "repetition", 0.0, question.rounds, SAMPLES_MAX)
    return PASSED


def is_waiting_for(turn: Turn, edge: Edge, question: Question, gap_s: float) -> bool:
    """Say whether the same is asked because time must pass."""
    if turn.kind == TOOL:
        return gap_s >= HEARTBEAT_S
    if turn.kind == AGENT:
        return gap_s >= AGENT_SLOW_S and not edge.is_circle
    # What a model is asked about may still be being done: it polls by a tool.
    return gap_s >= MODEL_SLOW_S or question.asked.is_underway


def judged_again(
    turn: Turn, edge: Edge, question: Question, periods: int, limits: Limits, steps: Sequence[int], *, is_waiting: bool
) -> Judgement:
    """Judge a question that was asked before, and has been answered or not."""
    gap_s, parties = question.gap_s, (edge.source, edge.target)
    if question.rounds >= periods and not is_waiting:
        if is_timed(turn, edge, question):
            return polled(question, limits, turn.at_s)
        if not (question.is_transient and question.backs_off and question.rounds < periods * RETRIES):
            return Judgement(LOOP, "repetition", 0.0, question.rounds, periods, parties)
    is_backing_off = question.growth >= BACKS_OFF or gap_s >= UNHURRIED_S
    if question.failures >= (periods * RETRIES if is_backing_off else periods) and not is_waiting:
        return Judgement(LOOP, "repetition", 0.0, question.failures, periods, parties)
    if (
        turn.kind == AGENT
        and question.open > periods
        and question.rounds == 0
        and not question.is_burst
        and (turn.nearness >= LOOSE or gap_s >= APART_S)
    ):
        return Judgement(LOOP, "open", 0.0, question.open - 1, periods, parties)
    if question.changes >= periods:
        period = period_of(steps, periods)
        is_period = period > 1 and steps[-period] >> 32 == question.number
        if is_period and not is_waiting and not is_timed(turn, edge, question):
            return Judgement(LOOP, "period", 0.0, periods, periods, parties)
        # A model that is asked the same for other answers is sampled, and at once where it can be.
        return polled(question, limits, turn.at_s) if turn.kind != LLM else PASSED
    return PASSED


def is_timed(turn: Turn, edge: Edge, question: Question) -> bool:
    """Say whether a program asks again by a clock: no model was asked in between, and the gaps are the same."""
    if turn.kind == TOOL and question.is_program and question.gap_s >= UNHURRIED_PROGRAM_S:
        return True
    if turn.is_many:
        # Nobody knows who has called a model in between.
        return False
    if edge.is_circle or not question.is_unthought or (turn.kind == AGENT and not question.is_alone):
        return False
    return question.steady >= STEADY_MIN and question.gap_s >= UNHURRIED_S


def polled(question: Question, limits: Limits, now_s: float) -> Judgement:
    """Let the same question be asked so many times a second, and no faster."""
    wait_s = question.next_s - now_s
    if wait_s > WAIT_S_MAX:
        # Those who poll side by side wait no longer for one another.
        wait_s = WAIT_S_MAX
    if wait_s <= 0.0:
        question.next_s = now_s + 1.0 / limits.polls
        return PASSED
    question.next_s = now_s + wait_s + 1.0 / limits.polls
    return Judgement(WAIT, "", wait_s)
