"""Our own answers to gRPC calls: a status, what a program may read of it, and whether to try again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.call import Reply
from meshd.refusal import DOMAIN, refusal_headers
from meshd.wire.grpc import DETAILS, MESSAGE, PUSHBACK, STATUS, encode_details, encode_message

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.refusal import Refused


def status_fields(refused: Refused, call_id: str, workflow: str) -> Headers:
    """Return the trailers that say why the call ends.

    The push-back is -1 where trying again is of no use: clients with a retry policy then stop, whatever it says
    (gRFC A6).
    """
    status, message = refused.grpc, refused.message
    metadata = {"call": call_id}
    if workflow:
        metadata["workflow"] = workflow
    if refused.rule:
        metadata["rule"] = refused.rule
    pushback = b"-1"
    if refused.is_retryable:
        pushback = b"%d" % (refused.retry_in_s * 1000)
    return [
        (STATUS, b"%d" % status),
        (MESSAGE, encode_message(message)),
        (DETAILS, encode_details(status, message, refused.reason.value.upper(), DOMAIN, metadata)),
        (PUSHBACK, pushback),
    ]


def grpc_reply(refused: Refused, call_id: str, workflow: str = "") -> Reply:
    """Return a reply of trailers alone. It also has the fields that every refusal has, but for those of HTTP's own
    retries, which say nothing here."""
    fields = refusal_headers(refused, call_id=call_id, workflow=workflow)
    ours = [field for field in fields if field[0].startswith(b"x-meshd-")]
    said = status_fields(refused, call_id, workflow)
    return Reply(200, [(b"content-type", b"application/grpc"), *said, *ours])
