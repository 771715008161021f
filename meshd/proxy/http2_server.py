"""One HTTP/2 connection from a caller, and the exchanges on its streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import ngh2

from meshd.proxy.crash import ending
from meshd.proxy.exchange import Exchange
from meshd.proxy.grpc_exchange import GrpcExchange
from meshd.proxy.http2_caller import Http2Exchange
from meshd.proxy.http2_link import Http2Link
from meshd.proxy.refusing import wire_refusal
from meshd.wire.http2 import ErrorCode, RequestReader, server_connection
from meshd.wire.message import WireError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from meshd.call import Direction, Headers
    from meshd.proxy.proxy import Proxy

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11.
_NO_ERROR: Final = ErrorCode.NO_ERROR
_INTERNAL_ERROR: Final = ErrorCode.INTERNAL_ERROR


class Http2Session(Http2Link):
    """A caller's connection."""

    __slots__ = ("_early", "_is_draining", "_is_settled", "_requests", "_went", "direction", "peer")

    def __init__(self, proxy: Proxy, direction: Direction, peer: str, went: Callable[[str], None]) -> None:
        limits = proxy.policy.limits
        session = server_connection(
            streams_max=limits.streams_per_connection_max,
            header_count_max=limits.header_count_max,
            header_bytes_max=limits.header_bytes_max,
            reset_burst=limits.resets_per_minute_max,
            reset_rate_s=max(1, limits.resets_per_minute_max // 60),
        )
        super().__init__(proxy, session)
        self._went = went
        self.direction = direction
        self.peer = peer
        self._requests = RequestReader()
        self._early: set[Http2Exchange] = set()
        self._is_draining = False
        self._is_settled = False

    # ------------------------------------------------------------------ from the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._proxy.sessions.add(self)
        self.flush()

    def on_broken(self, error: Exception) -> None:
        self._proxy.telemetry.malformed(self.direction, WireError(400, f"HTTP/2: {error}"))
        try:
            data = self._session.data_to_send()
        except ngh2.NGH2Error:
            data = b""
        if data:
            self._transport.write(data)
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_closed = True
        proxy = self._proxy
        proxy.sessions.discard(self)
        self._went(self.peer)
        proxy.enter()
        try:
            streams, self._streams = self._streams, {}
            for stream in streams.values():
                with ending(stream.exchange_of()):
                    stream.take_close(0)
        finally:
            proxy.leave()

    def flush(self) -> None:
        super().flush()
        if self._early:
            self._reset_early()

    def end_early(self, stream: Http2Exchange) -> None:
        """The reply is whole and the request is not: when the reply has left, the rest is told to stay away."""
        self._early.add(stream)

    def _reset_early(self) -> None:
        # RFC 9113 section 8.1: NO_ERROR, so that the caller keeps the reply.
        for stream in tuple(self._early):
            if stream.id not in self._streams:
                self._early.discard(stream)
            elif not self._session.queued_body_size(stream.id):
                self._early.discard(stream)
                self.reset(stream, _NO_ERROR)

    # ------------------------------------------------------------------ from the streams

    def send_informational(self, id: int, status: int, headers: Headers) -> None:
        self.do(self._session.send_informational_response, id, [(b":status", b"%d" % status), *headers])

    def send_head(self, stream: Http2Exchange, fields: Headers, *, end_stream: bool = False) -> None:
        try:
            if end_stream:
                self._session.send_response(stream.id, fields, end_stream=True)
            else:
                self._session.send_response(stream.id, fields)
        except (ngh2.NGH2Error, ValueError):
            self.reset(stream, _INTERNAL_ERROR)
            return
        if not self.is_dirty:
            self._proxy.touch(self)

    # ------------------------------------------------------------------ events

    def on_head(self, event: Any) -> None:
        id: int = event.stream_id
        end_stream: bool = event.end_stream
        stream = Http2Exchange(self, id)
        self._streams[id] = stream
        stream.is_request_whole = end_stream
        try:
            request = self._requests.read(event.headers, end_stream)
        except WireError as error:
            call_id = self._proxy.next_id()
            reply = wire_refusal(error, call_id, event.headers)
            self._proxy.telemetry.malformed(self.direction, error, call_id)
            stream.send_head(reply.status, reply.headers, len(reply.body), has_body=bool(reply.body))
            stream.send_data(reply.body)
            stream.send_end([])
            return
        exchange: Exchange
        if request.fields.is_grpc:
            exchange = GrpcExchange(self._proxy, stream, request, self.direction)
        else:
            exchange = Exchange(self._proxy, stream, request, self.direction)
        stream.exchange = exchange
        exchange.begin()

    def on_other(self, event: Any) -> None:
        kind = type(event)
        if kind is ngh2.SettingsReceived:
            self._is_settled = True
        elif kind is ngh2.ConnectionClosed:
            self._transport.close()

    def on_empty(self) -> None:
        if self._is_draining:
            self._proxy.later(0, self._transport.close)

    # ------------------------------------------------------------------ from the sweep and the drain

    def expire(self, now_s: float) -> None:
        limits = self._proxy.policy.limits
        since_s = now_s - self.idle_since_s
        if self._streams:
            return
        if since_s > (limits.idle_timeout_s if self._is_settled else limits.header_timeout_s):
            self.do(self._session.terminate_connection)
            self.flush()
            self._transport.close()

    def drain(self) -> None:
        self._is_draining = True
        self.do(self._session.send_shutdown_notice)
        self._proxy.later(0.1, self._end_drain)

    def _end_drain(self) -> None:
        """After a round trip: say which streams were taken, and close with the last of them (RFC 9113, 6.8)."""
        if self._is_closed:
            return
        self.do(self._session.send_goaway)
        if not self._streams:
            self.flush()
            self._transport.close()

    def close_now(self) -> None:
        self._transport.abort()
