"""Requests of HTTP/1.1, read without I/O: llhttp reads, this file judges what is ambiguous.

llhttp in its strict mode refuses duplicate or odd Content-Length, Content-Length beside Transfer-Encoding, bare LF,
obs-fold, control bytes and bad chunk sizes. What it lets pass and a proxy must not, is refused here: other versions
than 1.0 and 1.1, any Transfer-Encoding but exactly `chunked`, chunked in HTTP/1.0, RTSP methods, several or odd Host
fields, and heads, trailers or chunk extensions without end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import httptools

from meshd.call import NO_FIELDS
from meshd.wire.fields import Place
from meshd.wire.message import Fields, Request, WireError, read_host

if TYPE_CHECKING:
    from meshd.call import Headers

METHODS: Final[dict[bytes, str]] = {
    method.encode(): method
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE")
}
FRAMING_BYTES_MAX: Final = 16_384
"""Chunk framing, extensions included, that may pass without one byte of body."""
KNOWN_MAX: Final = 256
KNOWN_BYTES_MAX: Final = 4_096
"""Blocks of fields that are remembered, and how long one may be."""

_HOST: Final = Place.HOST
_CONTENT_LENGTH: Final = Place.CONTENT_LENGTH
_TRANSFER_ENCODING: Final = Place.TRANSFER_ENCODING
_EXPECT: Final = Place.EXPECT
_UPGRADE: Final = Place.UPGRADE

_known: Final[dict[bytes, Fields]] = {}
"""Blocks of fields, without Content-Length, that llhttp has read and `read_framing` has judged. An SDK sends the same
one with every request, so a whole request in one piece need not be read again, field by field: 2 us in place of 9."""


_NO_HEAD: Final = (b"", b"", "", "", Fields([]))


class RequestSink(Protocol):
    """Where a `RequestReader` puts what it read."""

    def request_head(self, request: Request) -> None: ...

    def request_data(self, data: bytes) -> None: ...

    def request_end(self, trailers: Headers) -> None: ...


class RequestReader:
    """Reads the requests of one connection. `feed` raises WireError; after that the connection cannot go on."""

    __slots__ = (
        "_block",
        "_framing_bytes",
        "_had_body",
        "_head_bytes",
        "_headers",
        "_in_body",
        "_is_last",
        "_is_resuming",
        "_latest",
        "_limits",
        "_parser",
        "_remaining",
        "_sink",
        "_url",
        "is_between",
        "takes_grpc",
        "upgraded",
    )

    def __init__(self, sink: RequestSink, *, header_count_max: int, header_bytes_max: int, url_bytes_max: int) -> None:
        self._sink = sink
        self.takes_grpc = False
        """Set where the text only describes a call, as for `meshd explain`: it says nothing of the wire."""
        self._limits = (header_count_max, header_bytes_max, url_bytes_max)
        self._parser = httptools.HttpRequestParser(self)
        self._headers: Headers = []
        self._url = b""
        self._block = b""
        self._latest = _NO_HEAD
        """The head that was read last: its bytes before and behind the digits of its length, and what they say."""
        self._remaining = 0
        self._head_bytes = 0
        self._framing_bytes = 0
        self._in_body = False
        self._had_body = False
        self._is_last = False
        """The caller has said that no request follows this one."""
        self._is_resuming = False
        self.is_between = True
        """No request is being read: the connection is idle as far as this side knows."""
        self.upgraded: bytes | None = None
        """After an upgrade or CONNECT: the bytes that follow the head and are not HTTP."""

    def feed(self, data: bytes) -> None:
        """Read `data`, calling the sink for whatever became whole."""
        while data and ((self.is_between and not self._is_last) or self._remaining):
            rest = self._feed_known(data)
            if rest is None:
                break
            data = rest
        if data:
            self._feed_parser(data)

    def _feed_known(self, data: bytes) -> bytes | None:
        """Read a request whose fields are known; return what stands behind it, None where it is for llhttp."""
        if not self._remaining:
            end = self._read_again(data) or self._read_known(data)
            if not end:
                return None
            data = data[end:]
        remaining = self._remaining
        if remaining:
            if len(data) < remaining:
                self._remaining = remaining - len(data)
                if data:
                    self._sink.request_data(data)
                return b""
            self._remaining = 0
            if len(data) == remaining:
                self._sink.request_data(data)
                data = b""
            else:
                self._sink.request_data(data[:remaining])
                data = data[remaining:]
        self.is_between = True
        self._sink.request_end(NO_FIELDS)
        return data

    def _read_again(self, data: bytes) -> int:
        """Read a head that is the connection's last one but for its length; return where it ends, 0 where it is not."""
        before, behind, method, target, fields = self._latest
        if not before or not data.startswith(before):
            return 0
        at = len(before)
        stop = data.find(b"\r", at, at + _LENGTH_DIGITS_MAX + 1)
        if stop == -1:
            return 0
        digits = data[at:stop]
        if not digits.isdigit() or not data.startswith(behind, stop):
            return 0
        self._begin(Request(method, target, fields), int(digits))
        return stop + len(behind)

    def _read_known(self, data: bytes) -> int:
        """Read a head whose block of fields is known; return where it ends, 0 where it is for llhttp."""
        self._block = b""
        end = data.find(b"\r\n\r\n")
        line_end = data.find(b"\r\n")
        if end <= line_end or not line_end:
            return 0
        block, length = _split_length(data[line_end + 2 : end + 2])
        fields = _known.get(block)
        if fields is None:
            self._block = block
            return 0
        line = data[:line_end].split(b" ")
        if len(line) != 3 or line[2] != b"HTTP/1.1" or len(line[1]) > self._limits[2]:
            return 0
        method = METHODS.get(line[0])
        if method is None or method == "CONNECT" or line[1][:1] != b"/" or not line[1].isascii():
            return 0
        target = line[1].decode("ascii")
        if not target.isprintable():
            return 0
        if length > 0:
            before, behind = _around_length(data[: end + 4], line_end)
            self._latest = (before, behind, method, target, fields)
        self._begin(Request(method, target, fields), length)
        return end + 4

    def _begin(self, request: Request, length: int) -> None:
        if length > 0:
            request.has_body = True
            request.content_length = self._remaining = length
        elif length == 0:
            request.content_length = 0
        self.is_between = False
        self._sink.request_head(request)

    def _feed_parser(self, data: bytes) -> None:
        self._had_body = False
        behind: bytes | None = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            behind = data[upgrade.args[0] :]
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ or error from None
        except httptools.HttpParserInvalidMethodError:
            raise WireError(501, "This method is not implemented: meshd forwards " + _methods()) from None
        except httptools.HttpParserError as error:
            status = 505 if str(error) == "Invalid HTTP version" else 400
            raise WireError(status, f"Malformed HTTP/1.1: {error}") from None
        if behind is not None:
            # Not from within the handler, whose exception would stand as the context of what is raised there.
            self._upgrade(behind)
        if self._in_body:
            self._framing_bytes = 0 if self._had_body else self._framing_bytes + len(data)
            if self._framing_bytes > FRAMING_BYTES_MAX:
                raise WireError(400, "Malformed HTTP/1.1: chunk extensions or trailers without end")
        elif self.is_between:
            self._head_bytes = 0
        else:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits[1]:
                raise WireError(431, f"The request's head is over {self._limits[1]} bytes")

    def _upgrade(self, rest: bytes) -> None:
        """After an Upgrade or CONNECT llhttp stops; only a tunnel may take the rest of the bytes.

        Some clients offer h2c on every request, with a body behind it. That offer is declined by going on in
        HTTP/1.1 (RFC 9110 section 7.8): a fresh parser is put where the old one stopped, at the body.
        """
        if self.upgraded is not None:
            self.upgraded = rest
            return
        framing = [b"%s: %s\r\n" % field for field in self._headers if field[0].lower() in _FRAMING]
        self._parser = httptools.HttpRequestParser(self)
        self._is_resuming = True
        self._parser.feed_data(b"POST / HTTP/1.1\r\n" + b"".join(framing) + b"\r\n")
        if rest:
            self._feed_parser(rest)

    # The callbacks of llhttp follow.

    def on_message_begin(self) -> None:
        if self._is_resuming:
            return
        self._headers = []
        self._url = b""
        self._in_body = False
        self.is_between = False

    def on_url(self, url: bytes) -> None:
        self._url = self._url + url if self._url else url
        if len(self._url) > self._limits[2]:
            raise WireError(414, f"The request's address is over {self._limits[2]} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        # Bounded by the bytes of the head, and of the trailers; counted when they are whole.
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._is_resuming:
            self._is_resuming = False
            self._headers = []
            return
        parser = self._parser
        method = METHODS.get(parser.get_method())
        if method is None:
            raise WireError(501, "This method is not implemented: meshd forwards " + _methods())
        raw = self._headers
        # Of this head alone: were it kept, the next head would be remembered under the bytes of this one.
        block, self._block = self._block, b""
        if len(raw) > self._limits[0]:
            raise WireError(431, f"The request has more than {self._limits[0]} header fields")
        fields = Fields([(name.lower(), value) for name, value in raw])
        request = Request(method, self._url.decode("latin-1"), fields)
        if fields.is_grpc and not self.takes_grpc:
            raise WireError(400, "gRPC needs HTTP/2, and this request came over HTTP/1.1")
        is_usual = read_framing(request, parser.get_http_version(), self._limits[1])
        request.is_keep_alive = parser.should_keep_alive()
        self._is_last = not request.is_keep_alive
        is_upgrade = parser.should_upgrade()
        if is_upgrade:
            self._judge_upgrade(request)
        if is_usual and request.is_keep_alive and not (is_upgrade or fields.is_grpc):
            _remember(block, fields)
        self._in_body = True
        self._framing_bytes = self._head_bytes = 0
        self._headers = raw if is_upgrade and self.upgraded is None else []
        self._sink.request_head(request)

    def _judge_upgrade(self, request: Request) -> None:
        if request.method == "CONNECT":
            if request.has_body:
                raise WireError(400, "A CONNECT request has no body")
            self.upgraded = b""
        elif request.upgrade == b"websocket" and request.method == "GET" and not request.has_body:
            self.upgraded = b""
        else:
            request.upgrade = b""

    def on_body(self, data: bytes) -> None:
        self._had_body = True
        self._sink.request_data(data)

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade() and self._in_body and self.upgraded is None:
            # An offer that is declined: the body, if any, still comes; see `_upgrade`.
            return
        self._in_body = False
        self.is_between = True
        trailers, self._headers = self._headers, []
        if len(trailers) > self._limits[0]:
            raise WireError(431, f"The request has more than {self._limits[0]} trailer fields")
        self._sink.request_end([(name.lower(), value) for name, value in trailers])


def _remember(block: bytes, fields: Fields) -> None:
    if block and len(block) <= KNOWN_BYTES_MAX:
        if len(_known) >= KNOWN_MAX:
            del _known[next(iter(_known))]
        # The next request with these bytes has a length of its own.
        fields.headers = [field for field in fields.headers if field[0] != b"content-length"]
        _known[block] = fields


_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
_LENGTH_DIGITS_MAX: Final = 15


def _methods() -> str:
    return ", ".join(sorted(METHODS.values()))


def _split_length(block: bytes) -> tuple[bytes, int]:
    """Return a block of fields without its Content-Length line, and the length; -1 where there is none.

    A block in which that line is not alone, at the beginning of a line and plain digits comes back empty.
    """
    lower = block.lower()
    at = lower.find(b"content-length")
    if at == -1:
        return block, -1
    stop = block.find(b"\r\n", at)
    name, colon, value = block[at:stop].partition(b":")
    value = value.strip(b" \t")
    is_plain = len(name) == 14 and bool(colon) and value.isdigit() and len(value) <= _LENGTH_DIGITS_MAX
    if not is_plain or (at and not block.endswith(b"\r\n", 0, at)) or lower.find(b"content-length", stop) != -1:
        return b"", -1
    return block[:at] + block[stop + 2 :], int(value)


def _around_length(head: bytes, line_end: int) -> tuple[bytes, bytes]:
    """Return the bytes of a head before and behind the digits of the one Content-Length that `_split_length` found."""
    at = head.lower().find(b"\r\ncontent-length", line_end) + 16
    at = head.find(b":", at) + 1
    while head[at] in b" \t":
        at += 1
    stop = head.find(b"\r", at)
    return (head[:at], head[stop:]) if head[at:stop].isdigit() else (b"", b"")


def read_framing(request: Request, version: str, header_bytes_max: int) -> bool:
    """Judge the fields that frame or address a request, and set what they say. Raises WireError.

    Returns whether there was nothing but a Host and a Content-Length to read.
    """
    if version not in ("1.1", "1.0"):
        raise WireError(505, "Only HTTP/1.0, HTTP/1.1 and HTTP/2 are spoken here")
    request.has_chunks = version == "1.1"
    fields = request.fields
    if sum([len(name) + len(value) for name, value in fields.headers]) > header_bytes_max:
        raise WireError(431, f"The request's head is over {header_bytes_max} bytes")
    hosts = 0
    is_usual = request.has_chunks and not fields.connection
    for place, value in fields.unread:
        if place is _HOST:
            hosts += 1
            fields.authority = read_host(value.rstrip(b" \t"))
        elif place is _CONTENT_LENGTH:
            request.content_length = int(value)
            request.has_body = request.content_length > 0
        elif place is _TRANSFER_ENCODING:
            is_usual = False
            if value.lower() != b"chunked":
                raise WireError(501, "Only Transfer-Encoding: chunked is implemented")
            if not request.has_chunks:
                raise WireError(400, "HTTP/1.0 has no Transfer-Encoding")
            request.has_body = True
        elif place is _EXPECT:
            is_usual = False
            if value.lower() != b"100-continue":
                raise WireError(417, "Only Expect: 100-continue can be met")
            request.expects_continue = request.has_chunks
        elif place is _UPGRADE:
            is_usual = False
            request.upgrade = value.strip().lower() if b"upgrade" in fields.connection else b""
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise WireError(400, "Exactly one Host field is needed")
    return is_usual
