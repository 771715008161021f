"""Refusals: why meshd says no, and how that looks on every protocol.

One enum names the reasons, one table gives each its status, codes and whether a client should try again. The
statuses are chosen against the official clients: the OpenAI and Anthropic SDKs retry 408, 409, 429 and every
status from 500, whatever the reason was, so a budget or a loop must not answer with one of those.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from meshd.call import Headers


class Reason(str, Enum):
    """Why a call was refused: the closed set that metrics, headers and bodies use."""

    BUDGET_EXHAUSTED = "budget_exhausted"
    BUDGET_BUSY = "budget_busy"
    HOP_LIMIT = "hop_limit"
    DEADLINE = "deadline"
    LOOP = "loop"
    MAX_TURNS = "max_turns"
    NOT_ALLOWED = "not_allowed"
    UNKNOWN_TARGET = "unknown_target"
    PROMPT_UNRESOLVED = "prompt_unresolved"
    APPROVAL_PENDING = "approval_pending"
    APPROVAL_DENIED = "approval_denied"
    CIRCUIT_OPEN = "circuit_open"
    STORE_UNAVAILABLE = "store_unavailable"
    OVERLOADED = "overloaded"
    CONTEXT_INVALID = "context_invalid"
    KEY_MISSING = "key_missing"
    KEY_REUSED = "key_reused"
    KEY_IN_FLIGHT = "key_in_flight"
    KEY_UNKNOWN = "key_unknown"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    DRAINING = "draining"
    INTERNAL = "internal"


DOMAIN: Final = "meshd"
"""Of an ErrorInfo: by it a client knows our refusals from its upstream's."""


class Row(NamedTuple):
    """How one reason looks on the wire."""

    status: int
    openai_type: str
    anthropic_type: str
    code: str
    jsonrpc: int
    grpc: int
    """gRPC status code by number, as in google.rpc.Code."""
    is_retryable: bool = False


# gRPC codes by number: 3 INVALID_ARGUMENT, 4 DEADLINE_EXCEEDED, 5 NOT_FOUND, 7 PERMISSION_DENIED,
# 8 RESOURCE_EXHAUSTED, 9 FAILED_PRECONDITION, 10 ABORTED, 13 INTERNAL, 14 UNAVAILABLE, 16 UNAUTHENTICATED.
_PERMISSION: Final = "permission_error"
_INVALID: Final = "invalid_request_error"
TABLE: Final[dict[Reason, Row]] = {
    Reason.BUDGET_EXHAUSTED: Row(402, "budget_exhausted", "billing_error", "meshd_budget_exhausted", -32010, 8),
    Reason.BUDGET_BUSY: Row(429, "rate_limit_error", "rate_limit_error", "meshd_budget_busy", -32010, 8, True),
    Reason.HOP_LIMIT: Row(403, _PERMISSION, _PERMISSION, "meshd_hop_limit", -32011, 9),
    Reason.DEADLINE: Row(403, _PERMISSION, _PERMISSION, "meshd_deadline", -32011, 4),
    Reason.LOOP: Row(403, _PERMISSION, _PERMISSION, "meshd_loop", -32012, 9),
    Reason.MAX_TURNS: Row(403, _PERMISSION, _PERMISSION, "meshd_max_turns", -32012, 9),
    Reason.NOT_ALLOWED: Row(403, _PERMISSION, _PERMISSION, "meshd_not_allowed", -32014, 7),
    Reason.UNKNOWN_TARGET: Row(404, "not_found_error", "not_found_error", "meshd_unknown_target", -32014, 5),
    Reason.PROMPT_UNRESOLVED: Row(404, "not_found_error", "not_found_error", "meshd_prompt_unresolved", -32014, 5),
    Reason.APPROVAL_PENDING: Row(428, "approval_required", _PERMISSION, "meshd_approval_pending", -32013, 9),
    Reason.APPROVAL_DENIED: Row(403, _PERMISSION, _PERMISSION, "meshd_approval_denied", -32013, 7),
    Reason.CIRCUIT_OPEN: Row(503, "api_error", "overloaded_error", "meshd_circuit_open", -32015, 14),
    Reason.STORE_UNAVAILABLE: Row(503, "api_error", "api_error", "meshd_unavailable", -32603, 14, True),
    Reason.OVERLOADED: Row(503, "api_error", "overloaded_error", "meshd_overloaded", -32603, 14, True),
    Reason.CONTEXT_INVALID: Row(403, _PERMISSION, _PERMISSION, "meshd_context_invalid", -32011, 16),
    Reason.KEY_MISSING: Row(400, _INVALID, _INVALID, "meshd_key_missing", -32016, 3),
    Reason.KEY_REUSED: Row(422, _INVALID, _INVALID, "meshd_key_reused", -32016, 9),
    Reason.KEY_IN_FLIGHT: Row(409, "conflict_error", _INVALID, "meshd_key_in_flight", -32016, 10, True),
    Reason.KEY_UNKNOWN: Row(409, "conflict_error", _INVALID, "meshd_key_unknown", -32016, 9),
    Reason.MALFORMED: Row(400, _INVALID, _INVALID, "meshd_malformed", -32700, 3),
    Reason.TOO_LARGE: Row(413, _INVALID, "request_too_large", "meshd_too_large", -32600, 8),
    Reason.UPSTREAM_UNREACHABLE: Row(502, "api_error", "api_error", "meshd_upstream_unreachable", -32603, 14),
    Reason.UPSTREAM_TIMEOUT: Row(504, "api_error", "api_error", "meshd_upstream_timeout", -32603, 4),
    Reason.DRAINING: Row(503, "api_error", "overloaded_error", "meshd_draining", -32603, 14, True),
    Reason.INTERNAL: Row(500, "api_error", "api_error", "meshd_internal", -32603, 13),
}


class Refused(Exception):
    """A filter, a dialect or the wire says no.

    `message` is the whole explanation (who, which limit, used and limit, what to do next): it is all that many
    users will see. `retry_after_s` is sent only where the reason is retryable or `is_retryable` says so.
    `is_shadow` marks a rule that decides but does not bind: the chain counts it and lets the call pass.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        rule: str = "",
        retry_after_s: int | None = None,
        is_retryable: bool | None = None,
        is_shadow: bool = False,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.rule = rule
        self.retry_after_s = retry_after_s
        row = TABLE[reason]
        self.is_retryable = row.is_retryable if is_retryable is None else is_retryable
        self.is_shadow = is_shadow
        self.status = row.status if status is None else status
        """The HTTP status; the wire may name a more exact one (431, 408, 417, 501) for the same reason."""
        self.grpc = row.grpc
        """The gRPC status; a more exact one may be set: an upstream's reset has its own, and so has a session's end."""
        self.jsonrpc = row.jsonrpc
        """The code of a JSON-RPC error; a more exact one may be set, for a message that is JSON and no request."""
        self.is_repeated = False
        """The model was told before: a tool call is now refused with an error, and no longer with a result that says
        so."""
        self.state = ""
        """What an MCP client is told to bring along when it makes the call again; empty where it is not to."""
        self.asks: dict[str, Any] = {}
        """What it is asked to show its user meanwhile, as MCP's `inputRequests`."""
        self.prescribed: dict[str, Any] | None = None
        """What a specification wants said of an error, beside its code: then its status is kept, whatever the wire of
        messages would make of it. None for what is ours to word."""
        self.short: Any = None
        """`meshd.ledger.Shortfall`: what an account lacked, for whoever may see amounts that the message leaves out."""

    @property
    def retry_in_s(self) -> int:
        """Seconds after which to try again where that may help, 1 to 5: an SDK sleeps for as long as it is told."""
        return min(max(self.retry_after_s or 1, 1), 5)

    @property
    def row(self) -> Row:
        """The table's row of this reason."""
        return TABLE[self.reason]


def refusal_headers(refused: Refused, *, call_id: str, workflow: str) -> Headers:
    """Return the header fields that every refusal carries over HTTP, without the body's own.

    A `Retry-After` goes only onto a refusal that is worth retrying: on a terminal one, one SDK slept for an hour.
    """
    headers: Headers = [
        (b"x-should-retry", b"true" if refused.is_retryable else b"false"),
        (b"x-meshd-decision", b"refuse"),
        (b"x-meshd-reason", refused.reason.value.encode()),
        (b"x-meshd-workflow", workflow.encode("latin-1", "replace")),
        (b"x-meshd-call", call_id.encode()),
        (b"x-request-id", call_id.encode()),
        (b"request-id", call_id.encode()),
        (b"cache-control", b"no-store"),
    ]
    if refused.is_retryable:
        headers.append((b"retry-after", str(refused.retry_in_s).encode()))
    return headers
