"""What every wire makes of bytes: a request, its fields sorted once, or an error that names its status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.refusal import Reason, Refused
from meshd.wire.fields import Place, connection_names, is_grpc, place_of

if TYPE_CHECKING:
    from meshd.call import Headers

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_FORWARDED: Final = Place.FORWARDED
_GOVERNED: Final = Place.GOVERNED
_CREDENTIAL: Final = Place.CREDENTIAL
_ACCEPT_ENCODING: Final = Place.ACCEPT_ENCODING
_CONTENT_TYPE: Final = Place.CONTENT_TYPE
_ORIGIN: Final = Place.ORIGIN
_CONNECTION: Final = Place.CONNECTION
_GRPC_TIMEOUT: Final = Place.GRPC_TIMEOUT
_KEY: Final = Place.KEY


class Fields:
    """The header fields of a request, sorted by what becomes of them.

    Never changed once they are sorted: requests whose fields are the same bytes share one.
    """

    __slots__ = (
        "_encoded",
        "_encoded_bare",
        "accept_encoding",
        "authority",
        "connection",
        "content_type",
        "credentials",
        "forward",
        "governed",
        "grpc_timeouts",
        "headers",
        "is_grpc",
        "keyed",
        "origin",
        "spoken",
        "unread",
    )

    def __init__(self, headers: Headers) -> None:
        self.headers = headers
        """All of them in wire order, names in lower case."""
        self.forward: Headers = []
        """Those that go on to the upstream as they are."""
        self.governed: Headers = []
        """Those under our prefix and the trace's: Context reads them, and writes what leaves in their place."""
        self.credentials: Headers = []
        """Those that carry the caller's key; they go on unless meshd attaches the upstream's own."""
        self.accept_encoding: Headers = []
        self.connection: frozenset[bytes] = frozenset()
        """The names that `Connection` lists, where it lists more than keep-alive or close."""
        self.authority = ""
        """The Host field or :authority; empty where an HTTP/1.0 request named none."""
        self.content_type = b""
        self.is_grpc = False
        """The body is framed as gRPC, which needs HTTP/2 to its end."""
        self.grpc_timeouts: Headers = []
        """Of a gRPC call, which is forwarded with what is left of it."""
        self.keyed: Headers = []
        """Those by which a call is known that is made again; they go on as they are."""
        self.origin = b""
        """The page that a browser says the request came from; empty for everything that is no browser."""
        self.unread: list[tuple[Place, bytes]] = []
        """Those that the wire itself must read: what frames, upgrades or addresses the message."""
        self.spoken = ""
        """The dialect that they say the body is written in, once somebody has looked for it."""
        self._encoded = b""
        self._encoded_bare = b""
        self._sort()

    def _sort(self) -> None:
        forward = self.forward
        for field in self.headers:
            place = place_of(field[0])
            if place is _FORWARDED:
                forward.append(field)
            elif place is _GOVERNED:
                self.governed.append(field)
            elif place is _CREDENTIAL:
                self.credentials.append(field)
            elif place is _ACCEPT_ENCODING:
                self.accept_encoding.append(field)
            elif place is _CONTENT_TYPE:
                self.content_type = field[1]
                self.is_grpc = is_grpc(field[1])
                forward.append(field)
            elif place is _ORIGIN:
                self.origin = field[1]
                forward.append(field)
            elif place is _GRPC_TIMEOUT:
                self.grpc_timeouts.append(field)
            elif place is _KEY:
                self.keyed.append(field)
                forward.append(field)
            else:
                self.unread.append((place, field[1]))
                if place is _CONNECTION and field[1].lower() not in _USUAL_CONNECTION:
                    self.connection = connection_names(self.headers)
        if self.grpc_timeouts and not self.is_grpc:
            forward += self.grpc_timeouts
            self.grpc_timeouts = []
        if self.connection:
            # RFC 9110 section 7.6.1: what the Connection field names goes no further than it does.
            self.forward = [field for field in forward if field[0] not in self.connection]
            self.credentials = [field for field in self.credentials if field[0] not in self.connection]

    def encoded(self, *, with_credentials: bool) -> bytes:
        """Return the forwarded fields as HTTP/1.1 lines."""
        if not with_credentials:
            self._encoded_bare = self._encoded_bare or encode_fields(self.forward)
            return self._encoded_bare
        self._encoded = self._encoded or encode_fields([*self.forward, *self.credentials])
        return self._encoded


_USUAL_CONNECTION: Final = (b"keep-alive", b"close")


def encode_fields(headers: Headers) -> bytes:
    """Return fields as HTTP/1.1 lines."""
    return b"".join([b"%b: %b\r\n" % field for field in headers])


class Request:
    """The head of one request, whichever wire it came from."""

    __slots__ = (
        "content_length",
        "expects_continue",
        "fields",
        "has_body",
        "has_chunks",
        "is_keep_alive",
        "method",
        "target",
        "upgrade",
    )

    def __init__(self, method: str, target: str, fields: Fields) -> None:
        self.method = method
        self.target = target
        """As sent: origin, absolute, authority or asterisk form (RFC 9112 section 3.2)."""
        self.fields = fields
        self.content_length: int | None = None
        """None where the body is chunked, framed by the wire, or absent: see `has_body`."""
        self.has_body = False
        self.has_chunks = True
        """The caller can take a reply whose length is not known: not so in HTTP/1.0."""
        self.expects_continue = False
        self.is_keep_alive = True
        self.upgrade = b""
        """The protocol asked for by `Upgrade`, in lower case, where `Connection` names it too."""


class WireError(Refused):
    """Bytes that are no message we would forward: refused with `status`, and the connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        reason = Reason.TOO_LARGE if status in (413, 414, 431) else Reason.MALFORMED
        super().__init__(reason, message, status=status)


_BAD_AUTHORITY: Final = frozenset(b" \t\"#/<>?@\\^`{|},;'()")
_HOSTS: Final[dict[bytes, str]] = {}
_HOSTS_MAX: Final = 256


def read_host(value: bytes) -> str:
    """Return a Host value or :authority that no two parsers could read in two ways. Raises WireError.

    User information, paths, lists, spaces and bytes beyond printable ASCII are out; an empty value is fine. A caller
    sends the same one all the time, so those seen before are remembered.
    """
    host = _HOSTS.get(value)
    if host is None:
        if not all(33 <= byte <= 126 for byte in value) or not _BAD_AUTHORITY.isdisjoint(value):
            raise WireError(400, "The Host field is malformed")
        host = value.decode("ascii")
        if len(_HOSTS) < _HOSTS_MAX:
            _HOSTS[value] = host
    return host
