"""The errors of gRPC calls that failed as a whole, read from their status and google.rpc.ErrorInfo.

The messages of google.rpc ship with a distribution that nothing else here needs, so the few fields are read by hand:
google.rpc.Status has `details` (3) of Any, with `type_url` (1) and `value` (2); ErrorInfo `reason` (1), `domain` (2)
and a map of `metadata` (3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd_sdk.errors import failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd_sdk.errors import Failure

_DETAILS = "grpc-status-details-bin"
_PUSHBACK = "grpc-retry-pushback-ms"
_INFO = b"/google.rpc.ErrorInfo"


def failure_of_rpc(error: Any) -> Failure:
    """Return the error of a `grpc.aio.AioRpcError`."""
    trailers: dict[str, Any] = dict(error.trailing_metadata() or ())
    reason, metadata = error_info(trailers.get(_DETAILS, b""))
    try:
        pushback_ms = int(trailers.get(_PUSHBACK, -1))
    except (TypeError, ValueError):
        pushback_ms = -1
    return failure(
        error.code().value[0],
        reason,
        error.details() or "",
        is_retryable=pushback_ms >= 0,
        retry_after_s=pushback_ms / 1000 if pushback_ms >= 0 else None,
        metadata=metadata,
    )


def error_info(details: bytes) -> tuple[str, dict[str, str]]:
    """Return (reason, metadata) of meshd's ErrorInfo in a google.rpc.Status; empty where there is none."""
    try:
        for number, detail in _fields(details):
            if number == 3:
                fields = dict(_fields(detail))
                if fields.get(1, b"").endswith(_INFO):
                    return _read_info(fields.get(2, b""))
    except (IndexError, ValueError):
        # Not what a sidecar writes: the status alone has to do.
        pass
    return "", {}


def _read_info(value: bytes) -> tuple[str, dict[str, str]]:
    reason, domain, metadata = "", "", {}
    for number, content in _fields(value):
        if number == 1:
            reason = content.decode()
        elif number == 2:
            domain = content.decode()
        elif number == 3:
            pair = dict(_fields(content))
            metadata[pair.get(1, b"").decode()] = pair.get(2, b"").decode()
    # In capitals where a call was proxied: google.rpc.ErrorInfo asks for that.
    return (reason.lower(), metadata) if domain == "meshd" else ("", {})


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the length-delimited fields of a message; numbers are passed over. ValueError for what is none."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        if tag & 7 == 0:
            _, at = _varint(data, at)
        elif tag & 7 == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise ValueError("a field is cut short")
            yield tag >> 3, data[at : at + length]
            at += length
        else:
            raise ValueError("a field of a kind that is not used")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number is too long")
