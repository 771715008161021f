"""The moments of a call, written down as they come: before it goes out, when it has ended, why it was refused.

Plain function calls on the loop's thread. Only where the log is durable does a call wait, for a sync that all share.
"""

from __future__ import annotations

import logging
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from meshd.call import Direction, Kind
from meshd.clocks import ClockMalformed
from meshd.refusal import Reason, Refused
from meshd.trace import kinds
from meshd.trace.heads import head_of, span_of
from meshd.trace.knowledge import AHEAD_US_MAX, FIELD, Told, decode, encode
from meshd.trace.writer import MESSAGE_CHARACTERS_MAX, Writer, unwritten

if TYPE_CHECKING:
    from meshd.call import Call, Headers, ReplyHead
    from meshd.outcome import Outcome

_log = logging.getLogger("meshd.trace")

DIGESTED_BYTES_MAX: Final = 4096
"""A longer body is not digested: SHA-256 of 100 kB costs more than all the rest of a call."""
ARRIVALS_MAX: Final = 16_384
"""Agents in workflows of which the last call to them is known: what they do next is caused by it."""

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11.
_INBOUND: Final = Direction.INBOUND
_AGENT: Final = Kind.AGENT
_ARRIVED: Final = kinds.ARRIVED
_FORWARDED: Final = kinds.FORWARDED
_ENDED: Final = kinds.ENDED
_NO_HEAD: Final = b""
_INTENT_TARGET: Final = b"x-meshd-intent-target"
_INTENT_SCORE: Final = b"x-meshd-intent-score"
_INTENT_CHOICE: Final = b"x-meshd-intent-choice"


class Hop:
    """The ticket of a call to or from another sidecar: clocks go both ways. It owes nothing."""

    __slots__ = ("_call", "_recorder")

    def __init__(self, recorder: Recorder, call: Call) -> None:
        self._recorder = recorder
        self._call = call

    def on_head(self, head: ReplyHead) -> None:
        """The reply of a peer brings its clock; that of the agent here takes ours along."""
        if self._call.direction is _INBOUND:
            self._recorder.reply(self._call)
        else:
            self._recorder.replied(self._call, head.headers)

    def settle(self, outcome: Outcome) -> None:
        """See `Ticket.settle`."""


class Recorder(Writer):
    """Writes down what becomes of calls."""

    __slots__ = ()

    # ------------------------------------------------------------------ a call

    def forwarded(self, call: Call) -> Hop | None:
        """Write down that an attempt goes out now: return a ticket where clocks travel with it. Where the log is
        durable, `whole` is to be waited for.

        Raises Refused: CONTEXT_INVALID for a clock that does not verify, STORE_UNAVAILABLE where the log is durable and
        cannot be written.
        """
        context = call.context
        if context is None:
            return None
        workflow = context.workflow or context.account
        is_inbound = call.direction is _INBOUND
        told: Told | None = None
        causes: tuple[int | str, ...] = ()
        is_hop = False
        if is_inbound:
            told = self._told(call, workflow)
            if told is not None:
                causes = (told.event,)
                is_hop = True
        else:
            is_hop = call.upstream is not None and call.upstream.is_peer and bool(context.workflow)
            arrival = self._arrivals.get((workflow, call.agent))
            if arrival is not None:
                causes = (arrival,)
            if call.handed is not None and (handed := self._told(call, workflow)) is not None:
                # An event is pushed: its publisher serves something else by now.
                causes = (handed.event,)
            if call.attempt > 1 and call.event:
                causes = (call.event, *causes)
            if call.reply_headers:
                if routed := self._routed(call, workflow, causes):
                    causes = (routed,)
                if call.prompts is not None and call.attempt == 1:
                    causes = self._prompted(call, workflow, causes)
        facts = head_of(call, self, told.head if told is not None else _NO_HEAD)
        kind = _ARRIVED if is_inbound else _FORWARDED
        call.event = event = self._append(kind, call.wall_s, workflow, call, causes, span_of(call), facts)
        if event:
            if is_inbound:
                self.arrived(workflow, call.agent, event)
            elif call.target.kind is _AGENT and not is_hop:
                self.arrived(workflow, call.target.name, event)
        ticket: Hop | None = None
        if is_hop and self._keys is not None:
            ticket = Hop(self, call)
            if not is_inbound and event:
                self._send(call, workflow, event)
        if not event and self.is_durable:
            raise unwritten(self._why)
        return ticket

    def _routed(self, call: Call, workflow: str, causes: tuple[int | str, ...]) -> int:
        """Write down that an intent was resolved to this target; 0 where it was called by name."""
        found = dict(call.reply_headers)
        targets = found.get(_INTENT_TARGET)
        if targets is None or call.attempt > 1:
            return 0
        score, choice = found.get(_INTENT_SCORE, b"").decode("latin-1"), found.get(_INTENT_CHOICE, b"")
        facts = (targets.decode("latin-1"), score, choice.decode("latin-1"))
        return self._append(kinds.ROUTED, call.wall_s, workflow, call, causes, b"", facts, is_brief=True)

    def _prompted(self, call: Call, workflow: str, causes: tuple[int | str, ...]) -> tuple[int | str, ...]:
        """Write down which versions of prompts the call uses: return what it follows from then."""
        for used in call.prompts.used:
            facts = (used.name, used.version, used.digest)
            event = self._append(kinds.PROMPT, call.wall_s, workflow, call, causes, b"", facts, is_brief=True)
            if event:
                causes = (event,)
        return causes

    def attempted(self, call: Call, outcome: Outcome) -> None:
        """An attempt has ended. Never raises."""
        context = call.context
        if context is None or not call.event:
            return
        usage, held = outcome.usage, outcome.held
        facts = (
            outcome.status,
            outcome.verdict,
            outcome.fault,
            outcome.is_forwarded,
            -1 if usage is None else usage.input_tokens,
            -1 if usage is None else usage.output_tokens,
            0 if usage is None else usage.cached_tokens,
            "" if held is None else held.account or _accounts_of(held),
            0 if held is None else held.bound,
            0 if held is None else held.charged,
            outcome.microdollars,
            int(outcome.taken_s * 1000.0),
            outcome.grpc_status,
        )
        span = span_of(call)
        if not span and self.has_collector and (outcome.status >= 400 or not outcome.status):
            span = call.span.parent_bytes if call.span is not None else b""
        wall_s = call.wall_s + outcome.now_s - call.now_s
        workflow = context.workflow or context.account
        self._append(_ENDED, wall_s, workflow, call, (call.event,), span, facts, is_brief=True)

    def denied(self, call: Call, refused: Refused, *, is_shadow: bool = False) -> None:
        """A call was refused, or would have been. Never raises."""
        context = call.context
        workflow = "" if context is None else context.workflow or context.account
        causes: tuple[int | str, ...] = (call.event,) if call.event else ()
        if not causes and workflow:
            if call.direction is _INBOUND:
                try:
                    told = self._told(call, workflow)
                except Refused:
                    told = None
                causes = () if told is None else (told.event,)
            elif (arrival := self._arrivals.get((workflow, call.agent))) is not None:
                causes = (arrival,)
        span = span_of(call)
        if not span and self.has_collector and call.span is not None:
            span = call.span.parent_bytes
        facts = head_of(
            call,
            self,
            refused.reason,
            refused.rule,
            refused.status,
            self.clean(refused.message[:MESSAGE_CHARACTERS_MAX]),
        )
        kind = kinds.SHADOWED if is_shadow else kinds.REFUSED
        event = self._append(kind, self.wall_clock(), workflow, call, causes, span, facts)
        if not call.event:
            call.event = event

    def answered(self, call: Call, status: int) -> None:
        """A call was answered here, by a replay or a canned reply. Never raises."""
        if call.context is None or call.event:
            return
        workflow = call.context.workflow or call.context.account
        facts = head_of(call, self, status)
        call.event = self._append(kinds.ANSWERED, self.wall_clock(), workflow, call, (), span_of(call), facts)

    # ------------------------------------------------------------------ clocks that travel

    def reply(self, call: Call) -> None:
        """The agent here answers a call of another sidecar: its reply takes our clock along."""
        context = call.context
        if context is None or self._keys is None:
            return
        value = self.signed(context.workflow or context.account, self.log.sequence)
        call.reply_headers = [*(field for field in call.reply_headers if field[0] != FIELD), (FIELD, value)]

    def replied(self, call: Call, headers: Headers) -> None:
        """A peer has answered: what it knows is known here from now on. A clock that does not verify is passed over."""
        context = call.context
        if context is None or self._keys is None:
            return
        for name, value in headers:
            if name == FIELD:
                told = self.heard(value, context.workflow, context.workflow, f"the reply of {call.target.name}")
                if told is None:
                    return
                causes: tuple[int | str, ...] = (told.event, call.event) if call.event else (told.event,)
                wall_s = self.wall_clock()
                self._append(kinds.REPLIED, wall_s, context.workflow, call, causes, b"", (told.head,), is_brief=True)
                return

    def _told(self, call: Call, workflow: str) -> Told | None:
        """Return what the caller's sidecar says, once it is learnt. Raises Refused."""
        if self._keys is None:
            return None
        for name, value in call.governed:
            if name == FIELD:
                try:
                    told = decode(value, workflow, self._keys.ring)
                except ClockMalformed as error:
                    raise Refused(
                        Reason.CONTEXT_INVALID,
                        f"The x-meshd-clock of the call cannot be used: {error}. Only sidecars send it; pass none on.",
                    ) from error
                self._learn(workflow, told)
                return told
        return None

    def signed(self, workflow: str, event: int) -> bytes:
        """Return what travels with all that follows from an event of this sidecar; nothing where no key signs it."""
        if self._keys is None:
            return b""
        return encode(self._own(workflow, event), workflow, self._keys.ring)

    def heard(self, value: bytes, workflow: str, here: str, where: str) -> Told | None:
        """Take what came with something of `workflow`, and return it; it is known from now on where that is the
        workflow `here`, since clocks count the events of one. None where there is nothing, or where it does not verify:
        it is passed over, and `where` it stood is said."""
        if not value or self._keys is None:
            return None
        try:
            told = decode(value, workflow, self._keys.ring)
        except ClockMalformed as error:
            _log.warning("the clock in %s is passed over: %s", where, error)
            return None
        if workflow == here:
            self._learn(workflow, told)
        else:
            self._follow(told)
        return told

    def _learn(self, workflow: str, told: Told) -> None:
        own = self.knowledge.learn(workflow, told.clock)
        if own > self.log.sequence:
            _log.error(
                "sidecar %s knows of event %d of this one, whose log ends at %d: a part of it is lost",
                told.sidecar,
                own,
                self.log.sequence,
            )
        self._follow(told)

    def _follow(self, told: Told) -> None:
        """What is written from now on is later than what was told, by the clock of the wall too."""
        if self._hlc_us < told.hlc_us <= int(self.wall_clock() * 1e6) + AHEAD_US_MAX:
            self._hlc_us = told.hlc_us

    def _send(self, call: Call, workflow: str, event: int) -> None:
        value = self.signed(workflow, event)
        call.inject = [*(field for field in call.inject if field[0] != FIELD), (FIELD, value)]

    def _own(self, workflow: str, sequence: int) -> Told:
        log = self.log
        clock = self.knowledge.at(workflow, sequence)
        return Told(log.sidecar, log.epoch, sequence, self._hlc_us, log.head, clock)

    def arrived(self, workflow: str, agent: str, event: int) -> None:
        """What an agent does next in a workflow follows from this event, where nothing else is known of it."""
        arrivals, key = self._arrivals, (workflow, agent)
        arrivals.pop(key, None)
        arrivals[key] = event
        if len(arrivals) > ARRIVALS_MAX:
            del arrivals[next(iter(arrivals))]

    # ------------------------------------------------------------------ writing

    def _append(
        self,
        kind: int,
        wall_s: float,
        workflow: str,
        call: Call,
        causes: tuple[int | str, ...],
        span: bytes,
        facts: tuple[Any, ...],
        *,
        is_brief: bool = False,
    ) -> int:
        digest = b""
        if not is_brief:
            body = call.body
            if body is not None and len(body) <= DIGESTED_BYTES_MAX:
                digest = sha256(body).digest()
        target = self.shown(call.target.name)
        return self._write(kind, wall_s, workflow, call.id, call.agent, target, causes, span, digest, facts)


def _accounts_of(held: Any) -> str:
    """Name the accounts of an attempt that one account did not give all of at once."""
    rest = held.rest
    return "" if rest is None else ", ".join([reservation.account for reservation in rest.reservations])
