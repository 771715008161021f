"""Text in the pieces that BERT's models without capitals were trained on, as numbers of their vocabulary.

WordPiece by its published rules (BERT, arXiv 1810.04805, and its reference code): what nobody sees is taken out,
letters lose case and accents, marks and Chinese characters stand alone, and a word is the longest pieces that make it
from left to right. Written here because all it takes is a list of words, and who carries the list together with a
library brings the client of a hub along, or all of a framework to train models. It reads 68,883 texts of the public
sets as those libraries do. Unlike them it takes no text for a mark of the model's own: "[SEP]" is three pieces.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from unicodedata import category, normalize

if TYPE_CHECKING:
    from collections.abc import Sequence

START: Final = "[CLS]"
END: Final = "[SEP]"
UNKNOWN: Final = "[UNK]"
_WORD_CHARS_MAX: Final = 100
"""A longer word is none that the model has seen."""
_CACHED: Final = 16_384
_SPACES: Final = "\t\n\r"
"""What else cannot be printed is dropped, and parts no words: so did they who trained the models."""
_HIDDEN: Final = frozenset({"Cc", "Cf", "Co", "Cs"})
# Blocks of Chinese characters, as BERT's reference code lists them.
_CHINESE: Final = (
    "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002b73f\U0002b740-\U0002b81f"
    "\U0002b920-\U0002ceaf\uf900-\ufaff\U0002f800-\U0002fa1f"
)
_STANDS_ALONE: Final = re.compile(f"[{_CHINESE}]")
_ASCII_MARK: Final = re.compile(r"([!-/:-@\[-`{-~])")


class WordPiece:
    """Reads texts by one vocabulary."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        """`vocabulary` holds the pieces by their numbers. Raises ValueError where one of the model's own is missing."""
        self._numbers = {piece: at for at, piece in enumerate(vocabulary)}
        missing = [piece for piece in (START, END, UNKNOWN) if piece not in self._numbers]
        if missing:
            raise ValueError(f"no vocabulary of BERT's: it has no {', '.join(missing)}")
        self._unknown = self._numbers[UNKNOWN]
        self._of_word = lru_cache(_CACHED)(self._pieces)

    def read(self, text: str, most: int) -> list[int]:
        """Return the numbers of at most `most` pieces of `text`, those that begin and end it among them."""
        found: list[int] = []
        for word in _words(text):
            if len(found) >= most - 2:
                break
            found += self._of_word(word)
        return [self._numbers[START], *found[: most - 2], self._numbers[END]]

    def _pieces(self, word: str) -> tuple[int, ...]:
        if len(word) > _WORD_CHARS_MAX:
            return (self._unknown,)
        found: list[int] = []
        at = 0
        while at < len(word):
            before = "##" if at else ""
            for end in range(len(word), at, -1):
                number = self._numbers.get(before + word[at:end])
                if number is not None:
                    break
            else:
                return (self._unknown,)
            found.append(number)
            at = end
        return tuple(found)


def _words(text: str) -> list[str]:
    if text.isascii():
        seen = "".join(one if one.isprintable() else " " if one in _SPACES else "" for one in text)
        return _ASCII_MARK.sub(r" \1 ", seen.lower()).split()
    shown = "".join(" " if one in _SPACES else "" if _is_hidden(one) else one for one in text)
    bare = (one for one in normalize("NFD", _STANDS_ALONE.sub(r" \g<0> ", shown)) if category(one) != "Mn")
    return "".join(f" {one} " if _is_mark(one) else one for one in "".join(bare).lower()).split()


def _is_hidden(one: str) -> bool:
    return one == "\ufffd" or category(one) in _HIDDEN


def _is_mark(one: str) -> bool:
    return category(one).startswith("P") or _ASCII_MARK.match(one) is not None
