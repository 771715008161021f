"""How a request to the API that is not answered looks: as a gRPC status with its trailers, and as Connect's JSON.

Both carry google.rpc.ErrorInfo (domain `meshd`, the reason, metadata), written by hand: its messages ship with a
distribution that nothing else here needs. Codes are those of `meshd.refusal.TABLE`; HTTP statuses are those of the
Connect protocol, section "Error codes".
"""

from __future__ import annotations

import logging
from base64 import b64encode
from typing import Any, Final, NamedTuple

from meshd.engines.port import StoreError
from meshd.refusal import Reason, Refused

DOMAIN: Final = "meshd"
MESSAGE_CHARACTERS_MAX: Final = 2048
_ERROR_INFO: Final = "google.rpc.ErrorInfo"
_log = logging.getLogger("meshd.api")


class Code(NamedTuple):
    """A code of google.rpc.Code in the words of the Connect protocol, and the HTTP status that it has there."""

    name: str
    status: int


CODES: Final[dict[int, Code]] = {
    1: Code("canceled", 499),
    2: Code("unknown", 500),
    3: Code("invalid_argument", 400),
    4: Code("deadline_exceeded", 504),
    5: Code("not_found", 404),
    6: Code("already_exists", 409),
    7: Code("permission_denied", 403),
    8: Code("resource_exhausted", 429),
    9: Code("failed_precondition", 400),
    10: Code("aborted", 409),
    11: Code("out_of_range", 400),
    12: Code("unimplemented", 501),
    13: Code("internal", 500),
    14: Code("unavailable", 503),
    15: Code("data_loss", 500),
    16: Code("unauthenticated", 401),
}


class Failure(NamedTuple):
    """Why there is no answer."""

    code: int
    """google.rpc.Code."""
    reason: str
    message: str
    metadata: dict[str, str]
    pushback_ms: int
    """When to try again; -1 for never."""


def failure_of(error: BaseException) -> Failure:
    """Return what is said of an error; what is no refusal is a fault of ours, and the log says more than the peer."""
    if isinstance(error, StoreError):
        error = Refused(Reason.STORE_UNAVAILABLE, f"The books cannot be kept: {error}")
    if not isinstance(error, Refused):
        _log.error("a request to the API failed", exc_info=error)
        error = Refused(Reason.INTERNAL, "The sidecar failed at this request; its log says more.")
    metadata = {"rule": error.rule} if error.rule else {}
    if error.is_retryable:
        metadata["is_retryable"] = "true"
    pushback_ms = 1000 * min(max(error.retry_after_s or 1, 1), 5) if error.is_retryable else -1
    message = error.message[:MESSAGE_CHARACTERS_MAX]
    return Failure(error.grpc, error.reason.value, message, metadata, pushback_ms)


def trailers(failure: Failure) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailing metadata of a gRPC status."""
    pushback = ("grpc-retry-pushback-ms", str(failure.pushback_ms))
    return (pushback, ("grpc-status-details-bin", status_details(failure)))


def body(failure: Failure) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the JSON of an error, as the Connect protocol has them."""
    code = CODES.get(failure.code, CODES[2])
    shown = {"reason": failure.reason, "domain": DOMAIN, "metadata": failure.metadata}
    value = b64encode(_error_info(failure)).decode().rstrip("=")
    detail = {"type": _ERROR_INFO, "value": value, "debug": shown}
    return code.status, {"code": code.name, "message": failure.message, "details": [detail]}


def status_details(failure: Failure) -> bytes:
    """Return the google.rpc.Status that travels in `grpc-status-details-bin`."""
    detail = _text(1, f"type.googleapis.com/{_ERROR_INFO}") + _field(2, _error_info(failure))
    code = b"\x08" + _varint(failure.code)
    return code + _text(2, failure.message) + _field(3, detail)


def _error_info(failure: Failure) -> bytes:
    pairs = [_field(3, _text(1, key) + _text(2, value)) for key, value in failure.metadata.items()]
    return b"".join((_text(1, failure.reason), _text(2, DOMAIN), *pairs))


def _text(number: int, value: str) -> bytes:
    return _field(number, value.encode("utf-8", "replace"))


def _field(number: int, content: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)
