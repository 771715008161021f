"""Vectors of documents, as a model of the language embeds them, and how near each is to another.

Without a library for it: the vectors lie side by side in big integers, one for each dimension and 16 bits for each
vector, so that one addition serves all documents. Of length 178 in whole numbers, two vectors have a product that fits
into 16 bits (Cauchy and Schwarz), and a cosine that is off by 0.002. A thousand of 384 dimensions are compared in
less than a millisecond.
"""

from __future__ import annotations

import sys
from array import array
from math import isfinite, sqrt
from operator import mul
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence

K = TypeVar("K", bound="Hashable")

_LENGTH: Final = 178
_SQUARE_MAX: Final = (1 << 15) - 1
_HALF: Final = 1 << 15


class Meanings(Generic[K]):
    """Vectors by key. They are laid out when something is asked, where they have changed."""

    __slots__ = ("_bias", "_laid", "_size", "_vectors")

    def __init__(self) -> None:
        self._vectors: dict[K, array[int]] = {}
        self._size = 0
        self._laid: list[int] = []
        self._bias = 0

    def put(self, key: K, vector: Sequence[float]) -> None:
        """Keep `vector`, of any length. Raises ValueError where it has another size than those that are there."""
        if self._vectors and len(vector) != self._size:
            raise ValueError(f"a vector of {len(vector)} dimensions among those of {self._size}: of another model?")
        whole = _whole(vector)
        self._size = len(vector)
        self._vectors[key] = whole
        self._laid = []

    def remove(self, key: K) -> None:
        """Forget the vector of `key`, if there is one."""
        if self._vectors.pop(key, None) is not None:
            self._laid = []

    def scores(self, vector: Sequence[float]) -> array[int]:
        """Return how near each is to `vector`, in the order of keys: the cosine, times one number for all.

        Raises ValueError where `vector` has another size, or no direction.
        """
        if len(vector) != self._size:
            raise ValueError(f"a vector of {len(vector)} dimensions among those of {self._size}: of another model?")
        asked = _whole(vector)
        if not self._laid:
            self._lay()
        # Few numbers make up all dimensions: each is multiplied once.
        alike: dict[int, int] = {}
        for value, lanes in zip(asked, self._laid, strict=True):
            alike[value] = alike.get(value, 0) + lanes
        total = sum(value * lanes for value, lanes in alike.items())
        # Without the borrows, and in two's complement.
        lanes = (total + self._bias) ^ self._bias
        return array("h", lanes.to_bytes(2 * len(self._vectors), sys.byteorder))

    def _lay(self) -> None:
        self._bias = _packed([_HALF] * len(self._vectors))
        columns = zip(*self._vectors.values(), strict=True)
        self._laid = [_packed([value + _HALF for value in column]) - self._bias for column in columns]

    def __iter__(self) -> Iterator[K]:
        return iter(self._vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    def __contains__(self, key: object) -> bool:
        return key in self._vectors


def blended(vectors: Sequence[Sequence[float]]) -> list[float]:
    """Return one vector for what a document says: the first, and half of each other, each at length 1.

    How near that is to a third is how near they are together: no more is kept or compared than for one. Raises
    ValueError where one of them has no direction.
    """
    lengths = [_length(vector) for vector in vectors]
    weights = [(0.5 if at else 1.0) / length for at, length in enumerate(lengths)]
    return [sum(map(mul, weights, values)) for values in zip(*vectors, strict=True)]


def _whole(vector: Sequence[float]) -> array[int]:
    """Return `vector` in whole numbers. Raises ValueError where it has no direction: zeros, or what is no number."""
    scale = _LENGTH / _length(vector)
    found = array("h", [round(value * scale) for value in vector])
    if sum(value * value for value in found) > _SQUARE_MAX:
        # Where nearly all was rounded away from zero it has become too long.
        found = array("h", [int(value * scale) for value in vector])
    return found


def _length(vector: Sequence[float]) -> float:
    length = sqrt(sum(value * value for value in vector))
    if not isfinite(length) or length == 0:
        raise ValueError("a vector without a direction")
    return length


def _packed(lanes: Sequence[int]) -> int:
    return int.from_bytes(array("H", lanes).tobytes(), sys.byteorder)
