"""Work that is done once at a time for each key, and to its end: who asked for it may be gone by then."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")


class InOrder:
    """Pieces of work by key; those of one key wait for one another."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: dict[str, asyncio.Task[Any]] = {}

    async def run(self, key: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what `work` returns, or raise what it raises. Cancelling this does not cancel the work."""
        task = asyncio.get_running_loop().create_task(self._after(self._last.get(key), work))
        self._last[key] = task
        task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    @staticmethod
    async def _after(before: asyncio.Task[Any] | None, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if before is not None and not before.done():
            await asyncio.wait((before,))
        return await work()

    def _ended(self, key: str, done: asyncio.Task[Any]) -> None:
        if self._last.get(key) is done:
            del self._last[key]
        if not done.cancelled():
            done.exception()  # whoever asked has been told, or is gone
