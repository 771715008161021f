"""One HTTP/1.1 connection to an upstream, serving one attempt at a time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from meshd.outcome import Fault
from meshd.proxy.crash import crash
from meshd.wire.http1 import encode_chunk, encode_last_chunk, encode_request_head
from meshd.wire.http1_reply import NOBODY, ReplyReader
from meshd.wire.message import WireError

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.proxy.attempt import Attempt
    from meshd.proxy.pool import Pool
    from meshd.proxy.proxy import Proxy


class Http1Connection(asyncio.Protocol):
    """A connection and, while an attempt is on it, that attempt's `Stream`."""

    __slots__ = (
        "_attempt",
        "_had_bytes",
        "_is_chunked",
        "_is_closed",
        "_is_eof",
        "_is_half_closed",
        "_is_paused",
        "_is_raw",
        "_is_retired",
        "_is_sent",
        "_out",
        "_pool",
        "_proxy",
        "_reader",
        "_transport",
        "idle_since_s",
        "is_dirty",
    )

    def __init__(self, proxy: Proxy, pool: Pool) -> None:
        self._proxy = proxy
        self._pool = pool
        self._transport: Any = None
        limits = proxy.policy.limits
        self._reader = ReplyReader(header_count_max=limits.header_count_max, header_bytes_max=limits.header_bytes_max)
        self._attempt: Attempt | None = None
        self._is_chunked = False
        self._is_raw = False
        self._is_sent = True
        self._is_closed = False
        self._is_eof = False
        self._is_half_closed = False
        self._is_retired = False
        self._had_bytes = False
        self.idle_since_s = 0.0
        self._out = b""
        self._is_paused = False
        self.is_dirty = False

    # ------------------------------------------------------------------ from the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        proxy = self._proxy
        proxy.enter()
        try:
            self._had_bytes = True
            if self._is_raw:
                if self._attempt is not None:
                    self._attempt.reply_data(data)
                return
            try:
                self._reader.feed(data)
            except WireError as error:
                self._fail(Fault.GARBAGE, error.message)
                return
            if self._reader.upgraded is not None:
                self._is_raw = True
                if self._reader.upgraded and self._attempt is not None:
                    self._attempt.reply_data(self._reader.upgraded)
            elif not self._reader.is_expecting and self._attempt is not None:
                # Only now, when nothing stands behind the reply, may another request use the connection.
                # It lets go of the attempt too: an idle connection must not keep the last call's body.
                self._attempt = None
                self._reader.sink = NOBODY
                self._release()
        except Exception:  # noqa: BLE001 - whatever it is, the call must end
            attempt, self._attempt = self._attempt, None
            self._reader.sink = NOBODY
            self._transport.abort()
            crash(attempt.exchange if attempt is not None else None)
        finally:
            proxy.leave()

    def eof_received(self) -> bool:
        self._is_eof = True
        if not self._is_raw or self._attempt is None or self._is_half_closed:
            return False
        # The upstream of a tunnel will send no more; the other half may go on.
        self._proxy.enter()
        try:
            self._attempt.half_closed()
        finally:
            self._proxy.leave()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._is_closed = True
        proxy = self._proxy
        proxy.enter()
        try:
            self._pool.lost(self)
            attempt = self._attempt
            if attempt is None:
                return
            name = self._pool.upstream.name
            if self._is_raw or (self._reader.is_until_close and error is None):
                self._attempt = None
                attempt.reply_end([])
            elif self._had_bytes:
                self._fail(Fault.TRUNCATED, f"{name} closed the connection in the middle of its reply")
            else:
                self._fail(Fault.RESET, f"{name} closed the connection without a reply")
        except Exception:  # noqa: BLE001 - as above
            crash(attempt.exchange if attempt is not None else None)
        finally:
            proxy.leave()

    def pause_writing(self) -> None:
        if self._attempt is not None:
            self._attempt.pause_request()

    def resume_writing(self) -> None:
        if self._attempt is not None:
            self._attempt.resume_request()

    def flush(self) -> None:
        """Write the request that `open` has left."""
        if self._out and not self._is_closed:
            self._transport.write(self._out)
        self._out = b""

    # ------------------------------------------------------------------ from the pool

    @property
    def is_usable(self) -> bool:
        """Nothing has closed it."""
        return not self._is_closed and not self._transport.is_closing()

    def close(self) -> None:
        """Close at once."""
        self._transport.abort()

    def retire(self) -> None:
        """Close when the attempt that is on it has ended."""
        self._is_retired = True
        if self._attempt is None:
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
        self._attempt = attempt
        attempt.stream = self
        self._had_bytes = False
        if method == "CONNECT":
            self._proxy.commit()
            self._is_raw = self._is_sent = True
            attempt.reply_head(200, [], None)
            return
        self._is_chunked = has_body and content_length is None
        self._is_sent = body is not None or not has_body
        self._reader.expect(attempt, method == "HEAD", bool(upgrade))
        if upgrade:
            added = [*added, (b"connection", b"upgrade"), (b"upgrade", upgrade)]
        elif self._is_chunked:
            added = [*added, (b"transfer-encoding", b"chunked")]
        elif has_body or method in ("POST", "PUT", "PATCH"):
            added = [*added, (b"content-length", b"%d" % (content_length or 0))]
        fields = attempt.request.fields.encoded(with_credentials=self._pool.key is None)
        head = encode_request_head(method, path, self._pool.upstream.authority, fields, added)
        if body is not None and len(body) <= 16_384:
            self._out = head + body
            self._proxy.touch(self)
            return
        self._proxy.commit()
        if body is None:
            self._transport.write(head)
        else:
            self._transport.writelines((head, body))

    # ------------------------------------------------------------------ Stream

    def send_data(self, data: bytes, is_last: bool = False) -> None:
        if self._is_closed:
            return
        self._transport.write(encode_chunk(data) if self._is_chunked and not self._is_raw else data)
        if is_last:
            self.send_end([])

    def send_end(self, trailers: Headers) -> None:
        self._is_sent = True
        if self._is_raw:
            self._is_half_closed = True
            if self._is_eof:
                self._transport.close()
            elif self._transport.can_write_eof() and not self._is_closed:
                self._transport.write_eof()
        elif self._is_chunked and not self._is_closed:
            self._transport.write(encode_last_chunk(trailers))

    def cancel(self) -> None:
        self._attempt = None
        self._reader.sink = NOBODY
        self._transport.abort()

    def pause_reply(self) -> None:
        if self.is_usable and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def resume_reply(self) -> None:
        if self._is_paused and self.is_usable:
            self._is_paused = False
            self._transport.resume_reading()

    def _release(self) -> None:
        if not self._reader.is_keep_alive or not self._is_sent or self._is_retired:
            # A reply that came before the request was whole leaves the connection at an unknown place.
            self._transport.abort()
        elif self.is_usable:
            self.resume_reply()
            self._pool.release(self)

    def _fail(self, fault: Fault, message: str) -> None:
        attempt, self._attempt = self._attempt, None
        self._reader.sink = NOBODY
        self._transport.abort()
        if attempt is not None:
            attempt.reply_failed(fault, message)
