"""How spaces and keys of the store are written in a subject, of which NATS allows letters, digits, -, _, / and =.

Whatever else a key has, `=` too, is the two hexadecimal digits of each of its bytes after an `=`; nothing at all is a
lone `=`. So no two keys share a subject, and those that people make are read as they are.
"""

from __future__ import annotations

import re
from typing import Final

from meshd.engines.port import StoreUnable

ENCODED_BYTES_MAX: Final = 3000
"""Of a subject: the server ends a connection that sends a line of more than 4096 bytes."""

_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_/")
_ENCODED: Final = re.compile(r"(?:[A-Za-z0-9_/-]|=[0-9A-F]{2})+\Z|=\Z")


def encoded(text: str) -> str:
    """Return a text as one token of a subject. Raises StoreUnable for what is no text, or too long."""
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise StoreUnable("a key of a store is text, which half a surrogate pair is not") from None
    token = "".join(chr(byte) if byte in _PLAIN else f"={byte:02X}" for byte in raw) or "="
    if len(token) > ENCODED_BYTES_MAX:
        raise StoreUnable(f"a key of {len(text)} characters is too long for the nats store")
    return token


def decoded(token: str) -> str | None:
    """Return the text of a token; None where `encoded` did not make it."""
    if not _ENCODED.match(token):
        return None
    if token == "=":
        return ""
    raw = re.sub(rb"=(..)", lambda found: bytes([int(found[1], 16)]), token.encode())
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return None
    return text if encoded(text) == token else None
