"""What was decided of each call, kept for a while so that it can be read back by the call's id.

Attempts that ended and refusals each have a ring of fixed length, in memory alone. A record holds numbers, names and a
refusal's own words; never a part of a body, a header or a key. The records of attempts are made once and then written
over: with one made for each call, keeping them cost more than twice as much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Direction, Evidence, Kind, Target
from meshd.outcome import Fault, Verdict
from meshd.telemetry.names import ANSWERED

if TYPE_CHECKING:
    from meshd.call import Ask, Call
    from meshd.filters.held import Held, Rest
    from meshd.ledger.entry import Shortfall
    from meshd.outcome import Outcome
    from meshd.refusal import Reason, Refused
    from meshd.trace.recorder import Recorder

ATTEMPTS_MAX: Final = 10_000
"""Attempts that are remembered, some 500 bytes each."""
REFUSALS_MAX: Final = 2_000
NAME_CHARACTERS_MAX: Final = 200
MESSAGE_CHARACTERS_MAX: Final = 1000
NONE: Final = -1
"""In place of a number that is not there: a cap that was not set, tokens that nobody reported."""

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_OUTBOUND: Final = Direction.OUTBOUND
_SUCCESS: Final = Verdict.SUCCESS
_EVIDENCE_NONE: Final = Evidence.NONE
_FAULT_NONE: Final = Fault.NONE
_NOWHERE: Final = Target(Kind.HOST, "")


class Attempted:
    """One attempt that ended. Times are in seconds; `wall_s` is when its call began, by the Unix clock."""

    __slots__ = (
        "account", "agent", "bound", "bound_by", "cached_tokens", "call", "cap_asked", "cap_granted", "charged",
        "choices", "direction", "evidence", "fault", "first_byte_s", "has_budget", "input_bound", "input_tokens",
        "is_estimated", "is_forwarded", "limit", "model_sent", "number", "operation", "output_tokens", "rest",
        "sequence", "status", "target", "took_s", "verdict", "wall_s", "workflow",
    )  # fmt: skip

    def __init__(self) -> None:
        self.sequence = 0
        """Counts all records of a process."""
        self.call = ""
        self.number = 0
        self.wall_s = 0.0
        self.direction: Direction = _OUTBOUND
        self.agent = ""
        self.workflow = ""
        self.evidence: Evidence = _EVIDENCE_NONE
        self.target: Target = _NOWHERE
        self.operation = ""
        self.model_sent = ""
        """Empty where it is the one that was asked for."""
        self.bound_by = ""
        self.choices = 0
        self.cap_asked = NONE
        self.cap_granted = NONE
        self.has_budget = False
        """A budget counts it; the next eight mean something only then."""
        self.account = ""
        """Empty where several accounts gave it, or one did later: then `rest` has what they did."""
        self.limit = 0
        self.bound = 0
        """The most that it could cost, in tokens."""
        self.input_bound = 0
        self.charged = 0
        self.is_estimated = False
        self.rest: Rest | None = None
        self.input_tokens = NONE
        self.output_tokens = NONE
        self.cached_tokens = NONE
        self.status = 0
        self.verdict: Verdict = _SUCCESS
        self.fault: Fault = _FAULT_NONE
        self.is_forwarded = False
        self.first_byte_s: float | None = None
        self.took_s = 0.0

    def write(self, call: Call, outcome: Outcome, sequence: int) -> None:
        """Make this the record of another attempt."""
        self.sequence = sequence
        self.call = call.id
        self.number = call.attempt
        self.wall_s = call.wall_s
        self.direction = call.direction
        self.agent = call.agent
        context = call.context
        self.workflow = context.workflow if context is not None else ""
        self.evidence = call.evidence
        self.status = outcome.status
        self.verdict = outcome.verdict
        self.fault = outcome.fault
        self.is_forwarded = outcome.is_forwarded
        self.first_byte_s = outcome.first_byte_s
        self.took_s = outcome.duration_s
        held: Held | None = outcome.held
        self.has_budget = held is not None
        if held is not None:
            self.account = held.account
            self.limit = held.limit
            self.bound = held.bound
            self.input_bound = held.input_bound
            self.charged = held.charged
            self.is_estimated = held.is_estimated
            self.rest = held.rest
        usage = outcome.usage
        if usage is None:
            self.input_tokens = NONE
        else:
            self.input_tokens = usage.input_tokens
            self.output_tokens = usage.output_tokens
            self.cached_tokens = usage.cached_tokens
        ask = call.ask
        if ask is None:
            self.target = call.target
            self.operation = self.model_sent = self.bound_by = ""
            self.cap_asked = self.cap_granted = NONE
            return
        self.target = call.target if len(ask.model) <= NAME_CHARACTERS_MAX else short(call.target)
        self._write_ask(ask)

    def _write_ask(self, ask: Ask) -> None:
        self.operation = ask.operation
        granted, asked, cap = ask.model_granted, ask.output_cap, ask.output_cap_granted
        self.model_sent = granted if granted is not None else ""
        self.choices = ask.choices
        self.cap_asked = asked if asked is not None else NONE
        self.cap_granted = cap if cap is not None else self.cap_asked
        self.bound_by = ask.bound_by


class Denied:
    """One refusal, or what a rule in shadow would have refused."""

    __slots__ = (
        "agent", "call", "direction", "evidence", "is_shadow", "message", "number", "reason", "rule", "sequence",
        "short", "status", "target", "wall_s", "workflow",
    )  # fmt: skip

    def __init__(self, call: Call, refused: Refused, sequence: int, is_shadow: bool) -> None:
        context = call.context
        self.sequence = sequence
        self.call = call.id
        self.number = call.attempt
        """Of the attempt that was refused; 0 where it never came to one."""
        self.wall_s = call.wall_s
        self.direction: Direction = call.direction
        self.agent = call.agent
        self.workflow = context.workflow if context is not None else ""
        self.evidence: Evidence = call.evidence
        self.target = short(call.target)
        self.reason: Reason = refused.reason
        self.message = refused.message[:MESSAGE_CHARACTERS_MAX]
        self.rule = refused.rule
        self.status = refused.status
        self.is_shadow = is_shadow
        self.short: Shortfall | None = refused.short


class Provenance:
    """The last attempts and refusals of this process."""

    __slots__ = ("_at", "_attempts", "_attempts_max", "_refusals", "_refusals_max", "_sequence", "trace")

    def __init__(self, attempts_max: int = ATTEMPTS_MAX, refusals_max: int = REFUSALS_MAX) -> None:
        self._attempts: list[Attempted] = []
        self._attempts_max = attempts_max
        self._at = 0
        """Where the next attempt is written."""
        self._refusals: list[Denied] = []
        self._refusals_max = refusals_max
        self._sequence = 0
        self.trace: Recorder | None = None
        """Where it is kept for good; None where it is not."""

    def attempted(self, call: Call, outcome: Outcome) -> None:
        """Keep how an attempt ended."""
        if self.trace is not None:
            self.trace.attempted(call, outcome)
        attempts, at = self._attempts, self._at
        if at == self._attempts_max:
            at = 0
        if at == len(attempts):
            attempts.append(Attempted())
        self._at = at + 1
        self._sequence += 1
        attempts[at].write(call, outcome, self._sequence)

    def denied(self, call: Call, refused: Refused, *, is_shadow: bool = False) -> None:
        """Keep why a call was refused."""
        if self.trace is not None:
            self.trace.denied(call, refused, is_shadow=is_shadow)
        self._sequence += 1
        self._refusals.append(Denied(call, refused, self._sequence, is_shadow))
        # The oldest half goes at once, so that a refusal costs the same whatever is kept.
        if len(self._refusals) >= 2 * self._refusals_max:
            self._refusals = self._refusals[self._refusals_max :]

    def answered(self, call: Call, status: int, result: int) -> None:
        """A call has ended that no upstream served: where meshd itself answered it, the trace keeps that."""
        if self.trace is not None and result == ANSWERED:
            self.trace.answered(call, status)

    def tick(self) -> None:
        """Let the trace let go of what is old."""
        if self.trace is not None:
            self.trace.tick()

    def close(self) -> None:
        """End the trace, where one is kept."""
        if self.trace is not None:
            self.trace.close()

    def attempts(self) -> list[Attempted]:
        """Return the attempts, the oldest first. They are written over when others end: read them at once."""
        return self._attempts[self._at :] + self._attempts[: self._at]

    def refusals(self) -> list[Denied]:
        """Return the refusals, the oldest first."""
        return self._refusals[-self._refusals_max :]


def short(target: Target) -> Target:
    """Return a target fit to be kept: whoever calls can name a model of any length."""
    if len(target.model) <= NAME_CHARACTERS_MAX:
        return target
    return Target(target.kind, target.name, target.model[:NAME_CHARACTERS_MAX])
