"""Connections to upstreams: kept alive, bounded, and handed out without waiting where one is idle.

One pool for each upstream and wire. Which wire an https upstream speaks is settled by ALPN at its first connection;
a plain one is spoken to in HTTP/1.1 unless the policy says h2 or the call is gRPC, which has no other wire.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import ssl
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meshd.outcome import Fault
from meshd.proxy.crash import ending
from meshd.proxy.http1_client import Http1Connection
from meshd.proxy.http2_client import STREAMS_MAX, Http2Connection

if TYPE_CHECKING:
    from meshd.proxy.attempt import Attempt
    from meshd.proxy.proxy import Proxy
    from meshd.upstream import Upstream

log = logging.getLogger("meshd.proxy")

_ALPN_OFFERS: Final = {"auto": ["h2", "http/1.1"], "h2": ["h2"], "http/1.1": ["http/1.1"], "tunnel": ["http/1.1"]}


class Pools:
    """All pools of one sidecar."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._pools: dict[tuple[Upstream, str], Pool] = {}
        self._usual: dict[str, tuple[Upstream, Pool]] = {}
        self._usual_grpc: dict[str, tuple[Upstream, Pool]] = {}
        self._contexts: dict[tuple[str | None, str], ssl.SSLContext] = {}

    def pool_for(self, upstream: Upstream, is_grpc: bool = False, is_tunnel: bool = False) -> Pool:
        """Return the pool for a call to `upstream`."""
        usuals = self._usual_grpc if is_grpc else self._usual
        if not is_tunnel:
            # The hash of an Upstream goes through all of its fields; nearly every call can do without.
            usual = usuals.get(upstream.name)
            if usual is not None and usual[0] is upstream:
                return usual[1]
        wire: str = "tunnel" if is_tunnel else upstream.protocol
        if wire == "auto" and upstream.scheme == "http":
            wire = "h2" if is_grpc else "http/1.1"
        elif wire == "auto" and is_grpc:
            wire = "h2"
        if upstream.is_session or upstream.is_bridged or upstream.is_gateway:
            own = "session" if upstream.is_session else "bridge" if upstream.is_bridged else "gateway"
            wire = "tunnel" if is_tunnel else "grpc" if is_grpc else own
        key = (upstream, wire)
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = self._made(upstream, wire)
        if not is_tunnel:
            usuals[upstream.name] = (upstream, pool)
        return pool

    def _made(self, upstream: Upstream, wire: str) -> Pool:
        if upstream.is_session:
            from meshd.proxy.session_pool import SessionPool

            return SessionPool(self._proxy, self, upstream, wire)
        if upstream.is_bridged:
            from meshd.proxy.bridge_pool import BridgePool

            return BridgePool(self._proxy, self, upstream, wire)
        if upstream.is_gateway:
            from meshd.gateway.pool import GatewayPool

            return GatewayPool(self._proxy, self, upstream, wire)
        return Pool(self._proxy, self, upstream, wire)

    def ssl_context(self, ca_file: str | None, wire: str) -> ssl.SSLContext:
        """Return a verifying context. Loading the system's roots takes 20 ms, so one is kept for each setting."""
        key = (ca_file, wire)
        context = self._contexts.get(key)
        if context is None:
            context = ssl.create_default_context(cafile=ca_file)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.set_alpn_protocols(_ALPN_OFFERS[wire])
            self._contexts[key] = context
        return context

    def keep_only(self, upstreams: tuple[Upstream, ...]) -> None:
        """After a reload: let the pools of upstreams that are gone or changed run dry."""
        kept = set(upstreams)
        self._usual.clear()
        self._usual_grpc.clear()
        for key in [key for key in self._pools if key[0] not in kept]:
            self._pools.pop(key).retire()
        for pool in self._pools.values():
            pool.read_key()

    def drop(self, upstream: Upstream) -> None:
        """Forget the pools of an upstream that is gone; what is under way in them ends by itself."""
        self._usual.pop(upstream.name, None)
        self._usual_grpc.pop(upstream.name, None)
        for key in [key for key in self._pools if key[0] == upstream]:
            self._pools.pop(key).retire()

    def expire(self, now_s: float) -> None:
        """Close connections that have been idle for too long."""
        for pool in self._pools.values():
            pool.expire(now_s)

    def open_connections(self) -> dict[str, int]:
        """Return how many connections are open, by upstream."""
        counts: dict[str, int] = {}
        for (upstream, _), pool in self._pools.items():
            counts[upstream.name] = counts.get(upstream.name, 0) + pool.connections_open
        return counts

    def close(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()


class _Opening(asyncio.Protocol):
    """Stands on a new connection until ALPN has said which wire it speaks, which is before its first byte."""

    def __init__(self, proxy: Proxy, pool: Pool, wire: str) -> None:
        self._proxy = proxy
        self._pool = pool
        self._wire = wire
        self.connection: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        is_h2 = self._wire == "h2"
        if self._wire == "by ALPN":
            is_h2 = transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        connection_type: Any = Http2Connection if is_h2 else Http1Connection
        self.connection = connection_type(self._proxy, self._pool)
        transport.set_protocol(self.connection)
        self.connection.connection_made(transport)


class Pool:
    """The connections to one upstream over one wire."""

    __slots__ = (
        "_all",
        "_connecting",
        "_idle",
        "_is_retired",
        "_pending",
        "_pools",
        "_proxy",
        "_shared",
        "_tasks",
        "_wire",
        "key",
        "upstream",
    )

    def __init__(self, proxy: Proxy, pools: Pools, upstream: Upstream, wire: str) -> None:
        self._proxy = proxy
        self._pools = pools
        self.upstream = upstream
        self._wire = wire
        self._all: set[Any] = set()
        self._idle: list[Http1Connection] = []
        self._shared: list[Http2Connection] = []
        self._pending: deque[Attempt] = deque()
        self._connecting = 0
        self._is_retired = False
        self._tasks: set[asyncio.Task[None]] = set()
        self.key: bytes | None = None
        """Value of the provider's key field, where meshd attaches it."""
        self.read_key()

    def read_key(self) -> None:
        """Read the provider's key afresh: a mounted secret may have been rotated."""
        upstream = self.upstream
        if upstream.key_header is None:
            return
        secret = ""
        if upstream.key_env:
            secret = os.environ.get(upstream.key_env, "")
        elif upstream.key_file:
            try:
                secret = Path(upstream.key_file).read_text().strip()
            except OSError as error:
                log.error("the key of upstream %s cannot be read: %s", upstream.name, error)
        if not secret:
            where = upstream.key_env or upstream.key_file
            log.warning("upstream %s has no key in %s: its calls go out with the agent's own", upstream.name, where)
        self.key = upstream.key_prefix + secret.encode() if secret else None

    @property
    def connections_open(self) -> int:
        """Connections open or opening."""
        return len(self._all) + self._connecting

    def acquire(self, attempt: Attempt) -> Any:
        """Return a connection, or None: then `attempt.connected` or `reply_failed` is called when it is decided."""
        if self._wire == "tunnel":
            if self.connections_open >= self.upstream.connections_max:
                attempt.reply_failed(
                    Fault.POOL_FULL, f"{self.connections_open} tunnels to {self.upstream.name} are open"
                )
            else:
                self._connect(tunnel=attempt)
            return None
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                return connection
        for shared in self._shared:
            if shared.can_take():
                return shared
        if len(self._pending) >= self.upstream.pending_max:
            attempt.reply_failed(
                Fault.POOL_FULL, f"{len(self._pending)} calls already wait for a connection to {self.upstream.name}"
            )
            return None
        self._pending.append(attempt)
        self._connect_as_needed()
        return None

    def _connect_as_needed(self) -> None:
        if self._wire == "h2":
            wanted = -(-len(self._pending) // STREAMS_MAX)
        elif self._wire == "auto" and not self._all:
            wanted = 1  # Until ALPN has said which wire it is, one connection may serve them all.
        else:
            wanted = len(self._pending)
        while self._connecting < wanted and self.connections_open < self.upstream.connections_max:
            self._connect()

    def _connect(self, tunnel: Attempt | None = None) -> None:
        self._connecting += 1
        task = self._proxy.loop.create_task(self._connecting_for(tunnel))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connecting_for(self, tunnel: Attempt | None) -> None:
        connection: Any = None
        fault, message = Fault.CONNECT, ""
        try:
            async with asyncio.timeout(self.upstream.connect_timeout_s):
                connection = await self._open_connection(tunnel)
        except TimeoutError:
            fault = Fault.CONNECT_TIMEOUT
            message = f"{self.upstream.name} took no connection within {self.upstream.connect_timeout_s:g} s"
        except ssl.SSLError as error:
            fault = Fault.TLS
            message = f"TLS with {self.upstream.name} failed: {getattr(error, 'verify_message', '') or error.reason}"
        except (OSError, ValueError) as error:
            message = f"{self.upstream.name} ({self.upstream.host}:{self.upstream.port}) takes no connection: {error}"
        self._connecting -= 1
        self._proxy.enter()
        try:
            if tunnel is not None:
                self._tunnel_decided(tunnel, connection, fault, message)
            elif connection is None:
                self._failed(fault, message)
            else:
                self._opened(connection)
        finally:
            self._proxy.leave()

    async def _open_connection(self, tunnel: Attempt | None) -> Any:
        upstream, loop = self.upstream, self._proxy.loop
        # Behind a CONNECT the caller speaks TLS itself, with the host that it named.
        is_raw = tunnel is not None and tunnel.request.method == "CONNECT"
        context = None
        if upstream.scheme == "https" and not is_raw:
            context = self._pools.ssl_context(upstream.ca_file, self._wire)
        wire = self._wire if context is None else "by ALPN"
        _, opening = await loop.create_connection(
            lambda: _Opening(self._proxy, self, wire),
            upstream.host,
            upstream.port,
            ssl=context,
            server_hostname=upstream.host if context is not None and not _is_address(upstream.host) else None,
        )
        connection = opening.connection
        if self._wire == "h2" and not isinstance(connection, Http2Connection):
            connection.close()
            raise OSError("it does not speak HTTP/2 (ALPN)")
        return connection

    def _tunnel_decided(self, attempt: Attempt, connection: Any, fault: Fault, message: str) -> None:
        if connection is None:
            attempt.reply_failed(fault, message)
        elif attempt.is_over:
            connection.close()
        else:
            self._all.add(connection)
            self._serve(attempt, connection)

    def _opened(self, connection: Any) -> None:
        if not connection.is_usable:
            # It was closed before its turn came, and `lost` was told of a connection that it did not know.
            self._failed(Fault.CONNECT, f"{self.upstream.name} took the connection and closed it")
            return
        if self._is_retired and not self._pending:
            connection.close()
            return
        self._all.add(connection)
        if isinstance(connection, Http2Connection):
            self._shared.append(connection)
            self.serve_pending()
        else:
            self.release(connection)
        if self._pending:
            self._connect_as_needed()

    def _failed(self, fault: Fault, message: str) -> None:
        # One failed connection answers for one waiting call, or for all where they would have shared it.
        count = 1 if self._wire == "http/1.1" else len(self._pending)
        for _ in range(min(count, len(self._pending))):
            attempt = self._pending.popleft()
            with ending(attempt.exchange):
                attempt.reply_failed(fault, message)
        if self._pending:
            self._connect_as_needed()

    def serve_pending(self) -> None:
        """Give waiting calls to HTTP/2 connections that have room."""
        for shared in self._shared:
            while self._pending and shared.can_take():
                self._serve(self._pending.popleft(), shared)

    @staticmethod
    def _serve(attempt: Attempt, connection: Any) -> None:
        with ending(attempt.exchange):
            attempt.connected(connection)

    def release(self, connection: Http1Connection) -> None:
        """Take back an HTTP/1.1 connection that can serve again."""
        if self._pending:
            self._serve(self._pending.popleft(), connection)
        elif self._is_retired or self._wire == "tunnel":
            connection.close()
        else:
            connection.idle_since_s = self._proxy.now_s
            self._idle.append(connection)

    def lost(self, connection: Any) -> None:
        """A connection is closed."""
        self._all.discard(connection)
        if isinstance(connection, Http2Connection):
            if connection in self._shared:
                self._shared.remove(connection)
        elif connection in self._idle:
            self._idle.remove(connection)
        if self._pending:
            self._connect_as_needed()

    def forget(self, attempt: Attempt) -> None:
        """A waiting call has gone away."""
        try:
            self._pending.remove(attempt)
        except ValueError:
            return

    def expire(self, now_s: float) -> None:
        """Close connections that have been idle for too long; the oldest stand first."""
        limit_s = now_s - self.upstream.idle_timeout_s
        while self._idle and self._idle[0].idle_since_s < limit_s:
            self._idle.pop(0).close()
        for shared in tuple(self._shared):
            if shared.is_idle and shared.idle_since_s < limit_s:
                shared.close()

    def retire(self) -> None:
        """Serve what runs and take nothing new."""
        self._is_retired = True
        for connection in self._idle:
            connection.retire()
        for shared in self._shared:
            shared.retire()
        self._idle.clear()

    def close(self) -> None:
        """Close every connection at once."""
        for task in tuple(self._tasks):
            task.cancel()
        for connection in tuple(self._all):
            connection.close()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
