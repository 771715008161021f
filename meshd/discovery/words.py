"""Text becomes the terms that are counted and compared: of names, descriptions and of what somebody asks for.

Pure. Names are split as programmers join them (`read_file`, `readFile`, `HTTPServer`), words lose their endings by
Harman's and the first of Porter's rules, and characters that no reader sees, or that turn the direction of a text,
are taken out first: a text means to the index what it means to the eye.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final
from unicodedata import category, normalize

TEXT_CHARS_MAX: Final = 8192
"""Of one text, what is read; what follows is as if it were not there."""
_WORD_CHARS_MAX: Final = 40

_PIECE: Final = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_A-Za-z]+")
_SPACELESS: Final = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff]")
"""Scripts that put no space between words: Japanese, Chinese, Thai, Lao. Pairs of characters stand for their words."""

_STOP: Final = """
    a about all also am an and any are as at be because been being but by can could did do does doing each for from
    get give had has have having he her here him his how i if in into is it its just let like make me more most my need
    no not of on one only or other our out over own please s same she should so some such t than that the their them
    then there these they this those through to too under until up us use used using very via want was we were what
    when where which while who whom why will with would you your"""
STOP: Final = frozenset(_STOP.split())
"""Words that say nothing of what is wanted."""


def clean(text: str) -> str:
    """Return `text` in one form of its characters (NFKC), with nothing that is invisible or turns its direction."""
    text = text[:TEXT_CHARS_MAX]
    if text.isascii():
        return text
    shown = (" " if category(one) in ("Cc", "Cs", "Co", "Zl", "Zp") else one for one in text if category(one) != "Cf")
    return normalize("NFKC", "".join(shown))[:TEXT_CHARS_MAX]


def pieces(name: str) -> list[str]:
    """Return the words that a name is joined from, as they are written."""
    return _PIECE.findall(clean(name))


def terms(text: str) -> list[str]:
    """Return the terms of `text` in its order, without stop words."""
    found: list[str] = []
    for piece in _PIECE.findall(clean(text)):
        word = piece.casefold()[:_WORD_CHARS_MAX]
        if word in STOP:
            continue
        if _SPACELESS.match(word):
            found += [word[at : at + 2] for at in range(max(1, len(word) - 1))]
        else:
            found.append(stem(word))
    return found


@lru_cache(16_384)
def stem(word: str) -> str:
    """Return `word` without the endings of English plurals and verbs."""
    if not word.isascii() or len(word) < 4:
        return word
    if word.endswith("ies"):
        word = word[:-3] + "y"
    elif word.endswith(("ses", "xes", "zes", "ches", "shes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        trunk = word[: -len(ending)]
        if word.endswith(ending) and len(trunk) > 2 and any(vowel in trunk for vowel in "aeiouy"):
            if trunk[-1] == trunk[-2] and trunk[-1] not in "lsz":
                trunk = trunk[:-1]
            word = trunk
            break
    return word[:-1] if len(word) > 3 and word.endswith("e") else word
