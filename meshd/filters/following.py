"""Following: a subscriber to a task of ours is told of it until it is over, not only how it stood when it asked.

Its stream is the rest of an answer, read while it is sent: it waits for the decision with whoever else does, has the
call carried out as everybody has who asks for the task, and costs a future and the task that sends it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from meshd.dialects.held_task import Stage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meshd.approvals.line import Line
    from meshd.approvals.shelf import Found
    from meshd.dialects.held_task import HeldTask

LIFE_S: Final = 3.5
"""Between two signs of life: clients of A2A give up after 5 s without a byte, if nobody tells them otherwise."""
POLL_S: Final = 1.0
"""How often a call is looked at that another sidecar, or another caller's stream, carries out."""


class Following:
    """What follows the first event of a subscription: see `meshd.claims.rest.Rest`."""

    __slots__ = ("_closed", "_future", "_id", "_is_last", "_life", "_line", "_look", "_peek", "_say", "_stage")

    def __init__(
        self,
        line: Line,
        id: str,
        stage: Stage,
        *,
        peek: Callable[[], Awaitable[HeldTask]],
        look: Callable[[], Awaitable[HeldTask]],
        say: Callable[[HeldTask], bytes],
        life: bytes,
    ) -> None:
        """`id` is of the approval, `stage` what the subscriber was told. `peek` returns where the task stands, `look`
        too, and has the call carried out where it was allowed; both may raise StoreError. `say` returns a stage in the
        words of the binding, `life` is a sign of life in them, empty where they have none."""
        self._line = line
        self._id = id
        self._stage = stage
        self._peek = peek
        self._look = look
        self._say = say
        self._life = life
        self._is_last = False
        self._closed = asyncio.Event()
        self._future: asyncio.Future[Found | None] | None = None

    async def next(self) -> bytes:
        """Return what is to be told next, once there is something; nothing more where the task is over, or `close` was
        called. Raises StoreError."""
        await self._line.watch()
        while not self._is_last and not self._closed.is_set():
            task = await self._peek()
            if task.stage is self._stage is Stage.RUNNING:
                task = await self._look()
            if task.stage is not self._stage:
                self._stage = task.stage
                self._is_last = task.stage not in (Stage.WAITING, Stage.RUNNING)
                return self._say(task)
            await self._pause()
            if self._life and not self._closed.is_set():
                return self._life
        return b""

    async def _pause(self) -> None:
        """Wait until the task may stand otherwise, somebody closes this, or a sign of life is due."""
        if self._stage is Stage.RUNNING:
            try:
                await asyncio.wait_for(self._closed.wait(), POLL_S)
            except TimeoutError:
                pass
            return
        future = self._future = self._line.join(self._id)
        try:
            # It may have changed before this stood in the line.
            if (await self._peek()).stage is self._stage and not self._closed.is_set():
                await asyncio.wait((future,), timeout=LIFE_S)
        finally:
            self._future = None
            self._line.leave(self._id, future)

    def close(self) -> None:
        """Tell nothing more: the subscriber has gone, or the sidecar drains."""
        self._closed.set()
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
