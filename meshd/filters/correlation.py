"""Correlation: to which inbound call does an outbound one belong, where the agent does not say?

Evidence of decreasing strength, each a set of inbound calls that it leaves possible: the trace, ids and answers that
were relayed, the chat's history, words of the inbound call, being the only one under way. A weaker one may choose
among what a stronger one left, and never adds to it; what is still ambiguous at the end belongs to nobody. Inferred
context restricts and is charged; it is no proof, so nothing may be granted for it.

A conversation whose owner is not known is for no call that came after it began. If nothing in it ever spoke for one of
the others, it may be the agent's own, and that they end one by one makes it nobody's.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from meshd.call import Evidence
from meshd.dialects.marks import TEXT_CHARACTERS_MIN, marks_of
from meshd.dialects.marks_answer import answer_marks
from meshd.filters.correlation_calls import KEPT_S, NOBODY, POSSIBLE_MAX, Conversation, Live, Memory, Unowned
from meshd.filters.correlation_deciding import Deciding, is_retry
from meshd.filters.correlation_words import Words, texts_in

if TYPE_CHECKING:
    from meshd.call import Call
    from meshd.dialects.event import Event
    from meshd.dialects.marks import Marks
    from meshd.dialects.marks_answer import AnswerMarks
    from meshd.outcome import Outcome
    from meshd_sdk.context import Context

ENDED_MAX: Final = 1024
"""Calls that are kept when they have ended."""

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11.
_BY_TRACE: Final = Evidence.TRACE
_BY_RELAY: Final = Evidence.RELAYED
_BY_HISTORY: Final = Evidence.HISTORY
_BY_WORDS: Final = Evidence.QUOTED
_BY_BEING_ALONE: Final = Evidence.ALONE


class Inferred:
    """What was found out about one call."""

    __slots__ = ("context", "evidence", "ticket")

    def __init__(self, context: Context | None, evidence: Evidence, ticket: Recording | None) -> None:
        self.context = context
        """None where the call belongs to nobody's work."""
        self.evidence = evidence
        self.ticket = ticket
        """Sees the answer, so that what goes on with it is known again."""


class Recording:
    """A ticket that remembers what an answer brings."""

    __slots__ = ("_answer", "_conversation", "_correlation", "_is_done")

    def __init__(self, answer: AnswerMarks, conversation: Conversation, correlation: Correlation) -> None:
        self._answer = answer
        self._conversation = conversation
        self._correlation = correlation
        self._is_done = False

    def on_event(self, event: Event) -> Event:
        """Note the ids at once: the agent may go on before the stream's end has come."""
        answer = self._answer
        answer.take(event)
        if answer.ids:
            for id in answer.ids:
                self._correlation.memory.add(hash(("id", id)), self._conversation)
            answer.ids.clear()
        if answer.is_whole:
            self._finish()
        return event

    def settle(self, outcome: Outcome) -> None:
        """The answer is over, or will never come."""
        self._finish()

    def _finish(self) -> None:
        if self._is_done:
            return
        self._is_done = True
        owner, words = self._conversation.owner, self._correlation.answers
        for text in self._answer.texts():
            if len(text) >= TEXT_CHARACTERS_MIN:
                self._correlation.memory.add(hash(("text", text)), self._conversation)
            if owner is not None:
                words.add(owner, text)
        for arguments in self._answer.arguments():
            if len(arguments) >= TEXT_CHARACTERS_MIN:
                self._correlation.memory.add(hash(("text", arguments)), self._conversation)
            if owner is not None:
                for text in texts_in(arguments.encode("utf-8", "replace")):
                    words.add(owner, text)


class Correlation:
    """What one sidecar knows of its agent's inbound calls. Costs nothing before the first of them."""

    __slots__ = (
        "_asked_s",
        "_by_trace",
        "_ended",
        "_is_used",
        "_live",
        "_unowned",
        "answers",
        "memory",
        "unread",
        "words",
    )

    def __init__(self) -> None:
        self._live: dict[Live, None] = {}
        self._ended: deque[Live] = deque()
        self._by_trace: dict[str, list[Live]] = {}
        self._is_used = False
        self._unowned = Unowned()
        self.memory = Memory()
        self.words = Words()
        """Of inbound calls."""
        self.answers = Words()
        """Of answers that were given to what an inbound call had the agent ask: it begins other conversations with
        them. In one that goes on they prove nothing, since it may have been given the same."""
        self.unread: dict[Live, None] = {}
        """Calls of whose bodies something passed since their words were last filed."""
        self._asked_s = -KEPT_S
        """When a call last came that did not say what it belongs to: only then are words worth filing."""

    # ------------------------------------------------------------------ inbound calls

    def begin(self, call: Call, context: Context) -> Live:
        """An inbound call is there: return the ticket that learns of its end."""
        span = call.span
        traceparent: str = span.traceparent if span is not None else context.parent
        live = Live(context, call.now_s, traceparent, self)
        self._is_used = True
        self._live[live] = None
        if traceparent:
            self._by_trace.setdefault(traceparent[3:35], []).append(live)
        if "?" in call.path:
            for _, text in parse_qsl(call.path.partition("?")[2]):
                self.words.add(live, text)
        return live

    def ended(self, live: Live) -> None:
        """An inbound call is over; what was said for it may still go on for a while."""
        self._live.pop(live, None)
        if live.traceparent:
            trace = live.traceparent[3:35]
            sharing = self._by_trace.get(trace, [])
            if live in sharing:
                sharing.remove(live)
            if not sharing:
                self._by_trace.pop(trace, None)
        if live.ended_s - self._asked_s >= KEPT_S:
            self.unread.pop(live, None)
            live.forget_heard()
            self._drop(live)  # What was filed before: of the call's address, or for an agent that asked long ago.
            return
        self._file(live)
        live.forget_heard()
        self._ended.append(live)
        if len(self._ended) > ENDED_MAX:
            self._drop(self._ended.popleft())

    def _forget(self, call: Call) -> None:
        """Drop the words of calls that ended too long ago."""
        ended = self._ended
        while ended and not ended[0].is_kept(call):
            self._drop(ended.popleft())

    def _drop(self, live: Live) -> None:
        self.words.drop(live)
        self.answers.drop(live)

    def _file_words(self) -> None:
        for live in tuple(self.unread):
            self._file(live)

    def _file(self, live: Live) -> None:
        if live in self.unread:
            del self.unread[live]
            for text in texts_in(live.heard()):
                self.words.add(live, text)

    # ------------------------------------------------------------------ outbound calls

    def infer(self, call: Call, trace: str) -> Inferred | None:
        """Say to which inbound call an outbound one belongs; None where there never was one to belong to.

        `trace` is the trace id that the call brought as 32 hexadecimal digits, empty for none.
        """
        if not self._is_used:
            return None
        self._asked_s = call.now_s
        ask = call.ask
        marks = marks_of(call.dialect.name, ask) if ask is not None else None
        relayed = self._relayed(marks) if marks is not None else []
        continued = self._continued(marks, call) if marks is not None else ()
        deciding = Deciding(call)
        if trace and (sharing := self._by_trace.get(trace)):
            deciding.narrow(set(sharing), _BY_TRACE)
        self._narrow_to_owners(deciding, relayed, _BY_RELAY)
        self._narrow_to_owners(deciding, [continued] if continued else [], _BY_HISTORY)
        if not deciding.is_decided and call.body:
            self._narrow_by_words(deciding, marks, call.body)
        if not deciding.is_decided:
            deciding.narrow_to_live(self._live)
        ticket = None
        if marks is not None:
            ticket = self._recording(call, marks, relayed or [continued], deciding)
        return Inferred(deciding.context, deciding.evidence, ticket)

    def _narrow_by_words(self, deciding: Deciding, marks: Marks | None, body: bytes) -> None:
        call = deciding.call
        self._forget(call)
        self._file_words()
        wholes = marks.whole if marks is not None else []
        if self.words and (quoted := self.words.quoted(body, wholes)):
            deciding.narrow({live for live in quoted if live.is_kept(call)}, _BY_WORDS)
            if marks is not None and not deciding.is_decided:
                deciding.narrow_to_unbegun(marks, self._unowned)
        is_going_on = marks is not None and True in marks.is_models
        if not (deciding.is_decided or is_going_on) and self.answers and (quoted := self.answers.quoted(body, wholes)):
            deciding.narrow({live for live in quoted if live.is_kept(call)}, _BY_WORDS)

    def _relayed(self, marks: Marks) -> list[tuple[Conversation, ...]]:
        """Return for each thing that is quoted the conversations in which it was said."""
        keys = [hash(("id", id)) for id in marks.ids]
        keys += [hash(("text", text)) for text in marks.texts]
        keys += [hash(("name", name)) for name in marks.names]
        return [known for key in keys if (known := self.memory.get(key))]

    def _continued(self, marks: Marks, call: Call) -> tuple[Conversation, ...]:
        """Return the conversations of the longest history that goes on here: what follows it must be an answer."""
        history, is_models = marks.history, marks.is_models
        is_again = is_retry(call)
        for at in range(len(history) - 1, -1, -1):
            known = self.memory.get(history[at])
            if known is None:
                continue
            if at == len(history) - 1:
                # The very request again: a client's retry, or another conversation that goes the same way.
                if is_again:
                    return known
            elif is_models[at + 1]:
                return known
        return ()

    def _narrow_to_owners(self, deciding: Deciding, said: list[tuple[Conversation, ...]], evidence: Evidence) -> None:
        """Keep those for whom all of this was said; where it was said for none of them, each may be meant."""
        if deciding.is_decided:
            return
        common: set[Live] | None = None
        every: set[Live] = set()
        is_guess = True
        for conversations in said:
            found: set[Live] = set()
            is_owned = True
            for one in conversations:
                owner = one.owner
                if owner is not None:
                    found.add(owner if owner.is_kept(deciding.call) else NOBODY)
                else:
                    # That it is known says only whom it cannot belong to.
                    is_owned = False
                    found |= self._possible(one)
            is_guess = is_guess and not is_owned
            every |= found
            common = found if common is None else common & found
        deciding.narrow(common or every, _BY_BEING_ALONE if is_guess else evidence)

    def _possible(self, conversation: Conversation) -> set[Live]:
        """Return for whom a conversation may be whose owner is not known: for none that came after it began, and,
        where nothing ever spoke for anybody, for the agent itself as well."""
        known = self._live if conversation.possible is None else conversation.possible
        possible = {live for live in known if live.is_live and live.began_s <= conversation.first_s}
        if conversation.possible is None or not possible:
            possible.add(NOBODY)
        return possible

    def _recording(
        self, call: Call, marks: Marks, said: list[tuple[Conversation, ...]], deciding: Deciding
    ) -> Recording | None:
        assert call.ask is not None
        answer = answer_marks(call.dialect.name, call.ask.operation)
        if answer is None:
            return None
        conversation = _joined(said, deciding)
        if marks.history:
            self.memory.add(marks.history[-1], conversation)
            if True not in marks.is_models and not conversation.opening:
                conversation.begin(marks.history[-1])
                if conversation.owner is None and conversation.possible:
                    self._unowned.add(conversation)
        for name in marks.names:
            self.memory.add(hash(("name", name)), conversation)
        return Recording(answer, conversation, self)


def _joined(said: list[tuple[Conversation, ...]], deciding: Deciding) -> Conversation:
    """Return the conversation that a call belongs to: the only one that it can go on with, or a new one."""
    owner, now_s = deciding.owner, deciding.call.now_s
    matched = {one for conversations in said for one in conversations}
    if len(matched) == 1:
        (one,) = matched
        if one.owner is owner or one.owner is None:
            if one.owner is None and owner is not None:
                one.own(owner)
            elif one.owner is None and deciding.candidates and len(deciding.candidates) <= POSSIBLE_MAX:
                one.possible = deciding.candidates
            one.last_s = now_s
            return one
    # Of several none is chosen: it may be as young as the youngest of them.
    first_s = max([one.first_s for one in matched]) if matched else now_s
    return Conversation(owner, (deciding.candidates or None) if owner is None else None, first_s, now_s)
