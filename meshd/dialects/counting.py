"""Numbers that answers report, and how much was generated where they report none."""

from __future__ import annotations

import json
from typing import Any, Final

COUNT_MAX: Final = 1_000_000_000
"""A report above this is absurd, and is ignored as if it were missing."""

BYTES_PER_TOKEN: Final = 4
"""A low guess for English; fewer bytes a token in most other languages and in code. Never used to admit."""


def count(value: Any) -> int | None:
    """Return a reported number of tokens, None where it is no sane count (negative, a bool, a float, a string)."""
    return value if type(value) is int and 0 <= value <= COUNT_MAX else None


def size_of(value: Any) -> int:
    """Return the UTF-8 bytes of the text in a piece of content: a string, or blocks with a `text`."""
    if type(value) is str:
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    if type(value) is list:
        return sum(size_of(item.get("text")) for item in value if type(item) is dict)
    return 0


def respelled(data: bytes) -> bytes:
    """Return JSON that only a tolerant parser reads (NaN, half of a surrogate pair) as what a strict one does.

    Python servers write both, and the SDKs read them. Empty where it is no JSON at all.
    """
    try:
        value = json.loads(data, parse_constant=lambda _name: None)
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    except (ValueError, RecursionError):
        return b""
