"""What stands in a pool's place where an MCP server speaks no streamable HTTP: see `meshd.bridge`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd.bridge.sessions import Sessions
from meshd.proxy.crash import ending
from meshd.proxy.pool import Pool
from meshd.refusal import Reason, Refused
from meshd.telemetry import redact

if TYPE_CHECKING:
    import asyncio
    import ssl
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from meshd.call import Headers
    from meshd.proxy.attempt import Attempt
    from meshd.proxy.pool import Pools
    from meshd.proxy.proxy import Proxy
    from meshd.upstream import Upstream


class BridgeHost:
    """The data plane, as the bridge sees it: `meshd.bridge.contract.Host`."""

    def __init__(self, proxy: Proxy, pools: Pools, upstream: Upstream) -> None:
        self.loop = proxy.loop
        self.endings: set[asyncio.Task[None]] = proxy.endings
        self.hidden: tuple[str, ...] = proxy.hidden
        self._proxy = proxy
        self._pools = pools
        self._upstream = upstream

    def now_s(self) -> float:
        """Monotonic seconds."""
        return self._proxy.clock()

    def run(self, callback: Callable[[], None]) -> None:
        """See `Host.run`."""
        self._proxy.run(callback)

    def ending(self, exchange: Any) -> AbstractContextManager[None]:
        """See `Host.ending`."""
        return ending(exchange)

    def redact(self, text: str) -> str:
        """See `Host.redact`."""
        return redact.text(text)

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return what verifies the server's certificate; None over plain HTTP."""
        upstream = self._upstream
        return self._pools.ssl_context(upstream.ca_file, "http/1.1") if upstream.scheme == "https" else None


class BridgePool(Pool):
    """The sessions with one upstream, for calls on one wire."""

    __slots__ = ("_sessions",)

    def __init__(self, proxy: Proxy, pools: Pools, upstream: Upstream, wire: str) -> None:
        super().__init__(proxy, pools, upstream, wire)
        host: Any = BridgeHost(proxy, pools, upstream)

        def channel_for(session: Any) -> Any:
            if upstream.process is not None:
                from meshd.bridge.stdio import StdioChannel

                return StdioChannel(host, upstream.process, session)
            from meshd.bridge.sse import SseChannel

            return SseChannel(host, upstream, session)

        self._sessions = Sessions(host, upstream, channel_for, is_draining=lambda: proxy.is_draining)

    @property
    def connections_open(self) -> int:
        """Copies of the server that run, or streams that are open."""
        return self._sessions.running

    def acquire(self, attempt: Attempt) -> Any:
        """Return what takes the call. Raises Refused where it is none of MCP."""
        if self._wire != "bridge":
            what = "gRPC" if self._wire == "grpc" else "a tunnel"
            raise Refused(
                Reason.NOT_ALLOWED,
                f"{self.upstream.name} is an MCP server, which takes messages by POST and not {what}",
            )
        return self

    def open(
        self,
        attempt: Attempt,
        *,
        method: str,
        path: str,
        added: Headers,
        has_body: bool,
        content_length: int | None,
        body: bytes | None,
        upgrade: bytes = b"",
    ) -> None:
        """Begin a call, as a connection would."""
        headers = added
        if self.upstream.process is None:
            fields = attempt.request.fields
            headers = [*fields.forward, *(fields.credentials if self.key is None else []), *added]
        self._sessions.open(attempt, method, body, headers)

    def forget(self, attempt: Attempt) -> None:
        """No call waits here for a connection."""

    def expire(self, now_s: float) -> None:
        """Look at what has taken too long."""
        self._sessions.expire(now_s)

    def retire(self) -> None:
        """Serve what runs and take nothing new."""
        self._sessions.retire()

    def close(self) -> None:
        """End every session."""
        self._sessions.close()
