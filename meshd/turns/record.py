"""A workflow in at most 4 kB, and what another sidecar's record adds to it.

Counters stand by sidecar, each with a stamp that only its own sidecar raises: so records can be merged in any order,
and twice. A sidecar takes another number at every start, so what it counted before counts on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.turns.edge import COUNT_MASK, Edge
from meshd.turns.question import Question
from meshd.turns.said import Said
from meshd.turns.turn import AGENT, EVENT, LLM, TOOL

if TYPE_CHECKING:
    from meshd.turns.workflow import Workflow

RECORD_BYTES_MAX: Final = 4096
LAYOUT: Final = 1
SIDECARS_MAX: Final = 8
"""Of one edge that are told apart; beyond them those that counted least stand together."""
REST: Final = 0
COUNT_BITS: Final = 24
COUNT_MAX: Final = COUNT_MASK
NAME_CHARACTERS_MAX: Final = 64
QUESTIONS_MAX: Final = 3
"""Of one edge."""
NEWS: Final = "+"
"""In place of an edge's target: how often something new came for its source."""

_KINDS: Final = (AGENT, EVENT, TOOL, LLM)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class RecordBroken(ValueError):
    """The bytes are no record of this layout."""


def encoded(workflow: Workflow, sidecar: int, stamp: int, wall_s: float) -> bytes:
    """Return the record of a workflow, as `sidecar` knows it; never more than `RECORD_BYTES_MAX`.

    `stamp` is higher each time; `wall_s` in unix seconds says when it was last of use.
    """
    names: dict[str, int] = {}
    edges: list[list[Any]] = []
    rows = sorted(workflow.edges.values(), key=lambda one: -one.tenths)
    asked: list[tuple[int, list[Any]]] = []
    for edge in rows:
        counts = counts_of(edge.own, edge.elsewhere, sidecar, stamp)
        if not counts and not any(one.rounds > 1 for one in edge.questions):
            continue
        row = [_index(names, edge.source), _index(names, edge.target), _KINDS.index(edge.kind), counts, []]
        edges.append(row)
        for question in [one for one in edge.questions if one.rounds > 0 or one.open > 0][-QUESTIONS_MAX:]:
            told = _told(question, workflow)
            if told is not None:
                asked.append((question.rounds, [len(edges) - 1, told]))
    news = [
        [_index(names, agent), counts]
        for agent in workflow.news.keys() | workflow.news_elsewhere.keys()
        if (counts := counts_of(workflow.news.get(agent, 0), workflow.news_elsewhere.get(agent, {}), sidecar, stamp))
    ]
    head = [LAYOUT, int(wall_s), workflow.is_stopped, bytes(workflow.seen.new), bytes(workflow.seen.old)]
    asked.sort(key=lambda one: -one[0])
    for _, (at, told) in asked:
        edges[at][4].append(told)
    while True:
        made = _encode([*head, list(names), edges, news])
        if len(made) <= RECORD_BYTES_MAX:
            return made
        if asked:
            # What was asked goes first: the counts are what must not be lost.
            _, (at, told) = asked.pop()
            edges[at][4].remove(told)
        elif news:
            news = []
        else:
            names, edges = _without_last(list(names), edges)


def counts_of(own: int, elsewhere: dict[int, int], sidecar: int, stamp: int) -> dict[int, int]:
    """Return a counter's parts by sidecar, with their stamps."""
    counts = dict(elsewhere)
    if own:
        counts[sidecar] = stamp << COUNT_BITS | min(own, COUNT_MAX)
    while len(counts) > SIDECARS_MAX:
        least = min((one for one in counts if one not in (sidecar, REST)), key=lambda one: counts[one] & COUNT_MAX)
        gone = counts.pop(least)
        rest = counts.get(REST, 0)
        # Its stamp is the sum itself: two sidecars that fold the same parts make the same of them.
        total = min((rest & COUNT_MAX) + (gone & COUNT_MAX), COUNT_MAX)
        counts[REST] = total << COUNT_BITS | total
    return counts


def _without_last(names: list[str], edges: list[list[Any]]) -> tuple[dict[str, int], list[list[Any]]]:
    kept = edges[:-1]
    again: dict[str, int] = {}
    rows = [[_index(again, names[row[0]]), _index(again, names[row[1]]), *row[2:]] for row in kept]
    return again, rows


def _index(names: dict[str, int], name: str) -> int:
    return names.setdefault(name[:NAME_CHARACTERS_MAX], len(names))


def _told(question: Question, workflow: Workflow) -> list[Any] | None:
    said, answer = question.asked, question.answer
    said.learn(workflow.seen)
    if answer is not None:
        answer.learn(workflow.seen)
    if not said.is_known:
        return None
    told: list[Any] = [question.mark, question.rounds, said.exact, said.loose, said.likeness, said.size]
    if answer is not None and answer.is_known:
        told += [answer.exact, answer.loose, answer.likeness, answer.size]
    return told


def merge(workflow: Workflow, record: bytes, sidecar: int) -> int:
    """Add what a record says; return when it was last of use, in unix seconds. Raises RecordBroken, and then nothing
    is changed."""
    try:
        layout, wall_s, is_stopped, new, old, names, edges, news = _decode(record)
        if layout != LAYOUT:
            raise RecordBroken(f"a record of layout {layout}")
        rows = [
            (str(names[source]), str(names[target]), _KINDS[kind], _checked(counts), [list(one) for one in asked])
            for source, target, kind, counts, asked in edges
        ]
        brought = [(str(names[agent]), _checked(counts)) for agent, counts in news]
        questions = [[_restored(one) for one in asked] for *_, asked in rows]
    except (msgspec.MsgspecError, ValueError, TypeError, IndexError) as error:
        raise RecordBroken(str(error)) from error
    workflow.seen.merge(bytes(new), bytes(old))
    workflow.is_stopped = workflow.is_stopped or is_stopped is True
    for (source, target, kind, counts, _), asked in zip(rows, questions, strict=True):
        edge = workflow.edges.get((source, target))
        if edge is None:
            edge = workflow.edges[source, target] = Edge(source, target, kind)
            workflow.close_circle(edge)
        _raise(edge.elsewhere, counts, sidecar)
        for one in asked:
            edge.restore(one)
    for agent, counts in brought:
        _raise(workflow.news_elsewhere.setdefault(agent, {}), counts, sidecar)
    for row in rows:
        edge = workflow.edges[row[0], row[1]]
        news_at = workflow.news_of(edge)
        for one in edge.questions:
            if not one.number:
                # What was new before it came from the store takes nothing back from it.
                one.news_at = news_at
    return int(wall_s)


def _checked(counts: Any) -> dict[int, int]:
    return {int(sidecar): int(count) for sidecar, count in counts.items() if int(count) >= 0}


def _raise(elsewhere: dict[int, int], counts: dict[int, int], sidecar: int) -> None:
    for other, count in counts.items():
        if other != sidecar and count > elsewhere.get(other, 0):
            elsewhere[other] = count


def _restored(told: list[Any]) -> Question:
    mark, rounds, exact, loose, likeness, size, *rest = [int(one) for one in told]
    question = Question(Said.restored(exact, loose, likeness, size), mark, 0)
    question.rounds = rounds
    if len(rest) == 4:
        question.answer = Said.restored(*rest)
    return question
