"""What stands in for an MCP server's answer goes through all that the answer itself would have gone through.

That is: it answers the id that was asked, tells nothing that is in quarantine, is no longer than the gateway lets a
result be, and comes with the session that its client has here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.call import Reply
from meshd.dialects.jsonrpc import event
from meshd.dialects.mcp_kept import MCP, under
from meshd.proxy.answer import AnswerError
from meshd.refusal import Refused
from meshd.wire.sse import data_of

if TYPE_CHECKING:
    from meshd.call import Call, Rpc


def stood_in(call: Call, reply: Reply) -> Reply | None:
    """Return what goes to the caller in place of its server's answer; None where that must not be. `reply` holds one
    message, under any id, where it is to a message of MCP; all else is returned as it is."""
    rpc: Rpc | None = call.rpc
    if rpc is None or rpc.protocol != MCP or not rpc.id:
        return reply
    try:
        message = under(data_of(reply.body) if reply.body.startswith(b"event:") else reply.body, rpc.id)
        if call.passage is not None:
            message = call.passage.stood_in(message)
    except (AnswerError, Refused) as error:
        call.substitution.why = str(error) if isinstance(error, AnswerError) else error.message
        return None
    headers = [field for field in reply.headers if field[0] != b"content-type"]
    if call.passage is not None:
        headers = call.passage.reply_fields(headers)
    if rpc.is_json_taken:
        return Reply(reply.status, [(b"content-type", b"application/json"), *headers], message)
    return Reply(reply.status, [(b"content-type", b"text/event-stream"), *headers], event(message))
