"""What hears a call for Turns, and tells the workflow in the end what was asked and answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.outcome import Verdict
from meshd.turns.sample import Sample

if TYPE_CHECKING:
    from meshd.call import Call
    from meshd.dialects.event import Event
    from meshd.dialects.marks_answer import AnswerMarks
    from meshd.outcome import Outcome
    from meshd.turns.question import Question
    from meshd.turns.turn import Turn
    from meshd.turns.workflow import Workflow

# Bound here: looking a member up on its enum takes 0.1 us on Python 3.11.
_FAILURE: Final = Verdict.FAILURE
_BACKPRESSURE: Final = Verdict.BACKPRESSURE
_NOTHING_YET: Final = (202, 204)
"""Accepted, and nothing to say: who asks again polls."""
EVENTS_MAX: Final = 4096
"""Of one answer that are read."""
PLAIN_BYTES_MAX: Final = 4096
"""What a longer answer says is not kept beside its question."""


class Hearing:
    """The ticket of a call whose bodies stream: hears the request, and has the answer heard."""

    __slots__ = ("_answer", "_asked", "_prefix", "_turn", "_workflow")

    def __init__(self, workflow: Workflow, turn: Turn, prefix: bytes, sample_bytes: int, *, is_heard: bool) -> None:
        """`prefix` stands before what is heard of the request; `is_heard` is false where its payload is known."""
        self._workflow = workflow
        self._turn = turn
        self._prefix = prefix
        self._asked: Sample | None = Sample(sample_bytes) if is_heard else None
        self._answer = Sample(sample_bytes)

    def hear(self, data: bytes) -> None:
        """Take a piece of the request's body."""
        if self._asked is not None:
            self._asked.hear(data)

    @property
    def answer(self) -> Sample:
        """What hears the answer."""
        return self._answer

    def tell(self) -> None:
        """Let the workflow know what is asked, as far as it has been heard."""
        asked, self._asked = self._asked, None
        if asked is not None:
            self._workflow.asked(self._turn, self._prefix + asked.taken())

    def settle(self, outcome: Outcome) -> None:
        """The call is over."""
        turn, workflow = self._turn, self._workflow
        if turn.edge is not None and self in turn.edge.unasked:
            turn.edge.unasked.remove(self)
        if outcome.reason is not None and not outcome.is_forwarded:
            workflow.withdraw(turn)
            return
        self.tell()
        verdict = outcome.verdict
        is_failed = verdict is _FAILURE or verdict is _BACKPRESSURE
        answer = self._answer.taken() if self._answer.size or outcome.status else None
        if outcome.grpc_status > 0 and answer is not None:
            answer += b" status %d" % outcome.grpc_status
        workflow.answered(turn, answer, is_failed=is_failed, is_underway=outcome.status in _NOTHING_YET)


class HearingModel:
    """The ticket of a call of a model that was asked the same before."""

    __slots__ = ("_events", "_marks", "_names", "_plain", "_turn", "_workflow")

    judges_whole = False

    def __init__(self, workflow: Workflow, turn: Turn, marks: AnswerMarks | None) -> None:
        self._workflow = workflow
        self._turn = turn
        self._marks = marks
        self._names: tuple[str, ...] = ()
        self._events = 0
        self._plain: bytes | None = None
        """An answer that came whole: read only where it is not the very one that came before."""

    def on_event(self, event: Event) -> Event:
        """Read a piece of the answer."""
        raw = event.raw
        if self._marks is not None and raw and self._events < EVENTS_MAX:
            self._events += 1
            if self._events == 1 and raw[:1] == b"{":
                self._plain = raw
            else:
                self._marks.take(event)
            if event.tool_names:
                self._names += event.tool_names
        return event

    def settle(self, outcome: Outcome) -> None:
        """The answer is over, or will never come."""
        turn, workflow = self._turn, self._workflow
        if outcome.reason is not None and not outcome.is_forwarded:
            workflow.withdraw(turn)
            return
        verdict, usage = outcome.verdict, outcome.usage
        answer = self._said(turn.question) if self._events else None
        tokens = usage.total if usage is not None else 0
        workflow.answered(turn, answer, tokens, is_failed=verdict is _FAILURE or verdict is _BACKPRESSURE)

    def _said(self, question: Question | None) -> bytes:
        """Return what the answer says: the tools that it calls, with what, and its text."""
        marks, plain = self._marks, self._plain
        assert marks is not None
        if plain is not None:
            mark = hash(plain)
            if question is not None and question.plain_mark == mark and question.plain_size == len(plain):
                return question.plain_said
            marks.read(plain)
        said = "\n".join((*self._names, *marks.arguments(), *marks.texts())).encode("utf-8", "replace")
        if plain is not None and question is not None and len(said) <= PLAIN_BYTES_MAX:
            question.plain_mark, question.plain_size, question.plain_said = hash(plain), len(plain), said
        return said


class Both:
    """Hears for two."""

    __slots__ = ("_first", "_second")

    def __init__(self, first: Any, second: Any) -> None:
        self._first = first
        self._second = second

    def hear(self, data: bytes) -> None:
        """Take a piece of an answer."""
        self._first.hear(data)
        self._second.hear(data)


def hears(call: Call, hearing: Hearing) -> None:
    """Have the bodies of a call heard."""
    if call.body is None and call.heard_by is None:
        call.heard_by = hearing
    answer, other = hearing.answer, call.reply_heard_by
    call.reply_heard_by = answer if other is None else Both(other, answer)
