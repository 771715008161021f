"""HTTP/2 without I/O: libnghttp2 by way of ngh2, kept behind this one file since ngh2 is young.

nghttp2 itself refuses invalid pseudo-headers, upper-case names, connection-specific fields, bodies that disagree with
Content-Length, CONTINUATION floods, floods of SETTINGS and PING, and resets beyond a rate. Windows are opened by hand
(`auto_window_update=False`): what has not been passed on is not acknowledged, and that is the back-pressure.
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
    "QUEUE_HIGH",
    "QUEUE_LOW",
    "Connection",
    "ErrorCode",
    "client_connection",
    "encode_request",
    "read_request",
    "server_connection",
]

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
STREAM_WINDOW: Final = 262_144
"""Bytes of one stream that a peer may have in flight; also the most that one stalled stream keeps in memory."""
CONNECTION_WINDOW: Final = 4 * 1024 * 1024
QUEUE_HIGH: Final = 262_144
QUEUE_LOW: Final = 65_536
"""Body bytes of one stream that wait for the peer's window before the other side is paused, and resumed again."""
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
            auto_window_update=False,
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
            auto_window_update=False,
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


_known: dict[tuple[tuple[bytes, bytes], ...], tuple[str, str, Fields, int | None]] = {}
"""Header blocks that were read and judged: a client sends the same one for every call of a method."""
KNOWN_MAX: Final = 256
KNOWN_BYTES_MAX: Final = 4_096


def read_request(block: tuple[tuple[bytes, bytes], ...], end_stream: bool) -> Request:
    """Make a request of a received header block. Raises WireError for what nghttp2 lets pass and we do not."""
    known = _known.get(block)
    if known is None:
        return _read_block(block, end_stream)
    method, target, fields, length = known
    request = Request(method, target, fields)
    if not end_stream:
        request.has_body = True
        request.content_length = length
    return request


def _read_block(block: tuple[tuple[bytes, bytes], ...], end_stream: bool) -> Request:
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


def _remember(block: tuple[tuple[bytes, bytes], ...], request: Request) -> None:
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


def encode_request(method: str, scheme: str, authority: bytes, path: str, headers: Headers) -> Headers:
    """Return the header block of a request."""
    return [
        (b":method", method.encode("ascii")),
        (b":scheme", scheme.encode("ascii")),
        (b":authority", authority),
        (b":path", path.encode("latin-1")),
        *headers,
    ]
