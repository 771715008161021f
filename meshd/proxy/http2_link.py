"""What both ends of HTTP/2 share: a connection with its streams, what it reads, writes, paces and acknowledges.

`Http2Session` has a caller at its other end, `Http2Connection` an upstream. nghttp2 opens the peer's windows again as
bytes come; a stream whose bytes cannot be passed on has its window closed until they can. That, and a look at the queue
of what goes out, are the back-pressure.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import ngh2

from meshd.proxy.crash import crash
from meshd.wire.http2 import CONNECTION_WINDOW, HELD_MAX, QUEUE_HIGH, QUEUE_LOW, STREAM_WINDOW, ErrorCode

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.proxy.exchange import Exchange
    from meshd.proxy.proxy import Proxy

_DATA: Final = ngh2.DataReceived
_CLOSED: Final = ngh2.StreamClosed
_TRAILERS: Final = ngh2.TrailersReceived
_REQUEST: Final = ngh2.RequestReceived
_RESPONSE: Final = ngh2.ResponseReceived
_WINDOW: Final = ngh2.WindowUpdated


class Http2Flow:
    """One stream of a connection."""

    __slots__ = ("held_bytes", "id", "is_out_paused", "is_paused", "link", "sent_bytes")

    def __init__(self, link: Http2Link, id: int) -> None:
        self.link = link
        self.id = id
        self.is_paused = False
        """What comes in cannot be passed on for now: its window stays closed."""
        self.is_out_paused = False
        """The other side has been told to send no more for now."""
        self.held_bytes = 0
        """Bytes that came since: what was in flight, and is kept for whoever could take no more."""
        self.sent_bytes = 0
        """Bytes that went out since the queue was looked at, and what was in it then: no more can wait in it."""

    def pause(self) -> None:
        """Let no more come than is in flight."""
        if not self.is_paused:
            self.is_paused = True
            self.link.close_window(self)

    def resume(self) -> None:
        """Let more come."""
        if self.is_paused:
            self.is_paused = False
            self.link.open_window(self)

    # What each end does.

    def take(self, data: bytes, is_last: bool) -> None:
        """Bytes came, and with the last of them the end."""
        raise NotImplementedError

    def take_end(self, trailers: Headers) -> None:
        """The end came by itself."""
        raise NotImplementedError

    def take_close(self, error_code: int) -> None:
        """The stream is closed, in whichever way."""
        raise NotImplementedError

    def pause_source(self) -> None:
        """The queue is full: let what feeds it stop."""
        raise NotImplementedError

    def resume_source(self) -> None:
        """The queue has room again."""
        raise NotImplementedError

    def exchange_of(self) -> Exchange | None:
        """Return the exchange that the stream is for, if it still is for one."""
        raise NotImplementedError


class Http2Link(asyncio.Protocol):
    """A connection and its streams."""

    __slots__ = (
        "_held_bytes",
        "_is_closed",
        "_is_stalled",
        "_is_write_paused",
        "_out_paused",
        "_proxy",
        "_session",
        "_streams",
        "_transport",
        "idle_since_s",
        "is_dirty",
    )

    def __init__(self, proxy: Proxy, session: Any) -> None:
        """`session` is ngh2's half: see `meshd.wire.http2`."""
        self._proxy = proxy
        self._session = session
        self._streams: dict[int, Http2Flow] = {}
        self._out_paused: set[Http2Flow] = set()
        self._transport: Any = None
        self._is_closed = False
        self._is_write_paused = False
        self._is_stalled = False
        self._held_bytes = 0
        """Of all paused streams."""
        self.idle_since_s = proxy.clock()
        self.is_dirty = False

    # ------------------------------------------------------------------ what each end does

    def on_head(self, event: Any) -> None:
        """A request's or a reply's header fields."""
        raise NotImplementedError

    def on_other(self, event: Any) -> None:
        """Whatever is neither about a stream nor a window."""
        raise NotImplementedError

    def on_empty(self) -> None:
        """The last stream has closed."""
        raise NotImplementedError

    def on_broken(self, error: Exception) -> None:
        """The peer's bytes are no HTTP/2."""
        raise NotImplementedError

    # ------------------------------------------------------------------ from the loop

    def data_received(self, data: bytes) -> None:
        proxy = self._proxy
        proxy.enter()
        try:
            self._session.receive_data(data)
            self._take_events()
            # For most of what comes there is nothing to say here, only at the other side of the call.
            if not self.is_dirty and self._session.want_write:
                proxy.touch(self)
        except ngh2.NGH2Error as error:
            self.on_broken(error)
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
            self._transport.close()  # and not abort: last words may be on their way
            return
        if data:
            self._proxy.commit()
            self._transport.write(data)
        self._take_events()
        if self._out_paused:
            self._resume_sources()

    # ------------------------------------------------------------------ what comes in

    def _take_events(self) -> None:
        for event in self._session.events():
            kind = type(event)
            try:
                if kind is _DATA:
                    self._on_data(event)
                elif kind is _REQUEST or kind is _RESPONSE:
                    self.on_head(event)
                elif kind is _CLOSED:
                    self._on_closed(event)
                elif kind is _TRAILERS:
                    stream = self._streams.get(event.stream_id)
                    if stream is not None:
                        stream.take_end(list(event.headers))
                elif kind is not _WINDOW:
                    self.on_other(event)
            except Exception:  # noqa: BLE001 - whatever it is, the call must end, and the other streams go on
                stream = self._streams.get(getattr(event, "stream_id", 0))
                crash(stream.exchange_of() if stream is not None else None)

    def _on_data(self, event: Any) -> None:
        data: bytes = event.data
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return  # Nobody waits for it any more.
        if not data:
            if event.end_stream:
                stream.take_end([])
            return
        if stream.is_paused:
            self._hold(stream, len(data))
        stream.take(data, event.end_stream)

    def _on_closed(self, event: Any) -> None:
        stream = self._streams.pop(event.stream_id, None)
        if stream is None:
            return
        if stream.held_bytes:
            self._let_go(stream)
        stream.take_close(event.error_code)
        if not self._streams:
            self.idle_since_s = self._proxy.now_s
            self.on_empty()

    # ------------------------------------------------------------------ pace of what comes in

    def close_window(self, stream: Http2Flow) -> None:
        """Let no more come on a stream than the peer was already allowed to send."""
        self.do(self._set_window, stream.id, 0)

    def open_window(self, stream: Http2Flow) -> None:
        """Let more come on a stream."""
        self.do(self._set_window, stream.id, STREAM_WINDOW)
        if stream.held_bytes:
            self._let_go(stream)

    def _set_window(self, id: int, window_bytes: int) -> None:
        self._session.set_local_window_size(window_bytes, stream_id=id)

    def _hold(self, stream: Http2Flow, amount: int) -> None:
        """Count what came for a paused stream: many of them together stall the connection."""
        stream.held_bytes += amount
        self._held_bytes += amount
        if self._held_bytes > HELD_MAX and not self._is_stalled:
            self._is_stalled = True
            self.do(self._set_window_of_all, 0)

    def _let_go(self, stream: Http2Flow) -> None:
        self._held_bytes -= stream.held_bytes
        stream.held_bytes = 0
        if self._is_stalled and self._held_bytes <= HELD_MAX // 2:
            self._is_stalled = False
            self.do(self._set_window_of_all, CONNECTION_WINDOW)

    def _set_window_of_all(self, window_bytes: int) -> None:
        self._session.set_local_window_size(window_bytes)

    # ------------------------------------------------------------------ what goes out

    def send_data(self, stream: Http2Flow, data: bytes, is_last: bool = False) -> None:
        """Queue bytes of a stream, and with the last of them its end."""
        try:
            if is_last:
                self._session.send_data(stream.id, data, end_stream=True)
            else:
                self._session.send_data(stream.id, data)
        except ngh2.NGH2Error:
            return  # The stream or the connection is closing; its event says why.
        if not self.is_dirty:
            self._proxy.touch(self)
        stream.sent_bytes += len(data)
        if stream.sent_bytes > QUEUE_HIGH and not stream.is_out_paused:
            self._look_at_queue(stream)

    def _look_at_queue(self, stream: Http2Flow) -> None:
        stream.sent_bytes = self._session.queued_body_size(stream.id)
        if stream.sent_bytes > QUEUE_HIGH:
            stream.is_out_paused = True
            self._out_paused.add(stream)
            stream.pause_source()

    def _resume_sources(self) -> None:
        for stream in tuple(self._out_paused):
            if stream.id not in self._streams:
                self._out_paused.discard(stream)
            elif self._session.queued_body_size(stream.id) <= QUEUE_LOW:
                self._out_paused.discard(stream)
                stream.is_out_paused = False
                stream.resume_source()

    def send_end(self, stream: Http2Flow, trailers: Headers) -> None:
        """End what goes out of a stream, with trailers where there are some."""
        if self._is_closed or stream.id not in self._streams:
            return
        try:
            if trailers:
                self._session.send_trailers(stream.id, trailers)
            else:
                self._session.end_stream(stream.id)
        except (ngh2.NGH2Error, ValueError):
            return
        if not self.is_dirty:
            self._proxy.touch(self)

    def reset(self, stream: Http2Flow, code: ErrorCode) -> None:
        """Close a stream at once."""
        if self._is_closed or self._streams.get(stream.id) is not stream:
            return
        self.do(self._session.reset_stream, stream.id, code)

    def do(self, operation: Any, *arguments: Any) -> None:
        """Do what a stream asks, unless the connection or the stream is already gone."""
        if self._is_closed:
            return
        try:
            operation(*arguments)
        except (ngh2.NGH2Error, ValueError):
            return
        self._proxy.touch(self)
