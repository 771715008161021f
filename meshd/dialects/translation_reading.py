"""What both directions do to read a request: members that are known, those that are harmless, texts and images.

A member that is neither is a reason not to translate: what it asks for would be lost silently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.dialects import json_pairs as pairs_of
from meshd.dialects.translation_contract import lost

if TYPE_CHECKING:
    from meshd.dialects.json_pairs import Pairs

_BLANK: Final = frozenset({b"null", b"false", b"[]", b"{}", b'""', b"0", b"0.0"})
_QUOTE, _BRACKET = 0x22, 0x5B
IMAGE_TYPES: Final = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
"""What both take as the data of an image."""


def is_blank(raw: Any) -> bool:
    """Say whether a raw value asks for nothing: null, false, empty or zero."""
    return bytes(raw) in _BLANK


def check(pairs: Pairs, known: frozenset[str], harmless: frozenset[str], where: str) -> None:
    """Raise TranslationError for a member that would be lost."""
    for name, raw in pairs.items():
        if name not in known and name not in harmless and not is_blank(raw):
            lost(f"{name[:64]!r} of {where} has no equal")


def parts(raw: msgspec.Raw | None, where: str, at: int = -1) -> list[Pairs]:
    """Return the parts of a content; a string is one of text. None, where there is none, has no part."""
    if raw is None or bytes(raw) == pairs_of.NULL:
        return []
    first = memoryview(raw)[0]
    if first == _QUOTE:
        return [{"type": msgspec.Raw(b'"text"'), "text": raw}]
    if first != _BRACKET:
        lost(f"the content of {where} is neither text nor parts")
    return pairs_of.read_objects(raw, where, at)


def needed(pairs: Pairs, name: str, where: str) -> str:
    """Return a string member that must be there."""
    value = pairs_of.text(pairs, name, where)
    if value is None:
        lost(f"{where} has no {name!r}")
    return value


def number(pairs: Pairs, name: str) -> float | None:
    """Return a number; None where it is absent or null."""
    raw = pairs_of.member(pairs, name)
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=float)
    except msgspec.MsgspecError:
        lost(f"{name!r} is no number")


def strings(raw: msgspec.Raw | None, name: str) -> list[str]:
    """Return a string or an array of strings as a list; empty where it is absent or null."""
    if raw is None or bytes(raw) == pairs_of.NULL:
        return []
    try:
        value: str | list[str] = msgspec.json.decode(raw, type=str | list[str])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        lost(f"{name!r} is neither a string nor an array of strings")
    return [value] if isinstance(value, str) else value


def members(pairs: Pairs, name: str, where: str) -> Pairs | None:
    """Return the members of an object; None where it is absent or null."""
    raw = pairs_of.member(pairs, name)
    return None if raw is None else pairs_of.read_object(raw, where)


def is_true(pairs: Pairs, name: str) -> bool:
    """Say whether a flag is set."""
    raw = pairs.get(name)
    return raw is not None and bytes(raw) == b"true"


def messages_of(pairs: Pairs, read: list[Pairs] | None = None) -> list[Pairs]:
    """Return the members of each message; `read` is them, where they were read before."""
    if read is not None:
        return read
    raw = pairs_of.member(pairs, "messages")
    if raw is None:
        lost("the request has no messages")
    return pairs_of.read_objects(raw, "'messages'")


def compact(raw: msgspec.Raw) -> str:
    """Return an object as text without blanks, each number and string as it was written."""
    try:
        return msgspec.json.format(bytes(raw), indent=-1).decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        lost("the input of a tool call is no JSON object")
