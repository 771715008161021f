"""One figure, and a model for those that need one."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

from meshd.embedding.local import Local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Row(NamedTuple):
    """One figure."""

    what: str
    figure: str
    goal: str = ""
    is_met: bool | None = None
    """None where there is no goal."""


def at_least(what: str, value: float, goal: float, beside: str = "") -> Row:
    """Return the row of a figure that is to be at least `goal`."""
    return Row(what, f"{value:.3f}  {beside}".strip(), f">= {goal:.2f}", value >= goal)


def mean(values: Iterable[float]) -> float:
    """Return the mean."""
    held = list(values)
    return sum(held) / len(held)


def fastest_ms(call: Callable[[], object]) -> float:
    """Return how long a call takes that nothing else on the machine interrupts: the fastest of five."""
    took = []
    for _ in range(5):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return min(took) * 1e3


class Model:
    """The model in its process, asked for many texts at once; what it made of a text is kept."""

    def __init__(self, name: str, python: str) -> None:
        self._name = name
        self._python = python
        self._made: dict[str, list[float]] = {}

    def vectors(self, texts: Iterable[str]) -> list[list[float]]:
        """Return one vector for each text."""
        wanted = list(texts)
        # Of like lengths together: a batch costs what its longest text does.
        missing = sorted({text for text in wanted if text not in self._made}, key=len)
        if missing:
            self._made.update(zip(missing, asyncio.run(self._embed(missing)), strict=True))
        return [self._made[text] for text in wanted]

    async def _embed(self, texts: list[str]) -> list[list[float]]:
        local = Local(self._name, python=self._python)
        try:
            return await local.embed(texts)
        finally:
            await local.aclose()
