"""Replies of HTTP/1.1, read without I/O: llhttp reads, this file judges what is ambiguous and where a body ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import httptools

from meshd.call import NO_FIELDS
from meshd.wire.message import WireError

if TYPE_CHECKING:
    from meshd.call import Headers


class ReplySink(Protocol):
    """Where a `ReplyReader` puts what it read."""

    def reply_informational(self, status: int, headers: Headers) -> None: ...

    def reply_head(self, status: int, headers: Headers, content_length: int | None) -> None: ...

    def reply_data(self, data: bytes) -> None: ...

    def reply_end(self, trailers: Headers) -> None: ...


class Nobody:
    """A sink for what nobody waits for any more."""

    def reply_informational(self, status: int, headers: Headers) -> None:
        return

    def reply_head(self, status: int, headers: Headers, content_length: int | None) -> None:
        return

    def reply_data(self, data: bytes) -> None:
        return

    def reply_end(self, trailers: Headers) -> None:
        return


NOBODY: Final = Nobody()


class ReplyReader:
    """Reads the replies of one upstream connection, one for each `expect`. `feed` raises WireError on garbage."""

    __slots__ = (
        "_count_max",
        "_head_bytes",
        "_head_bytes_max",
        "_headers",
        "_in_body",
        "_is_1_1",
        "_is_head_request",
        "_is_informational",
        "_is_upgrade_offered",
        "_parser",
        "is_expecting",
        "is_keep_alive",
        "is_until_close",
        "sink",
        "upgraded",
    )

    def __init__(self, *, header_count_max: int, header_bytes_max: int) -> None:
        self.sink: ReplySink = NOBODY
        """Who gets the reply that is being read; `NOBODY` where it has gone away."""
        self._count_max = header_count_max
        self._head_bytes_max = header_bytes_max
        self._parser = httptools.HttpResponseParser(self)
        self._headers: Headers = NO_FIELDS
        self._head_bytes = 0
        self._in_body = False
        self._is_1_1 = False
        self._is_head_request = False
        self._is_informational = False
        self._is_upgrade_offered = False
        self.is_expecting = False
        """A request has been sent and its reply is not whole yet."""
        self.is_keep_alive = True
        self.is_until_close = False
        """The reply's body ends where the connection does."""
        self.upgraded: bytes | None = None

    def expect(self, sink: ReplySink, is_head_request: bool = False, is_upgrade: bool = False) -> None:
        """Make ready for the reply to a request that is being sent."""
        self.sink = sink
        self._is_head_request = is_head_request
        self._is_upgrade_offered = is_upgrade
        self._in_body = False
        self._head_bytes = 0
        self.is_expecting = True
        self.is_until_close = False

    def feed(self, data: bytes) -> None:
        """Read `data`, calling the sink for whatever became whole."""
        if not self.is_expecting:
            raise WireError(502, "The upstream sent bytes that answer no request")
        if not self._head_bytes:
            # llhttp's binding spells the version anew for each reply, which costs more than to read it here.
            self._is_1_1 = not self._in_body and data.startswith(b"HTTP/1.1 ")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.upgraded = data[upgrade.args[0] :]
            return
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ or error from None
        except httptools.HttpParserError as error:
            raise WireError(502, f"The upstream's reply is malformed: {error}") from None
        if not self._in_body and self.is_expecting:
            self._head_bytes += len(data)
            if self._head_bytes > self._head_bytes_max:
                raise WireError(502, "The upstream's reply head is too large")
        if not self.is_expecting and self._is_head_request:
            # llhttp does not know that the reply to HEAD has no body, and would take the next reply for it.
            self._parser = httptools.HttpResponseParser(self)

    def on_message_begin(self) -> None:
        if not self.is_expecting:
            raise WireError(502, "The upstream sent bytes that answer no request")
        self._headers = NO_FIELDS

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self._headers
        if headers is NO_FIELDS:
            headers = self._headers = []
        headers.append((name.lower(), value))
        if len(headers) > self._count_max:
            raise WireError(502, f"The upstream's reply has more than {self._count_max} header fields")

    def on_headers_complete(self) -> None:
        parser = self._parser
        status = parser.get_status_code()
        version = "1.1" if self._is_1_1 else parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise WireError(502, "The upstream's reply is of an HTTP version that was not asked for")
        headers, self._headers = self._headers, NO_FIELDS
        if status < 200:
            self._is_informational = status != 101
            if status < 100:
                raise WireError(502, "The upstream's reply has no valid status")
            if status == 101 and not (self._is_upgrade_offered and parser.should_upgrade()):
                raise WireError(502, "The upstream switched protocols, which nobody had asked for")
            if status != 101:
                self._is_1_1 = False
                self.sink.reply_informational(status, headers)
                return
        length: int | None = None
        is_chunked = False
        for name, value in headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked" or version == "1.0":
                    raise WireError(502, "The upstream's Transfer-Encoding is not chunked, or stands in HTTP/1.0")
                is_chunked = True
        # What a wrong body in reply to HEAD is framed by could go unseen, so nothing may follow it.
        self.is_keep_alive = parser.should_keep_alive() and not (is_chunked and self._is_head_request)
        has_none = self._is_head_request or status in (204, 304) or status == 101
        self.is_until_close = length is None and not is_chunked and not has_none
        self._in_body = True
        self.sink.reply_head(status, headers, length)
        if self._is_head_request:
            self.is_expecting = False
            self.sink.reply_end([])

    def on_body(self, data: bytes) -> None:
        if self._is_head_request:
            raise WireError(502, "The upstream sent a body in reply to HEAD")
        self.sink.reply_data(data)

    def on_message_complete(self) -> None:
        if self._is_informational:
            self._is_informational = False
            return
        if not self.is_expecting or self._parser.should_upgrade():
            return
        self.is_expecting = False
        trailers, self._headers = self._headers, NO_FIELDS
        self.sink.reply_end(trailers)
