"""One HTTP/2 connection to an upstream, shared by many exchanges."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import ngh2

from meshd.call import Fault
from meshd.proxy.crash import crash, ending
from meshd.wire.http2 import QUEUE_HIGH, QUEUE_LOW, ErrorCode, client_connection, encode_request

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.proxy.attempt import Attempt
    from meshd.proxy.pool import Pool
    from meshd.proxy.proxy import Proxy

STREAMS_MAX: Final = 100
"""Calls on one connection before another is opened, where the upstream allows as many."""


class Http2Stream:
    """One request on the connection."""

    __slots__ = (
        "_connection",
        "attempt",
        "id",
        "is_paused",
        "is_reply_whole",
        "is_request_paused",
        "sent_bytes",
        "unacked",
    )

    def __init__(self, connection: Http2Connection, attempt: Attempt, id: int) -> None:
        self._connection = connection
        self.attempt: Attempt | None = attempt
        self.id = id
        self.sent_bytes = 0
        """Of the request's body so far: what waits for the upstream's window is no more than that."""
        self.unacked = 0
        """Bytes that were passed on while the caller could take no more: their window stays closed."""
        self.is_paused = False
        self.is_request_paused = False
        self.is_reply_whole = False

    def send_data(self, data: bytes) -> None:
        self._connection.send_data(self, data)

    def send_end(self, trailers: Headers) -> None:
        self._connection.send_end(self, trailers)

    def cancel(self) -> None:
        self.attempt = None
        self._connection.reset(self)

    def pause_reply(self) -> None:
        self.is_paused = True

    def resume_reply(self) -> None:
        self.is_paused = False
        if self.unacked:
            unacked, self.unacked = self.unacked, 0
            self._connection.acknowledge(self.id, unacked)


class Http2Connection(asyncio.Protocol):
    """A connection and its streams."""

    __slots__ = (
        "_is_closed",
        "_is_going_away",
        "_is_write_paused",
        "_paused",
        "_pool",
        "_proxy",
        "_session",
        "_streams",
        "_streams_max",
        "_transport",
        "idle_since_s",
        "is_dirty",
    )

    def __init__(self, proxy: Proxy, pool: Pool) -> None:
        limits = proxy.policy.limits
        self._proxy = proxy
        self._pool = pool
        self._session = client_connection(
            header_count_max=limits.header_count_max, header_bytes_max=limits.header_bytes_max
        )
        self._streams: dict[int, Http2Stream] = {}
        self._paused: set[Http2Stream] = set()
        self._transport: Any = None
        self._is_closed = False
        self._is_going_away = False
        self._is_write_paused = False
        self._streams_max = STREAMS_MAX
        self.is_dirty = False
        self.idle_since_s = proxy.clock()

    # ------------------------------------------------------------------ from the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.flush()

    def data_received(self, data: bytes) -> None:
        proxy = self._proxy
        proxy.enter()
        try:
            self._session.receive_data(data)
            self._take_events()
            proxy.touch(self)
        except ngh2.NGH2Error as error:
            self._fail_all(Fault.GARBAGE, f"{self._pool.upstream.name} broke HTTP/2: {error}")
            self._transport.abort()
        finally:
            proxy.leave()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_closed = True
        proxy = self._proxy
        proxy.enter()
        try:
            self._pool.lost(self)
            self._fail_all(Fault.RESET, f"{self._pool.upstream.name} closed the connection")
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
            self._transport.abort()
            return
        if data:
            self._transport.write(data)
        self._take_events()
        if self._paused:
            self._resume_requests()

    def _resume_requests(self) -> None:
        for stream in tuple(self._paused):
            if stream.id not in self._streams:
                self._paused.discard(stream)
            elif self._session.queued_body_size(stream.id) <= QUEUE_LOW:
                self._paused.discard(stream)
                stream.is_request_paused = False
                if stream.attempt is not None:
                    stream.attempt.resume_request()

    # ------------------------------------------------------------------ from the pool

    def can_take(self) -> bool:
        """Say whether another request may begin here."""
        if self._is_closed or self._is_going_away or not self._session.can_send_request:
            return False
        return len(self._streams) < self._streams_max

    @property
    def is_usable(self) -> bool:
        """Nothing has closed it."""
        return not self._is_closed and not self._transport.is_closing()

    @property
    def is_idle(self) -> bool:
        """No stream is on it."""
        return not self._streams

    def close(self) -> None:
        """Close at once."""
        self._transport.abort()

    def retire(self) -> None:
        """Close when its streams have ended."""
        self._is_going_away = True
        if not self._streams:
            self._transport.abort()

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
        """Send a request's head, and its body where it is there; `attempt.stream` takes the rest."""
        upstream, request = self._pool.upstream, attempt.request
        headers = request.fields.forward + added
        if self._pool.key is None:
            headers += request.fields.credentials
        if content_length is not None and has_body:
            headers.append((b"content-length", b"%d" % content_length))
        if request.fields.is_grpc:
            headers.append((b"te", b"trailers"))
        fields = encode_request(method, upstream.scheme, upstream.authority, path, headers)
        try:
            id = self._session.send_request(fields, end_stream=not has_body)
            if body is not None:
                self._session.send_data(id, body, end_stream=True)
        except (ngh2.NGH2Error, ValueError) as error:
            attempt.reply_failed(Fault.REFUSED_STREAM, f"{upstream.name} cannot take the request: {error}")
            return
        attempt.stream = self._streams[id] = Http2Stream(self, attempt, id)
        self._proxy.touch(self)

    # ------------------------------------------------------------------ from the streams

    def send_data(self, stream: Http2Stream, data: bytes) -> None:
        if self._is_closed or stream.id not in self._streams:
            return
        try:
            self._session.send_data(stream.id, data)
        except ngh2.NGH2Error:
            return  # The stream is closing; its event says why.
        self._proxy.touch(self)
        stream.sent_bytes += len(data)
        if stream.sent_bytes <= QUEUE_HIGH or stream.is_request_paused:
            return
        if self._session.queued_body_size(stream.id) > QUEUE_HIGH:
            stream.is_request_paused = True
            self._paused.add(stream)
            if stream.attempt is not None:
                stream.attempt.pause_request()

    def send_end(self, stream: Http2Stream, trailers: Headers) -> None:
        if self._is_closed or stream.id not in self._streams:
            return
        try:
            if trailers:
                self._session.send_trailers(stream.id, trailers)
            else:
                self._session.end_stream(stream.id)
        except ngh2.NGH2Error:
            return
        self._proxy.touch(self)

    def reset(self, stream: Http2Stream) -> None:
        if self._is_closed or self._streams.get(stream.id) is not stream:
            return
        try:
            self._session.reset_stream(stream.id, ErrorCode.CANCEL)
        except ngh2.NGH2Error:
            return
        self._proxy.touch(self)

    def acknowledge(self, id: int, amount: int) -> None:
        if self._is_closed:
            return
        try:
            self._session.acknowledge_received_data(amount, id)
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
                attempt = stream.attempt if stream is not None else None
                crash(attempt.exchange if attempt is not None else None)

    def _on_response(self, event: ngh2.ResponseReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None or stream.attempt is None:
            return
        status, length = 0, None
        headers: Headers = []
        for name, value in event.headers:
            if name == b":status":
                status = int(value)
            else:
                if name == b"content-length":
                    length = int(value)
                headers.append((name, value))
        stream.attempt.reply_head(status, headers, length)
        if event.end_stream:
            self._end_reply(stream, [])

    def _on_informational(self, event: ngh2.InformationalResponseReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None and stream.attempt is not None:
            status = int(next(value for name, value in event.headers if name == b":status"))
            stream.attempt.reply_informational(status, [field for field in event.headers if field[0] != b":status"])

    def _on_data(self, event: ngh2.DataReceived) -> None:
        stream = self._streams.get(event.stream_id)
        data = event.data
        if stream is not None and stream.attempt is not None:
            if data:
                stream.attempt.reply_data(data)
            if stream.is_paused:
                stream.unacked += len(data)
            elif data:
                self.acknowledge(stream.id, len(data))
            if event.end_stream:
                self._end_reply(stream, [])
        elif data:
            # Nobody waits for it any more, but the connection's window is shared.
            self.acknowledge(event.stream_id, len(data))

    def _on_trailers(self, event: ngh2.TrailersReceived) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            self._end_reply(stream, list(event.headers))

    def _end_reply(self, stream: Http2Stream, trailers: Headers) -> None:
        attempt, stream.attempt = stream.attempt, None
        stream.is_reply_whole = True
        if attempt is not None:
            is_whole = attempt.is_request_whole
            attempt.reply_end(trailers)
            if not is_whole:
                self.reset(stream)

    def _on_closed(self, event: ngh2.StreamClosed) -> None:
        stream = self._streams.pop(event.stream_id, None)
        if stream is None:
            return
        if stream.unacked:
            unacked, stream.unacked = stream.unacked, 0
            self.acknowledge(stream.id, unacked)
        attempt, stream.attempt = stream.attempt, None
        if attempt is not None:
            code = int(event.error_code)
            attempt.reply_reset(code, f"{self._pool.upstream.name} reset the stream (code {code})")
        if not self._streams:
            self.idle_since_s = self._proxy.now_s
            if self._is_going_away:
                self._transport.close()
        self._pool.serve_pending()

    def _on_settings(self, event: ngh2.SettingsReceived) -> None:
        self._streams_max = min(STREAMS_MAX, event.settings.get(_MAX_CONCURRENT_STREAMS, self._streams_max))
        self._pool.serve_pending()

    def _on_goaway(self, event: ngh2.GoAwayReceived) -> None:
        self._is_going_away = True
        for stream in tuple(self._streams.values()):
            if stream.id > event.last_stream_id and stream.attempt is not None:
                attempt, stream.attempt = stream.attempt, None
                attempt.reply_failed(Fault.REFUSED_STREAM, f"{self._pool.upstream.name} is going away")
        if not self._streams:
            self._transport.close()

    def _on_connection_closed(self, event: ngh2.ConnectionClosed) -> None:
        # nghttp2 has said its GOAWAY to something that broke the rules, and will read no more.
        self._is_going_away = True
        self._fail_all(Fault.GARBAGE, f"{self._pool.upstream.name} broke HTTP/2 (code {event.error_code})")
        self._transport.close()

    def _fail_all(self, fault: Fault, message: str) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            attempt, stream.attempt = stream.attempt, None
            if attempt is not None:
                with ending(attempt.exchange):
                    attempt.reply_failed(fault, message)


_MAX_CONCURRENT_STREAMS: Final = int(ngh2.Setting.MAX_CONCURRENT_STREAMS)
_HANDLERS: Final[dict[type, Any]] = {
    ngh2.SettingsReceived: Http2Connection._on_settings,
    ngh2.ResponseReceived: Http2Connection._on_response,
    ngh2.InformationalResponseReceived: Http2Connection._on_informational,
    ngh2.DataReceived: Http2Connection._on_data,
    ngh2.TrailersReceived: Http2Connection._on_trailers,
    ngh2.StreamClosed: Http2Connection._on_closed,
    ngh2.GoAwayReceived: Http2Connection._on_goaway,
    ngh2.ConnectionClosed: Http2Connection._on_connection_closed,
}
