"""JSON-RPC 2.0 over HTTP, as MCP and A2A speak it: one message in, one answer out, and refusals that clients show.

A message is read at the levels that decide: its own members, those of its parameters, and what a call is about down to
its last value. The body that is forwarded is the one that came, byte for byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from meshd.call import Reply
from meshd.dialects.canonical import canonical
from meshd.dialects.json_pairs import Pairs, member, read_body, read_object, text
from meshd.refusal import Reason, Refused, refusal_headers

if TYPE_CHECKING:
    from meshd.call import Call, Headers, Rpc

SIGN_OF_LIFE: Final = b": waiting for approval\n\n"
"""A comment, which every reader of server-sent events passes over."""
MESSAGE: Final = "message"
"""The operation that is recognised: what it really is, its method says."""
ID_BYTES_MAX: Final = 1024
NAME_CHARACTERS_MAX: Final = 256
KEY_CHARACTERS_MAX: Final = 512
INVALID_REQUEST: Final = -32600
INVALID_PARAMS: Final = -32602

_ID_HEADS: Final = frozenset(b'"-0123456789n')
_JSON: Final = b"application/json"
_EVENTS: Final = b"text/event-stream"


_ENVELOPE: Final = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})


class RpcDialect(Protocol):
    """A dialect whose bodies are JSON-RPC: what it does beside what every dialect does."""

    name: str

    def fill(self, rpc: Rpc, body: bytes, headers: Headers, method: str = "POST", path: str = "") -> None:
        """Read a message into `rpc`: its id first, so that a refusal of what follows can name it. Raises Refused."""
        ...

    def refuse(self, refused: Refused, call: Call, workflow: str) -> Reply | None:
        """Return the answer that this call's client takes for a refusal; None for what is no message: see
        `refusal_body`."""
        ...

    def error_message(self, refused: Refused, call: Call, workflow: str) -> bytes:
        """Return the JSON-RPC answer alone."""
        ...


def invalid(message: str, code: int = INVALID_REQUEST) -> Refused:
    """Return the refusal of what is JSON, and no message."""
    refused = Refused(Reason.MALFORMED, message)
    refused.jsonrpc = code
    return refused


def read_message(rpc: Rpc, body: bytes) -> Pairs:
    """Read the envelope of one message: sets the id and the method; returns its members. Raises Refused."""
    if body.lstrip(b" \t\r\n")[:1] == b"[":
        raise invalid(
            "A batch of JSON-RPC messages cannot be judged as one call. Send each message by itself; MCP has had no "
            "batches since 2025-06-18."
        )
    pairs = read_body(body)
    if not _ENVELOPE.issuperset(pairs):
        for name in pairs:
            if name not in _ENVELOPE and name.lower() in _ENVELOPE:
                raise invalid(f"The message has a member {name!r}, which some parsers take for {name.lower()!r}")
    id = pairs.get("id")
    if id is not None:
        raw = bytes(id)
        if raw[0] not in _ID_HEADS or len(raw) > ID_BYTES_MAX:
            raise invalid(f"The id of a JSON-RPC message is a string or a number, of at most {ID_BYTES_MAX} bytes")
        rpc.id = raw
    if text(pairs, "jsonrpc") != "2.0":
        raise invalid('The request body is no JSON-RPC 2.0 message: its member "jsonrpc" is not "2.0"')
    method = text(pairs, "method")
    if method is None:
        if id is None or ("result" in pairs) == ("error" in pairs):
            raise invalid("The request body is no JSON-RPC message: it has neither a method nor one result or error")
        # The answer to what the server asked of its client: nobody answers it.
        rpc.id = b""
        rpc.is_reply = True
        return pairs
    # Rules tell it from an HTTP call's operation by the blank in that.
    if not method or len(method) > NAME_CHARACTERS_MAX or not method.isprintable() or " " in method:
        raise invalid(
            f"The method of a JSON-RPC message is a name without blanks, of at most {NAME_CHARACTERS_MAX} characters"
        )
    rpc.method = method
    return pairs


def read_params(pairs: Pairs) -> Pairs:
    """Return the members of `params`, none where there are none. Raises Refused, also where it is an array."""
    raw = member(pairs, "params")
    if raw is None:
        return {}
    if bytes(raw)[:1] != b"{":
        raise invalid("The params of a message are an object here, with a name for each", INVALID_PARAMS)
    return read_object(raw, "params")


def read_accept(rpc: Rpc, headers: Headers) -> None:
    """Set what the caller takes for an answer."""
    accepts = b",".join([value for name, value in headers if name == b"accept"]).lower()
    rpc.is_stream = _EVENTS in accepts
    rpc.is_json_taken = not accepts or _JSON in accepts or b"*/*" in accepts or b"application/*" in accepts


def name_in(pairs: Pairs, name: str, where: str) -> str:
    """Return a text that must be there, empty where it is missing. Raises Refused."""
    found = text(pairs, name, where)
    if found is not None and len(found) > NAME_CHARACTERS_MAX:
        raise invalid(f"{name!r} of {where} is over {NAME_CHARACTERS_MAX} characters", INVALID_PARAMS)
    return found or ""


def key_in(pairs: Pairs, name: str, where: str) -> str:
    """Return a text that names a call, empty where there is none. Raises Refused."""
    found = text(pairs, name, where)
    if found is not None and len(found) > KEY_CHARACTERS_MAX:
        raise invalid(f"{name!r} of {where} is over {KEY_CHARACTERS_MAX} characters", INVALID_PARAMS)
    return found or ""


def rest_of(pairs: Pairs, without: tuple[str, ...], where: str) -> bytes:
    """Return the members less those in `without`, in their one spelling. Raises Refused."""
    kept = [msgspec.json.encode(name) + b":" + bytes(raw) for name, raw in pairs.items() if name not in without]
    return canonical(b"{" + b",".join(kept) + b"}", where)


# ---------------------------------------------------------------------- refusals


def details(refused: Refused, call: Call, workflow: str) -> dict[str, Any]:
    """Return what a program can read of a refusal."""
    found: dict[str, Any] = {
        "reason": refused.reason.value,
        "code": refused.row.code,
        "workflow": workflow,
        "call": call.id,
        "retryable": refused.is_retryable,
    }
    if refused.is_retryable:
        found["retry_after_s"] = refused.retry_in_s
    if refused.prescribed:
        found |= refused.prescribed
    return found


def error_answer(id: bytes, refused: Refused, data: Any) -> bytes:
    """Return a JSON-RPC error with the id as it came, null where none is known."""
    error = msgspec.json.encode({"code": refused.jsonrpc, "message": refused.message, "data": data})
    return b'{"jsonrpc":"2.0","id":' + (id or b"null") + b',"error":' + error + b"}"


def answer(rpc: Rpc | None, refused: Refused, call: Call, workflow: str, message: bytes) -> Reply:
    """Return the reply that carries `message`, the answer to a refused call.

    A message whose id is known is answered with 200: its client would take anything else for the end of its session.
    What cannot be read as one gets the status that says so, as MCP prescribes. A notification and a reply are
    taken (202), since nobody waits for an answer to them.
    """
    headers = [*refusal_headers(refused, call_id=call.id, workflow=workflow), *call.reply_headers]
    if rpc is not None and (rpc.is_reply or (rpc.method and not rpc.id)):
        return Reply(202, headers)
    if rpc is not None and rpc.is_stream and not rpc.is_json_taken:
        headers.insert(0, (b"content-type", _EVENTS))
        return Reply(200 if rpc.id else refused.status, headers, event(message))
    headers.insert(0, (b"content-type", _JSON))
    return Reply(200 if rpc is not None and rpc.id else refused.status, headers, message)


def event(message: bytes) -> bytes:
    """Return a message as a server-sent event."""
    return b"event: message\ndata: " + message + b"\n\n"
