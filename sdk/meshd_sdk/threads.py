"""An executor whose threads have the context of whoever gave them their work. Stdlib only.

A module of its own: `concurrent.futures` brings logging along, which a program without threads need not pay for.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from meshd_sdk.current import carrying

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

P = ParamSpec("P")
R = TypeVar("R")


class CarryingExecutor(ThreadPoolExecutor):
    """A ThreadPoolExecutor whose work runs with what was current where it was submitted, as asyncio's does."""

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """See `concurrent.futures.Executor.submit`; `map` comes through here too."""
        return super().submit(carrying(fn), *args, **kwargs)
