"""Where a long text may be cut without changing its count.

A text is counted in pieces: one run of a megabyte that the tokenizer takes for a single word panics it, or keeps it
busy for minutes. But a cut anywhere is no bound. Byte pair encoding merges greedily, so a word cut in two may well have
*fewer* tokens than the whole: `dannr` has three in cl100k_base, `dan` and `nr` have one each.

So a text is cut only between two words, where the count of the pieces is that of the whole, exactly. Both
vocabularies split a text into words by a pattern first, and no word of either has

    a letter or digit, and then a blank, a line's end, punctuation or a bracket (all but the apostrophe of `it's`)
    a letter and then a digit, or a digit and then a letter

since letters follow nothing but one character that is neither letter, digit nor line's end, and digits nothing at all.
Only characters are considered here whose class no two versions of Unicode disagree about.

Where there is no such place for long, the stretch up to the next one is not counted but taken at its bytes: each of
its tokens covers at least one, and its ends are ends of words.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE_MIN: Final = 2_048
PIECE_MAX: Final = 4_096
"""Characters of a piece: a cut is looked for between the two. What has none is up to four bytes each of one word."""

_LETTER: Final = "A-Za-z\u0410-\u042f\u0430-\u044f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
_AFTER: Final = r" \n\r\t!\"#$%&()*+,\-./:;<=>?@\[\\\]^_`{|}~\u3001\u3002\uff0c\uff01\uff1f\uff1a\uff1b\uff08\uff09"
_SAFE: Final = re.compile(f"(?<=[{_LETTER}0-9])(?=[{_AFTER}])|(?<=[{_LETTER}])(?=[0-9])|(?<=[0-9])(?=[{_LETTER}])")


class Piece(NamedTuple):
    """A part of a text."""

    text: str
    is_countable: bool
    """False where it may be one word: its bytes stand for its tokens."""


def pieces_of(text: str, *, least: int = PIECE_MIN, most: int = PIECE_MAX) -> Iterator[Piece]:
    """Cut a text into pieces of `least` to `most` characters whose counts add up to its own."""
    at, size = 0, len(text)
    while size - at > most:
        found = _SAFE.search(text, at + least, at + most)
        if found is None:
            found = _SAFE.search(text, at + most)
            end = found.start() if found is not None else size
            yield Piece(text[at:end], False)
        else:
            end = found.start()
            yield Piece(text[at:end], True)
        at = end
    if at < size:
        yield Piece(text[at:], True)
