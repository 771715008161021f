"""Numbers of a session, what ends one, and how a refusal or a reply's status looks in its frames."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.duration_pb2 import Duration

from meshd.api.failing import CODES
from meshd.api.fields import shown
from meshd.policy.model import NAME_PATTERN
from meshd.policy.upstreams import RESERVED_NAMES
from meshd.refusal import TABLE, Reason, Refused
from meshd_sdk.v1.context_pb2 import Evidence
from meshd_sdk.v1.status_pb2 import Status

if TYPE_CHECKING:
    from meshd_sdk import context as codec
    from meshd_sdk.v1.context_pb2 import Context
    from meshd_sdk.v1.discovery_pb2 import Agent

REVISION: Final = 1
CREDIT: Final = 64
"""Frames of work that an agent may have under way."""
CREDIT_MAX: Final = 2**20
"""More than so many deliveries under way no agent means."""
FRAME_BYTES_MAX: Final = 4 * 2**20
"""Of one frame in either direction: what gRPC takes where nobody sets anything."""
AGENT_BYTES_MAX: Final = 262_144
"""Of what an agent says of itself in Hello: intents, tools, their schemas. It is kept with the session."""
PAYLOAD_BYTES_MAX: Final = FRAME_BYTES_MAX - 64 * 1024
"""Of a payload, so that its frame has room for the rest."""
PIECE_BYTES_MAX: Final = 2**20
"""Of a piece of a reply; what is longer comes in several."""
RESUME_WINDOW_S: Final = 60.0
HELLO_S: Final = 10.0
"""Within which Hello must have come."""
KEPT_BYTES_HIGH: Final = 2 * 2**20
KEPT_FRAMES_HIGH: Final = 1024
"""Above either, of what the agent has not acknowledged, replies from upstreams are no longer read."""
KEPT_BYTES_MAX: Final = 40 * 2**20
"""Above this the session is ended. More than limits.reply_body, since a reply that is held whole comes at once."""
KEPT_FRAMES_MAX: Final = 8192
ACK_FRAMES: Final = 32
ACK_BYTES: Final = 256 * 1024
"""After so much without a frame that carries it, an acknowledgement is sent by itself."""
SESSIONS_MAX: Final = 1024
AGENTS_MAX: Final = 256
"""Names of agents with a session at once."""
CONTENT_TYPE: Final = "application/json"

_EVIDENCE: Final[dict[str, Any]] = dict(Evidence.items())
_NAME: Final = re.compile(NAME_PATTERN[:-1] + r"\Z")
_VISIBLE: Final = re.compile(r"[ -~]{0,256}\Z")

OK, CANCELLED, UNKNOWN, INVALID, DEADLINE = 0, 1, 2, 3, 4
NOT_FOUND, EXHAUSTED, PRECONDITION, ABORTED, INTERNAL, UNAVAILABLE = 5, 8, 9, 10, 13, 14

# The google.rpc.Code for an HTTP status: the other way round than `meshd.api.failing.CODES`, and of more statuses.
_CODES: Final = {
    400: 3, 401: 16, 403: 7, 404: 5, 405: 12, 408: 4, 409: 10, 413: 8, 422: 3, 429: 8, 499: 1, 500: 13, 501: 12,
    502: 14, 503: 14, 504: 4, 529: 14,
}  # fmt: skip
_RETRYABLE: Final = frozenset({408, 425, 429, 502, 503, 504, 529})


def ended(code: int, reason: Reason, message: str, *, is_retryable: bool = False) -> Refused:
    """Return the end of a stream, and mostly of its session. The message is for whoever wrote the other side."""
    # No class of its own: a compiled one takes no subclass from a module that is not.
    refused = Refused(reason, message, is_retryable=is_retryable)
    refused.grpc = code
    return refused


def malformed(field: str, message: str) -> Refused:
    """Return the end of a session whose agent broke the protocol. `field` is the path of what it got wrong."""
    return ended(INVALID, Reason.MALFORMED, f"{field}: {message}")


def too_much(message: str) -> Refused:
    """Return the end of a session that takes, or leaves, more than it may."""
    return ended(EXHAUSTED, Reason.OVERLOADED, message)


def check_name(name: str) -> None:
    """Raise Refused(MALFORMED) for what cannot name an agent here."""
    if not _NAME.match(name):
        raise malformed("hello.agent.name", "an agent's name is 1 to 63 of a-z, 0-9, '-', '_' and '.'")
    if name in RESERVED_NAMES:
        raise malformed("hello.agent.name", f"the name {name!r} is taken by meshd itself")


def check_agent(agent: Agent) -> None:
    """Raise Refused(MALFORMED) for an agent that cannot be one here, or that says more of itself than is kept."""
    check_name(agent.name)
    if (size := agent.ByteSize()) > AGENT_BYTES_MAX:
        raise malformed(
            "hello.agent", f"it has {size} bytes, and may have {AGENT_BYTES_MAX}: describe tools in fewer words"
        )


def is_name(text: str) -> bool:
    """Say whether `text` can be the name of an upstream."""
    return _NAME.match(text) is not None and text not in RESERVED_NAMES


def is_visible(text: str) -> bool:
    """Say whether `text` can be the value of a header field."""
    return _VISIBLE.match(text) is not None


def status_of(refused: Refused, call_id: str = "") -> Status:
    """Return a refusal as a frame has it: the same reason, and whether to try again."""
    status = Status(
        code=TABLE[refused.reason].grpc,
        reason=refused.reason.value,
        message=refused.message,
        is_retryable=refused.is_retryable,
    )
    if refused.is_retryable:
        status.retry_after.FromSeconds(refused.retry_in_s)
    if refused.rule:
        status.metadata["rule"] = refused.rule
    if call_id:
        status.metadata["call_id"] = call_id
    return status


def status_of_http(status: int, target: str, retry_after_s: float | None) -> Status:
    """Return what a reply's HTTP status says in a frame. The reply's body is the payload, whatever the status is."""
    if 200 <= status < 300:
        made = Status()
    else:
        made = Status(
            code=_CODES.get(status, PRECONDITION if 400 <= status < 500 else UNKNOWN),
            message=f"{target} answered with HTTP status {status}",
            is_retryable=status in _RETRYABLE,
        )
        if retry_after_s is not None and made.is_retryable:
            made.retry_after.CopyFrom(duration(retry_after_s))
    made.metadata["http_status"] = str(status)
    return made


def http_status(code: int) -> int:
    """Return the HTTP status for a status code that an agent answered with."""
    return CODES.get(code, CODES[UNKNOWN]).status if code else 200


def duration(seconds: float) -> Duration:
    """Return seconds as a Duration."""
    made = Duration()
    made.FromNanoseconds(round(seconds * 1000) * 1_000_000)
    return made


def seconds(given: Duration, field: str) -> float:
    """Return a Duration as seconds. Raises Refused(MALFORMED) for one that is negative or out of range."""
    if given.seconds < 0 or given.nanos < 0 or given.seconds >= 1_000_000_000 or given.nanos >= 1_000_000_000:
        raise Refused(Reason.MALFORMED, f"{field}: a time from 0 to 999,999,999 s, not {given.seconds} s")
    return given.seconds + given.nanos / 1e9


def context_frame(context: codec.Context, token: str, evidence: str, traceparent: str = "") -> Context:
    """Return a context as a frame has it.

    `evidence` is its name in small letters; one that the protocol has no member for is left unsaid. `traceparent` is
    that of the span which hands the context out; empty for the context's own.
    """
    made = shown(context, token)
    made.evidence = _EVIDENCE.get("EVIDENCE_" + evidence.upper(), 0)
    if traceparent:
        made.traceparent = traceparent
    return made
