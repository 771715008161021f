"""What a call is answered with, decoded; one that cannot be is the callee's failure. Stdlib only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd_sdk.bodies import decode
from meshd_sdk.errors import ArgumentsInvalid, CallFailed

if TYPE_CHECKING:
    from meshd_sdk.bodies import Lines


def decoded(payload: bytes, content_type: str, call_id: str, target: str) -> Any:
    """Return the reply of a target. Raises CallFailed."""
    try:
        return decode(payload, content_type, call_id)
    except ArgumentsInvalid as error:
        raise CallFailed(f"the reply of {target}: {error}", code="DATA_LOSS", call_id=call_id) from error


def fed(lines: Lines, piece: bytes | None, target: str) -> list[Any]:
    """Return the values that a piece of a reply brings to an end; None for the end of all. Raises CallFailed."""
    try:
        return lines.end() if piece is None else lines.feed(piece)
    except ArgumentsInvalid as error:
        raise CallFailed(f"the reply of {target}: {error}", code="DATA_LOSS") from error
