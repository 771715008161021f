"""A session with a server is opened, in the era that its client and it both speak.

A client of 2025 is given a session of its own, in which the server is told what that client declared. Calls of clients
of 2026 need none where the server speaks 2026 too; for a server that does not, all of one agent share one, in which
nothing is declared: no such client could be asked in the middle of its call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from meshd.dialects.json_pairs import member, read_object, text, write
from meshd.dialects.mcp import METHOD_FIELD, SESSION_FIELD, VERSION_FIELD
from meshd.gateway import calling
from meshd.gateway.messages import (
    CAPABILITIES_IN_META,
    CLIENT_IN_META,
    SESSIONED,
    STATELESS,
    VERSION_IN_META,
    encode,
    notification,
    request,
)
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.gateway.calling import Heard
    from meshd.gateway.client import Client, Link
    from meshd.proxy.proxy import Proxy

OPEN_S: Final = 10.0
"""Longest that a server may take to open a session: a call waits for it. One that meshd starts has the time that the
policy gives it to start."""
_OURS: Final = {"name": "meshd", "version": "1"}
_SESSION_BYTES_MAX: Final = 1024


async def open_link(proxy: Proxy, client: Client, link: Link) -> None:
    """Open a session with a server. Raises Refused where that cannot be."""
    is_stateless_client = client.version >= STATELESS
    first = _discover if is_stateless_client else _initialize
    second = _initialize if is_stateless_client else _discover
    why = await first(proxy, client, link)
    if why is not None:
        other = await second(proxy, client, link)
        if other is not None:
            raise Refused(
                Reason.UPSTREAM_UNREACHABLE,
                f"The MCP server {link.server} opens no session at {link.upstream.endpoint}: {why}. Where its endpoint "
                "has another path, set `endpoint` of the upstream.",
            )
    link.is_open = True


async def _initialize(proxy: Proxy, client: Client, link: Link) -> str | None:
    """Open a session of 2025; return why that failed, None where it did not."""
    hello = client.hello if client.hello and not client.is_shared else _hello()
    body = request(client.next_id(), "initialize", hello)
    heard = await calling.ask(proxy, link.upstream, [], body, agent=client.agent, timeout_s=_open_s(link))
    result = _result_of(heard)
    if isinstance(result, str):
        return result
    try:
        version = text(read_object(result, "the result"), "protocolVersion", "the result") or ""
    except Refused as refused:
        return refused.message
    session = heard.header(SESSION_FIELD)
    if len(session) > _SESSION_BYTES_MAX or (session and not all(33 <= byte <= 126 for byte in session)):
        return "the id of its session is none"
    if not version.isascii() or not version.isprintable() or not 0 < len(version) <= 32:
        return "it names no revision of MCP"
    link.id, link.version = session, min(version, SESSIONED[0])
    fields: Headers = [(VERSION_FIELD, link.version.encode())]
    if session:
        fields.append((SESSION_FIELD, session))
    await calling.ask(
        proxy,
        link.upstream,
        fields,
        notification("notifications/initialized"),
        agent=client.agent,
        timeout_s=_open_s(link),
    )
    if client.log_level:
        level = request(client.next_id(), "logging/setLevel", client.log_level)
        await calling.ask(proxy, link.upstream, fields, level, agent=client.agent, timeout_s=_open_s(link))
    return None


async def _discover(proxy: Proxy, client: Client, link: Link) -> str | None:
    """Find out whether a server speaks 2026; return why not, None where it does."""
    fields: Headers = [(VERSION_FIELD, STATELESS.encode()), (METHOD_FIELD, b"server/discover")]
    body = request(client.next_id(), "server/discover", b'{"_meta":' + encode(stateless_meta()) + b"}")
    heard = await calling.ask(proxy, link.upstream, fields, body, agent=client.agent, timeout_s=_open_s(link))
    result = _result_of(heard)
    if isinstance(result, str):
        return result
    try:
        found = msgspec.json.decode(bytes(member(read_object(result, "the result"), "supportedVersions") or b"[]"))
    except (Refused, msgspec.DecodeError):
        found = []
    if not isinstance(found, list) or STATELESS not in found:
        return f"it does not speak {STATELESS}"
    link.id, link.version = b"", STATELESS
    return None


def _open_s(link: Link) -> float:
    process = link.upstream.process
    return OPEN_S if process is None else max(OPEN_S, process.start_timeout_s)


def _hello() -> bytes:
    return encode({"protocolVersion": SESSIONED[0], "capabilities": {}, "clientInfo": _OURS})


def hello_of(params: bytes, version: str) -> bytes:
    """Return what a client declared, with the revision that was agreed on."""
    return write(read_object(params, "params"), {"protocolVersion": encode(version)})


def stateless_meta() -> dict[str, object]:
    """Return what every message of 2026 says of its client; nothing that a client of 2025 could be asked for."""
    return {VERSION_IN_META: STATELESS, CAPABILITIES_IN_META: {}, CLIENT_IN_META: _OURS}


def _result_of(heard: Heard) -> msgspec.Raw | str:
    said = heard.said
    if said is not None and "result" in said.pairs and heard.status < 300:
        return said.pairs["result"]
    if said is not None and (raw := member(said.pairs, "error")) is not None:
        try:
            return (text(read_object(raw, "error"), "message", "error") or "it answers with an error")[:300]
        except Refused:
            return "it answers with an error that is none"
    if heard.status >= 300:
        return f"it answers with the status {heard.status}"
    return "its answer is no JSON-RPC message"
