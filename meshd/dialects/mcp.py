"""MCP over streamable HTTP: which tool is called, with which arguments, and how a client is told no.

Its clients take a 401 or 403 for the beginning of an OAuth flow, and the older ones any other 4xx for the end of their
session. So a refusal is an answer with 200: for a tool call that goes in circles or that a person refuses, a result
that the model reads; else an error. What the specification prescribes stays: 400 for what is no message, or whose
header fields say otherwise than its body.
"""

from __future__ import annotations

import base64
import binascii
import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.call import Reply
from meshd.dialects import mcp_tasks
from meshd.dialects.canonical import canonical
from meshd.dialects.held_task import PREFIX, decoded
from meshd.dialects.json_pairs import member, read_object, text, write
from meshd.dialects.jsonrpc import (
    INVALID_PARAMS,
    MESSAGE,
    answer,
    details,
    error_answer,
    invalid,
    key_in,
    name_in,
    read_accept,
    read_message,
    read_params,
    rest_of,
)
from meshd.dialects.plain import Plain
from meshd.refusal import Reason, Refused, refusal_headers

if TYPE_CHECKING:
    from meshd.call import Call, Headers, Rpc
    from meshd.dialects.json_pairs import Pairs

TOOLS_CALL: Final = "tools/call"
KEY_IN_META: Final = "meshd/idempotency-key"
"""No revision of MCP names a key of its own (2026-07-28 has none)."""
TOOL_CALL_IN_META: Final = "meshd/tool-call-id"
CLIENTS_OWN: Final = "claudecode/toolUseId"
"""In which Claude Code says it by itself. Others (Codex's `callId`) write it under names that may mean anything."""
HEADER_MISMATCH: Final = -32020
METHOD_FIELD: Final = b"mcp-method"
NAME_FIELD: Final = b"mcp-name"
VERSION_FIELD: Final = b"mcp-protocol-version"
SESSION_FIELD: Final = b"mcp-session-id"

READ_ONLY: Final = frozenset(
    {
        "initialize", "ping", "server/discover", "tools/list", "resources/list", "resources/templates/list",
        "resources/read", "resources/subscribe", "resources/unsubscribe", "prompts/list", "prompts/get",
        "completion/complete", "logging/setLevel", "tasks/get", "tasks/list", "tasks/result", "subscriptions/listen",
    }
)  # fmt: skip
"""Methods that change nothing but what the client is told. Others that are not known may change something."""

_NAMED: Final = {
    TOOLS_CALL: "name",
    "prompts/get": "name",
    "resources/read": "uri",
    **dict.fromkeys(mcp_tasks.METHODS, "taskId"),
}
"""The parameter that `Mcp-Name` repeats (2026-07-28), by method."""
_FOR_THE_MODEL: Final = frozenset(
    {Reason.LOOP, Reason.MAX_TURNS, Reason.APPROVAL_DENIED, Reason.APPROVAL_PENDING}
)  # fmt: skip
_BASE64: Final = re.compile(rb"=\?base64\?(.*)\?=\Z", re.IGNORECASE)
_TOKEN_BYTES_MAX: Final = 256
_TOOL_CALL_BYTES_MAX: Final = 128
_RANDOM: Final = re.compile(
    rb'"((?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]*[A-Za-z0-9]{16}[A-Za-z0-9_-]*'
    rb'|[A-Za-z_-]*[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"'
)
"""Sixteen letters and digits in a row (`toolu_01A09q90qw90lq917835lq9`, `call_...`), or a UUID."""
_STATELESS_SINCE: Final = b"2026"
"""Revisions from then on ask for `resultType` in every result, and have clients make a call again that must wait."""
LEGS_MAX: Final = 8
"""Official clients give up after 10, with an exception: before that, the model is told."""
STATE_PREFIX: Final = "meshd."
_STATE: Final = re.compile(r"meshd\.([1-8])\.[0-9]{1,12}\.[0-9a-z-]{14}\.[A-Za-z0-9_-]{22}\Z")
"""The leg, until when it holds, the approval, and the seal over these and the call."""


class Mcp(Plain):
    """The dialect `mcp`."""

    name = "mcp"

    def recognise(self, method: str, path: str) -> str | None:
        """See `Dialect.recognise`: every POST, whatever type it says it is of."""
        return MESSAGE if method == "POST" else None

    def fill(self, rpc: Rpc, body: bytes, headers: Headers, method: str = "POST", path: str = "") -> None:
        """See `RpcDialect.fill`."""
        read_accept(rpc, headers)
        pairs = read_message(rpc, body)
        if rpc.is_reply:
            rpc.is_read_only = True
            rpc.arguments = rest_of(pairs, ("id", "jsonrpc"), "the reply")
            return
        params = read_params(pairs)
        if "requestState" in params:
            _resume(rpc, pairs, params)
        _check_fields(rpc.method, params, headers)
        rpc.is_read_only = rpc.method in READ_ONLY or rpc.method.startswith("notifications/")
        _read_meta(rpc, params)
        if rpc.method != TOOLS_CALL:
            if rpc.method in mcp_tasks.METHODS:
                task = text(params, "taskId", "params") or ""
                rpc.task = task if task.startswith(PREFIX) else ""
            rpc.arguments = rest_of(params, ("_meta",), "params")
            return
        rpc.tool = name_in(params, "name", "params")
        if not rpc.tool:
            raise invalid("A tools/call names its tool in params.name", INVALID_PARAMS)
        raw = member(params, "_meta")
        if raw is not None:
            rpc.tool_call_id = _tool_call_in(read_object(raw, "_meta"))
        is_stateless = _first(headers, VERSION_FIELD) >= _STATELESS_SINCE
        rpc.is_resumable = is_stateless and "requestState" not in params and "inputResponses" not in params
        rpc.takes_task = rpc.is_resumable and rpc.declares_tasks
        if len(params) > 3 or not params.keys() <= {"name", "arguments", "_meta"}:
            # A later leg of the same call brings what the server has asked for: it is another call.
            rpc.arguments = rest_of(params, ("name", "_meta"), "params")
            if rpc.key and ("requestState" in params or "inputResponses" in params):
                # Its client gives all legs one key. What the server gave it to come back with says which leg it is.
                state = bytes(member(params, "requestState") or b"")
                rpc.key = sha256(b"%b\0%b" % (rpc.key.encode("utf-8", "surrogatepass"), state)).hexdigest()
            return
        arguments = member(params, "arguments")
        rpc.arguments = b"{}" if arguments is None else canonical(bytes(arguments), "the tool's arguments")

    def refuse(self, refused: Refused, call: Call, workflow: str) -> Reply | None:
        """See `RpcDialect.refuse`."""
        rpc = call.rpc
        if rpc is None and call.method != "POST":
            return _of_stream(refused, call, workflow)
        reply = answer(rpc, refused, call, workflow, self.error_message(refused, call, workflow))
        if refused.jsonrpc == HEADER_MISMATCH:
            reply.status = 400
        elif refused.prescribed is not None:
            reply.status = refused.status
        return reply

    def error_message(self, refused: Refused, call: Call, workflow: str) -> bytes:
        """See `RpcDialect.error_message`: of a tool call, a result for the model where it is the model's to know."""
        rpc = call.rpc
        found = details(refused, call, workflow)
        if rpc is None or rpc.method != TOOLS_CALL or refused.reason not in _FOR_THE_MODEL or refused.is_repeated:
            return error_answer(b"" if rpc is None else rpc.id, refused, found)
        found["jsonrpc"] = refused.jsonrpc
        result: dict[str, Any] = {"_meta": {"meshd/refusal": found}}
        if refused.state:
            result |= {"resultType": "input_required", "requestState": refused.state}
            if refused.asks:
                result["inputRequests"] = refused.asks
        else:
            result |= {"content": [{"type": "text", "text": refused.message}], "isError": True}
            if _first(call.headers, VERSION_FIELD) >= _STATELESS_SINCE:
                result["resultType"] = "complete"
        return b'{"jsonrpc":"2.0","id":' + (rpc.id or b"null") + b',"result":' + msgspec.json.encode(result) + b"}"


def _resume(rpc: Rpc, pairs: Pairs, params: Pairs) -> None:
    """Take our own state, and what was answered to our question, out of a call that its client makes again, as it was
    told to: the server knows nothing of either.

    What the client says that its user answered decides nothing: it can answer itself. A no is taken for one.
    """
    state = text(params, "requestState", "params") or ""
    if not state.startswith(STATE_PREFIX):
        return
    match = _STATE.match(state)
    if match is None:
        raise invalid("params.requestState is none that meshd has given out", INVALID_PARAMS)
    rpc.leg = int(match[1])
    rpc.state = state
    del params["requestState"]
    if "inputResponses" in params:
        answers = decoded(bytes(params.pop("inputResponses")))
        found = answers.values() if isinstance(answers, dict) else ()
        rpc.is_declined = any(isinstance(one, dict) and one.get("action") in ("decline", "cancel") for one in found)
    rpc.forwarded = write(pairs, {"params": write(params, {})})


def _read_meta(rpc: Rpc, params: Pairs) -> None:
    raw = member(params, "_meta")
    if raw is None:
        return
    meta = read_object(raw, "_meta")
    rpc.key = key_in(meta, KEY_IN_META, "_meta")
    capabilities = member(meta, mcp_tasks.CAPABILITIES)
    if capabilities is not None:
        declared = decoded(bytes(capabilities))
        rpc.declares_tasks = mcp_tasks.declares_tasks(declared)
        elicitation = declared.get("elicitation") if isinstance(declared, dict) else None
        rpc.elicits_urls = isinstance(elicitation, dict) and isinstance(elicitation.get("url"), dict)
    token = member(meta, "progressToken")
    if token is not None and len(bytes(token)) <= _TOKEN_BYTES_MAX and bytes(token)[0] in b'"-0123456789':
        rpc.progress_token = bytes(token)


def _tool_call_in(meta: Pairs) -> str:
    """Return the id of the model's tool call; empty where none is said that no other call can have.

    What is written for us is taken at its word. What a client writes for others is taken where it is random: some
    models number their calls anew in each turn, and then the same call of a later turn would get an old answer.
    """
    ours = key_in(meta, TOOL_CALL_IN_META, "_meta")
    if ours:
        return ours
    raw = member(meta, CLIENTS_OWN)
    if raw is None or len(bytes(raw)) > _TOOL_CALL_BYTES_MAX:
        return ""
    found = _RANDOM.fullmatch(bytes(raw))
    return "" if found is None else found[1].decode()


def _first(headers: Headers, name: bytes) -> bytes:
    for field, value in headers:
        if field == name:
            return value
    return b""


def _check_fields(method: str, params: Pairs, headers: Headers) -> None:
    """Refuse a message whose header fields say otherwise than its body: whoever goes by them would judge another."""
    for name, value in headers:
        if name == METHOD_FIELD:
            said, what = method, "method"
        elif name == NAME_FIELD and method in _NAMED:
            said, what = text(params, _NAMED[method], "params") or "", _NAMED[method]
        else:
            continue
        # RFC 9110, section 5.5: blanks around a value are no part of it.
        if _decoded(value.strip(b" \t")) != said:
            shown = value[:64].decode("latin-1")
            refused = invalid(f"The header field {name.decode()} says {shown!r}, and the {what} in the body is another")
            refused.jsonrpc = HEADER_MISMATCH
            raise refused


def _decoded(value: bytes) -> str | None:
    match = _BASE64.match(value)
    try:
        return (value if match is None else base64.b64decode(match[1], validate=True)).decode()
    except (UnicodeDecodeError, binascii.Error):
        return None


def _of_stream(refused: Refused, call: Call, workflow: str) -> Reply | None:
    """Answer the GET of a stream or the DELETE of a session: 405 is how a server says that it has no such thing."""
    is_listening = call.method == "GET" and b"text/event-stream" in _first(call.headers, b"accept")
    if not is_listening and call.method != "DELETE":
        return None
    headers = [(b"content-type", b"application/json"), (b"allow", b"POST")]
    headers += [*refusal_headers(refused, call_id=call.id, workflow=workflow), *call.reply_headers]
    body = error_answer(b"", refused, details(refused, call, workflow))
    return Reply(refused.status if refused.status >= 500 else 405, headers, body)
