"""One who speaks with the gateway, and the sessions with servers that are held for it."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.gateway.messages import SESSIONED, fields_for
from meshd.wire.message import Fields

if TYPE_CHECKING:
    import asyncio

    from meshd.gateway.streams import Stream
    from meshd.upstream import Upstream

_FIELDS_MAX: Final = 64
_ASKED_MAX: Final = 256
_RUNNING_MAX: Final = 512


class Asked(NamedTuple):
    """What a server asks of the client, and has no answer to yet."""

    server: str
    id: bytes
    """As the server wrote it."""
    token: bytes
    """Of its progress, raw; empty where it wants to hear of none."""


class Link:
    """A session with one server."""

    __slots__ = ("_fields", "id", "is_open", "listening", "opening", "server", "upstream", "uris", "version")

    def __init__(self, upstream: Upstream) -> None:
        self.server = upstream.name
        self.upstream = upstream
        """As it was when the session was opened: after a reload it may be another."""
        self.id = b""
        """Empty for a server that gives none."""
        self.version = SESSIONED[0]
        """What was agreed on. A stateless revision: there is no session, and every message says who the client is."""
        self.is_open = False
        self.opening: asyncio.Task[None] | None = None
        """The work on it, which all calls that need it wait for."""
        self.listening: Any = None
        """What hears what the server says unasked; None while nobody would be told."""
        self.uris: tuple[str, ...] = ()
        """Of whose changes the server was asked to tell (2026-07-28), by its own names."""
        self._fields: dict[tuple[Fields, str, str], Fields] = {}

    def fields(self, fields: Fields, method: str, name: str) -> Fields:
        """Return a request's fields as they go to the server. A client sends the same ones all the time."""
        key = (fields, method, name)
        found = self._fields.get(key)
        if found is None:
            if len(self._fields) >= _FIELDS_MAX:
                self._fields.clear()
            headers = fields_for(fields.headers, session=self.id, version=self.version, method=method, name=name)
            found = self._fields[key] = Fields(headers)
            found.authority = fields.authority
        return found


class Client:
    """A session of a client's, or all calls of one agent whose client has none."""

    __slots__ = (
        "agent", "asked", "hello", "id", "is_shared", "links", "log_level", "number", "peer", "running", "seen_s",
        "streams", "talk", "version",
    )  # fmt: skip

    def __init__(self, id: str, agent: str, peer: str, version: str, hello: bytes, *, is_shared: bool) -> None:
        self.id = id
        """Empty where it has no session."""
        self.agent = agent
        self.peer = peer
        self.version = version
        self.hello = hello
        """The params of its `initialize`, as JSON: what it declares is declared to the servers."""
        self.is_shared = is_shared
        """Several clients may use it at once, whose ids then need not differ."""
        self.links: dict[str, Link] = {}
        self.asked: OrderedDict[bytes, Asked] = OrderedDict()
        """By the id that the client was told, raw."""
        self.running: OrderedDict[bytes, str] = OrderedDict()
        """Which server answers a request, by its id: for its cancellation."""
        self.streams: list[Stream] = []
        """Where it hears what nobody asked for; the last one is told."""
        self.log_level = b""
        """As it set it, for sessions that are opened later."""
        self.seen_s = 0.0
        self.talk: Any = None
        """`meshd.gateway.legacy.Talk` of a client of 2024-11-05; else None."""
        self.number = 0

    def next_id(self) -> str:
        """Return an id for a message of the gateway's own to one of the servers, or to the client."""
        self.number += 1
        return f"meshd-{self.number}"

    def remember_asked(self, asked: Asked) -> bytes:
        """Note what a server asks; return the id by which the client knows it. No other server can guess it, and have
        what the client answers it brought to this one."""
        id = b'"meshd-%b"' % secrets.token_hex(12).encode()
        while len(self.asked) >= _ASKED_MAX:
            self.asked.popitem(last=False)
        self.asked[id] = asked
        return id

    def id_of(self, server: str, id: bytes) -> bytes | None:
        """Return by which id the client knows what a server has asked."""
        return next((ours for ours, asked in self.asked.items() if asked.server == server and asked.id == id), None)

    def runs_at(self, id: bytes, server: str) -> None:
        """Note which server a request went to."""
        while len(self.running) >= _RUNNING_MAX:
            self.running.popitem(last=False)
        self.running[id] = server
