"""Multinomial logistic regression in plain Python, quick enough to be trained while a policy loads.

A row of weights, one for each label, is one big integer: the labels lie in it side by side, 64 bits each, as numbers in
fixed point. To add a row, or a multiple of one, is then one operation of the interpreter for all labels at once, as on
a vector machine. A lane below zero borrows from the next, and a bias undoes that when the lanes are read.
"""

from __future__ import annotations

import sys
from array import array
from math import exp, gcd
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_LANE_BITS: Final = 64
_VALUE_SCALE: Final = 1 << 10
_WEIGHT_SCALE: Final = 1 << 28
_GRADIENT_SCALE: Final = _WEIGHT_SCALE // _VALUE_SCALE
_SCORE_SCALE: Final = _WEIGHT_SCALE * _VALUE_SCALE
_HALF: Final = 1 << (_LANE_BITS - 1)
_LEARNED: Final = 0.9
"""A text whose label has this share of the odds is left alone from then on: what it would still change is little."""
_BITS: Final = 3
"""Of a feature's value, while learning: then many of a text have the same, and are multiplied at once."""
RATES: Final = (3.0, 3.0, 2.0, 1.0)
"""Of the descent, once through all texts each; features have length 1."""

Row = list[tuple[int, int]]
"""Of one text: numbers of features, and their values in fixed point (1024 is 1)."""


def fixed(value: float) -> int:
    """Return a feature's value in fixed point."""
    return round(value * _VALUE_SCALE)


def shares(scores: Sequence[float]) -> list[float]:
    """Return what share of the odds each score has; they sum to 1."""
    top = max(scores)
    odds = [exp(score - top) for score in scores]
    total = sum(odds)
    return [one / total for one in odds]


class Linear:
    """One weight for each feature and label."""

    __slots__ = ("_bias", "_bytes", "_count", "_rows")

    def __init__(self, features: int, labels: int) -> None:
        self._count = labels
        self._rows: list[int] = [0] * features
        self._bytes = labels * _LANE_BITS // 8
        self._bias = int.from_bytes(array("Q", [_HALF] * labels).tobytes(), sys.byteorder)

    def scores(self, row: Row) -> list[float]:
        """Return the score of each label for a text's features: log-odds, up to a constant that they share."""
        rows = self._rows
        total = 0
        for feature, value in row:
            total += rows[feature] * value
        return self._unpacked(total)

    def weight(self, feature: int, label: int) -> float:
        """Return what one feature, where its value is 1, adds to the score of one label."""
        lane = (self._rows[feature] + self._bias) >> (label * _LANE_BITS)
        return ((lane & (2 * _HALF - 1)) - _HALF) / _WEIGHT_SCALE

    def train(self, texts: Sequence[Row], labels: Sequence[int], rates: Sequence[float] = RATES) -> list[list[float]]:
        """Descend the gradient of the logistic loss text by text, once through all of them for each rate.

        The order is fixed: the same examples make the same weights. Returns for each text its scores by what was
        learned from all others, that is, without what it added itself.
        """
        count = len(texts)
        stride = next(step for step in range(max(1, int(count * 0.618)), count + 2) if gcd(step, count) == 1)
        read = [_grouped(row) for row in texts]
        added = [0] * count
        is_learned = [False] * count
        at = 0
        for rate in rates:
            for _ in range(count):
                at = (at + stride) % count
                if not is_learned[at]:
                    step = self._step(read[at], labels[at], rate)
                    added[at] += step
                    is_learned[at] = not step
        return [
            self._unpacked(self._total(row) - own * sum(value * value * len(features) for value, features in row))
            for row, own in zip(read, added, strict=True)
        ]

    def _step(self, row: list[tuple[int, list[int]]], label: int, rate: float) -> int:
        """Learn a text; returns what its features' weights were given, each times its value: 0 where it is learned."""
        lanes = self._lanes(self._total(row))
        top = max(lanes)
        odds = [exp((lane - top) / _SCORE_SCALE) for lane in lanes]
        total = sum(odds)
        if odds[label] > _LEARNED * total:
            return 0
        scale = rate * _GRADIENT_SCALE
        share = scale / total
        gradient = [_HALF - int(one * share + 0.5) for one in odds]
        gradient[label] += int(scale)
        packed = int.from_bytes(array("Q", gradient).tobytes(), sys.byteorder) - self._bias
        rows = self._rows
        for value, features in row:
            step = packed * value
            for feature in features:
                rows[feature] += step
        return packed

    def _total(self, row: list[tuple[int, list[int]]]) -> int:
        rows = self._rows
        total = 0
        for value, (first, *others) in row:
            alike = rows[first]
            for feature in others:
                alike += rows[feature]
            total += alike * value
        return total

    def _packed(self, lanes: Iterable[int]) -> int:
        return int.from_bytes(array("Q", [lane + _HALF for lane in lanes]).tobytes(), sys.byteorder) - self._bias

    def _lanes(self, total: int) -> array[int]:
        """Return the lanes as they lie, each with the bias."""
        lanes = array("Q")
        lanes.frombytes((total + self._bias).to_bytes(self._bytes, sys.byteorder))
        return lanes

    def _unpacked(self, total: int) -> list[float]:
        return [(lane - _HALF) / _SCORE_SCALE for lane in self._lanes(total)]


def _grouped(row: Row) -> list[tuple[int, list[int]]]:
    """Return the features by their values, which are rounded to their highest bits."""
    found: dict[int, list[int]] = {}
    for feature, value in row:
        low = max(0, abs(value).bit_length() - _BITS)
        found.setdefault((value + (1 << low >> 1)) >> low << low, []).append(feature)
    return list(found.items())
