"""Counters told from content: `attempt 3` says how often, `page 3` says what."""

from __future__ import annotations

import re
from typing import Final

from meshd.turns.lexicon import words_of

COUNTERS: Final = words_of(
    "attempt attempts try tries retry retries round rounds iteration iterations iter seq sequence counter nonce "
    "version v rev ref revision ping cycle loop reminder again followup draft take "
    "versuch versuche runde wiederholung essai tentative tentatives itération intento intentos ronda iteración vuelta "
    "tentativa tentativas tentativo tentativi iterazione"
)
PARTS: Final = words_of("turn turns n message msg time times nr number no step call request")
"""What is counted here and is content there: `Step 4: ...` against `execute step 4`."""
_BESIDE: Final = words_of("n i t k count step no num number nr")
"""Before `=` at the end of a text."""
_NUMBER_WORDS: Final = words_of("n no nr number num numéro numero número")
"""Between a word that counts and its number."""
_KEY_COUNTERS: Final = words_of(
    "attempt attempts try tries retry retries round rounds turn iteration iterations iter seq sequence counter nonce "
    "cycle loop"
)
"""Keys of JSON, or a word of one: a number under another key is content."""
_KEY_PARTS: Final = words_of("n i k step count tick hop hops depth pass generation rev revision")
"""A number under one of these is a counter where the rest says what is asked for."""
_KEY_WORDS: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_OF_TIMES: Final = (
    r"\s*(?:time|times|attempt|try|retry|round|iteration|reminder|request|mal|versuch|runde|fois|essai|tentative|vez|"
    r"veces|intento|ronda|volta|volte|tentativo|次|回|遍)"
)
_TIMES_NEXT: Final = re.compile(_OF_TIMES + r"(?![^\W\d_])", re.IGNORECASE)
_NTH_NEXT: Final = re.compile(r"(?:st|nd|rd|th|e|er|ème|eme|ère|\.|ª|º)?" + _OF_TIMES + r"(?![^\W\d_])", re.IGNORECASE)
_ROMAN: Final = re.compile(r"[IVX]{1,5}")

NOT: Final = 0
PART: Final = 1
"""A counter where the rest says what is asked for."""
COUNTS: Final = 2


def of_key(key: str) -> int:
    """Say whether a number under this key of JSON is a counter."""
    if key.lower() in _KEY_PARTS:
        return PART
    for word in _KEY_WORDS.findall(key):
        if word.lower() in _KEY_COUNTERS:
            return COUNTS
    return NOT


def is_nth(text: str, end: int) -> bool:
    """Say whether an ordinal that ends here counts times: `for the third time`."""
    return _TIMES_NEXT.match(text, end) is not None


def is_numeral(text: str, begin: int, end: int, before: str, before_at: int) -> bool:
    """Say whether a word that is a number counts: behind a word that does, or alone in brackets."""
    if before in COUNTERS or (before in PARTS and _is_place(text, before_at, end)):
        return True
    return text[begin - 1 : begin] in ("(", "[") and text[end : end + 1] in (")", "]")


def is_roman(word: str) -> bool:
    """Say whether a word may be a number of the Romans."""
    return _ROMAN.fullmatch(word) is not None


def is_counter(text: str, begin: int, end: int, before: str, before_at: int, is_answer: bool) -> bool:
    """Say whether a number of a text counts, by what stands around it. `before` is the word before it."""
    if before in COUNTERS:
        return True
    last = text[begin - 1] if begin else ""
    if before in PARTS and (last == " " or (before in _NUMBER_WORDS and last in ".°º")):
        if is_answer or _is_place(text, before_at, end):
            return True
        if before in _NUMBER_WORDS and _word_before(text, before_at) in COUNTERS:
            return True
    follows = text[end] if end < len(text) else ""
    if (not begin or last in '"\n') and follows:
        # `3. Please ...`
        return follows in ".):" and text[end + 1 : end + 2] == " "
    if not begin:
        return True
    if last == "#" or (last in "([" and follows in ")]") or last == "第":
        return True
    if follows and follows not in '"}],' and _NTH_NEXT.match(text, end) is not None:
        return True
    is_end = follows in ("", '"') or (follows in ".!?)]>*" and text[end + 1 : end + 2] in ("", '"', " "))
    return is_end and _is_suffix(text, begin, before, before_at, last)


def _is_suffix(text: str, begin: int, before: str, before_at: int, last: str) -> bool:
    """Say whether a number at the end stands apart from what is said."""
    second = text[begin - 2 : begin - 1]
    if last == " " and begin > 1:
        if second in ".!?,;)–—-|/×*":
            return True
        # `..., event 17`: a noun behind a comma, and nothing behind the number.
        return bool(before) and text[before_at - 2 : before_at] == ", "
    if last in "|/@+×<*" and second in (" ", "*"):
        return True
    if last in "!?" or (last == "=" and before in _BESIDE):
        return True
    if last == "x" and second in ("(", "["):
        return True
    if last not in "-~" or not before or not second.islower():
        return False
    # `clarify the plan-3`, and not `web-3` alone, which is a name.
    return text[before_at - 1 : before_at] == " "


def _word_before(text: str, at: int) -> str:
    """Return the word that stands before a place, in lower case."""
    return text[max(0, at - 20) : at].rstrip(" (-_").lower().rpartition(" ")[2].strip("([\"'")


def _is_place(text: str, word: int, end: int) -> bool:
    """Say whether a word and its number say where in the talk a message stands: in brackets, before a colon at the
    beginning, behind a sentence at the end."""
    if word < 0:
        return False
    follows = text[end] if end < len(text) else ""
    if word == 0 or text[word - 1] in '"\n':
        return follows in ":.)-–,"
    last = text[word - 1]
    if last in "([":
        return follows in ")]"
    return last == " " and text[word - 2] in ".!?,;)–—-" and follows in ("", '"', ".", "!")
