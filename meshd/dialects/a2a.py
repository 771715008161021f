"""A2A over JSON-RPC and REST: which message is sent, and how a client is told no. Both 0.3 and 1.0 are read.

Its JSON-RPC client drops the body of everything that is no 2xx, so a refusal is an error with 200. Its REST client
keeps the message of an error whose reason it knows.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.call import Reply
from meshd.dialects.a2a_tasks import METHODS, SENDS, STREAMED, is_old
from meshd.dialects.canonical import canonical
from meshd.dialects.grpc import NAMES
from meshd.dialects.held_task import PREFIX
from meshd.dialects.json_pairs import flag, member, read_object, text
from meshd.dialects.jsonrpc import (
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
from meshd.refusal import DOMAIN, Reason, Refused, refusal_headers

if TYPE_CHECKING:
    from meshd.call import Call, Headers, Rpc
    from meshd.dialects.json_pairs import Pairs

VERSION_FIELD: Final = b"a2a-version"
READ_ONLY: Final = frozenset(
    {
        "GetTask", "ListTasks", "SubscribeToTask", "GetTaskPushNotificationConfig", "ListTaskPushNotificationConfigs",
        "GetExtendedAgentCard",
        "tasks/get", "tasks/list", "tasks/resubscribe", "tasks/pushNotificationConfig/get",
        "tasks/pushNotificationConfig/list", "agent/getAuthenticatedExtendedCard",
    }
)  # fmt: skip

_REST: Final = re.compile(
    r"/(?:message:(?:send|stream)|tasks(?:/[^/:]+)?(?::cancel|:subscribe)?"
    r"|tasks/[^/]+/pushNotificationConfigs(?:/[^/]+)?|extendedAgentCard|card)\Z"
)
_ERROR_INFO: Final = "type.googleapis.com/google.rpc.ErrorInfo"
_MESSAGE_IDS: Final = ("messageId", "message_id")
"""As JSON writes it, and as the protobuf does, which its parsers take too."""
_THEIRS: Final[dict[Reason, str]] = {
    Reason.MALFORMED: "INVALID_REQUEST",
    Reason.TOO_LARGE: "INVALID_REQUEST",
}
"""Reasons that an A2A client knows, by ours; of the others, the one for what failed or the one for what may not be."""


class A2A(Plain):
    """The dialect `a2a`."""

    name = "a2a"

    def recognise(self, method: str, path: str) -> str | None:
        """See `Dialect.recognise`: every POST but those of its REST binding."""
        return MESSAGE if method == "POST" and _REST.search(path.partition("?")[0]) is None else None

    def fill(self, rpc: Rpc, body: bytes, headers: Headers) -> None:
        """See `RpcDialect.fill`."""
        read_accept(rpc, headers)
        pairs = read_message(rpc, body)
        if rpc.is_reply:
            rpc.arguments = rest_of(pairs, ("id", "jsonrpc"), "the reply")
            return
        # That a method streams is in its name: its client may accept anything.
        rpc.is_stream = rpc.method in STREAMED
        rpc.is_json_taken = rpc.is_json_taken or not rpc.is_stream
        rpc.is_read_only = rpc.method in READ_ONLY
        params = read_params(pairs)
        message = member(params, "message") if rpc.method in SENDS else None
        if message is None:
            if rpc.method in METHODS:
                _name_task(rpc, params, "id", "params")
            rpc.arguments = rest_of(params, (), "params")
            return
        members = read_object(message, "the message")
        _read_sending(rpc, params, members)
        rpc.key = next(filter(None, (key_in(members, name, "the message") for name in _MESSAGE_IDS)), "")
        content = rest_of(members, _MESSAGE_IDS, "the message")
        rest = {name: bytes(raw) for name, raw in params.items() if name != "message"}
        rpc.arguments = content if not rest else _together(content, rest)

    def refuse(self, refused: Refused, call: Call, workflow: str) -> Reply | None:
        """See `RpcDialect.refuse`."""
        rpc = call.rpc
        if rpc is None and self.recognise(call.method, call.path) is None:
            return _of_rest(refused, call, workflow)
        return answer(rpc, refused, call, workflow, self.error_message(refused, call, workflow))

    def error_message(self, refused: Refused, call: Call, workflow: str) -> bytes:
        """See `RpcDialect.error_message`: the details stand as ErrorInfo, as A2A has them."""
        rpc = call.rpc
        return error_answer(b"" if rpc is None else rpc.id, refused, [_info(refused, call, workflow)])


def _read_sending(rpc: Rpc, params: Pairs, members: Pairs) -> None:
    """Set what a message says of tasks: whether one may be its answer, and whether its sender waits for that."""
    _name_task(rpc, members, "taskId", "the message")
    # One that goes on with a task can only be answered with that.
    rpc.takes_task = member(members, "taskId") is None
    context = member(members, "contextId")
    if context is not None:
        rpc.context_id = text(members, "contextId", "the message") or ""
    configuration = member(params, "configuration")
    if configuration is not None and rpc.takes_task and not rpc.is_stream:
        settings = read_object(configuration, "the configuration")
        if is_old(rpc.method):
            rpc.is_impatient = flag(settings, "blocking") is False
        else:
            rpc.is_impatient = flag(settings, "returnImmediately") is True


def _name_task(rpc: Rpc, pairs: Pairs, name: str, where: str) -> None:
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
    headers = [(b"content-type", b"application/json")]
    headers += [*refusal_headers(refused, call_id=call.id, workflow=workflow), *call.reply_headers]
    return Reply(refused.status, headers, msgspec.json.encode({"error": error}))
