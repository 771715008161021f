"""What an error that comes within an answer says of its provider: after a 200 there is no other status to say it with.

The words are those of the providers in November 2026: Anthropic says `overloaded_error` in its `type`, OpenAI
`server_is_overloaded` and `rate_limit_exceeded` in its `code`, gateways the number that they would have answered with,
Google the name of its status.
"""

from __future__ import annotations

from typing import Any, Final

OVERLOADED: Final = 529
TOO_MANY_REQUESTS: Final = 429
_NUMBERS: Final = frozenset({OVERLOADED, TOO_MANY_REQUESTS})
_WORDS: Final = {
    "overloaded_error": OVERLOADED,
    "server_is_overloaded": OVERLOADED,
    "slow_down": OVERLOADED,
    "rate_limit_error": TOO_MANY_REQUESTS,
    "rate_limit_exceeded": TOO_MANY_REQUESTS,
    "insufficient_quota": TOO_MANY_REQUESTS,
    "RESOURCE_EXHAUSTED": TOO_MANY_REQUESTS,
    "throttlingException": TOO_MANY_REQUESTS,
}
_MEMBERS: Final = ("code", "type", "status")


def status_of(error: Any) -> int:
    """Return the HTTP status that an `error` object of an answer stands for, 429 or 529; 0 for any other error."""
    if type(error) is not dict:
        return 0
    for member in _MEMBERS:
        said = error.get(member)
        if type(said) is int and said in _NUMBERS:
            return said
        if type(said) is str and said in _WORDS:
            return _WORDS[said]
    return 0


def status_of_word(word: Any) -> int:
    """Return the same for the one word that there is."""
    return _WORDS.get(word, 0) if type(word) is str else 0
