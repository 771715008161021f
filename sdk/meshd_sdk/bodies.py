"""Payloads: JSON as a handler and a caller see it, and bytes of other types as they are. Pure, stdlib only.

A reply that is streamed as values is JSON in lines (`application/x-ndjson`): where its pieces are cut on the way does
not matter.
"""

from __future__ import annotations

import dataclasses
import enum
import json
from typing import Any, Final, NoReturn

from meshd_sdk.errors import ArgumentsInvalid

JSON: Final = "application/json"
LINES: Final = "application/x-ndjson"
BYTES: Final = "application/octet-stream"


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """A payload that is not JSON: what `call` returns where the callee says so, and what a handler may return."""

    payload: bytes
    content_type: str = BYTES
    call_id: str = ""
    """The call's id in metrics, spans and `meshd budget call`; empty on what a handler returns."""


def is_json(content_type: str) -> bool:
    """Say whether a media type is JSON; an empty one is."""
    kind = content_type.split(";", 1)[0].strip().lower()
    return kind in ("", JSON) or kind.endswith("+json")


def is_lines(content_type: str) -> bool:
    """Say whether a media type is JSON in lines."""
    return content_type.split(";", 1)[0].strip().lower() == LINES


def decode(payload: bytes, content_type: str, call_id: str = "") -> Any:
    """Return decoded JSON, None for no bytes of it, or a Reply. Raises ArgumentsInvalid for broken JSON."""
    if is_lines(content_type):
        lines = Lines()
        return [*lines.feed(payload), *lines.end()]
    if not is_json(content_type):
        return Reply(payload, content_type, call_id)
    if not payload:
        return None
    try:
        return json.loads(payload, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        # Of what was sent nothing is shown: it may be long, and a secret.
        raise ArgumentsInvalid(f"the payload says it is JSON and is not: {type(error).__name__}") from error


def encode(value: Any, content_type: str = "") -> tuple[bytes, str]:
    """Return (payload, media type) of what a caller sends or a handler returns. Raises TypeError and ValueError where
    JSON has no word for it."""
    if isinstance(value, Reply):
        return value.payload, content_type or value.content_type
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value), content_type or BYTES
    if isinstance(value, str) and content_type and not is_json(content_type):
        return value.encode(), content_type
    try:
        text = _dumped(value, ensure_ascii=False)
        return text.encode(), content_type or JSON
    except UnicodeEncodeError:
        # Half of a surrogate pair is no UTF-8, and JSON has an escape for it.
        return _dumped(value, ensure_ascii=True).encode(), content_type or JSON


class Lines:
    """JSON in lines, read piece by piece."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[Any]:
        """Return the values that are whole now. Raises ArgumentsInvalid."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return [decode(line, JSON) for line in lines if line.strip()]

    def end(self) -> list[Any]:
        """Return the last value, where no newline came after it."""
        rest, self._rest = self._rest, b""
        return [decode(rest, JSON)] if rest.strip() else []


def _dumped(value: Any, *, ensure_ascii: bool) -> str:
    try:
        return json.dumps(value, default=_plain, ensure_ascii=ensure_ascii, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise ValueError("the value is nested too deeply to be written as JSON") from None
    except ValueError as error:
        raise ValueError(f"the value cannot be written as JSON: {error}") from None


def _plain(value: Any) -> Any:
    """Return what JSON can say of an object."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json")
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
