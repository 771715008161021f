"""The one place at which two payloads differ, without reading the rest of them.

Most requests to a model that look like one before are a template with something else in it: an item of a list, a
question about another document. To take both apart costs a millisecond; to look at the place where they differ costs
some microseconds, and mostly shows a word that stands nowhere in the other payload. What may be an id, a time, a
counter or courtesy is no such word.
"""

from __future__ import annotations

import re
from typing import Final

from meshd.turns.counters import COUNTERS, PARTS
from meshd.turns.lexicon import CONTENT, look_up, stem

LOOKED_AT_BYTES: Final = 512
"""Of the place where they differ, from its beginning."""
_TOKEN: Final = re.compile(
    rb"(?<![\w\\'\x80-\xff-])(?:([A-Za-z]{4,24})(?![\w'\x80-\xff-])|(?<=[A-Za-z] )(\d{1,6})(?= [a-z]))"
)
_WORD_BEFORE: Final = re.compile(rb"([A-Za-z]+) $")
_WORD_BEHIND: Final = re.compile(rb" ([a-z]+)")
_BESIDE_BYTES: Final = 24
_UNITS: Final = frozenset((b"s", b"sec", b"secs", b"seconds", b"ms", b"msec", b"msecs", b"milliseconds", b"us"))
"""Behind a number that is a duration."""
_TIMES: Final = frozenset(
    b"time times attempt try retry round iteration reminder request mal versuch runde fois essai tentative vez veces "
    b"intento ronda volta volte tentativo".split()
)
"""Behind a number that says how often."""
_DATING: Final = frozenset((b"elapsed", b"seconds", b"msecs", b"milliseconds"))
_VOLATILE_KEYS: Final = re.compile(rb"(?i:id|key|nonce|timestamp|ts|time|at|now|sent|created|when)$")


def brings_word(raw: bytes, before: bytes) -> bool:
    """Say whether it is certain that `raw` has a word or a number that stands nowhere in `before`. False says
    nothing."""
    shorter = min(len(raw), len(before))
    begin = common(raw, before)
    same_end = common(raw[: begin - shorter - 1 : -1], before[: begin - shorter - 1 : -1]) if begin < shorter else 0
    end = len(raw) - same_end
    while begin and raw[begin - 1] not in b" \n":
        begin -= 1
    while end < len(raw) and raw[end] not in b" \n":
        end += 1
    lower = b""
    for match in _TOKEN.finditer(raw, begin, min(len(raw), end + 4, begin + LOOKED_AT_BYTES)):
        at = match.start()
        if at >= end:
            break
        if not lower:
            lower = before.lower()
        word = match[0].lower()
        if match.lastindex == 2:
            if word not in lower and not _is_counter(raw, at, match.end()):
                return True
        elif word not in _DATING:
            text = word.decode()
            if look_up(text)[0] == CONTENT and stem(text).encode() not in lower and not _is_dated(raw, at):
                return True
    return False


def _is_counter(raw: bytes, at: int, end: int) -> bool:
    """Say whether a number between two words may be a counter, or a duration."""
    word = _WORD_BEFORE.search(raw[max(0, at - _BESIDE_BYTES) : at])
    behind = _WORD_BEHIND.match(raw[end : end + _BESIDE_BYTES])
    if word is None or behind is None or behind[1] in _UNITS or behind[1] in _TIMES:
        return True
    name = word[1].lower().decode()
    return name in COUNTERS or name in PARTS


def _is_dated(raw: bytes, at: int) -> bool:
    """Say whether a word may stand under a key of JSON that says when or by which id something is sent."""
    end = raw.rfind(b'":', 0, at)
    if end == -1:
        return False
    begin = raw.rfind(b'"', 0, end)
    return _VOLATILE_KEYS.search(raw[begin + 1 : end].rstrip(b"\\")) is not None


def common(one: bytes, other: bytes) -> int:
    """Return how many bytes two texts begin with that are the same."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) >> 1
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
