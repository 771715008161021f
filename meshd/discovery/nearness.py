"""How near two short texts are, by the pieces of their words: what a slip of the pen leaves standing.

Each word becomes its pieces of three letters, with its beginning and its end, and itself; each of these falls into
one of some thousands of places by a hash, so that a text costs what it is long, whatever words there are.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from math import sqrt
from typing import TYPE_CHECKING, Final, Generic, TypeVar
from zlib import crc32

from meshd.discovery.words import terms

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

K = TypeVar("K", bound="Hashable")
Pieces = dict[int, float]
"""Of one text, of length 1: places and how much stands in each."""

PLACES: Final = 1 << 14
WORDS_MAX: Final = 48
"""Of a text: what it is about stands at its beginning."""
_NOTHING: Final = (0.0, "")
_WHOLE: Final = 2.0
"""What a whole word counts beside one of its pieces."""


def pieces(text: str) -> Pieces:
    """Return the pieces of `text`; empty where it has no word that says something."""
    found: defaultdict[int, float] = defaultdict(float)
    for word in terms(text)[:WORDS_MAX]:
        for place, value in _places(word):
            found[place] += value
    length = sqrt(sum(value * value for value in found.values()))
    return {place: value / length for place, value in found.items()} if length else {}


def nearness(one: Pieces, two: Pieces) -> float:
    """Return how near they are: 0 to 1."""
    if len(one) > len(two):
        one, two = two, one
    return sum(value * two.get(place, 0.0) for place, value in one.items())


class Near(Generic[K]):
    """Texts of several owners, and how near the nearest of each is to another text."""

    __slots__ = ("_counts", "_postings", "_texts")

    def __init__(self) -> None:
        self._texts: list[tuple[K, str]] = []
        self._counts: dict[K, int] = {}
        self._postings: dict[int, list[tuple[int, float]]] = {}

    def put(self, owner: K, texts: Iterable[str]) -> None:
        """Add texts of an owner; those that say nothing, and those that were added, are passed over."""
        for text in dict.fromkeys(texts):
            held = pieces(text)
            if not held:
                continue
            at = len(self._texts)
            self._texts.append((owner, text))
            self._counts[owner] = self._counts.get(owner, 0) + 1
            for place, value in held.items():
                self._postings.setdefault(place, []).append((at, value))

    def nearest(self, asked: Pieces) -> dict[K, tuple[float, str]]:
        """Return of each owner that has a piece of `asked` how near its nearest text is, and that text."""
        sums: dict[int, float] = {}
        for place, value in asked.items():
            for at, weight in self._postings.get(place, ()):
                sums[at] = sums.get(at, 0.0) + value * weight
        found: dict[K, tuple[float, str]] = {}
        for at, near in sums.items():
            owner, text = self._texts[at]
            if near > found.get(owner, _NOTHING)[0]:
                found[owner] = min(near, 1.0), text
        return found

    def count(self, owner: K) -> int:
        """Return how many texts of an owner there are."""
        return self._counts.get(owner, 0)


@lru_cache(16_384)
def _places(word: str) -> tuple[tuple[int, float], ...]:
    """Return where a word falls, and how much of it: its pieces together count as the word does."""
    framed = f"<{word}>"
    own = [framed[at : at + 3] for at in range(len(framed) - 2)]
    return (*((_place(piece), 1 / sqrt(len(own))) for piece in own), (_place(framed), _WHOLE / sqrt(2)))


def _place(piece: str) -> int:
    return crc32(piece.encode("utf-8", "surrogatepass")) % PLACES
