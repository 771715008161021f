"""For which server a message to the gateway is: decided by plain function calls, before any rule judges the call.

What is for one server goes on as a direct call to it, under the name by which that server knows the thing. All else is
the gateway's own to answer. A name that nobody has listed yet is looked for once, and only that call waits for it.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.call import Target, Wait
from meshd.chain import Pending
from meshd.dialects.canonical import canonical
from meshd.dialects.json_pairs import member, read_body, read_object, text, write
from meshd.dialects.jsonrpc import INVALID_PARAMS, INVALID_REQUEST, invalid, rest_of
from meshd.dialects.mcp import HEADER_MISMATCH, METHOD_FIELD, NAME_FIELD, SESSION_FIELD, TOOLS_CALL, VERSION_FIELD
from meshd.gateway.messages import (
    CAPABILITIES_IN_META,
    STATELESS,
    VERSION_IN_META,
    encode,
    named,
    params_of,
    with_id,
    with_params,
)
from meshd.gateway.names import CALL, COMPARED_MAX, OWN, may_have, spaced
from meshd.gateway.passage import Passage
from meshd.gateway.results import URI
from meshd.proxy.quarantine import in_quarantine
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.call import Call
    from meshd.dialects.json_pairs import Pairs
    from meshd.gateway.client import Client
    from meshd.gateway.gateway import Gateway
    from meshd.gateway.uris import Place

SESSION_UNKNOWN: Final = -32001
METHOD_UNKNOWN: Final = -32601
VERSION_UNSUPPORTED: Final = -32022
TOOLS_LIST: Final = "tools/list"
_BY_URI: Final = frozenset({"resources/read", "resources/subscribe", "resources/unsubscribe"})
_BY_TASK: Final = frozenset({"tasks/get", "tasks/update", "tasks/cancel", "tasks/result"})
_SESSION_ONLY: Final = frozenset(
    {
        "initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe", "tasks/result",
        "tasks/list",
    }
)  # fmt: skip
"""Methods that 2026-07-28 has no more."""
_NAMED_FIELDS: Final = {TOOLS_CALL: "name", "prompts/get": "name", "resources/read": "uri"}


class Where(NamedTuple):
    """A server, and what of the message is another there."""

    server: str
    body: bytes
    name: str = ""
    """What `Mcp-Name` says there."""


def resolve(gateway: Gateway, call: Call) -> Pending | None:
    """Set what the call is really for; return what it must wait for first, if anything. Raises Refused."""
    passage: Passage | None = call.passage
    if passage is None:
        passage = call.passage = Passage(gateway, _client_of(gateway, call), call.body or b"")
    rpc = call.rpc
    assert rpc is not None
    where = _where(gateway, call, passage)
    if where is None:
        if rpc.method != TOOLS_CALL:
            return None
        # One of the gateway's own, which calls no tool: it is judged as what lists them.
        rpc.method, rpc.tool = TOOLS_LIST, ""
        return None
    upstream = gateway.servers.get(where.server)
    if upstream is None:
        if passage.is_looked_for:
            raise unknown(gateway, call, rpc.method, where.name)
        passage.is_looked_for = True
        return Pending(Wait(gateway.look(passage.client, call, where.name)), 0)
    passage.name = where.name
    passage.body = call.body = where.body
    if rpc.method == TOOLS_CALL:
        if rpc.takes_task:
            # If a person is to decide, it is made again with these, when nobody renames anything.
            call.headers = named(call.headers, where.name)
        rpc.tool = where.name
    call.upstream, call.path = upstream, upstream.endpoint
    call.target = Target(upstream.kind, upstream.name)
    return None


def _client_of(gateway: Gateway, call: Call) -> Client | None:
    """Return whose session it is; None for a client without one. Raises Refused."""
    session = version = b""
    has_method = False
    for name, value in call.headers:
        if name == SESSION_FIELD:
            session = value
        elif name == VERSION_FIELD:
            version = value
        elif name == METHOD_FIELD:
            has_method = True
    rpc = call.rpc
    assert rpc is not None
    if session:
        return gateway.client(session, call)
    if version < STATELESS.encode():
        if rpc.method == "initialize":
            return None
        meta = _meta_of(call)
        if VERSION_IN_META in meta:
            raise _prescribed(
                HEADER_MISMATCH, f"The message names a revision in _meta, and the field {VERSION_FIELD.decode()} none"
            )
        raise _prescribed(
            INVALID_REQUEST,
            "This message belongs to no session: it has no Mcp-Session-Id. Begin with initialize, or send "
            f"MCP-Protocol-Version: {STATELESS}, by which there are no sessions.",
        )
    _check_stateless(call, version.decode("latin-1"), has_method=has_method)
    return None


def _meta_of(call: Call) -> Pairs:
    raw = member(params_of(read_body(call.body or b"")), "_meta")
    return {} if raw is None or bytes(raw)[:1] != b"{" else read_object(raw, "_meta")


def _check_stateless(call: Call, version: str, *, has_method: bool) -> None:
    """Check what 2026-07-28 asks of every message. Raises Refused with the status and the code that it prescribes."""
    rpc = call.rpc
    assert rpc is not None
    if rpc.is_reply or not rpc.id:
        return
    meta = _meta_of(call)
    said = member(meta, VERSION_IN_META)
    if said is None or member(meta, CAPABILITIES_IN_META) is None:
        missing = VERSION_IN_META if said is None else CAPABILITIES_IN_META
        raise _prescribed(INVALID_PARAMS, f"params._meta must have {missing!r}")
    if text(meta, VERSION_IN_META, "_meta") != version:
        raise _prescribed(HEADER_MISMATCH, f"{VERSION_FIELD.decode()} and _meta name two revisions")
    if version != STATELESS:
        refused = _prescribed(VERSION_UNSUPPORTED, f"The revision {version[:32]!r} of MCP is not supported here")
        refused.prescribed = {"supported": [STATELESS], "requested": version[:64]}
        raise refused
    if not has_method:
        raise _prescribed(HEADER_MISMATCH, "The field mcp-method is missing")
    if rpc.method in _NAMED_FIELDS and not any(name == NAME_FIELD for name, _ in call.headers):
        raise _prescribed(HEADER_MISMATCH, "The field mcp-name is missing")
    if rpc.method in _SESSION_ONLY:
        raise _prescribed(METHOD_UNKNOWN, f"{rpc.method} is no method of {STATELESS}", status=404)


def _where(gateway: Gateway, call: Call, passage: Passage) -> Where | None:
    rpc, body = call.rpc, call.body or b""
    assert rpc is not None
    method, names, client = rpc.method, gateway.names, passage.client
    if method == TOOLS_CALL:
        return _tool(gateway, call, passage, body)
    if rpc.is_reply:
        return _answer(passage, body)
    if method == "prompts/get":
        name = text(params_of(read_body(body)), "name", "params") or ""
        return _placed(gateway, passage, names.prompts.get(name), name, body, "name")
    if method in _BY_URI:
        uri = text(params_of(read_body(body)), "uri", "params") or ""
        if method == "resources/read" and uri.startswith(URI) and gateway.results.is_ours(uri.removeprefix(URI)):
            return None
        return _placed(gateway, passage, names.uris.find(uri), uri, body, "uri")
    if method == "completion/complete":
        return _completion(gateway, passage, body)
    if method in _BY_TASK:
        task = text(params_of(read_body(body)), "taskId", "params") or ""
        agent = (call.agent or call.policy.agent) if client is None else client.agent
        server = gateway.tasks.server_of(agent, task)
        if server is None and rpc.task:
            return None  # Of a call that a person decides: whoever holds it knows whose it is.
        if server is None:
            raise invalid(f"There is no task {task[:64]!r} here", INVALID_PARAMS)
        return Where(server, body, task)
    if method == "notifications/cancelled":
        raw = member(params_of(read_body(body)), "requestId")
        server = None if raw is None or client is None else client.running.get(bytes(raw))
        return None if server is None else Where(server, body)
    if method == "notifications/progress":
        return _progress(passage, body)
    return None


def _tool(gateway: Gateway, call: Call, passage: Passage, body: bytes) -> Where | None:
    rpc, names = call.rpc, gateway.names
    assert rpc is not None
    name = rpc.tool
    place = names.tools.get(name)
    if place is None and name in OWN:
        if name != CALL:
            return None
        name, body = _called(call, body)
        place = names.tools.get(name)
    return _placed(gateway, passage, place, name, body, "name", is_tool=True)


def _called(call: Call, body: bytes) -> tuple[str, bytes]:
    """Return the tool that `call_tool` names, and the message that calls it by itself."""
    rpc = call.rpc
    assert rpc is not None
    pairs = read_body(body)
    params = params_of(pairs)
    raw = member(params, "arguments")
    given = {} if raw is None else read_object(raw, "arguments")
    name = text(given, "name", "arguments") or ""
    if not name:
        raise invalid(f"{CALL} takes the name of a tool, and its arguments: {{name, arguments}}", INVALID_PARAMS)
    arguments = bytes(member(given, "arguments") or b"{}")
    made = write(params, {"name": encode(name), "arguments": arguments})
    if params.keys() <= {"name", "arguments", "_meta"}:
        rpc.arguments = canonical(arguments, "the tool's arguments")
    else:  # A later leg brings what the server has asked for, and is judged by that too (`Mcp.fill`).
        rpc.arguments = rest_of(read_object(made, "params"), ("name", "_meta"), "params")
    return name, write(pairs, {"params": made})


def _placed(
    gateway: Gateway, passage: Passage, place: Place | None, name: str, body: bytes, key: str, *, is_tool: bool = False
) -> Where:
    if place is not None:
        server, real = place.server, place.name
    else:
        # Where there is but one server, it knows best what it has; but first it is asked.
        server = (gateway.only or "") if passage.is_looked_for else ""
        real = name.removeprefix(gateway.servers[server].prefix) if server and key == "name" else name
        if is_tool and gateway.lists.has(server, TOOLS_LIST, real):
            server, real = "", name  # It is listed, and kept out of the catalogue: it cannot be called past that.
    return Where(server, body if real == name else with_params(body, {key: encode(real)}), real)


def _completion(gateway: Gateway, passage: Passage, body: bytes) -> Where:
    pairs = read_body(body)
    params = params_of(pairs)
    raw = member(params, "ref")
    if raw is None or bytes(raw)[:1] != b"{":
        raise invalid("completion/complete names what is completed in params.ref", INVALID_PARAMS)
    ref = read_object(raw, "ref")
    is_prompt = text(ref, "type", "ref") == "ref/prompt"
    key = "name" if is_prompt else "uri"
    name = text(ref, key, "ref") or ""
    names = gateway.names
    place = names.prompts.get(name) if is_prompt else names.uris.find(name)
    if place is None:
        return Where((gateway.only or "") if passage.is_looked_for else "", body, name)
    if place.name != name:
        body = write(pairs, {"params": write(params, {"ref": write(ref, {key: encode(place.name)})})})
    return Where(place.server, body, name)


def _answer(passage: Passage, body: bytes) -> Where:
    """The client answers what a server has asked it, by the id that it was told."""
    raw = member(read_body(body), "id")
    client = passage.client
    asked = None if raw is None or client is None else client.asked.pop(bytes(raw), None)
    if asked is None:
        raise invalid("Nobody has asked for this answer", INVALID_REQUEST)
    return Where(asked.server, with_id(body, asked.id))


def _progress(passage: Passage, body: bytes) -> Where | None:
    raw = member(params_of(read_body(body)), "progressToken")
    client = passage.client
    if raw is None or client is None:
        return None
    token = bytes(raw)
    server = next((one.server for one in client.asked.values() if one.token == token), None)
    return None if server is None else Where(server, body)


def unknown(gateway: Gateway, call: Call, method: str, name: str) -> Refused:
    """Return the refusal of what no server has."""
    names, agent = gateway.names, call.agent or call.policy.agent
    held: Any = names.tools if method == TOOLS_CALL else names.prompts if method == "prompts/get" else names.uris.listed
    what = "tool" if method == TOOLS_CALL else "prompt" if method == "prompts/get" else "resource"
    known = islice(held.items(), COMPARED_MAX)
    shown = [one for one, place in known if gateway.may(call.policy, agent, method, place)]
    for upstream in may_have(gateway.servers, name):
        for sort, kept in gateway.proxy.quarantine.get(upstream.name, ()):
            if sort == what and spaced(upstream.prefix, kept) == name:
                return in_quarantine(sort, kept, upstream.name)
    silent = _silent(gateway, method, name, held)
    if silent:
        return Refused(
            Reason.UPSTREAM_UNREACHABLE,
            f"{silent} did not say what it has, so nobody knows of a {what} {name[:128]!r}. Try again later.",
        )
    near = names.near(name, shown)
    hint = f" Did you mean {', '.join(near)}?" if near else ""
    taken = next((one for one in names.refused if one.name == name), None)
    if taken is not None:
        hint = f" That of {taken.server} has a name that {taken.taken_by} has taken: set a prefix for it in the policy."
    return invalid(f"No server here has a {what} {name[:128]!r}.{hint}", INVALID_PARAMS)


def _silent(gateway: Gateway, method: str, name: str, held: Any) -> str:
    """Return the server that may have what is called and has never said what it has; empty where there is none."""
    if method not in (TOOLS_CALL, "prompts/get"):
        return ""
    for upstream in may_have(gateway.servers, name):
        if gateway.lists.is_silent(upstream.name) and all(place.server != upstream.name for place in held.values()):
            return upstream.name
    return ""


def _prescribed(code: int, message: str, status: int = 400) -> Refused:
    refused = Refused(Reason.MALFORMED, message, status=status)
    refused.jsonrpc, refused.prescribed = code, {}
    return refused


def session_unknown() -> Refused:
    """Return the refusal of a session that is not the caller's: its client then opens another."""
    return _prescribed(SESSION_UNKNOWN, "There is no such session. Begin with initialize.", status=404)
