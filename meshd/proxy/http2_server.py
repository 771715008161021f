"""One HTTP/2 connection from a caller, and the exchanges on its streams."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import ngh2

from meshd.proxy.crash import crash, ending
from meshd.proxy.exchange import Exchange
from meshd.proxy.grpc_exchange import GrpcExchange
from meshd.proxy.http2_caller import Http2Exchange
from meshd.proxy.refusing import wire_refusal
from meshd.wire.http2 import QUEUE_HIGH, QUEUE_LOW, ErrorCode, read_request, server_connection
from meshd.wire.message import WireError

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Direction, Headers
    from meshd.proxy.proxy import Proxy


class Http2Session(asyncio.Protocol):
    """A caller's connection."""

    __slots__ = (
        "_early",
        "_idle_since_s",
        "_is_closed",
        "_is_draining",
        "_is_settled",
        "_is_write_paused",
        "_paused",
        "_proxy",
        "_session",
        "_streams",
        "_transport",
        "_went",
        "direction",
        "is_dirty",
        "peer",
    )

    def __init__(self, proxy: Proxy, direction: Direction, peer: str, went: Callable[[str], None]) -> None:
        limits = proxy.policy.limits
        self._proxy = proxy
        self._went = went
        self.direction = direction
        self.peer = peer
        self._session = server_connection(
            streams_max=limits.streams_per_connection_max,
            header_count_max=limits.header_count_max,
            header_bytes_max=limits.header_bytes_max,
            reset_burst=limits.resets_per_minute_max,
            reset_rate_s=max(1, limits.resets_per_minute_max // 60),
        )
        self._streams: dict[int, Http2Exchange] = {}
        self._paused: set[Http2Exchange] = set()
        self._early: set[Http2Exchange] = set()
        self._transport: Any = None
        self._is_closed = False
        self._is_draining = False
        self._is_settled = False
        self._is_write_paused = False
        self._idle_since_s = proxy.clock()
        self.is_dirty = False

    # ------------------------------------------------------------------ from the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._proxy.sessions.add(self)
        self.flush()

    def data_received(self, data: bytes) -> None:
        proxy = self._proxy
        proxy.enter()
        try:
            self._session.receive_data(data)
            self._take_events()
            proxy.touch(self)
        except ngh2.NGH2Error as error:
            proxy.telemetry.malformed(self.direction, WireError(400, f"HTTP/2: {error}"))
            self._last_words()
        finally:
            proxy.leave()

    def _last_words(self) -> None:
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
                exchange, stream.exchange = stream.exchange, None
                if exchange is not None:
                    with ending(exchange):
                        exchange.caller_gone()
        finally:
            proxy.leave()

    def pause_writing(self) -> None:
        self._is_write_paused = True

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._proxy.touch(self)

    def flush(self) -> None:
        """Write what the streams have queued, as far as windows and the socket allow."""
        if self._is_closed or self._is_write_paused:
            return
        try:
            data = self._session.data_to_send()
        except ngh2.NGH2Error:
            self._transport.close()
            return
        if data:
            self._transport.write(data)
        self._take_events()
        if self._early:
            self._reset_early()
        if self._paused:
            self._resume_replies()

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
                self.reset(stream.id, ErrorCode.NO_ERROR)

    def _resume_replies(self) -> None:
        for stream in tuple(self._paused):
            if stream.id not in self._streams:
                self._paused.discard(stream)
            elif self._session.queued_body_size(stream.id) <= QUEUE_LOW:
                self._paused.discard(stream)
                stream.is_reply_paused = False
                if stream.exchange is not None:
                    stream.exchange.resume_reply()

    # ------------------------------------------------------------------ from the streams

    def send_informational(self, id: int, status: int, headers: Headers) -> None:
        self._try(self._session.send_informational_response, id, [(b":status", b"%d" % status), *headers])

    def send_head(self, stream: Http2Exchange, fields: Headers, *, end_stream: bool = False) -> None:
        try:
            self._session.send_response(stream.id, fields, end_stream=end_stream)
        except (ngh2.NGH2Error, ValueError):
            self.reset(stream.id, ErrorCode.INTERNAL_ERROR)
            return
        self._proxy.touch(self)

    def send_data(self, stream: Http2Exchange, data: bytes) -> None:
        try:
            self._session.send_data(stream.id, data)
        except ngh2.NGH2Error:
            return  # The stream is closing; its event ends the exchange.
        self._proxy.touch(self)
        stream.sent_bytes += len(data)
        if stream.sent_bytes <= QUEUE_HIGH or stream.is_reply_paused:
            return
        if self._session.queued_body_size(stream.id) > QUEUE_HIGH:
            stream.is_reply_paused = True
            self._paused.add(stream)
            if stream.exchange is not None:
                stream.exchange.pause_reply()

    def send_end(self, stream: Http2Exchange, trailers: Headers) -> None:
        if self._is_closed:
            return
        try:
            if trailers:
                self._session.send_trailers(stream.id, trailers)
            else:
                self._session.end_stream(stream.id)
        except (ngh2.NGH2Error, ValueError):
            return
        self._proxy.touch(self)

    def reset(self, id: int, code: ErrorCode) -> None:
        self._try(self._session.reset_stream, id, code)

    def acknowledge(self, id: int, amount: int) -> None:
        if self._is_closed:
            return
        try:
            self._session.acknowledge_received_data(amount, id)
        except (ngh2.NGH2Error, ValueError):
            return
        self._proxy.touch(self)

    def _try(self, operation: Any, *arguments: Any) -> None:
        """Do what a stream asks, unless the connection or the stream is already gone."""
        if self._is_closed:
            return
        try:
            operation(*arguments)
        except (ngh2.NGH2Error, ValueError):
            return
        self._proxy.touch(self)

    # ------------------------------------------------------------------ events

    def _take_events(self) -> None:
        for event in self._session.events():
            handler = _HANDLERS.get(event.__class__)
            if handler is None:
                continue
            try:
                handler(self, event)
            except Exception:  # noqa: BLE001 - whatever it is, the call must end, and the other streams go on
                stream = self._streams.get(getattr(event, "stream_id", 0))
                crash(stream.exchange if stream is not None else None)

    def _on_request(self, event: ngh2.RequestReceived) -> None:
        id = event.stream_id
        stream = self._streams[id] = Http2Exchange(self, id)
        stream.is_request_whole = event.end_stream
        try:
            request = read_request(event.headers, event.end_stream)
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

    def _on_data(self, event: ngh2.DataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        data = event.data
        if data:
            if stream is not None and stream.exchange is not None:
                stream.exchange.request_data(data)
            if stream is not None and stream.is_paused:
                stream.unacked += len(data)
            else:
                self.acknowledge(event.stream_id, len(data))
        if event.end_stream and stream is not None:
            stream.is_request_whole = True
            if stream.exchange is not None:
                stream.exchange.request_end([])

    def _on_trailers(self, event: ngh2.TrailersReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.is_request_whole = True
            if stream.exchange is not None:
                stream.exchange.request_end(list(event.headers))

    def _on_closed(self, event: ngh2.StreamClosed) -> None:
        stream = self._streams.pop(event.stream_id, None)
        if stream is None:
            return
        if stream.unacked:
            self.acknowledge(stream.id, stream.unacked)
            stream.unacked = 0
        exchange, stream.exchange = stream.exchange, None
        if exchange is not None:
            exchange.caller_gone()
        if not self._streams:
            self._idle_since_s = self._proxy.now_s
            if self._is_draining:
                self._proxy.later(0, self._transport.close)

    def _on_settings(self, event: ngh2.SettingsReceived) -> None:
        self._is_settled = True

    def _on_connection_closed(self, event: ngh2.ConnectionClosed) -> None:
        self._transport.close()

    # ------------------------------------------------------------------ from the sweep and the drain

    def expire(self, now_s: float) -> None:
        limits = self._proxy.policy.limits
        since_s = now_s - self._idle_since_s
        if self._streams:
            return
        if since_s > (limits.idle_timeout_s if self._is_settled else limits.header_timeout_s):
            self._try(self._session.terminate_connection)
            self.flush()
            self._transport.close()

    def drain(self) -> None:
        self._is_draining = True
        self._try(self._session.send_shutdown_notice)
        self._proxy.later(0.1, self._end_drain)

    def _end_drain(self) -> None:
        """After a round trip: say which streams were taken, and close with the last of them (RFC 9113, 6.8)."""
        if self._is_closed:
            return
        self._try(self._session.send_goaway)
        if not self._streams:
            self.flush()
            self._transport.close()

    def close_now(self) -> None:
        self._transport.abort()


_HANDLERS: Final[dict[type, Any]] = {
    ngh2.RequestReceived: Http2Session._on_request,
    ngh2.DataReceived: Http2Session._on_data,
    ngh2.TrailersReceived: Http2Session._on_trailers,
    ngh2.StreamClosed: Http2Session._on_closed,
    ngh2.SettingsReceived: Http2Session._on_settings,
    ngh2.ConnectionClosed: Http2Session._on_connection_closed,
}
