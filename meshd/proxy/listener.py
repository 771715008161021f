"""Where connections are accepted: the first bytes, or ALPN, say which wire they speak."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from meshd.proxy.http1_server import Http1Session
from meshd.proxy.http2_server import Http2Session
from meshd.wire.http2 import PREFACE

if TYPE_CHECKING:
    import ssl

    from meshd.call import Direction
    from meshd.config import Address
    from meshd.proxy.proxy import Proxy

BACKLOG: Final = 4096


class Listener:
    """One port: agents on 7400, other sidecars on 7401."""

    def __init__(self, proxy: Proxy, direction: Direction) -> None:
        self.proxy = proxy
        self.direction = direction
        self._server: asyncio.Server | None = None
        self._peers: dict[str, int] = {}

    async def start(self, address: Address, tls: ssl.SSLContext | None) -> tuple[str, int]:
        """Listen; return the host and the port that was really taken. Raises OSError where it is in use."""
        self._server = await self.proxy.loop.create_server(
            lambda: Sniffer(self), address.host, address.port, ssl=tls, backlog=BACKLOG
        )
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    def stop(self) -> None:
        """Accept no more; what is connected stays."""
        if self._server is not None:
            self._server.close()

    def came(self, peer: str) -> bool:
        """Count a connection; False where this peer has too many."""
        count = self._peers.get(peer, 0)
        if count >= self.proxy.policy.limits.connections_per_peer_max:
            return False
        self._peers[peer] = count + 1
        self.proxy.telemetry.connection_opened(self.direction)
        return True

    def went(self, peer: str) -> None:
        """Count a connection that has closed."""
        count = self._peers.get(peer, 0) - 1
        if count > 0:
            self._peers[peer] = count
        else:
            self._peers.pop(peer, None)
        self.proxy.telemetry.connection_closed(self.direction)


class Sniffer(asyncio.Protocol):
    """Stands on a new connection until it is known what is spoken there."""

    __slots__ = ("_first", "_is_counted", "_listener", "_opened_s", "_peer", "_transport", "direction")

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._first = b""
        self._transport: Any = None
        self._is_counted = False
        self._peer = ""
        self._opened_s = listener.proxy.clock()
        self.direction = listener.direction

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if peer else ""
        if not self._listener.came(self._peer):
            self._transport.abort()
            return
        self._is_counted = True
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() == "h2":
            self._become(Http2Session)
        else:
            self._listener.proxy.sessions.add(self)

    def data_received(self, data: bytes) -> None:
        first = self._first + data
        if len(first) < len(PREFACE) and PREFACE.startswith(first):
            self._first = first
            return
        self._become(Http2Session if first.startswith(PREFACE) else Http1Session).data_received(first)

    def _become(self, session_type: type[Http1Session | Http2Session]) -> Http1Session | Http2Session:
        """Hand the connection, and the count of its peer, over to a session."""
        listener = self._listener
        listener.proxy.sessions.discard(self)
        session = session_type(listener.proxy, listener.direction, self._peer, listener.went)
        self._transport.set_protocol(session)
        session.connection_made(self._transport)
        return session

    def connection_lost(self, error: Exception | None) -> None:
        self._listener.proxy.sessions.discard(self)
        if self._is_counted:
            self._listener.went(self._peer)

    def expire(self, now_s: float) -> None:
        if now_s - self._opened_s > self._listener.proxy.policy.limits.header_timeout_s:
            self._transport.abort()

    def drain(self) -> None:
        self._transport.close()

    def close_now(self) -> None:
        self._transport.abort()
