"""Whether an upstream's error says that a request is longer than its model can read.

The words are those of the providers in November 2026: OpenAI has a code for it, the others say it in the message.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

STATUSES: Final = frozenset({400, 413, 422})
ERROR_BYTES_MAX: Final = 65_536
"""Errors are shorter; what is longer is passed on unread."""
_CODES: Final = frozenset({"context_length_exceeded", "context_window_exceeded", "request_too_large"})
_WORDS: Final = re.compile(
    r"maximum context length|context[ _]length|context window|prompt is too long|exceeds? (?:the )?context limit"
    r"|input is too long|input token count .{0,40}exceeds|too many (?:input )?tokens",
    re.IGNORECASE,
)


def is_too_long(body: bytes) -> bool:
    """Say whether an error's body means that the request was too long. Never raises on nonsense."""
    try:
        said: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    error: Any = said.get("error", said) if isinstance(said, dict) else said
    if isinstance(error, str):
        return _WORDS.search(error) is not None
    if not isinstance(error, dict):
        return False
    if error.get("code") in _CODES or error.get("type") in _CODES:
        return True
    message = error.get("message")
    return isinstance(message, str) and _WORDS.search(message) is not None
