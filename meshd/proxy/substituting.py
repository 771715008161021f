"""A call that goes on with what takes its target's place: the request that may be sent there, and the words at the end.

Which link that is, `meshd.filters.substituting` decides; here it is only done.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

from meshd.filters.queueing import RETRY_S_MAX
from meshd.filters.throttle import TOO_MANY_REQUESTS
from meshd.refusal import Reason, Refused
from meshd.wire.message import Fields, Request

if TYPE_CHECKING:
    from meshd.call import Call, Headers
    from meshd.filters.substitution import Standing, Substitution

_PRIVATE: Final = (
    b"cookie",
    b"openai-",
    b"anthropic-",
    b"x-goog-",
    b"x-amz-",
    b"api-key",
    b"x-api-key",
    b"authorization",
)
"""How fields begin that say something to one provider, or to one site, and are no other's business."""
_SECRET: Final = re.compile(rb"auth|token|secret|session|credential|passw|cookie|subscription|(?:^|[-_])(?:api)?key$")
"""What stands in the names of other fields that are for one site alone; `idempotency-key` is for whoever serves."""
_SPOKEN: Final = (b"anthropic-version", b"anthropic-beta", b"openai-beta")
"""Of these, what a request needs wherever it is sent in the same dialect."""
_KEYED: Final = (b"idempotency-key",)
_SITES_OWN: Final = (b"set-cookie", b"mcp-session-id", b"alt-svc")
_OUR_OWN: Final = frozenset({Reason.DEADLINE, Reason.DRAINING, Reason.INTERNAL, Reason.MALFORMED, Reason.TOO_LARGE})
"""Refusals that end a call whoever serves it."""


def request_for(request: Request, standing: Standing) -> Request | None:
    """Return the request without what must not go to a substitute; None where it may go as it is."""
    translation = standing.translation
    if not standing.is_foreign and translation is None:
        return None
    headers = request.fields.headers
    if standing.is_foreign:
        # A key of the upstream's own is written in the place of the caller's; of another's none may be left.
        headers = [field for field in headers if not _is_private(field[0])]
        if translation is None:
            headers += [field for field in request.fields.headers if field[0].startswith(_SPOKEN)]
    if translation is not None:
        headers = [field for field in headers if field[0] not in translation.headers_dropped]
        headers += translation.headers_added
    made = Request(request.method, request.target, Fields(headers))
    made.content_length = request.content_length
    made.has_body = request.has_body
    made.upgrade = request.upgrade
    return made


def _is_private(name: bytes) -> bool:
    return name.startswith(_PRIVATE) or (_SECRET.search(name) is not None and name not in _KEYED)


def without_cookies(call: Call, fields: Headers) -> Headers:
    """Return the fields of a substitute's reply without what its site alone is to be sent again: the caller would send
    it to its own."""
    standing: Standing | None = call.substitution.standing
    if standing is None or not standing.is_foreign:
        return fields
    return [field for field in fields if field[0] not in _SITES_OWN]


def answered(call: Call, status: int, retry_after_s: float | None) -> Refused:
    """Return the words for an upstream's own failure, where its answer is no longer there to be passed on.

    It is worth a retry where the upstream is full, unless it asks for a longer pause than a client is told to make.
    """
    attempts = f" ({call.attempt} attempts)" if call.attempt > 1 else ""
    words = f"{call.target.name} answered with {status}{attempts}"
    if status != TOO_MANY_REQUESTS:
        return Refused(Reason.UPSTREAM_UNREACHABLE, words, status=status)
    if retry_after_s is not None:
        words += f" and asks to be left alone for {retry_after_s:.0f} s"
    wait_s = retry_after_s or 0.0
    return Refused(
        Reason.OVERLOADED, words, retry_after_s=math.ceil(wait_s), is_retryable=wait_s <= RETRY_S_MAX, status=status
    )


def meant(call: Call, first: Refused | None, refused: Refused) -> Refused:
    """Return what the caller is told where nothing serves the call: what went wrong first, and what was tried then."""
    if first is None or refused.reason in _OUR_OWN:
        return refused
    substitution: Substitution = call.substitution
    tried = "; ".join(substitution.tried)
    words = f"{first.message.rstrip('.')}. Tried in its place: {tried}." if tried else first.message
    told = Refused(
        first.reason,
        words,
        rule=first.rule,
        retry_after_s=first.retry_after_s,
        is_retryable=first.is_retryable,
        status=first.status,
    )
    told.grpc = first.grpc
    return told
