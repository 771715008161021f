"""What every wire makes of bytes: a request head, a reply head, or an error that names its status."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.call import Headers


class Request:
    """The head of one request, whichever wire it came from."""

    __slots__ = (
        "authority",
        "content_length",
        "content_type",
        "expects_continue",
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
        self.authority = ""
        """The Host field or :authority; empty where an HTTP/1.0 request named none."""
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


def is_authority(value: bytes) -> bool:
    """Say whether a Host value or :authority holds nothing that two parsers could read in two ways.

    User information, paths, lists, spaces and bytes beyond printable ASCII are out; an empty value is fine.
    """
    return all(33 <= byte <= 126 for byte in value) and _BAD_AUTHORITY.isdisjoint(value)
