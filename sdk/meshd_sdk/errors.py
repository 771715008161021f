"""What may go wrong for an agent, in types that it can catch.

`Refused` is the policy's no, `CallFailed` what was called and could not answer, `NoSidecar` that nobody is there.
A handler raises `Drop` or `Retry` to say what is to become of an event. Pure, stdlib only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd_sdk.state_values import Lease, State

CODES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
"""Names of google.rpc.Code; the place is the number."""


class MeshError(Exception):
    """Whatever meshd_sdk raises on purpose."""


class SettingInvalid(MeshError, ValueError):
    """A MESHD_ variable, or an argument in its place, that means nothing."""


class NoSidecar(MeshError, ConnectionError):
    """No meshd answers at the address, or what was asked for needs one."""


class ProtocolBroken(MeshError):
    """The other side said what the protocol does not allow; the session is begun anew."""


class ArgumentsInvalid(MeshError, ValueError):
    """Arguments that do not fit a tool's schema. The message has a line for each, in words for a model."""


class Failure(MeshError):
    """A call that did not succeed: what `Refused` and `CallFailed` have in common."""

    code_default: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        reason: str = "",
        is_retryable: bool = False,
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        call_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code_default
        """A name of google.rpc.Code, such as NOT_FOUND."""
        self.reason = reason
        """One of meshd's reasons, such as `budget_exhausted`; empty where what was called failed in its own words."""
        self.is_retryable = is_retryable
        self.retry_after_s = retry_after_s
        """Seconds to wait before trying again; None where nothing is known."""
        self.metadata = dict(metadata or {})
        self.call_id = call_id
        """The call's id in metrics, spans and `meshd budget call`; empty where the sidecar gave none."""

    @property
    def number(self) -> int:
        """The number of `code`; 2 (UNKNOWN) where it is not one."""
        return CODES.index(self.code) if self.code in CODES else 2


class CallFailed(Failure):
    """What was called could not be reached, failed, or failed in its own words.

    A handler may raise it with a `code` of its own: the caller gets that code and the message.
    """


class TimedOut(CallFailed):
    """No reply in time."""

    code_default = "DEADLINE_EXCEEDED"


class SessionLost(CallFailed):
    """The sidecar forgot the session before a reply came: whether the call was carried out is not known."""

    code_default = "UNAVAILABLE"


class Refused(Failure):
    """meshd says no, by its policy. `message` says who, which limit, and what to do next."""

    code_default = "PERMISSION_DENIED"


class BudgetExhausted(Refused):
    """The workflow's tokens or money are used up."""

    code_default = "RESOURCE_EXHAUSTED"


class BudgetBusy(Refused):
    """What is left is held by calls in flight: it may be there again in a moment."""

    code_default = "RESOURCE_EXHAUSTED"


class HopLimit(Refused):
    """Too many agents have handed this workflow on."""

    code_default = "FAILED_PRECONDITION"


class DeadlineExceeded(Refused):
    """The workflow's deadline has passed."""

    code_default = "DEADLINE_EXCEEDED"


class LoopStopped(Refused):
    """The same was asked again and again without progress."""

    code_default = "FAILED_PRECONDITION"


class TurnLimit(Refused):
    """Too many turns on this edge or in this workflow."""

    code_default = "FAILED_PRECONDITION"


class NotAllowed(Refused):
    """The policy does not allow this model, tool, agent or host."""


class UnknownTarget(Refused):
    """No agent with a session, and no upstream of the policy, has this name."""

    code_default = "NOT_FOUND"


class ApprovalPending(Refused):
    """A person has not decided yet."""

    code_default = "FAILED_PRECONDITION"


class ApprovalDenied(Refused):
    """A person said no, or took the question back."""


class ApprovalExpired(ApprovalDenied):
    """Nobody decided in time on what `Ctx.ask_approval` asked for: silence is a no."""


class CircuitOpen(Refused):
    """The upstream has failed too often, and is left alone for a while."""

    code_default = "UNAVAILABLE"


class Overloaded(Refused):
    """The sidecar or its store cannot take more now, or is about to end."""

    code_default = "UNAVAILABLE"


class ContextInvalid(Refused):
    """The context token does not verify."""

    code_default = "UNAUTHENTICATED"


class StateConflict(Failure):
    """A shared object was not written: it has changed since the version that the new one was made from."""

    code_default = "ABORTED"

    def __init__(
        self, message: str, *, current: State | None = None, order: str = "", lease: Lease | None = None
    ) -> None:
        super().__init__(message)
        self.current = current
        """The version that is there, without its value: who wrote it, in which workflow, when. None where none is."""
        self.order = order
        """How what this workflow knew relates to what its writer knew: `before`, `after`, `concurrent`, `equal`; empty
        where nothing is known, since it was written in another workflow."""
        self.lease = lease
        """Who has checked it out, and until when; None where nobody has."""


class LeaseHeld(StateConflict):
    """Another one has checked it out."""


class LeaseLost(StateConflict):
    """The lease has run out, or is another's by now."""


class KeyConflict(Refused):
    """The idempotency key belongs to another call, to one that is under way, or to one whose end is not known."""

    code_default = "FAILED_PRECONDITION"


class Malformed(Refused):
    """The call is not what it must be, or is larger than it may be."""

    code_default = "INVALID_ARGUMENT"


REFUSALS: Final[dict[str, type[Refused]]] = {
    "budget_exhausted": BudgetExhausted,
    "budget_busy": BudgetBusy,
    "hop_limit": HopLimit,
    "deadline": DeadlineExceeded,
    "loop": LoopStopped,
    "max_turns": TurnLimit,
    "not_allowed": NotAllowed,
    "unknown_target": UnknownTarget,
    "prompt_unresolved": UnknownTarget,
    "approval_pending": ApprovalPending,
    "approval_denied": ApprovalDenied,
    "circuit_open": CircuitOpen,
    "store_unavailable": Overloaded,
    "overloaded": Overloaded,
    "draining": Overloaded,
    "context_invalid": ContextInvalid,
    "key_reused": KeyConflict,
    "key_in_flight": KeyConflict,
    "key_unknown": KeyConflict,
    "key_missing": Malformed,
    "malformed": Malformed,
    "too_large": Malformed,
}
FAILURES: Final = frozenset({"upstream_unreachable", "upstream_timeout", "internal"})
"""Reasons with which nobody refused: something broke."""


def failure(
    code: int,
    reason: str,
    message: str,
    *,
    is_retryable: bool = False,
    retry_after_s: float | None = None,
    metadata: Mapping[str, str] | None = None,
    call_id: str = "",
) -> Failure:
    """Return the error of a status. A reason that this version does not know is a plain `Refused`."""
    kind: type[Failure]
    if reason and reason not in FAILURES:
        kind = REFUSALS.get(reason, Refused)
    else:
        kind = TimedOut if code == CODES.index("DEADLINE_EXCEEDED") else CallFailed
    return kind(
        message or reason or name_of(code),
        code=name_of(code),
        reason=reason,
        is_retryable=is_retryable,
        retry_after_s=retry_after_s,
        metadata=metadata,
        call_id=call_id,
    )


def name_of(code: int) -> str:
    """Return the name of a code's number; UNKNOWN for one that this version does not know, as gRPC has it."""
    return CODES[code] if 0 <= code < len(CODES) else "UNKNOWN"


class Drop(MeshError):
    """Raised by an event's handler: never hand this event over again."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Retry(MeshError):
    """Raised by an event's handler: hand it over again, after so many seconds where they are given."""

    def __init__(self, reason: str = "", *, after: float | None = None) -> None:
        super().__init__(reason)
        if after is not None and not 0 <= after <= 365 * 24 * 3600:
            raise ValueError(f"after is a number of seconds from 0 to a year, not {after!r}")
        self.reason = reason
        self.after = after
