"""A client of MCP says that it waits for an answer no more: what of its call has not gone out yet goes out no more.

A server can be told of what it was sent alone. A call that a person decides has reached nobody, and its connection may
stay open: nobody would find out that what is allowed is wanted by nobody any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.dialects.json_pairs import member, read_body, read_object
from meshd.dialects.jsonrpc import INVALID_REQUEST, invalid
from meshd.dialects.mcp import SESSION_FIELD

if TYPE_CHECKING:
    from meshd.call import Call
    from meshd.proxy.exchange import Exchange

CANCELLED: Final = "notifications/cancelled"


def withdraw(call: Call, live: set[Exchange]) -> None:
    """End the call that `call` cancels, if it has not gone out: the same session's, from the same address. Raises
    Refused for a message that cannot be read."""
    session = call.header(SESSION_FIELD)
    raw = member(read_body(call.body or b""), "params")
    if session is None or raw is None or bytes(raw)[:1] != b"{":
        return
    named = member(read_object(raw, "params"), "requestId")
    id = b"" if named is None else bytes(named)
    for exchange in tuple(live):
        other = exchange.call
        if exchange.attempt is not None or exchange.is_done or other.rpc is None or other.rpc.is_reply:
            continue
        if id and other.rpc.id == id and other.peer == call.peer and other.header(SESSION_FIELD) == session:
            _end(exchange)


def _end(exchange: Exchange) -> None:
    exchange.refuse(invalid("Its client has cancelled this request", INVALID_REQUEST))
    # What it waited for is told; what that took all the same is paid back.
    if exchange.call.holding is not None:
        exchange.call.holding.leave()
    else:
        exchange.let_go()
