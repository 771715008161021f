"""What a request's fields must be, and contexts as the protocol has them. A refusal names the field."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from meshd.refusal import Reason, Refused
from meshd_sdk.context import NO_CEILING
from meshd_sdk.v1 import context_pb2

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

    from meshd_sdk.context import Context

ID_CHARACTERS_MAX: Final = 64
AMOUNT_MAX: Final = 10**15
"""Tokens or micro-dollars of one field: far beyond any budget, and sums of them stay within 64 bits."""
TIMEOUT_S_MAX: Final = 366 * 86_400.0
AGENT: Final = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
WORKFLOW: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}\Z")
_ID: Final = re.compile(r"[!-~]{1,64}\Z")
_NANOS_MAX: Final = 10**9


def malformed(field: str, wanted: str) -> Refused:
    """Return the refusal of a field that is not as it should be."""
    return Refused(Reason.MALFORMED, f"{field} must be {wanted}.")


def checked_id(field: str, value: str) -> str:
    """Return an id that a caller chose. Raises Refused(MALFORMED)."""
    if _ID.match(value) is None:
        raise malformed(field, f"1 to {ID_CHARACTERS_MAX} visible ASCII characters")
    return value


def checked_amount(field: str, value: int, least: int = 0) -> int:
    """Return an amount from `least` to AMOUNT_MAX. Raises Refused(MALFORMED)."""
    if not least <= value <= AMOUNT_MAX:
        raise malformed(field, f"a whole number from {least} to {AMOUNT_MAX}")
    return value


def seconds(field: str, value: Duration) -> float:
    """Return a duration above 0 in seconds. Raises Refused(MALFORMED)."""
    # Its fields may disagree in sign: a message is only as well made as its sender.
    found = value.seconds + value.nanos / 1e9
    if not 0.0 < found <= TIMEOUT_S_MAX or not -_NANOS_MAX < value.nanos < _NANOS_MAX:
        raise malformed(field, "a duration above 0 and of at most 366 days")
    return found


def unix_ns(field: str, value: Timestamp) -> int:
    """Return a moment in unix nanoseconds. Raises Refused(MALFORMED) before 1970 or after 2200."""
    if not 0 <= value.seconds < 7_258_118_400 or not 0 <= value.nanos < _NANOS_MAX:
        raise malformed(field, "a moment between 1970 and 2200")
    return value.seconds * _NANOS_MAX + value.nanos


def moment(unix_s: float) -> Timestamp:
    """Return unix seconds as the protocol has them, to the millisecond."""
    from google.protobuf.timestamp_pb2 import Timestamp

    whole_ms = round(unix_s * 1000)
    return Timestamp(seconds=whole_ms // 1000, nanos=whole_ms % 1000 * 1_000_000)


def utc_day(unix_s: float) -> str:
    """Return a day's date in UTC, such as 2026-11-26."""
    return datetime.fromtimestamp(unix_s, UTC).date().isoformat()


def shown(context: Context, token: bytes | str) -> context_pb2.Context:
    """Return a context as the protocol has it, beside the token that says so."""
    evidence = context_pb2.EVIDENCE_TOKEN if context.workflow else context_pb2.EVIDENCE_NONE
    more: dict[str, Any] = {}
    if context.deadline_s is not None:
        more["deadline"] = moment(context.deadline_s)
    if context.ceiling is not None and context.ceiling != NO_CEILING:
        more["ceiling_tokens"] = context.ceiling
    if context.ceiling_microdollars is not None:
        more["ceiling_microdollars"] = context.ceiling_microdollars
    return context_pb2.Context(
        token=token.decode("ascii") if isinstance(token, bytes) else token,
        workflow=context.workflow,
        agent=context.agent,
        hops=context.hops,
        path=context.path,
        account=context.account,
        traceparent=context.parent,
        memory=context.memory,
        evidence=evidence,
        **more,
    )
