"""Our own answers in the caller's words: one place where a refusal or a failure becomes a reply."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Reply
from meshd.dialects.table import DIALECTS, RPC
from meshd.outcome import Fault
from meshd.proxy.grpc_refusing import grpc_reply
from meshd.refusal import Reason, Refused, refusal_headers
from meshd.wire.fields import is_grpc

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.call import Call
    from meshd.proxy.exchange import Exchange
    from meshd.wire.message import WireError

_TIMEOUTS: Final = frozenset(
    {Fault.CONNECT_TIMEOUT, Fault.FIRST_BYTE_TIMEOUT, Fault.FIRST_TOKEN_TIMEOUT, Fault.GAP_TIMEOUT}
)


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


def refusal_reply(refused: Refused, call: Call) -> Reply:
    """Return the reply that this call's client understands as what it is."""
    workflow = call.context.workflow if call.context is not None else ""
    # The caller's own dialect, whatever the one that stands in for its target speaks.
    dialect = call.dialect if call.substitution is None else call.substitution.origin.dialect
    if dialect.name in RPC:
        told: Reply | None = dialect.refuse(refused, call, workflow)
        if told is not None:
            return told
    headers = refusal_headers(refused, call_id=call.id, workflow=workflow)
    content_type, body = dialect.refusal_body(refused, call_id=call.id)
    headers.insert(0, (b"content-type", content_type))
    headers += call.reply_headers
    return Reply(refused.status, headers, body)


def wire_refusal(error: WireError, call_id: str, block: Iterable[tuple[bytes, bytes]] = ()) -> Reply:
    """Return the reply to bytes that never became a call. `block` has its fields, where they could be told apart."""
    if any(name == b"content-type" and is_grpc(value) for name, value in block):
        return grpc_reply(error, call_id)
    headers = refusal_headers(error, call_id=call_id, workflow="")
    content_type, body = DIALECTS["plain"].refusal_body(error, call_id=call_id)
    return Reply(error.status, [(b"content-type", content_type), *headers], body)
