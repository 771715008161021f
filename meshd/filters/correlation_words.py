"""Words of inbound calls, and whether a request quotes them: the task that came in stands in the prompt that goes out.

A request is searched for the words of hundreds of calls in one pass: each piece of text is filed under the rarest of
the words in it, and only those whose word stands in the request are compared with it. Long pieces count first; short
ones, and names with a digit in them, only choose among what those leave, or where there are none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.filters.correlation_calls import Live

PIECE_CHARACTERS_MIN: Final = 24
SHORT_CHARACTERS_MIN: Final = 12
"""Of a piece of at least two words."""
NAME_CHARACTERS_MIN: Final = 8
"""Of one word with letters and digits, such as an order's number."""
WHOLE_CHARACTERS_MIN: Final = 8
"""Of a text that must be the whole of a message to count."""
WHOLE_CHARACTERS_MAX: Final = 4096
LINE_CHARACTERS_MAX: Final = 160
"""A longer line is filed sentence by sentence, since agents cut what they quote."""
PIECES_MAX: Final = 128
"""Of one call."""
BROUGHT_BYTES_MAX: Final = 65_536
"""Of one call: a piece may be as long as an answer in one line, and each answer brings more."""
BARE_MAX: Final = 64
"""Pieces in which there is no word to file them under."""

_STRING: Final = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)(?:"|\Z)(\s*:)?', re.DOTALL)
_SENTENCE: Final = re.compile(r"(?<=[.!?;])\s+")
_RUN: Final = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xf4]{24,}")
_FORM: Final = re.compile(rb"[A-Za-z0-9_.%+\[\]-]{1,64}=")
_NAME: Final = re.compile(r"(?=\S*\d)(?=\S*[A-Za-z])[0-9A-Za-z_./:#@-]+\Z")
_BLANKS: Final = bytes(byte if byte >= 0x80 or chr(byte).isalnum() or chr(byte) == "_" else 0x20 for byte in range(256))
"""Leaves nothing but words and blanks."""
_DEPTH_MAX: Final = 3
_BACKSLASH: Final = 0x5C
_NONSENSE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def texts_in(body: bytes, depth: int = 0) -> Iterator[str]:
    """Yield the texts of a body, of which the end may be missing: JSON's strings, a form's values, or itself."""
    head = body.lstrip()[:1]
    if head in (b"{", b"["):
        for match in _STRING.finditer(body):
            text = _decoded(match[1]) if match[2] is None else ""
            if text[:1] in ("{", "[") and depth < _DEPTH_MAX:
                yield from texts_in(text.encode("utf-8", "replace"), depth + 1)
            elif text:
                yield text
    elif _FORM.match(body):
        for _, text in parse_qsl(body.decode("utf-8", "replace")):
            yield text
    else:
        # Plain text, or a message of another encoding in which texts stand as they are, as in protobuf.
        for run in _RUN.findall(body):
            yield run.decode("utf-8", "ignore")


def _decoded(raw: bytes) -> str:
    try:
        text: str = msgspec.json.decode(b'"' + raw + b'"', type=str)
    except _NONSENSE:
        return ""
    return text


def pieces_of(text: str) -> Iterator[str]:
    """Yield the lines of a text, of long lines the sentences; those that are long enough to mean something."""
    for line in text.splitlines():
        line = line.strip()
        if len(line) <= LINE_CHARACTERS_MAX:
            if _means_something(line):
                yield line
        else:
            yield from filter(_means_something, _SENTENCE.split(line))


def _means_something(piece: str) -> bool:
    size = len(piece)
    if size >= PIECE_CHARACTERS_MIN:
        return True
    if " " in piece:
        return size >= SHORT_CHARACTERS_MIN
    return size >= NAME_CHARACTERS_MIN and _NAME.match(piece) is not None


def spelled(text: str) -> bytes:
    """Return a text as it stands between the quotes of compact JSON."""
    try:
        return msgspec.json.encode(text)[1:-1]
    except UnicodeEncodeError:
        return b""


def normal(body: bytes) -> bytes:
    """Return a body with its texts spelled as `spelled` does."""
    if b"\\u" not in body and b"\\/" not in body:
        return body
    try:
        return msgspec.json.encode(msgspec.json.decode(body))
    except _NONSENSE:
        return body


def words_of(data: bytes) -> list[bytes]:
    """Return the words of a text that is spelled as in JSON."""
    return data.replace(b"\\n", b"  ").translate(_BLANKS).split()


class Words:
    """The words of all calls that are kept."""

    __slots__ = ("_bare", "_filed", "_of", "_owners", "_sizes", "_wholes")

    def __init__(self) -> None:
        self._of: dict[Live, list[bytes]] = {}
        """The other way round: what each call brought."""
        self._sizes: dict[Live, int] = {}
        """Bytes of that."""
        self._owners: dict[bytes, list[Live]] = {}
        """Of each piece: the calls in which it came."""
        self._filed: dict[bytes, list[bytes]] = {}
        """Pieces by a word in them."""
        self._bare: dict[bytes, None] = {}
        """Pieces of scripts that put no blanks between words."""
        self._wholes: dict[bytes, list[Live]] = {}
        """Texts that count where they are a whole message, as JSON."""

    def __len__(self) -> int:
        return len(self._owners) + len(self._wholes)

    def add(self, live: Live, text: str) -> None:
        """File a text of a call."""
        whole = text.strip()
        brought = self._of.setdefault(live, [])
        if WHOLE_CHARACTERS_MIN <= len(whole) <= WHOLE_CHARACTERS_MAX:
            raw = b'"' + spelled(whole) + b'"'
            if self._has_room(live, raw, brought):
                self._bring(live, raw, brought, self._wholes.setdefault(raw, []))
        for piece in pieces_of(text):
            raw = spelled(piece)
            if not raw or not self._has_room(live, raw, brought):
                continue
            owners = self._owners.setdefault(raw, [])
            if self._bring(live, raw, brought, owners) and len(owners) == 1:
                self._file(raw)

    def _has_room(self, live: Live, raw: bytes, brought: list[bytes]) -> bool:
        return len(brought) < PIECES_MAX and self._sizes.get(live, 0) + len(raw) <= BROUGHT_BYTES_MAX

    def _bring(self, live: Live, raw: bytes, brought: list[bytes], owners: list[Live]) -> bool:
        """Note that a call brought this; return whether it had not before."""
        if live in owners:
            return False
        owners.append(live)
        brought.append(raw)
        self._sizes[live] = self._sizes.get(live, 0) + len(raw)
        return True

    def _file(self, piece: bytes) -> None:
        words = [word for word in words_of(piece) if word.isascii()]
        if words:
            filed = self._filed
            rarest = min(words, key=lambda each: (len(filed.get(each, ())), -len(each)))
            filed.setdefault(rarest, []).append(piece)
            return
        if len(self._bare) >= BARE_MAX:
            del self._bare[next(iter(self._bare))]
        self._bare[piece] = None

    def drop(self, live: Live) -> None:
        """Forget the words of a call."""
        self._sizes.pop(live, None)
        for raw in self._of.pop(live, ()):
            # A whole begins with a quote, which stands in no piece without a backslash before it.
            if raw[:1] == b'"':
                _leave(self._wholes, raw, live)
            elif _leave(self._owners, raw, live):
                self._bare.pop(raw, None)
                for word in words_of(raw):
                    filed = self._filed.get(word)
                    if filed is not None and raw in filed:
                        filed.remove(raw)
                        if not filed:
                            del self._filed[word]

    def quoted(self, body: bytes, wholes: list[bytes]) -> set[Live]:
        """Return the calls whose words a request quotes: those that alone have some of them, else those that share."""
        found: list[bytes] = []
        if self._owners:
            body = normal(body)
            self._find(body, found)
        long: list[list[Live]] = []
        short: list[list[Live]] = []
        for piece in _longest(found):
            (long if len(piece) >= PIECE_CHARACTERS_MIN else short).append(self._owners[piece])
        if self._wholes:
            for raw in wholes:
                one = self._wholes.get(normal(raw))
                if one is not None:
                    long.append(one)
        by_long, by_short = _combined(long), _combined(short)
        if len(by_long) == 1 or not by_short:
            return by_long
        return (by_long & by_short) or by_long or by_short

    def _find(self, body: bytes, found: list[bytes]) -> None:
        filed = self._filed
        for word in filed.keys() & frozenset(words_of(body)):
            found += [piece for piece in filed[word] if stands_in(piece, body)]
        found += [piece for piece in self._bare if piece in body]


def _leave(table: dict[bytes, list[Live]], raw: bytes, live: Live) -> bool:
    """Take a call off a piece; return whether it was the last."""
    owners = table.get(raw)
    if owners is None or live not in owners:
        return False
    owners.remove(live)
    if owners:
        return False
    del table[raw]
    return True


def stands_in(piece: bytes, body: bytes) -> bool:
    """Say whether a piece stands in a body as words of its own: `topic 1` does not stand in `topic 12`."""
    at = body.find(piece)
    for _ in range(8):
        if at < 0:
            return False
        end = at + len(piece)
        is_begun = at == 0 or not _is_word(body[at - 1]) or (at > 1 and body[at - 2] == _BACKSLASH)
        if is_begun and (end >= len(body) or not _is_word(body[end])):
            return True
        at = body.find(piece, at + 1)
    return False


def _is_word(byte: int) -> bool:
    return 48 <= byte <= 57 or 65 <= byte <= 90 or 97 <= byte <= 122 or byte == 95


def _longest(found: list[bytes]) -> list[bytes]:
    """Return the pieces that are no part of another: `the report` says nothing where `the report of May` is quoted."""
    kept: list[bytes] = []
    for piece in sorted(found, key=len, reverse=True):
        if not any(piece in longer for longer in kept):
            kept.append(piece)
    return kept


def _combined(owners: list[list[Live]]) -> set[Live]:
    alone: set[Live] = set()
    shared: set[Live] | None = None
    for each in owners:
        # A text that came again: of those who brought it, the ones that are done need it no more.
        some = [live for live in each if live.is_live] or each
        if len(some) == 1:
            alone.add(some[0])
        else:
            both = set(some) if shared is None else shared & set(some)
            shared = both or set(some)
    return alone or shared or set()
