"""A2A over JSON-RPC, REST and gRPC: which message is sent, and how a client is told no. Both 0.3 and 1.0 are read.

Whichever way a message comes, its operation has the name that JSON-RPC gives it, and its parameters are read as one.
Its JSON-RPC client drops the body of everything that is no 2xx, so a refusal is an error with 200. Its REST client
keeps the message of an error whose reason it knows.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.call import Reply
from meshd.dialects.a2a_extension import CLAIM, MESSAGES, written
from meshd.dialects.a2a_fields import NEW, OLD
from meshd.dialects.a2a_rest import VERSION_FIELD as VERSION_FIELD
from meshd.dialects.a2a_rest import is_overridden, place_of, query_of, read_path
from meshd.dialects.a2a_tasks import METHODS, SENDS, STREAMED, is_old
from meshd.dialects.canonical import canonical
from meshd.dialects.grpc import NAMES, Grpc, split_path
from meshd.dialects.held_task import PREFIX
from meshd.dialects.json_pairs import flag, malformed, member, read_body, read_object, text
from meshd.dialects.jsonrpc import (
    KEY_CHARACTERS_MAX,
    MESSAGE,
    answer,
    details,
    error_answer,
    key_in,
    read_accept,
    read_message,
    read_params,
    rest_of,
)
from meshd.dialects.plain import Plain
from meshd.dialects.protobuf import decoded, framed
from meshd.refusal import DOMAIN, Reason, Refused, refusal_headers

if TYPE_CHECKING:
    from meshd.call import Call, Headers, Rpc
    from meshd.dialects.a2a_rest import Place
    from meshd.dialects.json_pairs import Pairs

READ_ONLY: Final = frozenset(
    {
        "GetTask", "ListTasks", "SubscribeToTask", "GetTaskPushNotificationConfig", "ListTaskPushNotificationConfigs",
        "GetExtendedAgentCard",
        "tasks/get", "tasks/list", "tasks/resubscribe", "tasks/pushNotificationConfig/get",
        "tasks/pushNotificationConfig/list", "agent/getAuthenticatedExtendedCard",
    }
)  # fmt: skip

CARD: Final = "card"
"""The operation of asking for an agent's card at its well-known path."""
CARD_PATHS: Final = ("/.well-known/agent-card.json", "/.well-known/agent.json")
JWKS_PATH: Final = "/.well-known/meshd-jwks.json"
"""Where a sidecar says with which key it signs cards."""
_ASKED_PATHS: Final = (*CARD_PATHS, JWKS_PATH)
CARD_METHODS: Final = frozenset({"GetExtendedAgentCard", "agent/getAuthenticatedExtendedCard"})
"""Methods that are answered with one."""
_BAD_REQUEST: Final = 400
_ERROR_INFO: Final = "type.googleapis.com/google.rpc.ErrorInfo"
_MESSAGE_IDS: Final = ("messageId", "message_id")
"""As JSON writes it, and as the protobuf does, which its parsers take too."""
_TASK_IDS: Final = ("taskId", "task_id")
_NAMED: Final = (*_TASK_IDS, "id", "name", "parent")
"""Where a method's parameters say which task it is about; `id` may also be of what belongs to a task."""
_CONTEXT_IDS: Final = ("contextId", "context_id")
NEW_SERVICE: Final = "lf.a2a.v1.A2AService"
OLD_SERVICE: Final = "a2a.v1.A2AService"
MESSAGE_BYTES_MAX: Final = 16 * 2**20
"""Of a compressed gRPC message, once it is not."""
_THEIRS: Final[dict[Reason, str]] = {
    Reason.MALFORMED: "INVALID_REQUEST",
    Reason.TOO_LARGE: "INVALID_REQUEST",
}
"""Reasons that an A2A client knows, by ours; of the others, the one for what failed or the one for what may not be."""

_OLD_TYPES: Final = {
    "INVALID_REQUEST": "InvalidRequestError",
    "UNSUPPORTED_OPERATION": "UnsupportedOperationError",
    "INTERNAL_ERROR": "InternalError",
}


def asked_in(path: str) -> str:
    """Return which of the well-known paths this is, however it is spelled; empty for another."""
    if ".json" not in path:
        return ""
    read = read_path(path)
    return next((one for one in _ASKED_PATHS if read.endswith(one)), "")


class A2A(Plain):
    """The dialect `a2a`."""

    name = "a2a"

    def recognise(self, method: str, path: str) -> str | None:
        """See `Dialect.recognise`: every POST, of other methods what its REST binding has, and cards."""
        if method == "POST" or place_of(method, path) is not None:
            return MESSAGE
        return CARD if method == "GET" and asked_in(path) else None

    def fill(self, rpc: Rpc, body: bytes, headers: Headers, method: str = "POST", path: str = "") -> None:
        """See `RpcDialect.fill`. What its caller wrote under meshd's own extension goes: nobody claims a context so."""
        self._fill(rpc, body, headers, method, path)
        if rpc.method in SENDS and CLAIM in rpc.arguments:
            clean = written(body, None, is_rpc=rpc.binding == "jsonrpc")
            if clean is not body:
                self._fill(rpc, clean, headers, method, path)
                rpc.forwarded = clean

    def _fill(self, rpc: Rpc, body: bytes, headers: Headers, method: str, path: str) -> None:
        place = place_of(method, path)
        if place is not None:
            _read_rest(rpc, place, body, headers, method, path)
            return
        read_accept(rpc, headers)
        pairs = read_message(rpc, body)
        if rpc.is_reply:
            rpc.arguments = rest_of(pairs, ("id", "jsonrpc"), "the reply")
            return
        # That a method streams is in its name: its client may accept anything.
        rpc.is_stream = rpc.method in STREAMED
        rpc.is_json_taken = rpc.is_json_taken or not rpc.is_stream
        rpc.is_read_only = rpc.method in READ_ONLY
        _read_params(rpc, read_params(pairs))

    def refuse(self, refused: Refused, call: Call, workflow: str) -> Reply | None:
        """See `RpcDialect.refuse`."""
        if call.method != "POST" or place_of("POST", call.path) is not None:
            return _of_rest(refused, call, workflow)
        told = answer(call.rpc, refused, call, workflow, self.error_message(refused, call, workflow))
        if refused.reason is Reason.MALFORMED and told.status == _BAD_REQUEST:
            # As A2A's own servers answer what is no message: a client drops the body of all but 2xx.
            told.status = 200
        return told

    def error_message(self, refused: Refused, call: Call, workflow: str) -> bytes:
        """See `RpcDialect.error_message`: the details stand as ErrorInfo, as A2A has them."""
        rpc = call.rpc
        return error_answer(b"" if rpc is None else rpc.id, refused, [_info(refused, call, workflow)])


class A2AGrpc(Grpc):
    """What of A2A comes framed as gRPC. Everything but the one message of the request is as with every gRPC call."""

    def recognise(self, method: str, path: str) -> str | None:
        """See `Dialect.recognise`: the methods of A2A's service, which all take one message."""
        return MESSAGE if method == "POST" and _known(path) is not None else None

    def fill(self, rpc: Rpc, body: bytes, headers: Headers, method: str = "POST", path: str = "") -> None:
        """See `RpcDialect.fill`."""
        known = _known(path)
        if known is None:
            malformed("A2A has no such method over gRPC")
        rpc.protocol, rpc.binding = "a2a", "grpc"
        rpc.method, table = known
        rpc.is_stream = rpc.method in STREAMED
        rpc.is_read_only = rpc.method in READ_ONLY
        found = decoded(message_in(body, headers, "the request"), table, "the request")
        _read_params(rpc, read_object(msgspec.json.encode(found), "the request"))


def _known(path: str) -> tuple[str, Any] | None:
    """Return the operation and the fields of a gRPC path; None where it is none of A2A's. Servers of gRPC that have it
    from an HTTP library get it without its escapes."""
    service, name = split_path(read_path(path))
    if service.endswith(NEW_SERVICE):
        table = NEW.get(name)
        return None if table is None else (name, table)
    return OLD.get(name) if service.endswith(OLD_SERVICE) else None


def message_in(body: bytes, headers: Headers, where: str) -> bytes:
    """Return the one message of a gRPC body, which may be compressed. Raises Refused(MALFORMED)."""
    is_compressed, message = framed(body, where)
    if not is_compressed:
        return message
    encoding = next((value for name, value in headers if name == b"grpc-encoding"), b"")
    if encoding not in (b"gzip", b"deflate"):
        malformed(f"{where} is compressed in a way that meshd cannot read ({encoding[:32].decode('latin-1')!r})")
    try:
        inflating = zlib.decompressobj(wbits=47)
        whole = inflating.decompress(message, MESSAGE_BYTES_MAX)
    except zlib.error as error:
        malformed(f"{where} is not compressed as it says: {error}")
    if inflating.unused_data:
        # A second gzip member: some inflate it too, and some ignore it.
        malformed(f"{where} is compressed, and has something behind its end, which not all read alike")
    if not inflating.eof:
        malformed(f"{where} is compressed, and ends early or has over {MESSAGE_BYTES_MAX} bytes")
    return whole


def _read_rest(rpc: Rpc, place: Place, body: bytes, headers: Headers, method: str, path: str) -> None:
    rpc.protocol, rpc.binding = "a2a", "rest"
    names = place.methods(headers, path)
    rpc.method, rpc.also = names[0], "\n".join(names[1:])
    rpc.is_stream = rpc.method in STREAMED
    rpc.is_json_taken = not rpc.is_stream
    rpc.is_read_only = rpc.method in READ_ONLY and not is_overridden(headers) and not (body and method == "GET")
    params = read_body(body) if body.strip() else {}
    if "jsonrpc" in params or "method" in params:
        malformed("A message of JSON-RPC is no request of A2A's REST: whoever takes it does something else")
    named = [("id", place.task), ("configId", place.config)] if place.task else []
    for name, value in [*named, *query_of(path)]:
        # What the address says stands beside what the body says, each under a name of its own.
        params.setdefault(f"/{name}", msgspec.Raw(msgspec.json.encode(value)))
    if place.task and len(place.task) <= KEY_CHARACTERS_MAX:
        rpc.task_id = place.task
    _read_params(rpc, params)


def _read_params(rpc: Rpc, params: Pairs) -> None:
    """Set what the parameters of a method say, whichever way they came."""
    names = [name for name in params if _is_message(name, params)] if rpc.method in SENDS else []
    if len(names) > 1:
        malformed("params has its message under two names; which one counts differs between parsers")
    if names and names[0] not in MESSAGES:
        malformed(f"params has its message under the name {names[0][:64]!r}, which not all parsers take for it")
    if not names:
        if rpc.method in METHODS and _is_ours_told(rpc):
            _name_task(rpc, params, ("/id",) if rpc.binding == "rest" else ("id",), "params")
        rpc.task_id = rpc.task_id or _read_id(params, _NAMED)
        rpc.context_id = _read_id(params, _CONTEXT_IDS)
        rpc.arguments = rest_of(params, (), "params")
        return
    members = read_object(params[names[0]], "the message")
    _read_sending(rpc, params, members)
    rpc.key = next(filter(None, (key_in(members, name, "the message") for name in _MESSAGE_IDS)), "")
    content = rest_of(members, _MESSAGE_IDS, "the message")
    rest = {name: bytes(raw) for name, raw in params.items() if name != names[0]}
    rpc.arguments = content if not rest else _together(content, rest)


def _is_message(name: str, params: Pairs) -> bool:
    return name.lower() in MESSAGES and member(params, name) is not None


def _read_sending(rpc: Rpc, params: Pairs, members: Pairs) -> None:
    """Set what a message says of tasks: whether one may be its answer, and whether its sender waits for that."""
    if _is_ours_told(rpc):
        _name_task(rpc, members, _TASK_IDS, "the message")
    rpc.task_id = _read_id(members, _TASK_IDS)
    # One that goes on with a task can only be answered with that.
    rpc.takes_task = all(member(members, name) is None for name in _TASK_IDS)
    rpc.context_id = _read_id(members, _CONTEXT_IDS)
    configuration = member(params, "configuration")
    if configuration is not None and rpc.takes_task and not rpc.is_stream:
        settings = read_object(configuration, "the configuration")
        if is_old(rpc.method):
            rpc.is_impatient = flag(settings, "blocking") is False
        else:
            rpc.is_impatient = flag(settings, "returnImmediately") is True


def _read_id(pairs: Pairs, names: tuple[str, ...]) -> str:
    """Return the first id that is there. One that is longer than any that is made, or no text, says nothing here: it
    goes on to the agent, which is to judge it."""
    for name in names:
        raw = member(pairs, name)
        if raw is not None and bytes(raw)[:1] == b'"' and len(bytes(raw)) <= KEY_CHARACTERS_MAX:
            # In 0.3's protobuf a task is named as a resource: tasks/ID, and below it what belongs to it.
            found = text(pairs, name, "the message") or ""
            return found.removeprefix("tasks/").partition("/")[0] if name in ("name", "parent") else found
    return ""


def _is_ours_told(rpc: Rpc) -> bool:
    """Say whether a task of ours can have been told by this binding: of 0.3 only JSON-RPC."""
    return rpc.binding == "jsonrpc" or not (is_old(rpc.method) or rpc.also)


def _name_task(rpc: Rpc, pairs: Pairs, names: tuple[str, ...], where: str) -> None:
    for name in names:
        raw = member(pairs, name)
        if raw is not None and bytes(raw)[:7] == b'"' + PREFIX.encode():
            rpc.task = text(pairs, name, where) or ""


def _together(content: bytes, rest: Pairs | dict[str, bytes]) -> bytes:
    pieces = [b'"message":' + content]
    pieces += [msgspec.json.encode(name) + b":" + bytes(raw) for name, raw in rest.items()]
    return canonical(b"{" + b",".join(pieces) + b"}", "params")


def _info(refused: Refused, call: Call, workflow: str, reason: str = "") -> dict[str, Any]:
    metadata = {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in details(refused, call, workflow).items()
    }
    return {
        "@type": _ERROR_INFO,
        "reason": reason or refused.reason.value.upper(),
        "domain": "a2a-protocol.org" if reason else DOMAIN,
        "metadata": metadata,
    }


def _of_rest(refused: Refused, call: Call, workflow: str) -> Reply:
    usual = "UNSUPPORTED_OPERATION" if refused.status < 500 else "INTERNAL_ERROR"
    theirs = _THEIRS.get(refused.reason, usual)
    error = {
        "code": refused.status,
        "status": NAMES[refused.grpc],
        "message": refused.message,
        "details": [_info(refused, call, workflow, theirs), _info(refused, call, workflow)],
    }
    said: dict[str, Any] = {"error": error}
    place = place_of(call.method, call.path)
    if place is not None and is_old(place.methods(call.headers, call.path)[0]):
        # What 0.3's client shows, in the words of the Python SDK.
        said |= {"type": _OLD_TYPES[theirs], "message": refused.message}
    headers = [(b"content-type", b"application/json")]
    headers += [*refusal_headers(refused, call_id=call.id, workflow=workflow), *call.reply_headers]
    return Reply(refused.status, headers, msgspec.json.encode(said))
