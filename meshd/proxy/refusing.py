"""Our own answers in the caller's words: one place where a refusal or a failure becomes a reply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from meshd.call import Fault, Reply
from meshd.dialects.table import DIALECTS
from meshd.refusal import Reason, Refused, refusal_headers

if TYPE_CHECKING:
    from meshd.call import Call, Headers
    from meshd.proxy.exchange import Exchange
    from meshd.wire.message import WireError

_TIMEOUTS: Final = frozenset({Fault.CONNECT_TIMEOUT, Fault.FIRST_BYTE_TIMEOUT, Fault.GAP_TIMEOUT})


def failure_of(fault: Fault, call: Call, message: str) -> Refused:
    """Return what the caller is told of an attempt that failed before its first byte could be passed on."""
    if fault is Fault.DEADLINE:
        return Refused(Reason.DEADLINE, message)
    if fault is Fault.SHUTDOWN:
        return Refused(Reason.DRAINING, message)
    if fault is Fault.POOL_FULL:
        return Refused(Reason.OVERLOADED, message)
    attempts = f" ({call.attempt} attempts)" if call.attempt > 1 else ""
    reason = Reason.UPSTREAM_TIMEOUT if fault in _TIMEOUTS else Reason.UPSTREAM_UNREACHABLE
    return Refused(reason, message + attempts)


def is_told(exchange: Exchange, refused: Refused) -> bool:
    """Give a refusal as it is to a caller that takes one, since no wire lies between; return whether it did."""
    take = getattr(exchange.caller, "refuse", None)
    if take is None:
        return False
    exchange.is_answered = True
    take(refused)
    return True


def refusal_reply(refused: Refused, call: Call, *, is_grpc: bool) -> Reply:
    """Return the reply that this call's client understands as what it is."""
    workflow = call.context.workflow if call.context is not None else ""
    headers = refusal_headers(refused, call_id=call.id, workflow=workflow)
    if is_grpc:
        return _grpc_reply(refused, headers)
    content_type, body = call.dialect.refusal_body(refused, call_id=call.id)
    headers.insert(0, (b"content-type", content_type))
    headers += call.reply_headers
    return Reply(refused.status, headers, body)


def wire_refusal(error: WireError, call_id: str) -> Reply:
    """Return the reply to bytes that never became a call."""
    headers = refusal_headers(error, call_id=call_id, workflow="")
    content_type, body = DIALECTS["plain"].refusal_body(error, call_id=call_id)
    return Reply(error.status, [(b"content-type", content_type), *headers], body)


def _grpc_reply(refused: Refused, headers: Headers) -> Reply:
    """A trailers-only reply: the status stands in the head, and the client is told not to push again."""
    pushback = b"1000" if refused.is_retryable else b"-1"
    fields: Headers = [
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"%d" % refused.row.grpc),
        (b"grpc-message", quote(refused.message, safe=" !#$&'()*+,/:;<=>?@[]^`{|}~\"").encode("ascii")),
        (b"grpc-retry-pushback-ms", pushback),
    ]
    return Reply(200, fields + [field for field in headers if field[0].startswith(b"x-")])
