"""What meshd answers of its own tasks, and what agents answered, in the words of A2A's three bindings.

Within meshd an answer is what JSON-RPC's `result` is. Over REST of 1.0 that is the body itself, over gRPC the message
with the same fields; so a task is told by whichever binding it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from meshd.call import Reply
from meshd.dialects import a2a_tasks
from meshd.dialects.a2a import message_in
from meshd.dialects.a2a_answer_fields import ANSWERS
from meshd.dialects.held_task import decoded as json_of
from meshd.dialects.held_task import events_in, messages_in, request_for, rpc_answer, rpc_error
from meshd.dialects.json_pairs import malformed
from meshd.dialects.jsonrpc import SIGN_OF_LIFE, event
from meshd.dialects.protobuf import FRAME_HEAD_BYTES, decoded, joined, split
from meshd.dialects.protobuf_writing import encoded, frame
from meshd.refusal import Refused
from meshd.wire.grpc import DETAILS, MESSAGE, STATUS, encode_details, encode_message, read_status

if TYPE_CHECKING:
    from meshd.call import Call, Headers, Rpc


class Answer(Protocol):
    """What came back of a call that was made."""

    @property
    def status(self) -> int: ...

    @property
    def body(self) -> bytes: ...

    @property
    def is_stream(self) -> bool: ...

    @property
    def headers(self) -> Headers: ...

    @property
    def trailers(self) -> Headers: ...


JSONRPC: Final = "jsonrpc"
REST: Final = "rest"
GRPC: Final = "grpc"
_DOMAIN: Final = "a2a-protocol.org"
_BAD_REQUEST: Final = 400
_PRECONDITION: Final = 9
_REASONS: Final = {a2a_tasks.NOT_CANCELABLE: "TASK_NOT_CANCELABLE"}
_LENGTH: Final = 2
_ID_AT: Final = {"GetTask": (2,), "CancelTask": (2,), "SubscribeToTask": (2,), "SendMessage": (2, 3),
                 "SendStreamingMessage": (2, 3)}  # fmt: skip
"""Where, in the protobuf of a request, a task is named."""


def takes_tasks(rpc: Rpc) -> bool:
    """Say whether the binding of a request has answers that can be a task of ours: JSON-RPC, and of 1.0 the others."""
    return bool(rpc.id) if rpc.binding == JSONRPC else not a2a_tasks.is_old(rpc.method) and not rpc.also


def reply(call: Call, result: dict[str, Any]) -> Reply:
    """Return the answer to a request; in a stream its first event."""
    rpc = _rpc(call)
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store"), *call.reply_headers]
    if rpc.binding == GRPC:
        headers[:2] = [(b"content-type", b"application/grpc")]
        return Reply(200, headers, piece(rpc, result), [(STATUS, b"0")])
    is_stream = rpc.method in a2a_tasks.STREAMED and rpc.binding == REST
    if is_stream or (rpc.is_stream and (rpc.method in a2a_tasks.STREAMED or not rpc.is_json_taken)):
        headers[0] = (b"content-type", b"text/event-stream")
        return Reply(200, headers, piece(rpc, result))
    return Reply(200, headers, _message(rpc, result))


def piece(rpc: Rpc, result: dict[str, Any]) -> bytes:
    """Return one event of a stream, or the one message of a gRPC answer."""
    if rpc.binding == GRPC:
        return frame(encoded(result, ANSWERS[rpc.method]))
    message = _message(rpc, result)
    return event(message) if rpc.binding == JSONRPC else b"data: " + message + b"\n\n"


def life(rpc: Rpc) -> bytes:
    """Return a sign of life; empty over gRPC, whose connection shows its own."""
    return b"" if rpc.binding == GRPC else SIGN_OF_LIFE


def failed(call: Call, code: int, words: str) -> Reply:
    """Return the answer that one of A2A's own errors is, by its code in JSON-RPC."""
    rpc = _rpc(call)
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store"), *call.reply_headers]
    if rpc.binding == JSONRPC:
        return Reply(200, headers, rpc_error(rpc.id, code, words))
    reason = _REASONS[code]
    if rpc.binding == GRPC:
        details = encode_details(_PRECONDITION, words, reason, _DOMAIN, {})
        said = [(STATUS, b"%d" % _PRECONDITION), (MESSAGE, encode_message(words)), (DETAILS, details)]
        return Reply(200, [(b"content-type", b"application/grpc"), *said, *call.reply_headers])
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": _DOMAIN}
    error = {"code": _BAD_REQUEST, "status": "FAILED_PRECONDITION", "message": words, "details": [info]}
    return Reply(_BAD_REQUEST, headers, msgspec.json.encode({"error": error}))


def heard(binding: str, method: str, answer: Answer) -> list[dict[str, Any]]:
    """Return what an agent answered, each part with its `result`, or with an `error`; nothing where it is no answer."""
    body, status = answer.body, answer.status
    if binding == JSONRPC:
        return messages_in(body, is_stream=answer.is_stream)
    if binding == REST:
        found = [json_of(raw) for raw in (events_in(body) if answer.is_stream else [body])]
        return [_of_rest(one, status) for one in found if isinstance(one, dict)]
    ended = [*answer.trailers, *answer.headers]
    code = read_status(ended)
    if code != 0:
        words = next((value.decode("utf-8", "replace") for name, value in ended if name == MESSAGE), "")
        return [{"error": {"code": -32603, "message": words or f"The agent ended the call with the status {code}"}}]
    try:
        table = ANSWERS[method]
        return [{"result": decoded(one, table, "the answer")} for one in _frames(body, answer.headers)]
    except Refused as refused:
        return [{"error": {"code": -32603, "message": refused.message}}]


def _of_rest(said: dict[str, Any], status: int) -> dict[str, Any]:
    error = said.get("error")
    if status < _BAD_REQUEST and not isinstance(error, dict):
        return {"result": said}
    words = error.get("message") if isinstance(error, dict) else None
    return {"error": {"code": -32603, "message": words if isinstance(words, str) else f"The agent answered {status}"}}


def _frames(body: bytes, headers: Headers) -> list[bytes]:
    found, at = [], 0
    while at < len(body):
        end = at + FRAME_HEAD_BYTES + int.from_bytes(body[at + 1 : at + FRAME_HEAD_BYTES], "big")
        found.append(message_in(body[at:end], headers, "the answer"))
        at = end
    return found


def renamed_request(call: Call, ours: str, theirs: str) -> tuple[str, bytes | None]:
    """Return path and body of a request that names the upstream's task in the place of ours; every other byte stays.

    Raises Refused(MALFORMED).
    """
    rpc, body = _rpc(call), call.body or b""
    if rpc.binding == JSONRPC:
        return call.path, request_for(body, ours, theirs)
    if rpc.binding == GRPC:
        message = message_in(body, call.headers, "the request")
        return call.path, frame(_renamed(message, _ID_AT[rpc.method], ours.encode(), theirs.encode()))
    named = msgspec.json.encode(ours)
    path, mark, query = call.path.partition("?")
    if ours not in path and named not in body:
        malformed("The request's task is written in a way that cannot be forwarded under its agent's name")
    return path.replace(ours, theirs) + mark + query, body.replace(named, msgspec.json.encode(theirs)) or None


def _renamed(message: bytes, place: tuple[int, ...], ours: bytes, theirs: bytes) -> bytes:
    fields = []
    for number, wire, raw in split(message, "the request"):
        value = raw
        if number == place[0] and wire == _LENGTH:
            value = _renamed(raw, place[1:], ours, theirs) if place[1:] else theirs if raw == ours else raw
        fields.append((number, wire, value))
    return joined(fields)


def _message(rpc: Rpc, result: dict[str, Any]) -> bytes:
    return rpc_answer(rpc.id, result) if rpc.binding == JSONRPC else msgspec.json.encode(result)


def _rpc(call: Call) -> Rpc:
    assert call.rpc is not None
    return call.rpc
