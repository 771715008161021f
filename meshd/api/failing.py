"""How a request to the API that is not answered looks: as a gRPC status with its trailers, and as Connect's JSON.

Both carry google.rpc.ErrorInfo (domain `meshd`, the reason, metadata). Codes are those of `meshd.refusal.TABLE`; HTTP
statuses are those of the Connect protocol, section "Error codes".
"""

from __future__ import annotations

import logging
from base64 import b64encode
from typing import Any, Final, NamedTuple

from meshd.engines.bus_port import EventMalformed
from meshd.engines.port import StoreCorrupt, StoreError, StoreNewer, StoreUnable
from meshd.refusal import DOMAIN, Reason, Refused
from meshd.wire.grpc import INFO_TYPE, encode_error_info, encode_status

MESSAGE_CHARACTERS_MAX: Final = 2048
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


def refused_by(error: BaseException, store_failed: str) -> Refused:
    """Return an error as the refusal that it is told as; what is none is a fault of ours, which the log has whole.

    `store_failed` says in a few words what a store that fails means here.
    """
    if isinstance(error, Refused):
        return error
    if isinstance(error, StoreError):
        # What is damaged, or of a newer meshd, is so the next time too.
        is_lasting = isinstance(error, StoreCorrupt | StoreNewer)
        message = f"{store_failed}: {error}"
        return Refused(Reason.STORE_UNAVAILABLE, message, is_retryable=False if is_lasting else None)
    _log.error("what was asked of the API failed", exc_info=error)
    return Refused(Reason.INTERNAL, "The sidecar failed at this; its log says more.")


def refused_as(error: Exception) -> Refused:
    """Return an error of the bus, or of what was asked of it, as the refusal that it is told as."""
    if isinstance(error, EventMalformed | StoreUnable):
        return Refused(Reason.MALFORMED, str(error))
    return refused_by(error, "The bus failed")


def failure_of(error: BaseException) -> Failure:
    """Return what is said of an error."""
    error = refused_by(error, "The books cannot be kept")
    metadata = {"rule": error.rule} if error.rule else {}
    if error.is_retryable:
        metadata["is_retryable"] = "true"
    pushback_ms = 1000 * error.retry_in_s if error.is_retryable else -1
    message = error.message[:MESSAGE_CHARACTERS_MAX]
    return Failure(error.grpc, error.reason.value, message, metadata, pushback_ms)


def trailers(failure: Failure) -> tuple[tuple[str, str | bytes], ...]:
    """Return the trailing metadata of a gRPC status."""
    pushback = ("grpc-retry-pushback-ms", str(failure.pushback_ms))
    return (pushback, ("grpc-status-details-bin", status_details(failure)))


def body(failure: Failure) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the JSON of an error, as the Connect protocol has them."""
    code = CODES.get(failure.code, CODES[2])
    shown = {"reason": failure.reason.upper(), "domain": DOMAIN, "metadata": failure.metadata}
    value = b64encode(_error_info(failure)).decode().rstrip("=")
    detail = {"type": INFO_TYPE, "value": value, "debug": shown}
    return code.status, {"code": code.name, "message": failure.message, "details": [detail]}


def status_details(failure: Failure) -> bytes:
    """Return the google.rpc.Status that travels in `grpc-status-details-bin`."""
    return encode_status(failure.code, failure.message, _error_info(failure))


def _error_info(failure: Failure) -> bytes:
    return encode_error_info(failure.reason.upper(), DOMAIN, failure.metadata)
