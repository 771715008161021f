"""Whether an upstream's error says that its credential has no quota or no money left: no pause of seconds heals that.

OpenAI answers 429 as for a rate, with `insufficient_quota` or `billing_not_active` in its `code`, or in its `type` with
a code of null; Anthropic 402 with `billing_error`, and other providers 402 in words of their own.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

AMBIGUOUS: Final = 429
"""The status whose body must be read to know."""
PAYMENT_REQUIRED: Final = 402
_WORDS: Final = frozenset({"insufficient_quota", "billing_not_active", "billing_hard_limit_reached", "billing_error"})
_MEMBERS: Final = ("code", "type")


def is_unpaid(body: bytes) -> bool:
    """Say whether the body of a 429 means that. Never raises on nonsense."""
    try:
        said: Any = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    error: Any = said.get("error") if isinstance(said, dict) else None
    if not isinstance(error, dict):
        return False
    found = [error.get(member) for member in _MEMBERS]
    return any(isinstance(one, str) and one in _WORDS for one in found)
