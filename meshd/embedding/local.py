"""A model in a child process. It is started when something is first to be embedded, and again where it died."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from meshd.embedding.port import TEXT_CHARS_MAX, EmbeddingFailed, checked

if TYPE_CHECKING:
    from collections.abc import Sequence

_LINE_BYTES_MAX: Final = 16 << 20
_START_S_MAX: Final = 60.0
_ANSWER_S_MAX: Final = 60.0
_BATCH: Final = 16
"""Texts in one request: half a second of one core, or a few on a machine that is busy."""


class Local:
    """One child. Requests are answered one after the other; `aclose` ends it."""

    __slots__ = ("_child", "_lock", "_model", "_number", "_python")

    def __init__(self, model: str = "minilm", *, python: str = sys.executable) -> None:
        """`python` is the interpreter of an environment with meshd's extra `embeddings`: this one's, or another."""
        self._model = model
        self._python = python
        self._child: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._number = 0

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector for each text. Raises EmbeddingFailed where the child cannot be started, dies or hangs."""
        found: list[list[float]] = []
        async with self._lock:
            for at in range(0, len(texts), _BATCH):
                found += await self._embed([text[:TEXT_CHARS_MAX] for text in texts[at : at + _BATCH]])
        return checked(found, len(texts))

    async def aclose(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            if child.returncode is None:
                child.kill()
            await child.wait()

    async def _embed(self, texts: list[str]) -> list[list[float]]:
        self._number += 1
        # Half a surrogate is no text to JSON; what it stood for is lost anyway.
        told = [text.encode("utf-8", "replace").decode() for text in texts]
        line = msgspec.json.encode({"id": self._number, "texts": told}) + b"\n"
        try:
            child = await self._started()
            assert child.stdin is not None
            child.stdin.write(line)
            await child.stdin.drain()
            answer = await self._answer(child, _ANSWER_S_MAX)
        except (OSError, ValueError, TimeoutError, msgspec.DecodeError) as why:
            await self.aclose()
            raise EmbeddingFailed(f"the model {self._model}: {str(why) or 'it did not answer in time'}") from why
        except asyncio.CancelledError:
            # Its answer would be taken for that of the next.
            await self.aclose()
            raise
        if answer.get("id") != self._number or "error" in answer:
            raise EmbeddingFailed(f"the model {self._model}: {answer.get('error', 'it answered something else')}")
        return checked(answer.get("vectors"), len(texts))

    async def _started(self) -> asyncio.subprocess.Process:
        child = self._child
        if child is not None and child.returncode is None:
            return child
        child = self._child = await asyncio.create_subprocess_exec(
            self._python, "-m", "meshd.embedding.child", self._model,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_LINE_BYTES_MAX,
        )  # fmt: skip
        said = await self._answer(child, _START_S_MAX)
        if "ready" not in said:
            raise ValueError(said.get("error", "it did not start"))
        return child

    async def _answer(self, child: asyncio.subprocess.Process, limit_s: float) -> dict[str, object]:
        assert child.stdout is not None
        line = await asyncio.wait_for(child.stdout.readline(), limit_s)
        if not line:
            raise ValueError("its process ended")
        return msgspec.json.decode(line, type=dict[str, object])
