"""Header fields: which of them belong to one connection only, and which never leave.

RFC 9110 section 7.6.1 names the hop-by-hop fields; whatever `Connection` itself names goes with them. Fields under
our own prefix are the sidecar's alone: what a caller sends under it is read by the Context filter and never forwarded.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.call import Headers

OURS: Final = b"x-meshd-"
CALL_ID: Final = b"x-meshd-call"
"""Reply field: by this name the decisions about the call can be read back (`meshd budget call`)."""

RETRY_AFTER_S_MAX: Final = 86_400.0
_DIGITS_MAX: Final = 15
_DATE_LENGTH_MAX: Final = 64

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)

# Written afresh by the sender: framing from the body that really goes out, Host from the upstream's own address,
# Expect because meshd itself tells the caller to go on, the trace fields because Context decides whether they leave.
_REQUEST_REWRITTEN: Final = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"traceparent",
    b"tracestate",
    b"baggage",
}
_REPLY_REWRITTEN: Final = HOP_BY_HOP | {b"content-length"}

# RFC 9110 section 6.5.1: what frames, routes or authenticates a message cannot come after it.
_NO_TRAILER: Final = _REQUEST_REWRITTEN | {
    b"authorization",
    b"content-encoding",
    b"content-type",
    b"content-range",
    b"cookie",
}


def connection_names(headers: Headers) -> frozenset[bytes]:
    """Return the field names that the `Connection` fields list, in lower case."""
    names: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            names.update(part.strip().lower() for part in value.split(b","))
    return frozenset(names)


_USUAL_CONNECTION: Final = frozenset({b"keep-alive", b"close"})


class Place(IntEnum):
    """What becomes of a request field, by its name."""

    FORWARDED = 0
    DROPPED = 1
    GOVERNED = 2
    """Ours, or the trace's: read by Context, which writes what leaves in their place."""
    CREDENTIAL = 3
    """Forwarded, unless meshd attaches the upstream's own key."""
    ACCEPT_ENCODING = 4
    """Forwarded, unless the reply must be readable."""
    HOST = 5
    CONTENT_LENGTH = 6
    TRANSFER_ENCODING = 7
    EXPECT = 8
    UPGRADE = 9
    CONNECTION = 10
    CONTENT_TYPE = 11
    ORIGIN = 12
    GRPC_TIMEOUT = 13
    """Forwarded with what is left of it, where the call is gRPC."""
    KEY = 14
    """Forwarded; by it a call is known that is made again."""


# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_FORWARDED: Final = Place.FORWARDED
_GOVERNED: Final = Place.GOVERNED

_PLACES: Final[dict[bytes, Place]] = {
    **dict.fromkeys(HOP_BY_HOP, Place.DROPPED),
    **dict.fromkeys((b"traceparent", b"tracestate", b"baggage"), Place.GOVERNED),
    **dict.fromkeys((b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key"), Place.CREDENTIAL),
    b"accept-encoding": Place.ACCEPT_ENCODING,
    b"host": Place.HOST,
    b"content-length": Place.CONTENT_LENGTH,
    b"transfer-encoding": Place.TRANSFER_ENCODING,
    b"expect": Place.EXPECT,
    b"upgrade": Place.UPGRADE,
    b"connection": Place.CONNECTION,
    b"content-type": Place.CONTENT_TYPE,
    b"origin": Place.ORIGIN,
    b"grpc-timeout": Place.GRPC_TIMEOUT,
    **dict.fromkeys((b"idempotency-key", b"x-stainless-retry-count", b"x-tool-call-id"), Place.KEY),
}
_PLACES_MAX: Final = 2048


def place_of(name: bytes) -> Place:
    """Say what becomes of a request field. `name` is in lower case."""
    place = _PLACES.get(name)
    if place is None:
        place = _GOVERNED if name.startswith(OURS) else _FORWARDED
        if len(_PLACES) < _PLACES_MAX:
            _PLACES[name] = place
    return place


def is_grpc(content_type: bytes) -> bool:
    """Say whether a content-type says gRPC: `application/grpc`, or that with `+proto` or a parameter behind it.

    gRPC-Web is none: it has its trailers in its body, and needs no HTTP/2.
    """
    value = content_type.lower()
    return value.startswith(b"application/grpc") and (len(value) == 16 or value[16] in b"+; ")


_REPLY_KEPT: Final[dict[bytes, bool]] = dict.fromkeys(_REPLY_REWRITTEN, False)
"""Whether a reply field goes on to the caller, by its name; those met on the way are remembered."""


def forwardable_reply(headers: Headers, without: Iterable[bytes] = ()) -> Headers:
    """Return the fields of a reply that may go on to the caller, less those in `without`."""
    kept: Headers = []
    for field in headers:
        name = field[0]
        is_kept = _REPLY_KEPT.get(name)
        if is_kept is None:
            is_kept = not name.startswith(OURS)
            if len(_REPLY_KEPT) < _PLACES_MAX:
                _REPLY_KEPT[name] = is_kept
        if is_kept:
            kept.append(field)
        elif name == b"connection" and field[1].lower() not in _USUAL_CONNECTION:
            without = connection_names(headers).union(without)
    return [field for field in kept if field[0] not in without] if without else kept


def forwardable_trailers(headers: Headers) -> Headers:
    """Return the trailer fields that may be passed on."""
    return [field for field in headers if field[0] not in _NO_TRAILER and not field[0].startswith(OURS)]


def retry_after_s(headers: Headers, wall_s: float) -> float | None:
    """Return for how many seconds a reply asks to be left alone, None where it does not or says what is no time.

    `retry-after-ms` is what OpenAI sends beside it, and more exact; `retry-after` is a number or a date (RFC 9110,
    section 10.2.3), to be compared with `wall_s`, unix seconds. What is past is 0, and nothing is more than a day.
    """
    found: float | None = None
    for name, value in headers:
        if name == b"retry-after-ms":
            said_ms = _number(value)
            if said_ms is not None:
                return min(said_ms / 1000.0, RETRY_AFTER_S_MAX)
        elif name == b"retry-after" and found is None:
            found = _number(value)
            if found is None and value[:1].isalpha():
                found = _seconds_until(value, wall_s)
    return None if found is None else min(found, RETRY_AFTER_S_MAX)


def _number(value: bytes) -> float | None:
    """Read a number that is not negative."""
    value = value.strip()
    if not value.replace(b".", b"", 1).isdigit():
        return None
    return float(value) if len(value) <= _DIGITS_MAX else RETRY_AFTER_S_MAX * 1000.0


def _seconds_until(value: bytes, wall_s: float) -> float | None:
    try:
        date = parsedate_to_datetime(value[:_DATE_LENGTH_MAX].decode("ascii"))
        return max(date.timestamp() - wall_s, 0.0)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
