"""A payload as what it says: ids, times and spelling left out, and counters told from content.

Two payloads are the same where they differ in ids and times alone (`exact`), the same but for a counter (`loose`), or
alike (`likeness` near one another, and hardly a word new). A number is a counter where it stands in brackets, behind
a `#`, behind a sentence or behind a word such as `attempt`; elsewhere it is content: `page 7` is another question than
`page 6`. So are names: a word with a capital within a sentence, or with a digit.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final
from zlib import crc32

from meshd.turns.counters import COUNTS, PART, is_counter, is_nth, is_numeral, is_roman, of_key
from meshd.turns.lexicon import (
    CONTENT,
    COURTEOUS,
    GERMAN,
    NUMERAL,
    ORDINAL,
    PRONOUNS,
    SHORT,
    SILENT,
    UNSPACED,
    characters,
    look_up,
    words_of,
)
from meshd.turns.protobuf import texts_of

_CONTENT_MARKS: Final = frozenset("<>+|^")
"""Two texts that differ in one of these say two things."""
CAPITALS_MAX: Final = 5
"""A longer word of capitals alone is no abbreviation, but said aloud."""
WORDS_MAX: Final = 255
"""Of one payload that are looked at."""


_VOLATILE: Final = re.compile(
    r"(?P<id>[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12})"
    r"|(?P<time>\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)"
    r"|(?P<day>\d{4}-\d\d-\d\d)"
    # All others begin where a word does, or with one of three marks: hardly a place is looked at more than once.
    r'|(?=[\[("]|\b\w)(?:'
    r"\b\d\d:\d\d:\d\d(?:[.,]\d+)?\b"
    r"|\b(?i:as of|it is now)\s+\d?\d:\d\d\b"
    r'|(?:^|(?<=[\[("\n]))\d?\d:\d\d(?=[\])\s])'
    r"|\b\d+\.\d+\s?(?:s|secs?|seconds)\b"
    r"|(?P<epoch>\b1[4-9]\d{8}(?:\d{3}|\d{6}|\d{9})?(?:\.\d+)?\b)"
    r"|\b\d+(?:\.\d+)?\s?(?:ms|msecs?|milliseconds|us|µs)\b"
    r"|\b(?i:took|elapsed|duration|time)\s*[:=]?\s*\d+(?:\.\d+)?\s?(?:s|secs?|seconds|min)\b"
    r"|[\[(]\s*(?:\d+\s*(?:/|of)\s*\d+|(?=[0-9a-f]*\d)[0-9a-f]{6,})\s*[\])]"
    r"|(?P<hash>\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{12,}\b)"
    r"|\b(?i:nonce|ref|trace|correlation|span)[-_ ]?(?i:id)?[\s:=#]+(?=[0-9a-f-]*\d)[0-9a-f-]{6,}\b"
    r"|\b(?:call|toolu|msg|chatcmpl|resp|req|run|fc|evt)[_-](?=[\w-]*\d)\w[\w-]{5,}"
    r'|"(?:tool_call_id|tool_use_id|call_id|message_?[iI]d|request_?[iI]d|trace_?[iI]d|span_?[iI]d|correlation_?[iI]d'
    r'|session_?[iI]d|context_?[iI]d|run_?[iI]d|nonce|idempotency_?[kK]ey|timestamp|ts)"\s*:\s*(?:"[^"]*"|[\d.]+))'
)
_KEY_BEFORE: Final = re.compile(r'"([^"\\{}\[\]]{1,64})"\s*:\s*(?:\[\s*)?"?$')
_WORD_BEFORE: Final = re.compile(r"([^\W\d_]+)(?:[-_ ]?(?i:id|no|number))?[\s:=]*$")
_BEFORE_CHARACTERS: Final = 80
_VALUE_ENDS: Final = ('"', ",", "}", "]", "")
PATH_BODY_MAX: Final = 48
"""Characters of a body that says little."""
_TIME_KEYS: Final = frozenset(("at", "time", "now", "sent", "created", "when", "timestampms", "epoch", "epochms"))
_TIME_ENDS: Final = ("_at", "At", "_ts", "Ts", "_time", "Time", "imestamp")
_ID_WORDS: Final = words_of(
    "trace ref reference request req message msg call correlation session run nonce span conversation thread"
)
"""An id behind one of these says which message it is, and nothing of what is asked."""
_DIGIT: Final = re.compile(r"\d")
_RPC_ID: Final = re.compile(r'"id"\s*:\s*(?:\d+|"[^"]*")')
_BLANKS: Final = re.compile(r"\s+")
_TOKEN: Final = re.compile(
    r'"([^"\\{}\[\]]{1,64})"\s*:\s*|(\d+(?:[.,]\d+)*)|([^\W\d_]+(?:[\'’][^\W\d_]+)?)|([<>=+/%&|^]+)'
)
_SENTENCE_ENDS: Final = ".!?:;\n\"'“([{-*>¿¡«"
_WRAPPERS: Final = frozenset(("kind", "role", "type", "jsonrpc", "method"))
GERMAN_MIN: Final = 2
"""With so many such words in it, a text is German."""
_UNDERWAY: Final = re.compile(
    r'\\?"(?:status|state|phase)\\?"\s*:\s*\\?"(?i:pending\w*|queued|in[_ -]?progress|in[_ -]?queue|submitted'
    r'|started|scheduled|accepted|init|not[_ -]?(?:ready|started|done|complete|finished)|[a-z]{3,}ing)\\?"'
    r'|"(?:is_?)?(?i:done|ready|completed?|finished|available|acquired)"\s*:\s*false\b'
    r'|"(?i:progress|percent|percentage|pct)"\s*:\s*(?:\d{1,2}|0?\.\d+|\d{1,2}\.\d+)\s*[,}]'
    r'|^\{?\s*"(?i:messages|events|jobs|notifications|updates)"\s*:\s*\[\s*\]\s*\}?$'
)
"""Of JSON. Nothing to take from a queue is nothing yet."""
_UNDERWAY_SAID: Final = re.compile(
    r"(?i:\bstill (?:being )?(?!wait|need|miss|lack|look|hop)[a-z]{2,}ing\b|\bin progress\b|\bnot (?:yet )?ready\b"
    r"|\bnot yet (?:done|finished|complete|available)\b|\bcheck (?:back |again )+(?:later|soon|in)\b"
    r"|\bcome back (?:later|in)\b)"
)
UNDERWAY_CHARACTERS_MAX: Final = 160
"""A longer text says more than that."""
_UNDERWAY_WORDS: Final = words_of("pending running queued processing progress")
COURTESY: Final = crc32(b"thank")
UNDERWAY_WORDS_MAX: Final = 4
IS_UNDERWAY: Final = 1
IS_COURTEOUS: Final = 2
PARTS_FROM: Final = 2
"""A body of so many words says what is asked for, whatever a number under `step` or `n` is."""
_ADDRESS: Final = (SILENT, COURTEOUS, SHORT)
_OF: Final = ("'s", "’s")
_NTH: Final = frozenset(("st", "nd", "rd", "th"))
_ESCAPED: Final = re.compile(r"\\\\?u(?![dD][89a-fA-F])([0-9a-fA-F]{4})")
_NOT_YET: Final = re.compile(
    r"(?i:\b(?:not yet|not ready|still (?:working|waiting|running|busy)|almost (?:done|ready))\b)"
)
NOT_YET_CHARACTERS_MAX: Final = 64

_NO: Final = re.compile(
    r"(?i:\b(?:do not|don't|does not|doesn't|did not|will not|won't|cannot|can't|could not|unable|"
    r"not found|no results|nothing found|"
    r"denied|failed|refused|error|sorry|what do you mean|clarif\w*|not clear|unclear|need more|more (?:details|"
    r"information))\b"
    r"|\bno (?:tengo|puedo|hay|dispongo|lo tengo)\b|\bne \w+ pas\b|\b(?:n'|n’)\w+ pas\b|\bkein\w*\b|\bnicht (?:vor|da|"
    r"möglich|verfügbar|gefunden|vorhanden)\b|\bnon (?:ho|posso|ce l)\b|\bнет\b|\bне могу\b|没有"
    r"|ありません|ございません)"
)

_MIX: Final = 0x9E3779B97F4A7C15
_MASK64: Final = (1 << 64) - 1
_LETTERS: Final = str.maketrans("0123456789", "ghijklmnop")
_SPREAD: Final[tuple[int, ...]] = tuple(sum((byte >> bit & 1) << (16 * bit) for bit in range(8)) for byte in range(256))
"""Each byte with its bits 16 apart, so that eight sums are one addition."""


class Features:
    """What one payload says."""

    __slots__ = ("exact", "is_courteous", "is_not_yet", "is_underway", "loose", "names", "text", "words")

    def __init__(self, exact: int, loose: int, words: list[int], names: list[int]) -> None:
        self.exact = exact
        """64 bits: equal for payloads that differ in ids, times and blanks alone."""
        self.loose = loose
        """The same, and counters are left out."""
        self.words = words
        """32-bit hashes of its words, without those that every text has."""
        self.names = names
        """Of its names and numbers."""
        self.is_underway = False
        """It says that what was asked for is still being done."""
        self.is_not_yet = False
        """It says that in other words, which are no sign by themselves: see `Workflow`."""
        self.is_courteous = False
        """There are thanks in it, or a greeting, or that somebody is sorry."""
        self.text = ""

    @property
    def says_no(self) -> bool:
        """It says that what was asked for cannot be done, or is not there."""
        return says_no(self.text)

    @property
    def likeness(self) -> int:
        """64-bit simhash of its words and names: alike payloads differ in few bits."""
        return simhash(self.words, self.names)


def says_no(text: str) -> bool:
    """Say whether a text says that something cannot be done, or is not there."""
    return _NO.search(text) is not None


def simhash(words: list[int], names: list[int]) -> int:
    """Return 64 bits of which alike sets of hashes have most in common."""
    sums = [0] * 8
    every = words + names
    for word in every:
        mixed = word * _MIX & _MASK64
        for at in range(8):
            sums[at] += _SPREAD[mixed >> (8 * at) & 0xFF]
    half = len(every) // 2
    found = 0
    for at in range(8):
        total = sums[at]
        for bit in range(8):
            if total >> (16 * bit) & 0xFFFF > half:
                found |= 1 << (8 * at + bit)
    return found


def digest(text: str) -> int:
    """Return 64 bits that are the same in every process, and that nobody can aim at."""
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def features_of(raw: bytes, *, is_answer: bool = True) -> Features:
    """Read a payload, or a sample of one. Never raises.

    Ids and times of an answer are left out. In what is asked, some say what it is about: see `_is_content`.
    """
    if raw[:1] == b"/":
        # A path stands before the body.
        path, _, body = raw.partition(b"\n")
        if (texts := texts_of(body)) is not None:
            raw = path + b"\n" + texts
    elif raw[:1] < b" " and (texts := texts_of(raw)) is not None:
        raw = texts
    text = raw.decode("utf-8", "replace")
    if "\\" in text:
        if "\\u" in text:
            text = _ESCAPED.sub(_unescaped, text)
        text = text.replace('\\"', '"').replace("\\n", "\n")
    if _DIGIT.search(text) is not None:
        text = _VOLATILE.sub(_left_out if is_answer else _told, text)
    if '"jsonrpc"' in text:
        text = _RPC_ID.sub("", text)
    text = _BLANKS.sub(" ", text).strip()
    words: list[int] = []
    names: list[int] = []
    tokens: list[str] = []
    told = _read(text, words, names, tokens, is_answer)
    exact_digest = digest(text)
    # Without what is spelled in many ways: case, blanks and most marks. A bare number is what it is.
    loose_digest = digest(" ".join(tokens)) if any(one[0].isalpha() for one in tokens) else exact_digest
    found = Features(exact_digest, loose_digest, words, names)
    found.is_underway = (
        told & IS_UNDERWAY != 0
        or _UNDERWAY.search(text) is not None
        or (len(text) <= UNDERWAY_CHARACTERS_MAX and _UNDERWAY_SAID.search(text) is not None)
    )
    found.is_not_yet = len(text) <= NOT_YET_CHARACTERS_MAX and _NOT_YET.search(text) is not None
    found.is_courteous = told & IS_COURTEOUS != 0
    found.text = text
    return found


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 16))


def _left_out(match: re.Match[str]) -> str:
    return "\x00"


def _told(match: re.Match[str]) -> str:
    """Return what stands for an id or a time in what is asked: a name of its own where it is content."""
    if match.lastgroup is None or not _is_content(match):
        return "\x00"
    letters = f"{crc32(match[0].encode()):08x}".translate(_LETTERS)
    return f" xQ{letters} "


def _is_content(match: re.Match[str]) -> bool:
    """Say whether an id or a time is what is asked about. One under a key of JSON is, unless the key says that it
    dates the message; a day is; an id in a text is where a noun stands before it that is none of a message's own."""
    begin = match.start()
    before = match.string[max(0, begin - _BEFORE_CHARACTERS) : begin]
    key = _KEY_BEFORE.search(before)
    if key is not None and match.string[match.end() : match.end() + 1] in _VALUE_ENDS:
        name = key[1].lower().replace("_", "").replace("-", "")
        return not key[1].endswith(_TIME_ENDS) and name not in _TIME_KEYS and name not in _ID_WORDS
    if match.lastgroup == "day":
        return True
    if match.lastgroup in ("time", "epoch"):
        return False
    if before[-1:] == "/":
        # In a path: it names what is called, unless the body says all that is asked.
        return len(match.string.partition("\n")[2]) <= PATH_BODY_MAX
    word = _WORD_BEFORE.search(before)
    return word is not None and word[1].lower() not in _ID_WORDS


def _read(text: str, words: list[int], names: list[int], tokens: list[str], is_answer: bool) -> int:
    """Sort the tokens of a text; return what else can be told of it."""
    key, key_end = "", -1
    before = ""
    before_kind = kind_before = CONTENT
    before_at = count = german = 0
    capitals: list[int] = []
    parts: list[tuple[int, int]] = []
    is_underway = is_courteous = False
    for match in _TOKEN.finditer(text):
        (begin, end), group = match.span(), match.lastindex
        if group == 1:
            key, key_end, before = match[1], end, ""
            tokens.append(key)
            continue
        if group == 4:
            _take_mark(match[4], names, tokens)
            continue
        if group == 2:
            is_value = key_end == begin or (key_end == begin - 1 and text[key_end] == '"' == text[end : end + 1])
            owner = key if is_value else ""
            if _take_number(match, owner, before, before_at, is_answer, names, tokens, parts):
                before = ""
            continue
        word = match[3]
        lower = word.lower()
        if begin and lower in _NTH and text[begin - 1].isdigit():
            continue
        kind, stem = look_up(lower)
        if _counts(kind, word, text, begin, end, before, before_at):
            tokens.append("#")
            continue
        tokens.append(lower)
        if key_end >= 0 and begin - key_end <= 1 and key in _WRAPPERS:
            continue
        before, before_at = lower, begin
        before_kind, kind_before = kind, before_kind
        count += 1
        is_underway = is_underway or lower in _UNDERWAY_WORDS
        if len(words) + len(names) + len(capitals) >= WORDS_MAX:
            continue
        if kind == GERMAN:
            german += 1
        elif kind == NUMERAL and kind_before == CONTENT and not is_answer and lower not in PRONOUNS:
            # Who asks for `belt two` names it; `two belts` is an amount.
            names.append(crc32(lower.encode()))
        elif word != lower and begin > 0 and _is_name(text, begin, word, kind, kind_before):
            capitals.append(crc32((lower[:-2] if lower[-2:] in _OF else lower).encode()))
        elif kind == COURTEOUS:
            is_courteous = True
        elif kind == UNSPACED:
            words.extend(characters(lower))
        elif stem:
            words.append(stem)
    (words if german >= GERMAN_MIN else names).extend(capitals)
    if is_courteous and not words and not names:
        words.append(COURTESY)  # All that is said is thanks, or that somebody is sorry.
    if parts and len(words) >= PARTS_FROM:
        _leave_out(parts, names, tokens)
    return (IS_UNDERWAY if is_underway and count <= UNDERWAY_WORDS_MAX else 0) | (IS_COURTEOUS if is_courteous else 0)


def _take_number(
    match: re.Match[str],
    owner: str,
    before: str,
    before_at: int,
    is_answer: bool,
    names: list[int],
    tokens: list[str],
    parts: list[tuple[int, int]],
) -> bool:
    """Take a number, under the key `owner` or behind the word `before`; return whether it is content."""
    text, number = match.string, match[2]
    begin, end = match.span()
    kind = of_key(owner) if owner else 0
    if (
        kind == COUNTS
        or (is_answer and kind == PART)
        or (not owner and is_counter(text, begin, end, before, before_at, is_answer))
    ):
        tokens.append("#")
        return False
    if len(names) < WORDS_MAX:
        if kind == PART:
            parts.append((len(names), len(tokens)))
        # `e4` is one name, and so is the number of a key; `at 31` and `remains 31` say the same.
        noun = owner or (before if begin and text[begin - 1].isalnum() else "")
        names.append(crc32(f"{noun}{number}".encode()))
    tokens.append(number)
    return True


def _counts(kind: int, word: str, text: str, begin: int, end: int, before: str, before_at: int) -> bool:
    """Say whether a word is a counter: `for the third time`, `Round II`."""
    if kind == ORDINAL:
        return is_nth(text, end)
    return (kind == NUMERAL or is_roman(word)) and is_numeral(text, begin, end, before, before_at)


def _take_mark(mark: str, names: list[int], tokens: list[str]) -> None:
    tokens.append(mark)
    if not _CONTENT_MARKS.isdisjoint(mark) and len(names) < WORDS_MAX:
        names.append(crc32(mark.encode()))


def _leave_out(parts: list[tuple[int, int]], names: list[int], tokens: list[str]) -> None:
    """Take numbers for counters that were read as names."""
    for name_at, token_at in reversed(parts):
        del names[name_at]
        tokens[token_at] = "#"


def _is_name(text: str, begin: int, word: str, kind: int, kind_before: int) -> bool:
    """Say whether a word with a capital is a name: it is where no sentence begins with it, nor what is said behind
    `Hello there,`."""
    if kind in (SILENT, COURTEOUS):
        return False
    if word[0] == "I" and (len(word) == 1 or word[1] in "'’"):
        return False
    if word[1:] != word[1:].lower() and (len(word) <= CAPITALS_MAX or word.upper() != word):
        return True
    at = begin - 1
    while at >= 0 and text[at] == " ":
        at -= 1
    if at >= 0 and text[at] == "," and kind_before in _ADDRESS:
        return False
    return at >= 0 and text[at] not in _SENTENCE_ENDS
