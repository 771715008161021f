"""One HTTP/2 connection to an upstream, shared by many exchanges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import ngh2

from meshd.call import NO_FIELDS
from meshd.outcome import Fault
from meshd.proxy.crash import ending
from meshd.proxy.http2_link import Http2Flow, Http2Link
from meshd.wire.http2 import ErrorCode, ReplyReader, RequestHeads, client_connection

if TYPE_CHECKING:
    import asyncio

    from meshd.call import Headers
    from meshd.proxy.attempt import Attempt
    from meshd.proxy.exchange import Exchange
    from meshd.proxy.pool import Pool
    from meshd.proxy.proxy import Proxy

STREAMS_MAX: Final = 100
"""Calls on one connection before another is opened, where the upstream allows as many."""

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11.
_CANCEL: Final = ErrorCode.CANCEL
_TE: Final = (b"te", b"trailers")


class Http2Stream(Http2Flow):
    """One request on the connection: the `Stream` of one attempt."""

    __slots__ = ("_connection", "attempt")

    def __init__(self, connection: Http2Connection, attempt: Attempt, id: int) -> None:
        super().__init__(connection, id)
        self._connection = connection
        self.attempt: Attempt | None = attempt

    # ------------------------------------------------------------------ Stream

    def send_data(self, data: bytes, is_last: bool = False) -> None:
        self.link.send_data(self, data, is_last)

    def send_end(self, trailers: Headers) -> None:
        self.link.send_end(self, trailers)

    def cancel(self) -> None:
        self.attempt = None
        self.link.reset(self, _CANCEL)

    def pause_reply(self) -> None:
        self.pause()

    def resume_reply(self) -> None:
        self.resume()

    # ------------------------------------------------------------------ from the connection

    def take(self, data: bytes, is_last: bool) -> None:
        attempt = self.attempt
        if attempt is not None:
            attempt.reply_data(data)
            if is_last:
                self.take_end(NO_FIELDS)

    def take_end(self, trailers: Headers) -> None:
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            is_whole = attempt.is_request_whole
            attempt.reply_end(trailers)
            if not is_whole:
                self.link.reset(self, _CANCEL)

    def take_close(self, error_code: int) -> None:
        attempt, self.attempt = self.attempt, None
        connection = self._connection
        if attempt is not None:
            attempt.reply_reset(error_code, f"{connection.pool.upstream.name} reset the stream (code {error_code})")
        connection.pool.serve_pending()

    def fail(self, fault: Fault, message: str) -> None:
        """The connection cannot serve it any more."""
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            with ending(attempt.exchange):
                attempt.reply_failed(fault, message)

    def pause_source(self) -> None:
        if self.attempt is not None:
            self.attempt.pause_request()

    def resume_source(self) -> None:
        if self.attempt is not None:
            self.attempt.resume_request()

    def exchange_of(self) -> Exchange | None:
        return self.attempt.exchange if self.attempt is not None else None


class Http2Connection(Http2Link):
    """A connection and its streams."""

    __slots__ = ("_heads", "_is_going_away", "_replies", "_streams_max", "pool")

    def __init__(self, proxy: Proxy, pool: Pool) -> None:
        limits = proxy.policy.limits
        session = client_connection(header_count_max=limits.header_count_max, header_bytes_max=limits.header_bytes_max)
        super().__init__(proxy, session)
        self.pool = pool
        self._heads = RequestHeads(pool.upstream.scheme, pool.upstream.authority)
        self._replies = ReplyReader()
        self._is_going_away = False
        self._streams_max = STREAMS_MAX

    # ------------------------------------------------------------------ from the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.flush()

    def on_broken(self, error: Exception) -> None:
        self._fail_all(Fault.GARBAGE, f"{self.pool.upstream.name} broke HTTP/2: {error}")
        self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_closed = True
        proxy = self._proxy
        proxy.enter()
        try:
            self.pool.lost(self)
            self._fail_all(Fault.RESET, f"{self.pool.upstream.name} closed the connection")
        finally:
            proxy.leave()

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
        given = attempt.request.fields
        fields = [*self._heads.of(method, path), *given.forward, *added]
        if self.pool.key is None and given.credentials:
            fields += given.credentials
        if content_length is not None and has_body:
            fields.append((b"content-length", b"%d" % content_length))
        if given.is_grpc:
            fields.append(_TE)
        try:
            if has_body:
                id: int = self._session.send_request(fields)
            else:
                id = self._session.send_request(fields, end_stream=True)
            if body is not None:
                self._session.send_data(id, body, end_stream=True)
        except (ngh2.NGH2Error, ValueError) as error:
            attempt.reply_failed(Fault.REFUSED_STREAM, f"{self.pool.upstream.name} cannot take the request: {error}")
            return
        stream = Http2Stream(self, attempt, id)
        self._streams[id] = stream
        attempt.stream = stream
        if not self.is_dirty:
            self._proxy.touch(self)

    # ------------------------------------------------------------------ events

    def on_head(self, event: Any) -> None:
        stream = self._streams.get(event.stream_id)
        if not isinstance(stream, Http2Stream) or stream.attempt is None:
            return
        status, headers, length = self._replies.read(event.headers)
        stream.attempt.reply_head(status, headers, length)
        if event.end_stream:
            stream.take_end([])

    def on_other(self, event: Any) -> None:
        kind = type(event)
        if kind is ngh2.InformationalResponseReceived:
            self._on_informational(event)
        elif kind is ngh2.SettingsReceived:
            self._streams_max = min(STREAMS_MAX, event.settings.get(_MAX_CONCURRENT_STREAMS, self._streams_max))
            self.pool.serve_pending()
        elif kind is ngh2.GoAwayReceived:
            self._on_goaway(event)
        elif kind is ngh2.ConnectionClosed:
            # nghttp2 has said its GOAWAY to something that broke the rules, and will read no more.
            self._is_going_away = True
            self._fail_all(Fault.GARBAGE, f"{self.pool.upstream.name} broke HTTP/2 (code {event.error_code})")
            self._transport.close()

    def _on_informational(self, event: Any) -> None:
        stream = self._streams.get(event.stream_id)
        if isinstance(stream, Http2Stream) and stream.attempt is not None:
            status = int(next(value for name, value in event.headers if name == b":status"))
            stream.attempt.reply_informational(status, [field for field in event.headers if field[0] != b":status"])

    def _on_goaway(self, event: Any) -> None:
        self._is_going_away = True
        for stream in tuple(self._streams.values()):
            if stream.id > event.last_stream_id and isinstance(stream, Http2Stream):
                stream.fail(Fault.REFUSED_STREAM, f"{self.pool.upstream.name} is going away")
        if not self._streams:
            self._transport.close()

    def on_empty(self) -> None:
        if self._is_going_away:
            self._transport.close()

    def _fail_all(self, fault: Fault, message: str) -> None:
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            if isinstance(stream, Http2Stream):
                stream.fail(fault, message)


_MAX_CONCURRENT_STREAMS: Final = int(ngh2.Setting.MAX_CONCURRENT_STREAMS)
