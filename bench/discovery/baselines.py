"""What anybody would try first: BM25 and TF-IDF over lower-case words, without stop words, stems or fields."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from math import log, sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Plain:
    """An index of texts by number. BM25 with k1 1.5 and b 0.75, or the cosine of TF-IDF."""

    def __init__(self, texts: Sequence[str], *, by: str) -> None:
        counts = [Counter(_words(text)) for text in texts]
        sizes = [sum(count.values()) for count in counts]
        mean = sum(sizes) / len(sizes)
        times = Counter(word for count in counts for word in count)
        self._postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._rarity = {
            word: log(1 + (len(texts) - number + 0.5) / (number + 0.5)) if by == "bm25"
            else log((1 + len(texts)) / (1 + number)) + 1
            for word, number in times.items()
        }  # fmt: skip
        for at, (count, size) in enumerate(zip(counts, sizes, strict=True)):
            length = sqrt(sum((times_ * self._rarity[word]) ** 2 for word, times_ in count.items())) or 1.0
            for word, often in count.items():
                weight: float = self._rarity[word] * often
                if by == "bm25":
                    weight *= 2.5 / (often + 1.5 * (0.25 + 0.75 * size / mean))
                else:
                    weight *= self._rarity[word] / length
                self._postings[word].append((at, weight))

    def search(self, words: str, k: int) -> list[int]:
        """Return the numbers of the best `k`."""
        scores: Counter[int] = Counter()
        for word in _words(words):
            for at, weight in self._postings.get(word, ()):
                scores[at] += weight
        return [at for at, _ in scores.most_common(k)]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
