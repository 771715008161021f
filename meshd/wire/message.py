"""What every wire makes of bytes: a request head, a reply head, or an error that names its status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.refusal import Reason, Refused
from meshd.wire.fields import Place

if TYPE_CHECKING:
    from meshd.call import Headers

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_ACCEPT_ENCODING = Place.ACCEPT_ENCODING
_CONTENT_TYPE = Place.CONTENT_TYPE
_CREDENTIAL = Place.CREDENTIAL
_FORWARDED = Place.FORWARDED
_GOVERNED = Place.GOVERNED
_ORIGIN = Place.ORIGIN


class Request:
    """The head of one request, whichever wire it came from."""

    __slots__ = (
        "accept_encoding",
        "authority",
        "connection",
        "content_length",
        "content_type",
        "credentials",
        "expects_continue",
        "forward",
        "governed",
        "has_body",
        "has_chunks",
        "headers",
        "is_keep_alive",
        "method",
        "origin",
        "target",
        "upgrade",
    )

    def __init__(self, method: str, target: str, headers: Headers) -> None:
        self.method = method
        self.target = target
        """As sent: origin, absolute, authority or asterisk form (RFC 9112 section 3.2)."""
        self.headers = headers
        """All fields in wire order, names in lower case. What follows is sorted from them, once."""
        self.forward: Headers = []
        """The fields that go on to the upstream as they are."""
        self.governed: Headers = []
        """The fields under our prefix and the trace's: Context reads them, and writes what leaves in their place."""
        self.credentials: Headers = []
        """The fields that carry the caller's key; they go on unless meshd attaches the upstream's own."""
        self.accept_encoding: Headers = []
        self.authority = ""
        """The Host field or :authority; empty where an HTTP/1.0 request named none."""
        self.connection: frozenset[bytes] = frozenset()
        """The names that `Connection` lists, where it lists more than keep-alive or close."""
        self.content_length: int | None = None
        """None where the body is chunked, framed by the wire, or absent: see `has_body`."""
        self.content_type = b""
        self.origin = b""
        """The page that a browser says the request came from; empty for everything that is no browser."""
        self.has_body = False
        self.has_chunks = True
        """The caller can take a reply whose length is not known: not so in HTTP/1.0."""
        self.expects_continue = False
        self.is_keep_alive = True
        self.upgrade = b""
        """The protocol asked for by `Upgrade`, in lower case, where `Connection` names it too."""

    def sort(self, place: Place, field: tuple[bytes, bytes]) -> None:
        """Put away a field that needs no reading by the wire."""
        if place is _FORWARDED:
            self.forward.append(field)
        elif place is _GOVERNED:
            self.governed.append(field)
        elif place is _CREDENTIAL:
            self.credentials.append(field)
        elif place is _ACCEPT_ENCODING:
            self.accept_encoding.append(field)
        elif place is _CONTENT_TYPE:
            self.content_type = field[1]
            self.forward.append(field)
        elif place is _ORIGIN:
            self.origin = field[1]
            self.forward.append(field)

    def unname(self, names: frozenset[bytes]) -> None:
        """Take out of `forward` what the Connection field names (RFC 9110, 7.6.1)."""
        self.forward = [field for field in self.forward if field[0] not in names]
        self.credentials = [field for field in self.credentials if field[0] not in names]

    @property
    def is_grpc(self) -> bool:
        """The body is framed as gRPC, which needs HTTP/2 to its end."""
        return self.content_type.startswith(b"application/grpc")


class WireError(Refused):
    """Bytes that are no message we would forward: refused with `status`, and the connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        reason = Reason.TOO_LARGE if status in (413, 414, 431) else Reason.MALFORMED
        super().__init__(reason, message, status=status)


_TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_BAD_AUTHORITY = frozenset(b" \t\"#/<>?@\\^`{|},;'()")


def is_token(name: bytes) -> bool:
    """Say whether `name` is a token of RFC 9110 section 5.6.2."""
    return bool(name) and _TOKEN.issuperset(name)


_HOSTS: dict[bytes, str] = {}
_HOSTS_MAX = 256


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
