"""A template with something else at its open place: the same words again, and another question each time."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from meshd.turns.said import Said

TEMPLATE_RUN: Final = 0.5
"""A run of words that is so great a share of two payloads marks a template."""
TEMPLATE_RUN_OF_ANSWER: Final = 0.7
TOKENS_MAX: Final = 80
_TOKENS: Final = re.compile(r"\w+")
NO_TEXT: Final = re.compile(r'"(?:kind|role|type|jsonrpc|method)"\s*:\s*"[^"]*"|"[A-Za-z_][\w.-]{0,63}"\s*:')
"""Keys of JSON, and values that are no words of anybody's."""


def is_template(said: list[Said], share: float) -> bool:
    """Say whether payloads next to one another are a template: a long run is the same, or all around one place."""
    tokens = [_TOKENS.findall(NO_TEXT.sub(" ", one.text).lower())[:TOKENS_MAX] for one in said]
    for at in range(1, len(tokens)):
        one, other = tokens[at - 1], tokens[at]
        least = share * min(len(one), len(other))
        if _around(one, other) < least and _run(one, other) < least:
            return False
    return True


def _around(one: list[str], other: list[str]) -> int:
    """Return how many words two lists begin and end with alike."""
    size = min(len(one), len(other))
    begin = end = 0
    while begin < size and one[begin] == other[begin]:
        begin += 1
    while end < size - begin and one[-1 - end] == other[-1 - end]:
        end += 1
    return begin + end


def _run(one: list[str], other: list[str]) -> int:
    """Return the length of the longest run of words that two lists have in common."""
    best = 0
    before = [0] * (len(other) + 1)
    for word in one:
        row = [0] * (len(other) + 1)
        for at, another in enumerate(other, 1):
            if word == another:
                length = before[at - 1] + 1
                row[at] = length
                if length > best:
                    best = length
        before = row
    return best
