"""An answer that was kept becomes the reply to another call. Pure.

Every byte is the first one's but for what belongs to one call only: what connects two hops (left out before an answer
is kept), fields under our prefix (the new call has its own), and what speaks of a moment that has passed: limits of
rate, and when to come again. `date` and the upstream's request ids stay: they name the answer, and it is that answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.call import Reply
from meshd.claims.record import Answer
from meshd.claims.rest import Readdressed
from meshd.claims.rpc import Events, Splice, readdressed
from meshd.wire.fields import CALL_ID, OURS

if TYPE_CHECKING:
    from meshd.call import Call, Headers
    from meshd.claims.rest import Rest
    from meshd.claims.tape import Tape

REPLAYED: Final = (b"idempotent-replayed", b"true")
_PASSED: Final = frozenset({b"retry-after", b"retry-after-ms", b"mcp-session-id", b"alt-svc"})
_RATES: Final = (b"x-ratelimit-", b"ratelimit", b"anthropic-ratelimit-", OURS)


def kept_fields(headers: Headers) -> Headers:
    """Return the fields of an answer that are an answer's, and not of one call or one moment."""
    return [field for field in headers if field[0] not in _PASSED and not field[0].startswith(_RATES)]


def answer_of(tape: Tape, call: Call) -> Answer:
    """Return what is kept of an answer, without its body."""
    rpc: Any = getattr(call, "rpc", None)
    return Answer(
        tape.status,
        kept_fields(tape.headers),
        kept_fields(tape.trailers),
        size=tape.size,
        is_too_long=tape.is_too_long,
        rpc_id=rpc.id if rpc is not None else b"",
    )


def reply_of(answer: Answer, body: bytes, call: Call, rest: Rest | None = None) -> Reply:
    """Return an answer as the reply to `call`. `body` is how it begins, and `rest` what follows."""
    headers = [*answer.headers, REPLAYED, (CALL_ID, call.id.encode()), *call.reply_headers]
    rpc: Any = getattr(call, "rpc", None)
    size: int | None = answer.size
    if rpc is not None and answer.rpc_id and rpc.id != answer.rpc_id:
        is_stream = is_event_stream(headers)
        if rest is None:
            body = readdressed(body, answer.rpc_id, rpc.id, is_stream=is_stream)
        elif is_stream:
            events = Events(answer.rpc_id, rpc.id)
            body, rest, size = events.feed(body), Readdressed(rest, events), None
        elif answer.rpc_at >= 0:
            splice = Splice(answer.rpc_at, answer.rpc_id, rpc.id)
            size = answer.size - len(answer.rpc_id) + len(rpc.id)
            body, rest = splice.feed(body), Readdressed(rest, splice)
    return Reply(answer.status, headers, body, answer.trailers[:], rest, size)


def is_event_stream(headers: Headers) -> bool:
    """Say whether an answer with these fields is a stream of events."""
    types = [value for name, value in headers if name == b"content-type"]
    return bool(types) and types[0][:17].lower() == b"text/event-stream"
