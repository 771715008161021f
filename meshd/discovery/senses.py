"""What English words mean, as vectors of whole numbers: words of like meaning point in like directions.

Each word of English in BERT's vocabulary begins with what MiniLM (all-MiniLM-L6-v2, under Apache 2.0) makes of it, and
is moved so that the sum of a sentence's words points where MiniLM's vector of the sentence does; kept are 96 main
directions, in whole numbers. `bench/discovery/senses.py` made the file, and says of which sentences: of none that
anything is measured on. A word that tells little has a short vector. The file is read, in some 40 milliseconds, when
the first examples are learned from, and takes 5 MB.
"""

from __future__ import annotations

import gzip
from array import array
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

SIZE: Final = 96
"""Dimensions of a vector."""
FILE: Final = "senses.gz"
"""Words, each on a line; an empty line; the vectors in the words' order, a signed byte for each dimension."""


def summed(words: Iterable[tuple[str, float]]) -> list[float]:
    """Return the sum of the vectors of those words that have one, each times its weight: zeros where none has."""
    numbers, vectors = _read()
    total = [0.0] * SIZE
    for word, weight in words:
        at = numbers.get(word)
        if at is not None:
            vector = vectors[at * SIZE : (at + 1) * SIZE]
            total = [held + weight * value for held, value in zip(total, vector, strict=True)]
    return total


@lru_cache(1)
def _read() -> tuple[dict[str, int], array[int]]:
    held = gzip.decompress((files("meshd.discovery") / "data" / FILE).read_bytes())
    words, _, vectors = held.partition(b"\n\n")
    return {word: at for at, word in enumerate(words.decode().split("\n"))}, array("b", vectors)
