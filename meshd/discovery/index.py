"""An index of documents, found by words: BM25 over weighted fields (BM25F), held in memory and changed in place.

A document's weight for a term depends on that document alone: lengths are measured against fixed ones, not against the
average of all that is indexed. So putting and removing cost what the document is long, an index that was changed is
equal to one that was made anew, and nobody shifts what others weigh by what he writes.

Beside its words a document has the groups of words to which they belong (thesaurus), for less; and, where a model
embeds it, vectors. Both rankings are then fused by how far each one stands out among all (z-scores).
"""

from __future__ import annotations

from heapq import heapify, heappop
from math import exp, log, sqrt
from operator import mul
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from meshd.discovery.meanings import Meanings
from meshd.discovery.thesaurus import groups
from meshd.discovery.words import terms

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Sequence

    from meshd.discovery.document import Document

K = TypeVar("K", bound="Hashable")


class Field(NamedTuple):
    """How much a word counts that stands there, by the length of the text."""

    weight: float
    length: int
    """In terms: a text of this length counts as it is, a longer one less a word."""
    terms_max: int
    """What of a text is indexed: nobody is found for everything by writing everything down."""


FIELDS: Final[dict[str, Field]] = {
    "name": Field(3.0, 3, 10),
    "title": Field(2.0, 3, 10),
    "intents": Field(1.5, 20, 256),
    "description": Field(1.5, 20, 160),
    "parameters": Field(0.5, 20, 160),
    "owner": Field(1.0, 3, 10),
    "owner_description": Field(0.5, 20, 80),
}
_SATURATION: Final = 1.2
_LENGTH_SHARE: Final = 0.6
_ASKED_MAX: Final = 48
_SAID_MAX: Final = 16.0
"""What all words of a document weigh together at most; a word by itself nears 1. Half of 527 tools of public servers
have 15 or less. Who writes down every word there is has them all, and next to nothing of each.
"""
_GROUP_WEIGHT: Final = 0.3
"""What a word that means nearly the same counts beside the word itself."""
_LEXICAL_WEIGHT: Final = 0.4
"""What the ranking by words counts beside the one by meaning."""
_OUTSTANDING: Final = 3.0
"""Deviations above the mean at which a fused score is one half."""


class Found(NamedTuple, Generic[K]):
    """One of what was found."""

    key: K
    score: float
    """0 to 1. By words: which share of what was asked for, weighted by how rare its words are, the document covers.
    Fused: how far it stands out among all that is indexed."""


class Index(Generic[K]):
    """Documents by their keys."""

    __slots__ = ("_documents", "_loud", "_meanings", "_order", "_postings", "_put")

    def __init__(self) -> None:
        self._postings: dict[str, dict[K, float]] = {}
        self._documents: dict[K, tuple[Document, tuple[str, ...]]] = {}
        self._order: dict[K, int] = {}
        self._loud: dict[K, float] = {}
        """What is left of those that say too much."""
        self._put = 0
        self._meanings: Meanings[K] = Meanings()

    def put(self, key: K, document: Document) -> None:
        """Index `document`, in place of what stood under `key`; its vector must be given anew."""
        held = self._documents.get(key)
        if held is not None and held[0] == document:
            return
        self.remove(key)
        weights, left = _weights(document)
        if left < 1:
            self._loud[key] = left
        for term, weight in weights.items():
            self._postings.setdefault(term, {})[key] = weight
        self._documents[key] = document, tuple(weights)
        self._put += 1
        self._order[key] = self._put

    def embed(self, key: K, vector: Sequence[float]) -> None:
        """Keep what a model makes of the document under `key`. Of any length; of one size for all."""
        if key in self._documents:
            self._meanings.put(key, vector)

    def unembedded(self) -> list[K]:
        """Return the keys of the documents that have no vector."""
        return [key for key in self._documents if key not in self._meanings]

    def document(self, key: K) -> Document:
        """Return what stands under `key`. Raises KeyError where nothing does."""
        return self._documents[key][0]

    def remove(self, key: K) -> None:
        """Forget what stands under `key`, if there is something."""
        held = self._documents.pop(key, None)
        if held is None:
            return
        del self._order[key]
        self._loud.pop(key, None)
        self._meanings.remove(key)
        for term in held[1]:
            postings = self._postings[term]
            del postings[key]
            if not postings:
                del self._postings[term]

    def search(
        self, words: str, k: int, admit: Callable[[K], bool] | None = None, vector: Sequence[float] | None = None
    ) -> list[Found[K]]:
        """Return at most `k` of those that `admit` lets pass, the best first; of two alike the one that came first.

        `vector` is what the model makes of `words`, where documents have vectors.
        """
        scores, whole = self._by_words(words)
        is_fused = vector is not None and len(self._meanings) > 0
        if vector is not None and is_fused:
            scores = self._fused(scores, self._meanings.scores(vector))
        order = self._order
        ranked = [(-score, order[key], key) for key, score in scores.items()]
        # A heap: nobody sorts a thousand to see five.
        heapify(ranked)
        found: list[Found[K]] = []
        while ranked and len(found) < k:
            score, _, key = heappop(ranked)
            if admit is None or admit(key):
                found.append(Found(key, 1 / (1 + exp(_OUTSTANDING + score)) if is_fused else min(1.0, -score / whole)))
        return found

    def _by_words(self, words: str) -> tuple[dict[K, float], float]:
        """Return what each document has of what is asked for, and how much there was to have."""
        asked = dict.fromkeys(terms(words)[:_ASKED_MAX], 1.0)
        known = groups()
        for term in list(asked):
            for group in known.get(term, ()):
                asked.setdefault(group, _GROUP_WEIGHT)
        count = len(self._documents)
        scores: dict[K, float] = {}
        whole = 0.0
        for term, weight in asked.items():
            postings = self._postings.get(term, {})
            rarity = weight * log(1 + (count - len(postings) + 0.5) / (len(postings) + 0.5))
            whole += rarity
            for key, held in postings.items():
                scores[key] = scores.get(key, 0.0) + rarity * held
        return scores, whole

    def _fused(self, by_words: dict[K, float], by_meaning: Sequence[int]) -> dict[K, float]:
        """Return how far each document stands out in both rankings together, in deviations above the mean."""
        count = len(self._documents)
        mean, deviation = _spread(by_meaning, count)
        words_mean, words_deviation = _spread(by_words.values(), count)
        words_scale = _LEXICAL_WEIGHT / words_deviation
        rest = -words_mean * words_scale
        scale = 1 / deviation
        fused = {key: (score - mean) * scale + rest for key, score in zip(self._meanings, by_meaning, strict=True)}
        for key, left in self._loud.items():
            # Whose words count less does not make it up by what all of them together mean.
            if fused.get(key, rest) > rest:
                fused[key] = rest + (fused[key] - rest) * left
        if len(fused) < count:
            fused |= dict.fromkeys(self._documents.keys() - fused.keys(), rest - mean * scale)
        for key, score in by_words.items():
            fused[key] += score * words_scale
        return fused

    def __len__(self) -> int:
        return len(self._documents)

    def __contains__(self, key: object) -> bool:
        return key in self._documents


def _weights(document: Document) -> tuple[dict[str, float], float]:
    """Return what each term weighs, and what is left of a document that says too much: 1 for all others."""
    weights: dict[str, float] = {}
    for name, field in FIELDS.items():
        text = getattr(document, name)
        found = terms(text if isinstance(text, str) else " . ".join(text))
        # All of it makes a text long, though not all of it is indexed: what is cut off dilutes the rest.
        share = field.weight / (1 - _LENGTH_SHARE + _LENGTH_SHARE * max(len(found), 1) / field.length)
        for term in found[: field.terms_max]:
            weights[term] = weights.get(term, 0.0) + share
    weights = {term: weight / (_SATURATION + weight) for term, weight in weights.items()}
    said = sum(weights.values())
    # Hardly any of those 527 says twice as much. Who does is not only made as light as the others, but lighter.
    left = min(1.0, 2 * _SAID_MAX / said) if said else 1.0
    if said > _SAID_MAX:
        kept = _SAID_MAX / said * left
        weights = {term: weight * kept for term, weight in weights.items()}
    known = groups()
    for term, weight in list(weights.items()):
        for group in known.get(term, ()):
            weights[group] = max(weights.get(group, 0.0), weight)
    return weights, left


def _spread(scores: Collection[float], count: int) -> tuple[float, float]:
    """Return mean and deviation of `count` scores, of which those that are not there are zero."""
    mean = sum(scores) / count
    return mean, sqrt(max(sum(map(mul, scores, scores)) / count - mean * mean, 0.0)) or 1.0
