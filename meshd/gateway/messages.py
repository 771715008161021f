"""What is changed in a message on its way through the gateway. Pure; all that is not changed stays as it came."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshd.dialects.json_pairs import member, read_body, read_object, text, write
from meshd.dialects.mcp import METHOD_FIELD, NAME_FIELD, SESSION_FIELD, VERSION_FIELD
from meshd.refusal import Refused
from meshd.wire.fields import Place, place_of
from meshd.wire.sse import BYTE_ORDER_MARK

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.dialects.json_pairs import Pairs

STATELESS: Final = "2026-07-28"
SESSIONED: Final = ("2025-11-25", "2025-06-18", "2025-03-26")
"""Revisions in which a client opens a session, newest first."""
VERSION_IN_META: Final = "io.modelcontextprotocol/protocolVersion"
CAPABILITIES_IN_META: Final = "io.modelcontextprotocol/clientCapabilities"
CLIENT_IN_META: Final = "io.modelcontextprotocol/clientInfo"
SUBSCRIPTION_IN_META: Final = "io.modelcontextprotocol/subscriptionId"
LEVEL_IN_META: Final = "io.modelcontextprotocol/logLevel"
CONTEXT_IN_META: Final = "dev.meshd/context"
LAST_EVENT_FIELD: Final = b"last-event-id"

_EVENT_ID: Final = re.compile(rb"(^|[\r\n])id: ?")
_OF: Final = b"!"
_OURS: Final = frozenset({SESSION_FIELD, VERSION_FIELD, METHOD_FIELD, NAME_FIELD, LAST_EVENT_FIELD})
_NOT_PASSED: Final = frozenset({b"cookie", b"origin", b"content-length", b"transfer-encoding", b"accept-encoding"})
"""A client's credentials are for this gateway, if for anybody: no server gets those that another one could use (MCP,
security best practices, token passthrough)."""


def encode(value: Any) -> bytes:
    """Return JSON."""
    return msgspec.json.encode(value)


def params_of(pairs: Pairs) -> Pairs:
    """Return the members of params; none where there are none. Raises Refused."""
    raw = member(pairs, "params")
    return {} if raw is None else read_object(raw, "params")


def with_params(body: bytes, edits: dict[str, bytes]) -> bytes:
    """Return a message with other members of its params."""
    pairs = read_body(body)
    return write(pairs, {"params": write(params_of(pairs), edits)})


def with_meta(body: bytes, edits: dict[str, bytes]) -> bytes:
    """Return a message with other members of its `_meta`."""
    pairs = read_body(body)
    params = params_of(pairs)
    raw = member(params, "_meta")
    meta = {} if raw is None else read_object(raw, "_meta")
    return write(pairs, {"params": write(params, {"_meta": write(meta, edits)})})


def with_id(message: bytes, id: bytes) -> bytes:
    """Return a message with another id."""
    return write(read_body(message), {"id": id})


def fields_for(headers: Headers, *, session: bytes, version: str, method: str, name: str) -> Headers:
    """Return the fields of a message to a server, in place of those that were for the gateway."""
    kept = [field for field in passed(headers) if field[0] not in _OURS]
    kept += [(VERSION_FIELD, version.encode()), (b"accept-encoding", b"identity")]
    if session:
        kept.append((SESSION_FIELD, session))
    if version >= STATELESS:
        if method:
            kept.append((METHOD_FIELD, method.encode()))
        if name:
            kept.append((NAME_FIELD, field_value(name)))
    return kept


def passed(headers: Headers) -> Headers:
    """Return the fields of a client that a server may have."""
    return [field for field in headers if field[0] not in _NOT_PASSED and place_of(field[0]) is not Place.CREDENTIAL]


def named(headers: Headers, name: str) -> Headers:
    """Return the fields of a message with another `Mcp-Name`, where they have one."""
    return [(NAME_FIELD, field_value(name)) if field[0] == NAME_FIELD else field for field in headers]


def field_value(text: str) -> bytes:
    """Return a name as `Mcp-Name` carries it (2026-07-28): in base64 where it could not stand there as it is."""
    raw = text.encode("utf-8", "surrogatepass")
    if raw == raw.strip() and raw.isascii() and text.isprintable() and not raw.startswith(b"=?"):
        return raw
    return b"=?base64?" + base64.b64encode(raw) + b"?="


class Said(NamedTuple):
    """A message of a server's, as far as it decides where that goes."""

    id: bytes
    """Raw JSON; empty where it has none."""
    method: str
    """Empty for an answer."""
    pairs: Pairs


def read(message: bytes) -> Said | None:
    """Read a message; None for what is none."""
    try:
        pairs = read_body(message)
        raw = member(pairs, "id")
        return Said(b"" if raw is None else bytes(raw), text(pairs, "method") or "", pairs)
    except Refused:
        return None


def with_data(event: bytes, data: bytes) -> bytes:
    """Return an event with other data."""
    lines = event.removeprefix(BYTE_ORDER_MARK).splitlines()
    kept = [line for line in lines if line and line != b"data" and not line.startswith(b"data:")]
    return b"\n".join([*kept, b"data: " + data]) + b"\n\n"


def with_server(event: bytes, server: str) -> bytes:
    """Return an event whose id, by which its stream can be taken up again, says which server it is of."""
    if b"id:" not in event:
        return event
    return _EVENT_ID.sub(rb"\1id: " + server.encode() + _OF, event)


def event_of(last: bytes) -> tuple[str, bytes]:
    """Return the server and its own id of the event that a client has heard last; empty where it is none of ours."""
    server, mark, id = last.partition(_OF)
    return (server.decode("latin-1"), id) if mark else ("", b"")


def as_event(message: bytes) -> bytes:
    """Return a message as an event."""
    return b"event: message\ndata: " + message + b"\n\n"


def request(id: str, method: str, params: bytes) -> bytes:
    """Return a request of ours; `params` is JSON."""
    return b'{"jsonrpc":"2.0","id":' + encode(id) + b',"method":' + encode(method) + b',"params":' + params + b"}"


def notification(method: str, params: bytes = b"") -> bytes:
    """Return a notification of ours."""
    rest = b',"params":' + params if params else b""
    return b'{"jsonrpc":"2.0","method":' + encode(method) + rest + b"}"


def result(id: bytes, result: bytes) -> bytes:
    """Return an answer; both are JSON."""
    return b'{"jsonrpc":"2.0","id":' + id + b',"result":' + result + b"}"


def error(id: bytes, code: int, message: str) -> bytes:
    """Return an error."""
    said = encode({"code": code, "message": message})
    return b'{"jsonrpc":"2.0","id":' + id + b',"error":' + said + b"}"
