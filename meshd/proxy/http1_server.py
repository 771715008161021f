"""One HTTP/1.1 connection from a caller: requests in, replies out in the same order."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from meshd.call import Headers
from meshd.proxy.exchange import Exchange
from meshd.proxy.refusing import wire_refusal
from meshd.wire.http1 import LAST_CHUNK, RequestReader, encode_chunk, encode_last_chunk, encode_reply_head
from meshd.wire.message import Request, WireError

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Direction
    from meshd.proxy.proxy import Proxy

DISCARD_BYTES_MAX = 1024 * 1024
"""Of a request that was refused before it was whole: read on for so much, so that the refusal is not lost to a reset."""
DISCARD_S_MAX = 5.0

_RAW, _LENGTH, _CHUNKED, _NONE, _UNTIL_CLOSE = range(5)


class Http1Session(asyncio.Protocol):
    """A caller's connection. It is the `Caller` of whichever exchange is being answered."""

    __slots__ = (
        "_backlog",
        "_discarded",
        "_exchange",
        "_framing",
        "_head_since_s",
        "_is_close_wanted",
        "_is_closed",
        "_is_reading_paused",
        "_is_replied",
        "_is_request_whole",
        "_is_tunnel",
        "_out",
        "_proxy",
        "_reader",
        "_transport",
        "_went",
        "_version_has_chunks",
        "direction",
        "is_dirty",
        "peer",
    )

    def __init__(self, proxy: Proxy, direction: Direction, peer: str, went: Callable[[str], None]) -> None:
        self._proxy = proxy
        self._went = went
        self.direction = direction
        self.peer = peer
        limits = proxy.policy.limits
        self._reader = RequestReader(
            self,
            header_count_max=limits.header_count_max,
            header_bytes_max=limits.header_bytes_max,
            url_bytes_max=limits.url_bytes_max,
        )
        self._transport: Any = None
        self._exchange: Exchange | None = None
        self._backlog: deque[Request | bytes | Headers] = deque()
        """What was read behind the request that is being answered: pipelined requests wait here, in order."""
        self._out: list[bytes] = []
        self._framing = _NONE
        self._is_replied = False
        self._is_request_whole = True
        self._is_close_wanted = False
        self._is_closed = False
        self._is_reading_paused = False
        self._is_tunnel = False
        self._discarded = 0
        self._head_since_s = proxy.clock()
        self.is_dirty = False

    # ------------------------------------------------------------------ from the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._proxy.sessions.add(self)

    def data_received(self, data: bytes) -> None:
        proxy = self._proxy
        proxy.enter()
        try:
            if self._is_tunnel:
                if self._exchange is not None:
                    self._exchange.request_data(data)
                return
            if self._is_close_wanted and self._is_replied:
                self._discard(len(data))
                return
            if self._reader.is_between:
                self._head_since_s = proxy.clock()
            self._reader.feed(data)
            if self._reader.upgraded is not None:
                self._is_tunnel = True
                if self._reader.upgraded and self._exchange is not None:
                    self._exchange.request_data(self._reader.upgraded)
        except WireError as error:
            self._wire_error(error)
        finally:
            proxy.leave()

    def eof_received(self) -> bool:
        if self._is_tunnel and self._exchange is not None:
            # A tunnel's other half may go on.
            exchange = self._exchange
            if exchange.stream is not None:
                exchange.stream.send_end([])
            return True
        # A caller that has sent its whole request may close its half and still wait for the reply.
        return self._exchange is not None and self._is_request_whole and not self._is_tls

    @property
    def _is_tls(self) -> bool:
        return self._transport.get_extra_info("ssl_object") is not None

    def connection_lost(self, error: Exception | None) -> None:
        self._is_closed = True
        proxy = self._proxy
        proxy.sessions.discard(self)
        self._went(self.peer)
        proxy.enter()
        try:
            self._backlog.clear()
            exchange, self._exchange = self._exchange, None
            if exchange is not None:
                exchange.caller_gone()
        finally:
            proxy.leave()

    def pause_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.pause_reply()

    def resume_writing(self) -> None:
        self._proxy.enter()
        try:
            if self._exchange is not None:
                self._exchange.resume_reply()
        finally:
            self._proxy.leave()

    def flush(self) -> None:
        """Write what this callback has gathered."""
        out = self._out
        if not out:
            return
        if not self._is_closed:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        out.clear()

    # ------------------------------------------------------------------ from the reader

    def request_head(self, request: Request) -> None:
        if self._exchange is not None:
            self._backlog.append(request)
            self._pace()
        else:
            self._begin(request)

    def request_data(self, data: bytes) -> None:
        if self._backlog:
            self._backlog.append(data)
        elif self._exchange is not None:
            self._exchange.request_data(data)

    def request_end(self, trailers: Headers) -> None:
        if self._backlog:
            self._backlog.append(trailers)
            return
        self._is_request_whole = True
        if self._exchange is not None:
            self._exchange.request_end(trailers)
            self._next()

    def _begin(self, request: Request) -> None:
        self._is_replied = False
        self._is_request_whole = False
        self._is_close_wanted = not request.is_keep_alive
        exchange = self._exchange = Exchange(self._proxy, self, request, self.direction)
        exchange.begin()

    def _next(self) -> None:
        """Go on to the next request when both halves of this exchange are done."""
        if not (self._is_replied and self._is_request_whole):
            return
        self._exchange = None
        if self._is_close_wanted or self._proxy.is_draining:
            self._close()
            return
        self._head_since_s = self._proxy.clock()
        backlog = self._backlog
        while backlog and self._exchange is None:
            item = backlog.popleft()
            assert isinstance(item, Request)
            self._begin(item)
            while backlog and not isinstance(backlog[0], Request):
                part = backlog.popleft()
                if isinstance(part, bytes):
                    self._replay(part)
                else:
                    self._is_request_whole = True
                    if self._exchange is not None:
                        self._exchange.request_end(part)
            if self._is_replied and self._is_request_whole:
                self._exchange = None
        self._pace()

    def _replay(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.request_data(data)

    def _discard(self, amount: int) -> None:
        self._discarded += amount
        if self._discarded > DISCARD_BYTES_MAX:
            self._transport.abort()

    def _wire_error(self, error: WireError) -> None:
        """Bytes that are no request: the place in the stream is lost, so this is the connection's last reply."""
        self._is_close_wanted = True
        if self._exchange is not None:
            if not self._backlog:
                self._exchange.request_broken(error)
            self._is_request_whole = True
            if self._is_replied:
                self._close()
            return
        self._is_replied = True
        reply = wire_refusal(error, self._proxy.next_id())
        self._proxy.telemetry.malformed(self.direction, error)
        self.send_head(reply.status, reply.headers, len(reply.body), has_body=True)
        self.send_data(reply.body)
        self._close()

    # ------------------------------------------------------------------ Caller

    def send_informational(self, status: int, headers: Headers) -> None:
        if self._version_is_1_1:
            self._put(encode_reply_head(status, headers))

    @property
    def _version_is_1_1(self) -> bool:
        exchange = self._exchange
        return exchange is None or exchange.request.has_chunks

    def send_head(self, status: int, headers: Headers, content_length: int | None, *, has_body: bool) -> None:
        fields = list(headers)
        exchange = self._exchange
        if exchange is not None and not exchange.is_request_whole and not exchange.is_tunnel and status >= 400:
            self._is_close_wanted = True
        if status == 101 or (exchange is not None and exchange.is_tunnel and 200 <= status < 300):
            self._framing = _RAW
            if status == 101 and exchange is not None:
                fields += [(b"connection", b"upgrade"), (b"upgrade", exchange.request.upgrade)]
        else:
            self._frame(fields, status, content_length, has_body)
            if self._is_close_wanted or self._proxy.is_draining:
                self._is_close_wanted = True
                fields.append((b"connection", b"close"))
            elif not self._version_is_1_1:
                fields.append((b"connection", b"keep-alive"))
        self._put(encode_reply_head(status, fields))

    def _frame(self, fields: Headers, status: int, content_length: int | None, has_body: bool) -> None:
        if content_length is not None and status != 204:
            fields.append((b"content-length", b"%d" % content_length))
        if not has_body:
            self._framing = _NONE
        elif content_length is not None:
            self._framing = _LENGTH
        elif self._version_is_1_1:
            self._framing = _CHUNKED
            fields.append((b"transfer-encoding", b"chunked"))
        else:
            self._framing = _UNTIL_CLOSE
            self._is_close_wanted = True

    def send_data(self, data: bytes) -> None:
        if self._framing == _CHUNKED:
            data = encode_chunk(data)
        elif self._framing == _NONE:
            return
        self._put(data)

    def send_end(self, trailers: Headers) -> None:
        if self._framing == _CHUNKED:
            self._put(encode_last_chunk(trailers) if trailers else LAST_CHUNK)
        self._is_replied = True
        if self._framing == _RAW:
            self._exchange = None
            self._close()
        elif self._exchange is not None:
            if not self._is_request_whole and self._is_close_wanted:
                self._head_since_s = self._proxy.clock()
                if self._is_reading_paused:
                    self.resume_request()
                return
            self._next()

    def abort(self) -> None:
        # What was passed on leaves first: the end that is missing is what tells the caller.
        self.flush()
        self._exchange = None
        if not self._is_closed:
            self._transport.close() if self._framing == _CHUNKED else self._transport.abort()

    def pause_request(self) -> None:
        self._is_reading_paused = True
        self._pace()

    def resume_request(self) -> None:
        self._is_reading_paused = False
        self._pace()

    def _pace(self) -> None:
        if self._is_closed or self._transport.is_closing():
            return
        should_read = not (self._is_reading_paused or self._backlog)
        if should_read is not self._transport.is_reading():
            (self._transport.resume_reading if should_read else self._transport.pause_reading)()

    def _put(self, data: bytes) -> None:
        self._out.append(data)
        if not self.is_dirty:
            self._proxy.touch(self)

    def _close(self) -> None:
        self.flush()
        if not self._is_closed:
            self._transport.close()

    # ------------------------------------------------------------------ from the sweep and the drain

    def expire(self, now_s: float) -> None:
        limits = self._proxy.policy.limits
        since_s = now_s - self._head_since_s
        if self._exchange is not None:
            if self._is_replied and since_s > DISCARD_S_MAX:
                self._transport.abort()
        elif self._reader.is_between:
            if since_s > limits.idle_timeout_s:
                self._close()
        elif since_s > limits.header_timeout_s:
            self._wire_error(WireError(408, f"The request's head was not whole within {limits.header_timeout_s:g} s"))

    def drain(self) -> None:
        self._is_close_wanted = True
        if self._exchange is None and self._reader.is_between:
            self._close()

    def close_now(self) -> None:
        self._transport.abort()
