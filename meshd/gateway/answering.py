"""What the gateway says for all servers together: who it is, what they have, and that a session has begun or ended."""

from __future__ import annotations

import base64
import binascii
import logging
import secrets
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.dialects.json_pairs import member, read_body, read_object, text, write
from meshd.dialects.jsonrpc import INVALID_PARAMS, invalid
from meshd.dialects.mcp import SESSION_FIELD
from meshd.gateway.client import Client
from meshd.gateway.legacy import LEGACY, STREAM_PATH
from meshd.gateway.listing import PARTS, TOOLS, Part, result_of
from meshd.gateway.messages import SESSIONED, STATELESS, SUBSCRIPTION_IN_META, encode, notification, params_of, result
from meshd.gateway.names import DESCRIBE, FIND, READ
from meshd.gateway.opening import hello_of
from meshd.gateway.resolving import METHOD_UNKNOWN, session_unknown, unknown
from meshd.gateway.results import URI, contents_of, definition, owner_of, part_of
from meshd.gateway.showing import arguments_of, definitions, described, found, tokens_of
from meshd.gateway.sizing import is_limited
from meshd.gateway.streams import ACKNOWLEDGED, LIST_CHANGED
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from meshd.call import Call, Headers
    from meshd.gateway.gateway import Gateway
    from meshd.gateway.listing import Shown

log = logging.getLogger("meshd.gateway")

HELLO_BYTES_MAX: Final = 65_536
"""Of what a client declares: it is kept as long as its session."""
URIS_BYTES_MAX: Final = 262_144
PAGE: Final = 1000
"""Entries of one page."""
_CAPABILITIES: Final = {
    "tools": {"listChanged": True},
    "prompts": {"listChanged": True},
    "resources": {"subscribe": True, "listChanged": True},
    "completions": {},
    "logging": {},
}
_STATELESS_CAPABILITIES: Final = {
    **_CAPABILITIES,
    "extensions": {"io.modelcontextprotocol/tasks": {}},
}
_INSTRUCTIONS: Final = (
    "Tools and prompts of several servers stand here together; each is named by its server and two underscores."
)
_CACHE: Final = {"ttlMs": 0, "cacheScope": "private"}
"""What is shown depends on who asks, and may change with the policy."""
_LEVELS: Final = frozenset({"debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"})


class Answer:
    """What goes back."""

    __slots__ = ("body", "client", "headers", "is_event", "is_stream", "status", "subscription", "uris", "wanted")

    def __init__(self, body: bytes = b"", headers: Headers | None = None, status: int = 200) -> None:
        self.body = body
        self.headers: Headers = headers or []
        self.status = status
        self.is_stream = False
        self.is_event = False
        """The body is an event already."""
        self.client: Client | None = None
        self.wanted: frozenset[str] | None = None
        self.uris: frozenset[str] = frozenset()
        self.subscription = b""


def answer_message(gateway: Gateway, call: Call) -> Answer | Coroutine[Any, Any, Answer]:
    """Answer a message that is for no one server. Raises Refused."""
    rpc, passage = call.rpc, call.passage
    assert rpc is not None
    client: Client = passage.client
    if not rpc.id:
        if rpc.method == "notifications/roots/list_changed":
            gateway.tell_all(client, notification(rpc.method))
        return Answer(status=202)
    pairs = read_body(passage.body)
    method = text(pairs, "method") or ""
    params = params_of(pairs)
    if method == "tools/call":
        return _own_tool(gateway, call, client, text(params, "name", "params") or "")
    if (part := PARTS.get(method)) is not None:
        return _list(gateway, call, client, part, text(params, "cursor", "params") or "")
    if method == "resources/read":
        return whole_result(gateway, call, client, text(params, "uri", "params") or "")
    if method == "initialize":
        return _initialize(gateway, call, params)
    if method == "ping":
        return _said(call, client, {})
    if method == "server/discover":
        return _said(call, client, _discovered())
    if method == "logging/setLevel":
        level = text(params, "level", "params")
        if level not in _LEVELS:
            raise invalid(f"The level is one of {', '.join(sorted(_LEVELS))}", INVALID_PARAMS)
        client.log_level = encode({"level": level})
        gateway.tell_all(client, b"", level=client.log_level)
        return _said(call, client, {})
    if method == "subscriptions/listen" and client.version >= STATELESS:
        return _subscribe(call, client, params)
    if rpc.task:
        raise invalid(f"There is no task {rpc.task[:64]!r} here", INVALID_PARAMS)
    refused = invalid(f"{method[:64]} is no method of this gateway", METHOD_UNKNOWN)
    if client.version >= STATELESS:
        refused.status, refused.prescribed = 404, {}
    raise refused


def _said(call: Call, client: Client, said: dict[str, Any]) -> Answer:
    assert call.rpc is not None
    if client.version >= STATELESS:
        said = {**said, "resultType": "complete"}
    return Answer(result(call.rpc.id, encode(said)), _session(client))


def whole_result(gateway: Gateway, call: Call, client: Client, uri: str) -> Answer:
    """Answer with the whole of a result that was cut. Raises Refused."""
    assert call.rpc is not None
    found = gateway.results.get(uri.removeprefix(URI), owner_of(call, client))
    if found is None:
        raise unknown(gateway, call, "resources/read", uri)
    more = {"resultType": "complete", **_CACHE} if client.version >= STATELESS else {}
    edits = {"contents": b"[" + b",".join(contents_of(found, uri)) + b"]"}
    return Answer(
        result(call.rpc.id, write({}, edits | {name: encode(one) for name, one in more.items()})), _session(client)
    )


def read_on(gateway: Gateway, call: Call, client: Client) -> Answer:
    """Answer `read_result`. Raises Refused."""
    assert call.rpc is not None
    given = arguments_of(call.passage.body)
    id, start = given.get("id"), given.get("from", 0)
    if not isinstance(id, str) or not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise invalid(f"{READ} takes the id of a result, and from where: {{id, from}}", INVALID_PARAMS)
    found = gateway.results.get(id, owner_of(call, client))
    if found is None:
        raise invalid(f"There is no result {id[:64]!r}: it is kept for a while, for who called", INVALID_PARAMS)
    return Answer(result(call.rpc.id, part_of(found, id, start)), _session(client))


def _session(client: Client) -> Headers:
    return [(SESSION_FIELD, client.id.encode())] if client.id else []


def _initialize(gateway: Gateway, call: Call, params: Any) -> Answer:
    assert call.rpc is not None
    asked = text(params, "protocolVersion", "params") or ""
    capabilities = member(params, "capabilities")
    if not asked or capabilities is None or bytes(capabilities)[:1] != b"{":
        raise invalid("initialize says protocolVersion, capabilities and clientInfo", INVALID_PARAMS)
    talking: Client = call.passage.client
    is_known = asked in SESSIONED or (asked == LEGACY and talking.talk is not None)
    version = asked if is_known else SESSIONED[0]
    # No server is asked to speak as in 2024: what it says is the same as of a revision later.
    said_on = version if version in SESSIONED else SESSIONED[-1]
    # msgspec.Raw is told to type checkers as bytes, and is none: what is compiled refuses it for them.
    hello = hello_of(bytes(member(read_body(call.passage.body), "params") or b"{}"), said_on)
    if len(hello) > HELLO_BYTES_MAX:
        raise invalid(f"What a client says of itself is at most {HELLO_BYTES_MAX} bytes", INVALID_PARAMS)
    if talking.talk is not None:
        client = talking
        client.version, client.hello = version, hello
    else:
        client = Client(secrets.token_urlsafe(24), call.agent, call.peer, version, hello, is_shared=False)
        gateway.admit(client)
    said = {
        "protocolVersion": version,
        "capabilities": _CAPABILITIES,
        "serverInfo": gateway.info,
        "instructions": _INSTRUCTIONS,
    }
    return Answer(result(call.rpc.id, encode(said)), _session(client))


def _discovered() -> dict[str, Any]:
    return {
        "supportedVersions": [STATELESS],
        "capabilities": _STATELESS_CAPABILITIES,
        "instructions": _INSTRUCTIONS,
        "_meta": {"io.modelcontextprotocol/serverInfo": {"name": "meshd", "version": "1"}},
        **_CACHE,
    }


# ---------------------------------------------------------------------- lists


async def _list(gateway: Gateway, call: Call, client: Client, part: Part, cursor: str) -> Answer:
    assert call.rpc is not None
    start = 0
    if cursor:
        start = _start_of(cursor, part)
    else:
        await gateway.list_all(client, call.agent, part)
    shown = gateway.shown(call.policy, call.agent, part)
    page = shown[start : start + PAGE]
    made = [one.definition for one in page]
    following = _cursor(part, start + PAGE) if start + PAGE < len(shown) else ""
    if part is TOOLS:
        own = _disclosed(gateway, call, shown, is_first=not cursor)
        if own:
            made, following = own, ""
        if not following and is_limited(call.policy, gateway.servers):
            made = [*made, definition()]
    more = {"resultType": "complete", **_CACHE} if client.version >= STATELESS else {}
    return Answer(result(call.rpc.id, result_of(part, made, following, more)), _session(client))


def _disclosed(gateway: Gateway, call: Call, shown: list[Shown], *, is_first: bool) -> list[bytes]:
    """Return the gateway's own tools where they stand for all; nothing where all are shown."""
    settings = call.policy.mcp
    disclosure = "all" if settings is None else settings.disclosure
    if disclosure == "all" or (disclosure == "auto" and len(shown) <= settings.above):
        return []
    own = definitions()
    if is_first:
        gateway.saved(max(tokens_of([one.definition for one in shown]) - tokens_of(own), 0))
    return own


def _cursor(part: Part, start: int) -> str:
    return base64.urlsafe_b64encode(f"{part.key}:{start}".encode()).decode()


def _start_of(cursor: str, part: Part) -> int:
    try:
        key, _, start = base64.urlsafe_b64decode(cursor.encode()).decode().partition(":")
        if key == part.key and start.isascii() and start.isdigit() and len(start) < 8:
            return int(start)
    except (ValueError, binascii.Error):
        pass
    raise invalid("The cursor is none that this gateway has given out", INVALID_PARAMS)


async def _own_tool(gateway: Gateway, call: Call, client: Client, name: str) -> Answer:
    assert call.rpc is not None
    if name == READ:
        return read_on(gateway, call, client)
    if not gateway.names.tools:
        await gateway.list_all(client, call.agent, TOOLS)
    shown = {one.name: one.place for one in gateway.shown(call.policy, call.agent, TOOLS)}
    if name == FIND:
        made = found(call.passage.body, gateway.finder, shown)
    elif name == DESCRIBE:
        made = described(call.passage.body, shown)
    else:
        raise invalid(f"There is no tool {name[:128]!r}", INVALID_PARAMS)
    return Answer(result(call.rpc.id, made), _session(client))


# ---------------------------------------------------------------------- streams and the end


def _subscribe(call: Call, client: Client, params: Any) -> Answer:
    """Open the stream of `subscriptions/listen`; what it is told first is what it will hear."""
    assert call.rpc is not None
    raw = member(params, "notifications")
    if raw is None or bytes(raw)[:1] != b"{":
        raise invalid("subscriptions/listen says in params.notifications what it wants to hear", INVALID_PARAMS)
    asked = read_object(raw, "notifications")
    wanted = {method for method, key in LIST_CHANGED.items() if bytes(asked.get(key) or b"") == b"true"}
    uris = _uris(asked)
    told: dict[str, Any] = {key: True for method, key in LIST_CHANGED.items() if method in wanted}
    if uris:
        told["resourceSubscriptions"] = sorted(uris)
    meta = b'{"' + SUBSCRIPTION_IN_META.encode() + b'":' + call.rpc.id + b"}"
    body = notification(ACKNOWLEDGED, b'{"_meta":' + meta + b',"notifications":' + encode(told) + b"}")
    answer = Answer(body)
    answer.is_stream, answer.client, answer.wanted = True, client, frozenset(wanted)
    answer.uris, answer.subscription = uris, call.rpc.id
    return answer


def _uris(asked: Any) -> frozenset[str]:
    raw = member(asked, "resourceSubscriptions")
    if raw is None:
        return frozenset()
    try:
        if len(bytes(raw)) <= URIS_BYTES_MAX:
            return frozenset(msgspec.json.decode(raw, type=list[str]))
        raise invalid(f"resourceSubscriptions is at most {URIS_BYTES_MAX} bytes", INVALID_PARAMS)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise invalid("resourceSubscriptions is a list of URIs", INVALID_PARAMS) from None


def answer_get(gateway: Gateway, call: Call, method: str, target: str) -> Answer:
    """Open the stream of a session (2025), or one that is a session itself (2024-11-05). Raises Refused."""
    session = call.header(SESSION_FIELD)
    is_stream = any(name == b"accept" and b"text/event-stream" in value for name, value in call.headers)
    if method == "GET" and is_stream and session is None and call.path.partition("?")[0] == STREAM_PATH:
        opened = Answer()
        opened.client, opened.body = gateway.talks.open(call, target)
        opened.is_stream = opened.is_event = True
        return opened
    if method != "GET" or not is_stream or session is None:
        raise Refused(Reason.MALFORMED, "A stream is opened by GET, in a session, with Accept: text/event-stream")
    client = gateway.client(session, call)
    gateway.check(client, call)
    answer = Answer(headers=_session(client))
    answer.is_stream, answer.client = True, client
    return answer


def end_session(gateway: Gateway, call: Call) -> Answer:
    """End a session, here and at the servers. Raises Refused."""
    session = call.header(SESSION_FIELD)
    if session is None:
        raise session_unknown()
    client = gateway.client(session, call)
    gateway.check(client, call)
    gateway.dismiss(client)
    return Answer()
