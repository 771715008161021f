"""What somebody wants, told by examples: which of several intents a sentence belongs to, or none of them.

A linear model is learned from the examples, and from the names of the intents, while it loads. A sentence is routed
where the model prefers one intent and where the sentence's words are words of its examples: the first alone is sure
of everything, since it knows nothing but its intents. From which confidence on is found by leaving each example out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from math import exp, log, sqrt
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.discovery.features import Sentence, Space, sentence
from meshd.discovery.linear import Linear, fixed, shares
from meshd.discovery.thesaurus import groups
from meshd.discovery.words import STOP, stem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.discovery.linear import Row

EXAMPLES_MAX: Final = 4096
"""Of all intents together. Ten for each of some hundred are learned in a second or two."""
ABSTAIN_SHARE: Final = 0.04
"""Of the sentences that would be routed rightly, how many may be given up for the sake of those that belong nowhere."""
_ODDS_MAX: Final = 12.0
_KNOWN_WEIGHT: Final = 2.0
_SHARED_WEIGHT: Final = 2.5
_NEAR: Final = 0.5
"""What a word counts that stands in no example, but that means nearly what one does."""
_HELD_OUT_GAP: Final = 0.2
"""By how much an example that was left out seems less sure than a new sentence is, in log-odds: it is missed among the
few of its intent. Measured on validation sentences.
"""
_THRESHOLD_MIN: Final = 0.15
"""Where there are few examples, the least sure of them says little."""
_VECTOR_SHARE: Final = 0.7
"""Of a text, what a model's vector counts beside the features of its words."""
_WORDS_MEANING_SHARE: Final = 0.25
"""What the meaning of its words together counts, where there is no model."""
_LEAST: Final = 0.7
"""Of their meaning, directions that say less than this share of a mean one are passed over: half of them, which take
half the time to learn and make no difference.
"""
_STOP: Final = frozenset(map(stem, STOP))


class Intent(NamedTuple):
    """Something that can be asked for."""

    name: str
    examples: tuple[str, ...]
    """Sentences as people would say them. Ten are a good number."""


class Ranked(NamedTuple):
    """One intent, and what speaks for it."""

    intent: str
    share: float
    """Of the odds, 0 to 1: beside the other intents."""


class Routed(NamedTuple):
    """Where a sentence belongs."""

    intent: str | None
    """None where it belongs to no intent, or where it cannot be told to which."""
    confidence: float
    """0 to 1, to be compared with `threshold`: whether the sentence belongs to the best intent at all."""
    threshold: float
    ranked: tuple[Ranked, ...]
    """Every intent, the best first."""


class Explained(NamedTuple):
    """Why a sentence was routed so."""

    words: tuple[tuple[str, float], ...]
    """What of the sentence spoke for the best intent (in log-odds, below zero: against it), the heaviest first."""
    examples: tuple[tuple[str, float], ...]
    """Its examples that are nearest, with how near they are: 0 to 1."""
    known: float
    """Which share of the sentence, by how rare its words are, stands in examples at all."""
    shared: float
    """Which share of what it says stands in examples of the best intent."""


class Router:
    """Routes sentences to intents.

    Raises ValueError where there is no intent, two of one name, one without a name, or too many examples.
    """

    __slots__ = (
        "_centre", "_count", "_examples", "_is_embedded", "_linear", "_rows", "_space", "_texts_of", "_vector_at",
        "margin", "names", "threshold",
    )  # fmt: skip

    def __init__(
        self,
        intents: Sequence[Intent],
        *,
        abstain_share: float = ABSTAIN_SHARE,
        margin: float = 0.0,
        vectors: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Learn from the examples.

        `margin` is by how much of the odds the best intent must lead; where it leads by less nothing is chosen.
        `vectors`, where a model embeds sentences, are those of `learned(intents)`, in their order and of length 1.
        """
        self.names = tuple(intent.name for intent in intents)
        if not intents or len(set(self.names)) < len(self.names) or not all(self.names):
            raise ValueError("a router needs intents, each with a name of its own")
        texts = learned(intents)
        if len(texts) > EXAMPLES_MAX:
            raise ValueError(f"{len(texts)} examples are too many to learn from at load: {EXAMPLES_MAX} at most")
        if vectors is not None and len(vectors) != len(texts):
            raise ValueError(f"{len(vectors)} vectors for {len(texts)} texts")
        labels = [at for at, intent in enumerate(intents) for _ in (intent.name, *intent.examples)]
        read = [sentence(text) for text in texts]
        self._space = Space(read)
        self._vector_at = len(self._space)
        self._is_embedded = vectors is not None
        held = [self._space.meaning(one) for one in read] if vectors is None else vectors
        self._centre = [sum(column) / len(held) for column in zip(*held, strict=True)]
        self._rows = [self._row(one, vector) for one, vector in zip(read, held, strict=True)]
        self._linear = Linear(self._vector_at + len(self._centre), len(intents))
        held_out = self._linear.train(self._rows, labels)
        self._examples = list(zip(labels, texts, strict=True))
        self._count: Counter[str] = Counter()
        self._texts_of: list[Counter[str]] = [Counter() for _ in intents]
        for label, one in zip(labels, read, strict=True):
            told = _told(one)
            self._count.update(told)
            self._texts_of[label].update(told)
        self.margin = margin
        self.threshold = self._calibrated(read, labels, held_out, abstain_share)

    def route(self, text: str, vector: Sequence[float] | None = None) -> Routed:
        """Return where `text` belongs. Nonsense belongs nowhere."""
        one = sentence(text)
        odds = shares(self._linear.scores(self._row(one, vector)))
        order = sorted(range(len(odds)), key=lambda label: -odds[label])
        best = order[0]
        confidence = _squashed(self._evidence(one, odds[best], best))
        lead = odds[best] - (odds[order[1]] if len(order) > 1 else 0.0)
        # By words alone: what shares none with an intent's examples does not belong to it, however it is spelled.
        has_ground = vector is not None or self._coverage(one, best)[1] > 0
        is_sure = has_ground and confidence >= self.threshold and lead >= self.margin
        ranked = tuple(Ranked(self.names[label], odds[label]) for label in order)
        return Routed(self.names[best] if is_sure else None, confidence, self.threshold, ranked)

    def explain(self, text: str, vector: Sequence[float] | None = None, most: int = 5) -> Explained:
        """Return what spoke for the best intent: at most `most` words and examples."""
        one = sentence(text)
        row = self._row(one, vector)
        scores = self._linear.scores(row)
        best = scores.index(max(scores))
        weights: dict[str, float] = defaultdict(float)
        names = self._space.names
        for feature, value in row:
            kind, name = names[feature] if feature < self._vector_at else ("vector", "(meaning)")
            spoke = value / fixed(1) * self._linear.weight(feature, best)
            weights[name if kind != "piece" else f"*{name}*"] += spoke
        near = [
            (text, _cosine(row, held))
            for (label, text), held in zip(self._examples, self._rows, strict=True)
            if label == best
        ]
        known, shared = self._coverage(one, best)
        return Explained(
            tuple(sorted(weights.items(), key=lambda item: -abs(item[1]))[:most]),
            tuple(sorted(near, key=lambda item: -item[1])[:most]),
            known,
            shared,
        )

    def _row(self, one: Sentence, vector: Sequence[float] | None) -> Row:
        """Return the features of a sentence, and those of its meaning: of its vector, or of its words' together."""
        row = self._space.row(one)
        if vector is None:
            if self._is_embedded:
                return row
            vector = self._space.meaning(one)
        # What all texts have in common tells none from another.
        apart = [value - mean for value, mean in zip(vector, self._centre, strict=True)]
        length = sqrt(sum(value * value for value in apart))
        if not length:
            return row
        share = _VECTOR_SHARE if self._is_embedded else _WORDS_MEANING_SHARE
        kept, scale = sqrt(1 - share), sqrt(share) / length
        least = 0.0 if self._is_embedded else _LEAST * length / sqrt(len(apart))
        fused = [(feature, round(value * kept)) for feature, value in row]
        return fused + [
            (at, fixed(value * scale)) for at, value in enumerate(apart, self._vector_at) if abs(value) >= least
        ]

    def _evidence(self, one: Sentence, share: float, label: int, own: int = 0) -> float:
        """Return what speaks for a sentence to belong to `label`, in log-odds."""
        known, shared = self._coverage(one, label, own)
        odds = log(max(share, 1e-9)) - log(max(1 - share, 1e-9))
        odds = max(-_ODDS_MAX, min(_ODDS_MAX, odds))
        return odds + _KNOWN_WEIGHT * log(known + 0.05) + _SHARED_WEIGHT * shared

    def _coverage(self, one: Sentence, label: int, own: int = 0) -> tuple[float, float]:
        """Return which share of the words is known, and which share of what they say `label` knows.

        `own` is 1 where the sentence is one of those learned from: then its own words do not make them known.
        """
        count, mine, near = self._count, self._texts_of[label], groups()
        texts = len(self._rows)
        known = total = shared = told = 0.0
        words = set(one.words)
        # Where there is nothing else ("what can you do"), those words tell it that say little elsewhere.
        telling = words - _STOP or words
        for word in words:
            times = count[word] - own
            rarity = log((texts + 1) / (max(times, 0) + 0.5))
            total += rarity
            known += rarity if times > 0 else 0.0
            if word in telling:
                told += rarity
                if mine[word] > own:
                    shared += rarity
                elif any(mine[group] > own for group in near.get(word, ())):
                    shared += rarity * _NEAR
        return known / total if total else 0.0, shared / told if told else 0.0

    def _calibrated(
        self, read: list[Sentence], labels: list[int], held_out: list[list[float]], abstain_share: float
    ) -> float:
        """Return the confidence below which `abstain_share` of the examples lie that the others would route rightly."""
        right: list[float] = []
        for one, label, scores in zip(read, labels, held_out, strict=True):
            odds = shares(scores)
            best = odds.index(max(odds))
            if best == label:
                right.append(self._evidence(one, odds[best], best, own=1))
        right.sort()
        if not right:
            return _THRESHOLD_MIN
        return max(
            _THRESHOLD_MIN, _squashed(right[min(len(right) - 1, int(len(right) * abstain_share))] + _HELD_OUT_GAP)
        )


def learned(intents: Sequence[Intent]) -> list[str]:
    """Return the texts that are learned from, in order: of each intent its name and its examples."""
    return [text for intent in intents for text in (intent.name, *intent.examples)]


def _told(one: Sentence) -> set[str]:
    return {*one.words, *one.features["group"]}


def _squashed(evidence: float) -> float:
    return 1 / (1 + exp(-evidence))


def _cosine(one: Row, two: Row) -> float:
    other = dict(two)
    return sum(value * other.get(feature, 0) for feature, value in one) / fixed(1) ** 2
