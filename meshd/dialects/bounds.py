"""How many tokens a body cannot exceed (guarantees, part 1).

A byte-level BPE token covers at least one byte, and JSON spends at least as many bytes on a character as UTF-8 does,
so the length of the body is a bound. It is false for tokenizers that normalise first: Anthropic's published legacy
one turns 50 times U+FDFA, 150 bytes, into 750 tokens. There the length after NFKC counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Final

_ESCAPE: Final = re.compile(rb"\\u([0-9a-fA-F]{4})")
_ESCAPE_BYTES: Final = 6

# What NFKC makes of the characters that most often keep Chinese, Japanese and typeset text from passing its quick
# check: replaced first, at memory speed, since normalising in earnest takes 4 ms for 100 kB.
_COMMON: Final = (
    ("\uff0c", ","), ("\uff01", "!"), ("\uff1f", "?"), ("\uff1a", ":"), ("\uff1b", ";"),
    ("\uff08", "("), ("\uff09", ")"), ("\u2026", "..."), ("\u00a0", " "), ("\u3000", " "),
)  # fmt: skip


# Above these, the worst that there is takes the place of what was counted: the caller must not wait for it.
_NORMALISED_BYTES_MAX: Final = 1024 * 1024
_ESCAPES_MAX: Final = 50_000
# UTF-8 grows 11 times at most under NFKC (Unicode's normalisation FAQ), by U+FDFA: 33 bytes for 3, 6 as an escape.
_GROWTH_MAX: Final = 11
_ESCAPE_GROWTH_MAX: Final = 27
_ASCII: Final = bytes(range(128))


def normalised_bytes(body: bytes) -> int:
    """Return a number of bytes that neither a body (UTF-8 JSON) nor its text after NFKC exceeds."""
    size = len(body)
    if not body.isascii():
        size = max(size, _normalised_text_bytes(body))
    backslash = body.find(b"\\")
    if backslash != -1 and body.find(b"\\u", backslash) != -1:
        # Characters behind escapes, each on its own: an escape spends more bytes than any mark that moves among its
        # neighbours can add, and a pair of surrogates (12 bytes) normalises to 12 bytes at most.
        escapes = body.count(b"\\u")
        if escapes > _ESCAPES_MAX:
            return size + escapes * _ESCAPE_GROWTH_MAX
        size += sum(_grown_bytes(code) * count for code, count in Counter(_ESCAPE.findall(body)).items())
    return size


def _normalised_text_bytes(body: bytes) -> int:
    if len(body) > _NORMALISED_BYTES_MAX:
        return len(body) + (_GROWTH_MAX - 1) * len(body.translate(None, _ASCII))
    text = body.decode()
    for character, plain in _COMMON:
        if character in text:
            text = text.replace(character, plain)
    if not unicodedata.is_normalized("NFKC", text):
        text = unicodedata.normalize("NFKC", text)
    return len(text.encode())


@lru_cache(maxsize=4096)
def _grown_bytes(code: bytes) -> int:
    """Return by how many bytes a character outgrows its escape when it is normalised."""
    number = int(code, 16)
    if 0xD800 <= number <= 0xDFFF:
        return 0
    return max(0, len(unicodedata.normalize("NFKC", chr(number)).encode()) - _ESCAPE_BYTES)
