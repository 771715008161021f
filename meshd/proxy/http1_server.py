"""One HTTP/1.1 connection from a caller: requests in, replies out in the same order."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from meshd.proxy.crash import crash, ending
from meshd.proxy.exchange import Exchange
from meshd.proxy.http1_framing import CHUNKED, NONE, RAW, UNTIL_CLOSE, break_off, frame
from meshd.proxy.refusing import wire_refusal
from meshd.wire.http1 import LAST_CHUNK, encode_chunk, encode_last_chunk, encode_reply_head
from meshd.wire.http1_request import RequestReader
from meshd.wire.message import Request, WireError

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Direction, Headers
    from meshd.proxy.proxy import Proxy

DISCARD_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of a request that was refused before it was whole: read on for so much, lest the refusal be lost to a reset."""
DISCARD_S_MAX: Final = 5.0


class Http1Session(asyncio.Protocol):
    """A caller's connection. It is the `Caller` of whichever exchange is being answered."""

    __slots__ = (
        "_backlog",
        "_discarded",
        "_exchange",
        "_framing",
        "_head_since_s",
        "_is_advancing",
        "_is_broken",
        "_is_close_wanted",
        "_is_closed",
        "_is_lingering",
        "_is_reading",
        "_is_reading_paused",
        "_is_replied",
        "_is_request_whole",
        "_is_tunnel",
        "_is_write_paused",
        "_out",
        "_proxy",
        "_reader",
        "_transport",
        "_version_has_chunks",
        "_went",
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
        self._backlog: deque[Request | bytes | Headers | WireError] = deque()
        """What was read behind the request that is being answered: pipelined requests wait here, in order."""
        self._out: list[bytes] = []
        self._framing = NONE
        self._is_replied = False
        self._is_request_whole = True
        self._is_advancing = False
        self._is_broken = False
        """No more requests can be read here: what still comes is dropped."""
        self._is_close_wanted = False
        self._is_closed = False
        self._is_lingering = False
        self._is_reading = True
        self._is_reading_paused = False
        self._is_tunnel = False
        self._is_write_paused = False
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
            if self._is_broken:
                self._discard(len(data))
                return
            if self._reader.is_between:
                self._head_since_s = proxy.now_s
            self._reader.feed(data)
            if self._reader.upgraded is not None:
                self._is_tunnel = True
                if self._reader.upgraded and self._exchange is not None:
                    self._exchange.request_data(self._reader.upgraded)
        except WireError as error:
            self._wire_error(error)
        except Exception:  # noqa: BLE001 - whatever it is, the call must end
            self._is_broken = self._is_close_wanted = True
            crash(self._exchange)
        finally:
            proxy.leave()

    def eof_received(self) -> bool:
        if self._is_tunnel and self._exchange is not None:
            # A tunnel's other half may go on.
            self._exchange.half_closed()
            return True
        # A caller that closes its half cannot be told from one that is gone, and a call must not run on for nobody.
        return False

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
                with ending(exchange):
                    exchange.caller_gone()
        finally:
            proxy.leave()

    def pause_writing(self) -> None:
        self._is_write_paused = True
        if self._exchange is not None:
            self._exchange.pause_reply()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._proxy.enter()
        try:
            if self._exchange is not None:
                self._exchange.resume_reply()
            elif self._backlog:
                self._next()
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
        if self._exchange is not None or self._backlog or self._is_write_paused:
            # A caller that does not read its replies is given no more of them.
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
        self._is_reading_paused = False
        # A tunnel that was asked for and not opened leaves bytes behind that nobody can read as a request.
        self._is_close_wanted = not request.is_keep_alive or bool(request.upgrade) or request.method == "CONNECT"
        exchange = self._exchange = Exchange(self._proxy, self, request, self.direction)
        exchange.begin()

    def _next(self) -> None:
        """Go on to the next request when both halves of this exchange are done."""
        if self._is_advancing:
            return  # A call that is answered at once comes here again from below: the loop goes on with it.
        self._is_advancing = True
        while self._is_replied and self._is_request_whole:
            self._exchange = None
            if self._is_close_wanted or self._proxy.is_draining:
                self._close()
                break
            self._head_since_s = self._proxy.now_s
            if self._is_write_paused or not self._backlog:
                break
            self._take()
        self._is_advancing = False
        self._pace()

    def _take(self) -> None:
        """Begin the first request that waits, with as much of its body as has come."""
        backlog = self._backlog
        item = backlog.popleft()
        if isinstance(item, WireError):
            self._last_words(item)
            return
        assert isinstance(item, Request)
        self._begin(item)
        while backlog and not self._is_request_whole:
            part = backlog.popleft()
            if isinstance(part, WireError):
                self._break_off(part)
            elif isinstance(part, bytes):
                if self._exchange is not None:
                    self._exchange.request_data(part)
            else:
                self._is_request_whole = True
                if self._exchange is not None:
                    self._exchange.request_end(part)  # type: ignore[arg-type]

    def _discard(self, amount: int) -> None:
        self._discarded += amount
        if self._discarded > DISCARD_BYTES_MAX:
            self._transport.abort()

    def _wire_error(self, error: WireError) -> None:
        """Bytes that are no request: the place in the stream is lost, so nothing behind them is read."""
        self._is_broken = True
        if self._backlog or (self._exchange is not None and self._is_request_whole):
            self._backlog.append(error)  # The calls before it are answered first.
        elif self._exchange is not None:
            self._break_off(error)
        else:
            self._last_words(error)

    def _break_off(self, error: WireError) -> None:
        """The request that is being read will never be whole."""
        self._is_close_wanted = self._is_request_whole = True
        if self._exchange is not None:
            self._exchange.request_broken(error)

    def _last_words(self, error: WireError) -> None:
        self._is_replied = self._is_request_whole = self._is_close_wanted = True
        call_id = self._proxy.next_id()
        reply = wire_refusal(error, call_id)
        self._proxy.telemetry.malformed(self.direction, error, call_id)
        self.send_head(reply.status, reply.headers, len(reply.body), has_body=True)
        self.send_data(reply.body)
        self._linger()

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
        if exchange is not None and exchange.is_tunnel_open:
            self._framing = RAW
            if status == 101:
                fields += [(b"connection", b"upgrade"), (b"upgrade", exchange.request.upgrade)]
        else:
            has_chunks = self._version_is_1_1
            self._framing = frame(fields, status, content_length, has_body=has_body, has_chunks=has_chunks)
            if self._is_close_wanted or self._proxy.is_draining or self._framing == UNTIL_CLOSE:
                self._is_close_wanted = True
                fields.append((b"connection", b"close"))
            elif not self._version_is_1_1:
                fields.append((b"connection", b"keep-alive"))
        self._put(encode_reply_head(status, fields))

    def send_data(self, data: bytes) -> None:
        if self._framing == CHUNKED:
            data = encode_chunk(data)
        elif self._framing == NONE:
            return
        self._put(data)

    def send_end(self, trailers: Headers) -> None:
        if self._framing == CHUNKED:
            self._put(encode_last_chunk(trailers) if trailers else LAST_CHUNK)
        self._is_replied = True
        if self._framing == RAW:
            self._exchange = None
            self._close()
        elif self._exchange is not None:
            if self._exchange.is_request_whole:
                self._next()
            else:
                self._linger()

    def half_close(self) -> None:
        self.flush()
        if not self._is_closed and self._transport.can_write_eof():
            self._transport.write_eof()

    def abort(self) -> None:
        # What was passed on leaves first: the end that is missing is what tells the caller.
        self.flush()
        self._exchange = None
        if not self._is_closed:
            break_off(self._transport, self._framing)

    def pause_request(self) -> None:
        self._is_reading_paused = True
        self._pace()

    def resume_request(self) -> None:
        self._is_reading_paused = False
        self._pace()

    def _pace(self) -> None:
        should_read = not (self._is_reading_paused or self._backlog)
        if should_read is self._is_reading or self._is_closed or self._transport.is_closing():
            return
        self._is_reading = should_read
        (self._transport.resume_reading if should_read else self._transport.pause_reading)()

    def _put(self, data: bytes) -> None:
        self._out.append(data)
        if not self.is_dirty:
            self._proxy.touch(self)

    def _close(self) -> None:
        self.flush()
        if not self._is_closed and not self._is_lingering:
            self._transport.close()

    def _linger(self) -> None:
        """Say that nothing more comes from here, and drop what the caller still sends (RFC 9112, 9.6).

        A plain close would reset the connection under a caller that is sending, and might take the reply with it.
        """
        self.flush()
        self._exchange = None
        self._backlog.clear()
        self._is_broken = self._is_lingering = True
        self._is_reading_paused = False
        self._head_since_s = self._proxy.now_s
        if not self._is_closed and self._transport.can_write_eof():
            self._transport.write_eof()
        self._pace()

    # ------------------------------------------------------------------ from the sweep and the drain

    def expire(self, now_s: float) -> None:
        limits = self._proxy.policy.limits
        since_s = now_s - self._head_since_s
        if self._is_lingering:
            if since_s > DISCARD_S_MAX:
                self._transport.abort()
        elif self._exchange is not None:
            return
        elif self._reader.is_between or self._backlog:
            if since_s > limits.idle_timeout_s:
                # Not `close`, which waits for a caller that does not read.
                self._transport.abort() if self._is_write_paused else self._close()
        elif since_s > limits.header_timeout_s:
            self._wire_error(WireError(408, f"The request's head was not whole within {limits.header_timeout_s:g} s"))

    def drain(self) -> None:
        self._is_close_wanted = True
        if self._exchange is None and self._reader.is_between:
            self._close()

    def close_now(self) -> None:
        self._transport.abort()
