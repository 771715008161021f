"""HTTP/2 without I/O: libnghttp2 by way of ngh2, kept behind this one file since ngh2 is young.

nghttp2 itself refuses invalid pseudo-headers, upper-case names, connection-specific fields, bodies that disagree with
Content-Length, CONTINUATION floods, floods of SETTINGS and PING, and resets beyond a rate. It opens windows again by
itself as bytes come, which costs us nothing; whoever cannot pass bytes on closes the window of their stream with
`set_local_window_size`, and that is the back-pressure: see `meshd.proxy.http2_link`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import ngh2
from ngh2 import Connection, ErrorCode, Role, Setting

from meshd.wire.fields import Place
from meshd.wire.http1_request import METHODS
from meshd.wire.message import Fields, Request, WireError, read_host

if TYPE_CHECKING:
    from meshd.call import Headers


__all__ = [
    "CONNECTION_WINDOW",
    "HELD_MAX",
    "QUEUE_HIGH",
    "QUEUE_LOW",
    "STREAM_WINDOW",
    "Connection",
    "ErrorCode",
    "ReplyReader",
    "RequestHeads",
    "RequestReader",
    "client_connection",
    "read_request",
    "server_connection",
]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STREAM_WINDOW: Final = 262_144
"""Bytes of one stream that a peer may have in flight; also the most that one stalled stream keeps in memory."""
CONNECTION_WINDOW: Final = 4 * 1024 * 1024
HELD_MAX: Final = 1024 * 1024
"""Bytes that stalled streams of one connection keep in memory before all of it is stalled: a window more may follow."""
QUEUE_HIGH: Final = 262_144
QUEUE_LOW: Final = 65_536
"""Body bytes of one stream that wait for the peer's window before the other side is paused, and resumed again."""
PATHS_MAX: Final = 64
PATH_CHARACTERS_MAX: Final = 256
_HOST: Final = Place.HOST
_CONTENT_LENGTH: Final = Place.CONTENT_LENGTH
_EXPECT: Final = Place.EXPECT


def server_connection(
    *, streams_max: int, header_count_max: int, header_bytes_max: int, reset_burst: int, reset_rate_s: int
) -> Connection:
    """Return the server's side of a connection, its SETTINGS queued.

    `reset_burst` and `reset_rate_s` bound RST_STREAM frames from the peer (CVE-2023-44487), a bucket and its refill.
    """
    connection = Connection(
        Role.SERVER,
        ngh2.Configuration(
            stream_reset_rate_limit=(reset_burst, reset_rate_s),
            max_inbound_header_list_size=header_bytes_max,
            max_inbound_header_count=header_count_max,
        ),
    )
    connection.initiate_connection(
        {
            Setting.MAX_CONCURRENT_STREAMS: streams_max,
            Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            Setting.MAX_HEADER_LIST_SIZE: header_bytes_max,
            Setting.NO_RFC7540_PRIORITIES: 1,
        }
    )
    connection.set_local_window_size(CONNECTION_WINDOW)
    return connection


def client_connection(*, header_count_max: int, header_bytes_max: int) -> Connection:
    """Return the client's side of a connection, its preface and SETTINGS queued."""
    connection = Connection(
        Role.CLIENT,
        ngh2.Configuration(
            max_inbound_header_list_size=header_bytes_max,
            max_inbound_header_count=header_count_max,
        ),
    )
    connection.initiate_connection(
        {
            Setting.ENABLE_PUSH: 0,
            Setting.MAX_CONCURRENT_STREAMS: 0,
            Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            Setting.MAX_HEADER_LIST_SIZE: header_bytes_max,
        }
    )
    connection.set_local_window_size(CONNECTION_WINDOW)
    return connection


Block = tuple[tuple[bytes, bytes], ...]
"""The header fields of one message, pseudo-header fields first, as ngh2 hands them over."""

_Known = tuple[str, str, Fields, int | None]

_known: Final[dict[Block, _Known]] = {}
"""Header blocks that were read and judged: a client sends the same one for every call of a method."""
KNOWN_MAX: Final = 256
KNOWN_BYTES_MAX: Final = 4_096


class RequestReader:
    """Reads the requests of one connection, which are often the same as the one before but for their body."""

    __slots__ = ("_block", "_known")

    def __init__(self) -> None:
        self._block: Block = ()
        self._known: _Known | None = None

    def read(self, block: Block, end_stream: bool) -> Request:
        """Make a request of a received header block. Raises WireError for what nghttp2 lets pass and we do not."""
        known = self._known
        # To compare costs less than half of what it costs to hash every field, to find it among all.
        if known is None or block != self._block:
            known = _known.get(block)
            if known is None:
                return _read_block(block, end_stream)
            self._block, self._known = block, known
        method, target, fields, length = known
        request = Request(method, target, fields)
        if not end_stream:
            request.has_body = True
            request.content_length = length
        return request


def read_request(block: Block, end_stream: bool) -> Request:
    """Make a request of one block alone. Raises WireError."""
    return RequestReader().read(block, end_stream)


class ReplyReader:
    """Reads the heads of replies on one connection, which are often the same as the one before."""

    __slots__ = ("_block", "_known")

    def __init__(self) -> None:
        self._block: Block = ()
        self._known: tuple[int, Headers, int | None] = (0, [], None)

    def read(self, block: Block) -> tuple[int, Headers, int | None]:
        """Return the status, the other fields, which nobody may change, and the Content-Length where there is one."""
        if block != self._block:
            status, length = 0, None
            headers: Headers = []
            for field in block:
                name = field[0]
                if name == b":status":
                    status = int(field[1])
                else:
                    if name == b"content-length":
                        length = int(field[1])
                    headers.append(field)
            self._block, self._known = block, (status, headers, length)
        return self._known


def _read_block(block: Block, end_stream: bool) -> Request:
    headers: Headers = []
    method = path = authority = b""
    cookies: list[bytes] = []
    for field in block:
        name, value = field
        if name[0] != 58:  # not a pseudo-header, by its colon
            if name == b"cookie":
                cookies.append(value)
            else:
                headers.append(field)
        elif name == b":method":
            method = value
        elif name == b":path":
            path = value
        elif name == b":authority":
            authority = value
        elif name == b":protocol":
            raise WireError(501, "Extended CONNECT is not implemented")
    if cookies:
        # RFC 9113 section 8.2.3: crumbs are joined before they leave HTTP/2.
        headers.append((b"cookie", b"; ".join(cookies)))
    name_known = METHODS.get(method)
    if name_known is None:
        raise WireError(501, "This method is not implemented")
    if not path.isascii() or not (target := path.decode("ascii")).isprintable() or " " in target:
        raise WireError(400, "The :path holds characters that a path may not")
    request = Request(name_known, target or authority.decode("latin-1"), Fields(headers))
    request.has_body = not end_stream
    _read_unread(request, authority)
    _remember(block, request)
    return request


def _remember(block: Block, request: Request) -> None:
    length: int | None = None
    for place, value in request.fields.unread:
        if place is _EXPECT:
            return
        if place is _CONTENT_LENGTH:
            length = int(value)
    if sum([len(name) + len(value) for name, value in block]) <= KNOWN_BYTES_MAX:
        if len(_known) >= KNOWN_MAX:
            del _known[next(iter(_known))]
        _known[block] = (request.method, request.target, request.fields, length)


def _read_unread(request: Request, authority: bytes) -> None:
    fields = request.fields
    hosts: list[bytes] = []
    for place, value in fields.unread:
        if place is _HOST:
            hosts.append(value)
        elif place is _CONTENT_LENGTH:
            request.content_length = int(value) if request.has_body else None
        elif place is _EXPECT:
            if value.lower() != b"100-continue":
                raise WireError(417, "Only Expect: 100-continue can be met")
            request.expects_continue = request.has_body
    if hosts and (len(hosts) > 1 or (authority and hosts[0].lower() != authority.lower())):
        raise WireError(400, "The Host field and :authority disagree")
    fields.authority = read_host(authority or (hosts[0] if hosts else b""))


class RequestHeads:
    """Makes the pseudo-header fields of requests to one upstream, and keeps those of the paths that it met lately."""

    __slots__ = ("_authority", "_made", "_scheme")

    def __init__(self, scheme: str, authority: bytes) -> None:
        self._scheme = scheme.encode("ascii")
        self._authority = authority
        self._made: dict[str, tuple[str, Headers]] = {}

    def of(self, method: str, path: str) -> Headers:
        """Return them, in a list that nobody may change."""
        made = self._made.get(path)
        if made is not None and made[0] == method:
            return made[1]
        head = [
            (b":method", method.encode("ascii")),
            (b":scheme", self._scheme),
            (b":authority", self._authority),
            (b":path", path.encode("latin-1")),
        ]
        if len(path) <= PATH_CHARACTERS_MAX:
            if len(self._made) >= PATHS_MAX:
                del self._made[next(iter(self._made))]
            self._made[path] = (method, head)
        return head
