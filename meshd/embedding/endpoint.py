"""A model behind an embeddings endpoint in the form of OpenAI's (`POST .../embeddings`), which many servers speak.

How it is reached is not decided here: whoever builds this hands in a function that sends a body and returns the
answer's, so that the call goes by the upstreams, keys and limits of the policy like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from meshd.embedding.port import TEXT_CHARS_MAX, TEXTS_MAX, EmbeddingFailed, checked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


class _Item(msgspec.Struct):
    embedding: list[float]
    index: int = -1


class _Answer(msgspec.Struct):
    data: list[_Item]


class Endpoint:
    """`ask(body)` sends JSON and returns the JSON of an answer of status 200, or raises EmbeddingFailed or OSError."""

    __slots__ = ("_ask", "_model")

    def __init__(self, ask: Callable[[bytes], Awaitable[bytes]], model: str) -> None:
        self._ask = ask
        self._model = model

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector for each text. Raises EmbeddingFailed."""
        found: list[list[float]] = []
        for at in range(0, len(texts), TEXTS_MAX):
            # An empty input is an error to most servers.
            part = [text[:TEXT_CHARS_MAX] or " " for text in texts[at : at + TEXTS_MAX]]
            body = {"model": self._model, "input": part, "encoding_format": "float"}
            try:
                answer = msgspec.json.decode(await self._ask(msgspec.json.encode(body)), type=_Answer)
            except (OSError, msgspec.DecodeError, RecursionError, UnicodeEncodeError) as why:
                raise EmbeddingFailed(f"the embeddings endpoint: {why}") from why
            items = answer.data
            if {item.index for item in items} == set(range(len(part))):
                items = sorted(items, key=lambda item: item.index)
            found += checked([item.embedding for item in items], len(part))
        return checked(found, len(texts))
