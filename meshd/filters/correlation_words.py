"""Words of inbound calls, and whether a request quotes them: the task that came in stands in the prompt that goes out.

A request is searched for the words of hundreds of calls in one pass: each piece of text is filed under the rarest of
the words within it, and only those whose word stands in the request are compared with it.
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
WHOLE_CHARACTERS_MIN: Final = 8
"""Of a text that must be the whole of a message to count."""
WHOLE_CHARACTERS_MAX: Final = 4096
LINE_CHARACTERS_MAX: Final = 160
"""A longer line is filed sentence by sentence, since agents cut what they quote."""
PIECES_MAX: Final = 64
"""Of one call."""
BARE_MAX: Final = 64
"""Pieces in which there is no word to file them under."""

_STRING: Final = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)(?:"|\Z)(\s*:)?', re.DOTALL)
_SENTENCE: Final = re.compile(r"(?<=[.!?;])\s+")
_RUN: Final = re.compile(rb"[\t\n\r\x20-\x7e\x80-\xf4]{24,}")
_FORM: Final = re.compile(rb"[A-Za-z0-9_.%+\[\]-]{1,64}=")
_NAME: Final = re.compile(rb"[0-9A-Za-z_-]{12,}")
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
            if len(line) >= PIECE_CHARACTERS_MIN:
                yield line
        else:
            for sentence in _SENTENCE.split(line):
                if len(sentence) >= PIECE_CHARACTERS_MIN:
                    yield sentence


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


class Words:
    """The words of all calls that are kept."""

    __slots__ = ("_bare", "_filed", "_named", "_owners", "_wholes")

    def __init__(self) -> None:
        self._owners: dict[bytes, list[Live]] = {}
        """Of each piece: the calls in which it came."""
        self._filed: dict[bytes, list[bytes]] = {}
        """Pieces by a word that stands between blanks in them."""
        self._named: dict[bytes, list[bytes]] = {}
        """Those without one, by something like a name: ids, addresses."""
        self._bare: dict[bytes, None] = {}
        self._wholes: dict[bytes, list[Live]] = {}
        """Texts that count where they are a whole message, as JSON."""

    def __len__(self) -> int:
        return len(self._owners) + len(self._wholes)

    def add(self, live: Live, text: str) -> None:
        """File a text of a call."""
        whole = text.strip()
        if WHOLE_CHARACTERS_MIN <= len(whole) <= WHOLE_CHARACTERS_MAX and len(live.wholes) < PIECES_MAX:
            raw = b'"' + spelled(whole) + b'"'
            owners = self._wholes.setdefault(raw, [])
            if live not in owners:
                owners.append(live)
                live.wholes.append(raw)
        for piece in pieces_of(text):
            raw = spelled(piece)
            if not raw or len(live.leaves) >= PIECES_MAX:
                continue
            owners = self._owners.setdefault(raw, [])
            if live not in owners:
                owners.append(live)
                live.leaves.append(raw)
                if len(owners) == 1:
                    self._file(raw)

    def _file(self, piece: bytes) -> None:
        inner = piece.split()[1:-1]
        if inner:
            filed = self._filed
            word = min(inner, key=lambda each: (len(filed.get(each, ())), -len(each)))
            filed.setdefault(word, []).append(piece)
            return
        names = _NAME.findall(piece)
        if names:
            self._named.setdefault(max(names, key=len), []).append(piece)
            return
        if len(self._bare) >= BARE_MAX:
            del self._bare[next(iter(self._bare))]
        self._bare[piece] = None

    def drop(self, live: Live) -> None:
        """Forget the words of a call."""
        for raw in live.wholes:
            _leave(self._wholes, raw, live)
        for raw in live.leaves:
            if _leave(self._owners, raw, live):
                self._bare.pop(raw, None)
                inner = raw.split()[1:-1]
                for table, words in ((self._filed, inner), (self._named, _NAME.findall(raw))):
                    for word in words:
                        filed = table.get(word)
                        if filed is not None and raw in filed:
                            filed.remove(raw)
                            if not filed:
                                del table[word]
        live.leaves, live.wholes = [], []

    def quoted(self, body: bytes, wholes: list[bytes]) -> set[Live]:
        """Return the calls whose words a request quotes: those that alone have some of them, else those that share."""
        found: list[bytes] = []
        if self._owners:
            body = normal(body)
            self._find(body, found)
        owners = [self._owners[piece] for piece in _longest(found)]
        if self._wholes:
            for raw in wholes:
                one = self._wholes.get(normal(raw))
                if one is not None:
                    owners.append(one)
        return _combined(owners)

    def _find(self, body: bytes, found: list[bytes]) -> None:
        words = frozenset(body.split())
        for word in self._filed.keys() & words:
            found += [piece for piece in self._filed[word] if stands_in(piece, body)]
        if self._named:
            names = frozenset(_NAME.findall(body))
            for name in self._named.keys() & names:
                found += [piece for piece in self._named[name] if stands_in(piece, body)]
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
