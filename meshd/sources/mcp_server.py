"""An MCP server over streamable HTTP: what it lists, in both eras of the protocol, and its notices of changes.

2026-07-28 knows no session: each request says its revision in header and `_meta`, `server/discover` says what there is,
and `subscriptions/listen` is answered with notices. Before that came `initialize`, which may give a session, and a GET
that is answered with notices. A server is asked in the newer way first; whatever else it answers than that it knows
the revision, the older way follows, as the official clients do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.call import OURS, Target
from meshd.dialects.json_pairs import member, read_object
from meshd.discovery.entry import Origin
from meshd.discovery.screening import shown
from meshd.gateway.listing import PROMPTS, RESOURCES, TEMPLATES, TOOLS, read_page
from meshd.proxy.errand import follow
from meshd.refusal import Refused
from meshd.sources.asking import ERRAND, PAGES_MAX, Asking, Failed, Look, object_in, text_in
from meshd.wire.sse import EventTooLarge, Splitter

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Headers
    from meshd.discovery.entry import Entry
    from meshd.gateway.listing import Part
    from meshd.proxy.errand import Answered
    from meshd.proxy.proxy import Proxy

MODERN: Final = "2026-07-28"
LEGACY: Final = "2025-11-25"
CLIENT: Final = {"name": "meshd", "version": "1"}
ENTRIES_MAX: Final = 8192
"""Of one listing: beyond what is kept, and no reason to go on reading."""
_META: Final = "io.modelcontextprotocol/"
_LISTS: Final = {"tools": (TOOLS,), "prompts": (PROMPTS,), "resources": (RESOURCES, TEMPLATES)}
"""By capability. Read as the gateway reads them, so that what both find is the same to the byte."""
_CHANGES: Final = frozenset(f"notifications/{what}/list_changed" for what in _LISTS)
_METHOD_UNKNOWN: Final = -32601
_AT: Final = ""
"""The path: the upstream's endpoint (see `meshd.policy.gateway.endpoint_of`)."""


class McpServer:
    """One server."""

    origin = Origin.MCP

    def __init__(self, proxy: Proxy, upstream: str, *, timeout_s: float | None = None) -> None:
        self._asking = Asking(proxy, upstream) if timeout_s is None else Asking(proxy, upstream, timeout_s=timeout_s)
        self.is_modern: bool | None = None
        """None before it was asked."""
        self._revision = LEGACY
        self._session = ""
        self._capabilities: dict[str, Any] = {}
        self._about: dict[str, Any] = {}
        self._number = 0

    # ------------------------------------------------------------------ looking

    async def look(self) -> Look:
        """See `Source.look`."""
        self._asking.begin()
        if self.is_modern is None:
            await self._meet()
        try:
            entries = await self._list_all()
        except Failed:
            # A server that was started anew knows no session, and may be of another era.
            await self._meet()
            entries = await self._list_all()
        # Where each era says who the server is.
        meta = self._about.get("_meta")
        info = self._about.get("serverInfo") or (meta.get(f"{_META}serverInfo") if isinstance(meta, dict) else None)
        info = info if isinstance(info, dict) else {}
        return Look(
            entries,
            description=text_in(self._about, "instructions"),
            version=text_in(info, "version"),
            tells_changes=any(map(self._tells, _LISTS)),
        )

    async def _list_all(self) -> list[Entry]:
        entries: list[Entry] = []
        for what, parts in _LISTS.items():
            # A server that says nothing of what it can do may have tools all the same.
            if what in self._capabilities or (what == "tools" and not self._capabilities):
                for part in parts:
                    entries += await self._list(part)
        return entries

    async def _list(self, part: Part) -> list[Entry]:
        found: list[Entry] = []
        cursor, seen = "", set()
        for _ in range(PAGES_MAX):
            try:
                result = await self._raw(part.method, {"cursor": cursor} if cursor else {})
                if member(read_object(result, "the result"), part.key) is None:
                    raise Failed(f"its answer to {part.method} has no list", "malformed")
                page = read_page(part, self._asking.upstream, result)
            except _Unknown:
                if part is TEMPLATES:
                    return []  # Many have resources and no templates of them.
                raise
            except (ValueError, Refused) as error:
                raise Failed(f"its answer to {part.method} cannot be read: {error}", "malformed") from None
            found += page.entries
            cursor = page.cursor
            if not cursor or len(found) > ENTRIES_MAX:
                return found
            if cursor in seen:
                raise Failed(f"{part.method} goes in circles: it gives the cursor {cursor[:40]!r} again", "malformed")
            seen.add(cursor)
        raise Failed(f"{part.method} has more than {PAGES_MAX} pages", "too_large")

    def _tells(self, what: str) -> bool:
        capability = self._capabilities.get(what)
        return isinstance(capability, dict) and capability.get("listChanged") is True

    # ------------------------------------------------------------------ eras

    async def _meet(self) -> None:
        """Find out how the server is spoken with. Raises Failed."""
        self.is_modern, self._session = True, ""
        try:
            found = await self._request("server/discover", {})
        except Failed as failed:
            if failed.what not in ("error", "status", "malformed"):
                self.is_modern = None
                raise
            found = {}
        versions = found.get("supportedVersions")
        if not isinstance(versions, list) or MODERN not in versions:
            self.is_modern = False
            found = await self._initialize()
        self._about = found
        capabilities = found.get("capabilities")
        self._capabilities = capabilities if isinstance(capabilities, dict) else {}

    async def _initialize(self) -> dict[str, Any]:
        self._revision = ""
        params = {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": CLIENT}
        try:
            found = await self._request("initialize", params)
            self._revision = text_in(found, "protocolVersion") or LEGACY
            await self._post({"jsonrpc": "2.0", "method": "notifications/initialized"}, "notifications/initialized")
        except Failed:
            self.is_modern = None
            raise
        return found

    # ------------------------------------------------------------------ one request

    async def _request(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        return object_in(await self._raw(method, params), f"its answer to {method}")

    async def _raw(self, method: str, params: dict[str, Any]) -> bytes:
        """Return a result as the server wrote it. Raises Failed."""
        self._number += 1
        id = f"meshd-{self._number}"
        message: dict[str, Any] = {"jsonrpc": "2.0", "id": id, "method": method}
        if params or self.is_modern:
            message["params"] = self._marked(params)
        reply = await self._post(message, method, id)
        try:
            pairs = read_object(reply, f"its answer to {method}")
        except Refused as refused:
            raise Failed(refused.message, "malformed") from None
        error = member(pairs, "error")
        if error is not None:
            said = object_in(bytes(error), "its error")
            words = f"it answers {method} with an error: {shown(text_in(said, 'message'), 200)}"
            raise _Unknown(words, "error") if said.get("code") == _METHOD_UNKNOWN else Failed(words, "error")
        result = member(pairs, "result")
        if result is None:
            raise Failed(f"its answer to {method} has no result", "malformed")
        return bytes(result)

    def _marked(self, params: dict[str, Any]) -> dict[str, Any]:
        if not self.is_modern:
            return params
        meta = {f"{_META}protocolVersion": MODERN, f"{_META}clientInfo": CLIENT, f"{_META}clientCapabilities": {}}
        return {**params, "_meta": meta}

    def _fields(self, method: str) -> Headers:
        fields = [
            (b"content-type", b"application/json"),
            (b"accept", b"application/json, text/event-stream"),
        ]
        if self.is_modern:
            return [*fields, (b"mcp-protocol-version", MODERN.encode()), (b"mcp-method", method.encode())]
        if self._revision:
            fields.append((b"mcp-protocol-version", self._revision.encode("ascii", "replace")))
        if self._session:
            fields.append((b"mcp-session-id", self._session.encode("ascii", "replace")))
        return fields

    async def _post(self, message: dict[str, Any], method: str, id: str = "") -> bytes:
        stream = _Replies(id)
        body = msgspec.json.encode(message)
        answered = await self._asking.send("POST", _AT, self._fields(method), body, stream.heard)
        if not id:
            return b""
        if answered.is_stream:
            if not stream.reply:
                raise Failed(f"its stream ends without an answer to {method}", "malformed")
            self._keep_session(method, answered)
            return stream.reply
        if 200 <= answered.status < 300 or answered.status == 400:
            self._keep_session(method, answered)
            return answered.body
        hint = ": set `endpoint` of the upstream, where it is at another path" if answered.status in (404, 405) else ""
        raise Failed(f"it answers {method} with status {answered.status}{hint}", "status")

    def _keep_session(self, method: str, answered: Answered) -> None:
        if method == "initialize" and len(session := answered.field(b"mcp-session-id")) <= 1024:
            self._session = session if session.isprintable() else ""

    # ------------------------------------------------------------------ listening

    async def listen(self, changed: Callable[[], None]) -> None:
        """See `Source.listen`."""
        notices = _Notices(changed)
        method, fields, body = "GET", [*self._fields("")[1:]], None
        if self.is_modern:
            wanted = {f"{what}ListChanged": True for what in _LISTS if self._tells(what)}
            params = self._marked({"notifications": wanted})
            name = "subscriptions/listen"
            method, fields = "POST", self._fields(name)
            body = msgspec.json.encode({"jsonrpc": "2.0", "id": "meshd-listen", "method": name, "params": params})
        else:
            fields[0] = (b"accept", b"text/event-stream")
        try:
            await follow(
                self._asking.proxy,
                self._asking.upstream,
                method,
                _AT,
                fields,
                body,
                errand=ERRAND,
                heard=notices.heard,
            )
        except Refused as refused:
            raise Failed(refused.message, refused.reason.value) from None

    async def close(self) -> None:
        """End the session, as a client should (2025-11-25, transports, session management)."""
        if self._session and not self.is_modern and not self._is_asked_about():
            fields, self._session = self._fields(""), ""
            try:
                await self._asking.send("DELETE", _AT, fields[1:])
            except Failed:
                pass  # It ends by itself.

    def _is_asked_about(self) -> bool:
        """Say whether people would be asked whether the session may end: nobody is to be bothered with that."""
        policy, name = self._asking.proxy.policy, self._asking.upstream
        upstream = policy.upstreams.get(name)
        return upstream is None or policy.plan(Target(upstream.kind, name), OURS + ERRAND, "").approval is not None


class _Unknown(Failed):
    """It does not know the method."""


class _Replies:
    """Finds the answer to one request among the events of a stream."""

    def __init__(self, id: str) -> None:
        self._id = id
        self._splitter = Splitter(1 << 22)
        self.reply = b""

    def heard(self, status: int, piece: bytes) -> bool:
        """Return True once the answer is there: a server may leave its stream open."""
        try:
            for event in self._splitter.feed(piece):
                data = _data_of(event)
                message = _message_in(data)
                if message.get("id") == self._id and ("result" in message or "error" in message):
                    self.reply = data
                    return True
        except EventTooLarge:
            return True
        return False


class _Notices:
    """Hears of changes in a stream."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._splitter = Splitter()
        self._changed = changed

    def heard(self, status: int, piece: bytes) -> bool:
        """Return True where nothing more is to be heard."""
        if status != 200:
            return True
        try:
            for event in self._splitter.feed(piece):
                if _message_in(_data_of(event)).get("method") in _CHANGES:
                    self._changed()
        except EventTooLarge:
            return True
        return False


def _data_of(event: bytes) -> bytes:
    """Return what an event says; nothing where it has no data."""
    return b"\n".join(line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:"))


def _message_in(data: bytes) -> dict[str, Any]:
    """Return the message that data is; an empty one for what is none."""
    try:
        found = msgspec.json.decode(data) if data else {}
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
