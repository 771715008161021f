"""What a model of language does here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXT_CHARS_MAX: Final = 2048
"""Of one text, what is embedded: models read some 256 tokens."""
TEXTS_MAX: Final = 64
"""In one request."""


class EmbeddingFailed(Exception):
    """A model did not answer, or not with vectors. Who finds goes on by words alone."""


class Embedder(Protocol):
    """Makes vectors of texts."""

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector for each text, in order, all of one size. Raises EmbeddingFailed."""
        ...


def checked(vectors: object, count: int) -> list[list[float]]:
    """Return `vectors` where they are `count` lists of finite numbers of one size. Raises EmbeddingFailed."""
    if not isinstance(vectors, list) or len(vectors) != count:
        raise EmbeddingFailed(f"asked for {count} vectors, and got something else")
    sizes = {len(one) if isinstance(one, list) else 0 for one in vectors}
    if count and (len(sizes) != 1 or not min(sizes)):
        raise EmbeddingFailed("the vectors are not all of one size")
    if not all(type(value) in (int, float) and -1e6 < value < 1e6 for one in vectors for value in one):
        raise EmbeddingFailed("a vector holds what is no number")
    return vectors
