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

from meshd.turns.protobuf import texts_of

_CONTENT_MARKS: Final = frozenset("<>+|^")
"""Two texts that differ in one of these say two things."""
UNSPACED_FROM: Final = 0x2E80
CAPITALS_MAX: Final = 5
"""A longer word of capitals alone is no abbreviation, but said aloud."""
CHARACTERS_MAX: Final = 64
WORDS_MAX: Final = 255
"""Of one payload that are looked at."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_VOLATILE: Final = re.compile(
    r"(?P<id>[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12})"
    r"|(?P<time>\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)"
    r"|(?P<day>\d{4}-\d\d-\d\d)"
    r"|\b\d\d:\d\d:\d\d(?:[.,]\d+)?\b"
    r"|\b(?i:as of|it is now)\s+\d?\d:\d\d\b"
    r"|(?P<epoch>\b1[4-9]\d{8}(?:\d{3}|\d{6}|\d{9})?(?:\.\d+)?\b)"
    r"|\b\d+(?:\.\d+)?\s?(?:ms|msecs?|milliseconds|us|µs)\b"
    r"|\b(?:took|elapsed)\s+\d+(?:\.\d+)?\s?(?:s|secs?|seconds)\b"
    r"|[\[(]\s*(?:\d+\s*(?:/|of)\s*\d+|(?=[0-9a-f]*\d)[0-9a-f]{6,})\s*[\])]"
    r"|(?P<hash>\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{12,}\b)"
    r"|\b(?:call|toolu|msg|chatcmpl|resp|req|run|fc|evt)[_-](?=[\w-]*\d)\w[\w-]{5,}"
    r'|"(?:tool_call_id|tool_use_id|call_id|message_?[iI]d|request_?[iI]d|trace_?[iI]d|span_?[iI]d|correlation_?[iI]d'
    r'|session_?[iI]d|run_?[iI]d|nonce|idempotency_?[kK]ey|timestamp|ts)"\s*:\s*(?:"[^"]*"|[\d.]+)'
)
_KEY_BEFORE: Final = re.compile(r'"([^"\\{}\[\]]{1,64})"\s*:\s*(?:\[\s*)?"?$')
_WORD_BEFORE: Final = re.compile(r"([^\W\d_]+)[\s:=]*$")
_BEFORE_CHARACTERS: Final = 80
_VALUE_ENDS: Final = ('"', ",", "}", "]", "")
PATH_BODY_MAX: Final = 48
"""Characters of a body that says little."""
_TIME_KEYS: Final = frozenset(("at", "time", "now", "sent", "sent_at", "created", "created_at", "updated_at", "when"))
_ID_WORDS: Final = _words(
    "trace ref reference request req message msg call correlation session run nonce span conversation thread"
)
"""An id behind one of these says which message it is, and nothing of what is asked."""
_DIGIT: Final = re.compile(r"\d")
_RPC_ID: Final = re.compile(r'"id"\s*:\s*(?:\d+|"[^"]*")')
_BLANKS: Final = re.compile(r"\s+")
_TOKEN: Final = re.compile(
    r'"([^"\\{}\[\]]{1,64})"\s*:\s*|(\d+(?:[.,]\d+)*)|([^\W\d_]+(?:[\'’][^\W\d_]+)?)|([<>=+/%&|^]+)'
)
_SENTENCE_ENDS: Final = ".!?:;\n\"'“([{-*>"
_COUNTERS: Final = _words(
    "attempt attempts try tries retry retries round rounds iteration iterations iter seq sequence counter nonce "
    "version v rev ref revision ping cycle loop reminder again followup draft"
)
_PARTS: Final = _words("turn turns n message msg time times nr number no step call request")
"""What is counted here and is content there: `Step 4: ...` against `execute step 4`."""
_KEY_COUNTERS: Final = _words(
    "attempt attempts try tries retry retries round rounds turn iteration iterations iter seq sequence counter nonce "
    "cycle loop"
)
"""Keys of JSON: a number under another one is content."""
_STOP_ELSEWHERE: Final = _words(
    "bitte sie was mit der die das dem den des ist sind und oder ich wir ihr nicht ein eine einen welche welchen "
    "welcher könnten können soll sollen sagen genau für von zum zur auf "
    "les des une est sont pas vous nous dans pour que qui quelle quel quelles merci plaît dois faut pourriez "
    "los las una por favor que con para del como cual cuál puede podría son"
)
_COURTESY: Final = _words(
    "thank thanks welcome glad happy pleasure sorry lot much appreciate appreciated grateful hello hi regards cheers "
    "apologise apologize apologies apologising apologizing confusion excuse pardon help helping helped"
)
_WRAPPERS: Final = frozenset(("kind", "role", "type", "jsonrpc", "method"))
_STOP: Final = _words(
    "the and for that this with you your are was were will would could should can may might shall have has had not but "
    "from they them their there here what when where which who whom how why its our out any all some more most than "
    "then into onto over under about again please kindly just also too very now well yes let get got need want like "
    "one two once still really maybe perhaps first before after being been does did doing done each such only own "
    "same both few other nor off down up tell told know sure able exactly "
    "needs wants asks precisely mean means meant say says said give given provide start begin you're here's it's i'm "
    "i'll we'll you'll don't can't"
)
_GERMAN: Final = _words(
    "der das und ist nicht ein eine einen einer mit bitte welche welcher welches welchen soll sollen können könnten "
    "würden sie wir ich für die den dem des du mir mich dir"
)
"""With two of them in it, a text is German: there nouns have capitals, and so capitals do not mark names."""
GERMAN_MIN: Final = 2
_STOP_CHARACTERS: Final = frozenset("请您你我的了吗呢吧一下谢在是把和")
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
_UNDERWAY_WORDS: Final = _words("pending running queued processing progress")
COURTESY: Final = crc32(b"thank")
UNDERWAY_WORDS_MAX: Final = 4
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

    __slots__ = ("exact", "is_not_yet", "is_underway", "loose", "names", "text", "words")

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
        text = text.replace('\\"', '"').replace("\\n", "\n")
    if _DIGIT.search(text) is not None:
        text = _VOLATILE.sub(_left_out if is_answer else _told, text)
    if '"jsonrpc"' in text:
        text = _RPC_ID.sub("", text)
    text = _BLANKS.sub(" ", text).strip()
    words: list[int] = []
    names: list[int] = []
    tokens: list[str] = []
    is_underway = _read(text, words, names, tokens, is_answer)
    exact_digest = digest(text)
    # Without what is spelled in many ways: case, blanks and most marks. A bare number is what it is.
    loose_digest = digest(" ".join(tokens)) if any(one[0].isalpha() for one in tokens) else exact_digest
    found = Features(exact_digest, loose_digest, words, names)
    found.is_underway = (
        is_underway
        or _UNDERWAY.search(text) is not None
        or (len(text) <= UNDERWAY_CHARACTERS_MAX and _UNDERWAY_SAID.search(text) is not None)
    )
    found.is_not_yet = len(text) <= NOT_YET_CHARACTERS_MAX and _NOT_YET.search(text) is not None
    found.text = text
    return found


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
        name = key[1].lower()
        return name not in _TIME_KEYS and name not in _ID_WORDS
    if match.lastgroup == "day":
        return True
    if match.lastgroup in ("time", "epoch"):
        return False
    if before[-1:] == "/":
        # In a path: it names what is called, unless the body says all that is asked.
        return len(match.string.partition("\n")[2]) <= PATH_BODY_MAX
    word = _WORD_BEFORE.search(before)
    return word is not None and word[1].lower() not in _ID_WORDS


def _read(text: str, words: list[int], names: list[int], tokens: list[str], is_answer: bool) -> bool:
    """Sort the tokens of a text; return whether all that it says is that something is under way."""
    key = ""
    key_end = -1
    before = ""
    count = german = 0
    capitals: list[int] = []
    is_underway = is_courteous = False
    for match in _TOKEN.finditer(text):
        begin, end = match.span()
        group = match.lastindex
        if group == 1:
            key, key_end = match[1], end
            before = ""
            tokens.append(key)
            continue
        if group == 4:
            tokens.append(match[4])
            if not _CONTENT_MARKS.isdisjoint(match[4]) and len(names) < WORDS_MAX:
                names.append(crc32(match[4].encode()))
            continue
        if group == 2:
            if _is_counter(text, begin, end, before, key if key_end == begin else "", is_answer):
                tokens.append("#")
                continue
            tokens.append(match[2])
            if len(names) < WORDS_MAX:
                # `e4` is one name, and so is the number of a key; `at 31` and `remains 31` say the same.
                owner = key if key_end == begin else before if begin and text[begin - 1].isalnum() else ""
                names.append(crc32(f"{owner}{match[2]}".encode()))
            before = ""
            continue
        word = match[3]
        lower = word.lower()
        tokens.append(lower)
        if key_end >= 0 and begin - key_end <= 1 and key in _WRAPPERS:
            continue
        before = lower
        count += 1
        if lower in _UNDERWAY_WORDS:
            is_underway = True
        if len(words) + len(names) + len(capitals) >= WORDS_MAX:
            continue
        if lower in _GERMAN:
            german += 1
            continue
        if word != lower and begin > 0 and _is_name(text, begin, word):
            capitals.append(crc32(lower.encode()))
        elif lower in _COURTESY:
            is_courteous = True
        elif lower not in _STOP_ELSEWHERE:
            _add(lower, words)
    (words if german >= GERMAN_MIN else names).extend(capitals)
    if is_courteous and not words and not names:
        # All that is said is thanks, or that somebody is sorry.
        words.append(COURTESY)
    return is_underway and count <= UNDERWAY_WORDS_MAX


def _add(word: str, words: list[int]) -> None:
    """Add what a word says, if it says anything."""
    if ord(word[0]) >= UNSPACED_FROM:
        # Scripts that put no blanks between words: their characters stand for words.
        words.extend([crc32(one.encode()) for one in word[:CHARACTERS_MAX] if one not in _STOP_CHARACTERS])
    elif len(word) > 2 and word not in _STOP:
        words.append(crc32(_stem(word).encode()))
    elif not word.isascii():
        words.append(crc32(word.encode()))


def _is_counter(text: str, begin: int, end: int, before: str, key: str, is_answer: bool) -> bool:
    if key:
        return key.lower() in _KEY_COUNTERS
    if before in _COUNTERS:
        return True
    if before in _PARTS and text[begin - 1] == " ":
        return is_answer or _is_place(text, begin - len(before) - 1, end)
    if begin == 0:
        return end == len(text)
    last = text[begin - 1]
    follows = text[end] if end < len(text) else ""
    if last == "#" or (last in "([" and follows in ")]"):
        return True
    is_end = follows in ("", '"') or (follows in ".!?)]" and text[end + 1 : end + 2] in ("", '"', " "))
    if last == " " and begin > 1:
        if text[begin - 2] in ".!?,;)–—-":
            return is_end
        # `..., event 17`: a noun behind a comma, and nothing behind the number.
        return is_end and bool(before) and text[begin - len(before) - 3 : begin - len(before) - 1] == ", "
    if not is_end or last not in "-~" or not before or not text[begin - 2].islower():
        return False
    # `clarify the plan-3`, and not `web-3` alone, which is a name.
    return text[begin - len(before) - 2 : begin - len(before) - 1] == " "


def _is_place(text: str, word: int, end: int) -> bool:
    """Say whether a word and its number say where in the talk a message stands: in brackets, before a colon at the
    beginning, behind a sentence at the end."""
    follows = text[end] if end < len(text) else ""
    if word == 0 or text[word - 1] in '"\n':
        return follows in ":.)-–,"
    last = text[word - 1]
    if last in "([":
        return follows in ")]"
    return last == " " and text[word - 2] in ".!?,;)–—-" and follows in ("", '"', ".", "!")


def _is_name(text: str, begin: int, word: str) -> bool:
    """Say whether a word with a capital is a name: it is where no sentence begins with it."""
    if word[0] == "I" and (len(word) == 1 or word[1] in "'’"):
        return False
    if word[1:] != word[1:].lower() and (len(word) <= CAPITALS_MAX or word.upper() != word):
        return True
    at = begin - 1
    while at >= 0 and text[at] == " ":
        at -= 1
    return at >= 0 and text[at] not in _SENTENCE_ENDS


def _stem(word: str) -> str:
    """Return what words of one family have in common: rough, and the same for all of them."""
    if word[1:2] in ("'", "’") and len(word) > 4:
        # An article or a pronoun, as in `l'envoyer`.
        word = word[2:]
    if word[-2:] in ("'s", "’s"):
        word = word[:-2]
    if len(word) > 6:
        return word[:6]
    return word[:-1] if word[-1] == "s" and len(word) > 3 else word.rstrip("e")
