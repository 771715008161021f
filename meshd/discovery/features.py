"""What of a sentence tells what it asks for: its words, pairs of them, what they mean nearly, and pieces of them."""

from __future__ import annotations

import re
from collections import Counter
from math import log, sqrt
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.discovery.linear import fixed
from meshd.discovery.senses import summed
from meshd.discovery.thesaurus import groups, lemmas
from meshd.discovery.words import clean

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from meshd.discovery.linear import Row

WORDS_MAX: Final = 64
"""Of a sentence, what is read: what somebody asks for stands at its beginning, and a query costs what it is long."""
_WORD: Final = re.compile(r"[^\W_]+")
_PAIR_REACH: Final = 2
_WORD_CHARS_MAX: Final = 24


class Kind(NamedTuple):
    """One kind of feature."""

    share: float
    """Of the whole, which has length 1."""
    texts_min: int
    """In how many of the texts that are learned from it must stand, where they are many."""


KINDS: Final = {
    "word": Kind(0.20, 1),
    "form": Kind(0.10, 1),
    "pair": Kind(0.15, 2),
    "group": Kind(0.15, 1),
    "piece": Kind(0.40, 2),
}
"""How much of each was chosen on draws of examples; that all are there matters more than how much."""

_MANY: Final = 1024
"""Of more texts, what stands in one alone is left out: half the features, half the time and memory, and no worse."""

Feature = tuple[str, str]


class Sentence(NamedTuple):
    """One text, taken apart."""

    words: list[str]
    """Stems in their order."""
    features: dict[str, list[str]]


def sentence(text: str) -> Sentence:
    """Take `text` apart. Never raises; a text without words has no features."""
    read = clean(text).casefold().replace("'", "").replace("\u2019", "")
    raw = [found[0][:_WORD_CHARS_MAX] for found, _ in zip(_WORD.finditer(read), range(WORDS_MAX), strict=False)]
    words = [lemma for one in raw for lemma in lemmas(one)]
    known = groups()
    return Sentence(
        words,
        {
            "word": words,
            "form": raw,
            "pair": [f"{one} {two}" for at, one in enumerate(words) for two in words[at + 1 : at + 1 + _PAIR_REACH]],
            "group": [name for word in words for name in known.get(word, ())],
            "piece": [piece for one in raw for piece in _pieces(f" {one} ")],
        },
    )


def _pieces(word: str) -> Iterable[str]:
    for size in (3, 4):
        for at in range(len(word) - size + 1):
            yield word[at : at + size]


class Space:
    """The features of the texts that are learned from, with how rare each is among them."""

    __slots__ = ("_known", "_rarest", "names")

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        counts: Counter[Feature] = Counter()
        for one in sentences:
            for kind, found in one.features.items():
                counts.update((kind, feature) for feature in set(found))
        self._known: dict[Feature, tuple[int, float]] = {}
        self._rarest = log(1 + len(sentences)) + 1
        for (kind, feature), count in counts.items():
            if count >= KINDS[kind].texts_min or len(sentences) <= _MANY:
                rarity = log((1 + len(sentences)) / (1 + count)) + 1
                self._known[kind, feature] = len(self._known), rarity
        self.names: list[Feature] = list(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def row(self, one: Sentence) -> Row:
        """Return the known features of a sentence. Each kind has its share of the length, however many it has."""
        row: Row = []
        for kind, found in one.features.items():
            values: list[tuple[int, float]] = []
            square = 0.0
            for feature, times in Counter(found).items():
                known = self._known.get((kind, feature))
                if known is not None:
                    value = known[1] * (1 + log(times))
                    values.append((known[0], value))
                    square += value * value
            if values:
                scale = sqrt(KINDS[kind].share / square)
                row += [(number, fixed(value * scale)) for number, value in values]
        return row

    def meaning(self, one: Sentence) -> list[float]:
        """Return the sum of the vectors of a sentence's words: the rarer a word, the more it counts."""
        found = ((word, self._known.get(("form", word))) for word in one.features["form"])
        return summed((word, known[1] if known else self._rarest) for word, known in found)
