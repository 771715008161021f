"""gRPC: a call is known by its service and method, and ended by a status in trailers. Its messages are never read.

It is the dialect of calls, not of upstreams: whatever an upstream that is no LLM speaks besides, a call framed as gRPC
is read so.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from meshd.call import Usage
from meshd.dialects.plain import Plain
from meshd.outcome import Verdict

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.refusal import Refused

NAMES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
"""Of the statuses, by their number."""

_VERDICTS: Final[dict[int, Verdict]] = {
    0: Verdict.SUCCESS,
    # An exception that nobody caught, in most servers: a 500.
    NAMES.index("UNKNOWN"): Verdict.FAILURE,
    NAMES.index("INTERNAL"): Verdict.FAILURE,
    NAMES.index("UNAVAILABLE"): Verdict.FAILURE,
    NAMES.index("DATA_LOSS"): Verdict.FAILURE,
    NAMES.index("RESOURCE_EXHAUSTED"): Verdict.BACKPRESSURE,
}
_DEADLINE_EXCEEDED: Final = NAMES.index("DEADLINE_EXCEEDED")
_FAILURE: Final = Verdict.FAILURE
_NEUTRAL: Final = Verdict.NEUTRAL

USAGE_INPUT: Final = b"x-meshd-usage-input-tokens"
USAGE_OUTPUT: Final = b"x-meshd-usage-output-tokens"
_TOKENS: Final = re.compile(rb"(?:0|[1-9][0-9]{0,8})\Z")


class Grpc(Plain):
    """The dialect `grpc`. Nothing of a body is read, so what it does is what `plain` does, but for refusals."""

    name = "grpc"

    def refusal_body(self, refused: Refused, *, call_id: str) -> tuple[bytes, bytes]:
        """See `Dialect.refusal_body`: there is none, the status stands in trailers."""
        return b"application/grpc", b""


def name_of(status: int) -> str:
    """Return the name of a status; UNKNOWN for a number that is none, as clients take it."""
    return NAMES[status] if 0 <= status < len(NAMES) else "UNKNOWN"


def verdict_of(status: int, *, has_deadline: bool) -> Verdict:
    """Say what a reply that ended with this status says of its upstream (guarantees, part 4); -1 for none at all.

    DEADLINE_EXCEEDED says nothing of it where the call had a deadline: that was the caller's to choose.
    """
    if status < 0 or status >= len(NAMES):
        return _FAILURE
    if status == _DEADLINE_EXCEEDED:
        return _NEUTRAL if has_deadline else _FAILURE
    return _VERDICTS.get(status, _NEUTRAL)


def split_path(path: str) -> tuple[str, str]:
    """Return service and method of a path such as `/research.v1.Research/Find`; the service is empty where it has
    none."""
    service, _, method = path.partition("?")[0].lstrip("/").rpartition("/")
    return service, method


def read_usage(trailers: Headers) -> tuple[Usage | None, bytes]:
    """Return the usage that trailers report, None where they report none, and the value that is no number of tokens,
    empty where there is none such: then nothing of what stands beside it is taken either."""
    found: dict[bytes, int] = {}
    for name, value in trailers:
        if name in (USAGE_INPUT, USAGE_OUTPUT):
            if name in found or _TOKENS.match(value) is None:
                return None, value[:64] or b"(empty)"
            found[name] = int(value)
    if not found:
        return None, b""
    return Usage(found.get(USAGE_INPUT, 0), found.get(USAGE_OUTPUT, 0)), b""
