"""What of gRPC stands in header fields: timeouts, statuses, and the details of a status. Messages are never read.

The names and forms are those of grpc/doc/PROTOCOL-HTTP2.md; the details are a google.rpc.Status with an ErrorInfo,
written out by hand, so that the way of a call needs no protobuf.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from meshd.wire.message import WireError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.call import Headers

TIMEOUT: Final = b"grpc-timeout"
STATUS: Final = b"grpc-status"
MESSAGE: Final = b"grpc-message"
DETAILS: Final = b"grpc-status-details-bin"
PUSHBACK: Final = b"grpc-retry-pushback-ms"

CANCELLED: Final = 1
UNKNOWN: Final = 2
RESOURCE_EXHAUSTED: Final = 8
PERMISSION_DENIED: Final = 7
INTERNAL: Final = 13
UNAVAILABLE: Final = 14

_TIMEOUT_FORM: Final = re.compile(rb"([0-9]{1,8})([HMSmun])\Z")
_UNIT_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_DIGITS_MAX: Final = 100_000_000
_NS_BELOW_S: Final = 0.09
_US_BELOW_S: Final = 90.0
_MS_BELOW_S: Final = 90_000.0

MESSAGE_BYTES_MAX: Final = 2048
"""Of a percent-encoded message. Clients refuse metadata of more than 8 kB in all, and some proxies sooner."""
DETAILS_BYTES_MAX: Final = 2048
_VALUE_BYTES_MAX: Final = 256
_MESSAGE_SAFE: Final = " !#$&'()*+,/:;<=>?@[]^`{|}~\""
INFO_TYPE: Final = "google.rpc.ErrorInfo"
_INFO_URL: Final = b"type.googleapis.com/google.rpc.ErrorInfo"

_RESET_STATUS: Final[dict[int, int]] = {
    0x7: UNAVAILABLE,  # REFUSED_STREAM
    0x8: CANCELLED,  # CANCEL
    0xB: RESOURCE_EXHAUSTED,  # ENHANCE_YOUR_CALM
    0xC: PERMISSION_DENIED,  # INADEQUATE_SECURITY
}


def read_timeout(value: bytes) -> float:
    """Return the seconds of a `grpc-timeout`. Raises WireError for what is none: at most 8 digits and a unit.

    Zero is let in, although the specification has positive numbers: it is over at once, which says the same.
    """
    found = _TIMEOUT_FORM.match(value)
    if found is None:
        raise WireError(400, "grpc-timeout must be 1 to 8 digits and one of H, M, S, m, u or n, such as 250m")
    return int(found[1]) * _UNIT_S[found[2]]


def write_timeout(left_s: float) -> bytes:
    """Return a `grpc-timeout` of at most `left_s` seconds, in the finest unit that holds it: rounded down, since a
    deadline may not grow on its way; at least a nanosecond."""
    if left_s < _NS_BELOW_S:
        return b"%dn" % max(int(left_s * 1e9), 1)
    if left_s < _US_BELOW_S:
        return b"%du" % int(left_s * 1e6)
    if left_s < _MS_BELOW_S:
        return b"%dm" % int(left_s * 1e3)
    return b"%dS" % min(int(left_s), _DIGITS_MAX - 1)


def read_status(headers: Headers) -> int:
    """Return the `grpc-status` of trailers, UNKNOWN where it is no number, -1 where there is none."""
    for name, value in headers:
        if name == STATUS:
            return int(value) if value.isdigit() and len(value) < 4 else UNKNOWN
    return -1


def status_of_reset(code: int) -> int:
    """Return the status that stands for a stream that ended with this RST_STREAM code, by the specification's table."""
    return _RESET_STATUS.get(code, INTERNAL)


def encode_message(message: str) -> bytes:
    """Return a `grpc-message`: percent-encoded UTF-8, cut between two characters where it is too long."""
    data = message.encode("utf-8", "replace")
    while True:
        encoded = quote(data, safe=_MESSAGE_SAFE).encode("ascii")
        if len(encoded) <= MESSAGE_BYTES_MAX:
            return encoded
        # The longest cut that can fit, ended before the first byte of a character that would not be whole.
        data = _cut(data, len(data) * MESSAGE_BYTES_MAX // len(encoded) - 1)


def _cut(data: bytes, bytes_max: int) -> bytes:
    """Return the most characters of UTF-8 that are at most `bytes_max` bytes."""
    end = max(bytes_max, 0)
    if end >= len(data):
        return data
    while end > 0 and data[end] & 0xC0 == 0x80:
        end -= 1
    return data[:end]


def encode_details(status: int, message: str, reason: str, domain: str, metadata: dict[str, str]) -> bytes:
    """Return the value of `grpc-status-details-bin`: a google.rpc.Status whose only detail is an ErrorInfo.

    Where it would be too long, the message is cut; it stands whole, or longer, in `grpc-message`.
    """
    cut = {key: _cut(_encoded(value), _VALUE_BYTES_MAX) for key, value in metadata.items()}
    info = encode_error_info(reason, domain, cut)
    room = DETAILS_BYTES_MAX * 3 // 4 - len(encode_status(status, b"", info)) - 2
    return base64.b64encode(encode_status(status, _cut(_encoded(message), room), info)).rstrip(b"=")


def encode_error_info(reason: str, domain: str, metadata: Mapping[str, str | bytes]) -> bytes:
    """Return a google.rpc.ErrorInfo."""
    pairs = [_field(3, _field(1, _encoded(key)) + _field(2, _encoded(value))) for key, value in metadata.items()]
    return _field(1, _encoded(reason)) + _field(2, _encoded(domain)) + b"".join(pairs)


def encode_status(status: int, message: str | bytes, info: bytes) -> bytes:
    """Return a google.rpc.Status whose only detail is an ErrorInfo."""
    detail = _field(1, _INFO_URL) + _field(2, info)
    return b"\x08" + _varint(status) + _field(2, _encoded(message)) + _field(3, detail)


def _encoded(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "replace")


def _field(number: int, value: bytes) -> bytes:
    """Return a length-delimited field of a protobuf message."""
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)
