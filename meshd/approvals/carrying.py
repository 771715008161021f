"""Held calls as they are carried out, once they were allowed: each by one sidecar, once, for whoever asks for its task.

The call is made again as its caller made it, so every rule judges it anew and the approval is used as by any repeated
call; nothing here sends what the approval does not cover. Its answer is written down before anybody is shown it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from meshd.approvals.held_calls import ASKED, BEAT_S, ENDED, LOST_S, RUNNING
from meshd.engines.port import StoreError
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from meshd.approvals.held_calls import HeldCall, HeldCalls, Kept

log = logging.getLogger("meshd.approvals")

NOT_OVER: Final = frozenset({Reason.APPROVAL_DENIED, Reason.DRAINING, Reason.STORE_UNAVAILABLE})
"""Refusals after which the call is as it was: whoever asks for its task next is told what its approval says."""
NOTED_S: Final = 5.0
"""For which the end waits for what is still to be written down."""
END_TRIES: Final = 8
END_S: Final = 0.25
"""Between two tries to write an answer down, doubling."""

Headers = list[tuple[bytes, bytes]]


class Answer(Protocol):
    """What came back of a call that was made."""

    @property
    def body(self) -> bytes: ...

    @property
    def is_stream(self) -> bool: ...


class Carrying:
    """One for the process, on the loop's thread."""

    def __init__(self, held: HeldCalls, clock: Callable[[], float]) -> None:
        """`clock` gives unix seconds."""
        self.held = held
        self.send: Callable[[str, str, Headers, bytes], Awaitable[Answer]] | None = None
        """Makes a call: direction, path with its upstream's name before it, header fields, body. Raises Refused."""
        self._clock = clock
        self._running: dict[str, asyncio.Task[None]] = {}
        self._held_here: dict[str, asyncio.Task[None]] = {}
        self._noting: set[asyncio.Task[None]] = set()

    async def carry_out(
        self, kept: Kept, fields: Headers, read: Callable[[Answer], tuple[bytes, str]], wait_s: float
    ) -> None:
        """Carry a call out that was allowed, unless that is done already; return when it ended, or after a while.

        `read` returns what is to be kept of an answer, and the id of the task that the upstream made of the call. The
        work goes on when nobody waits for it. Raises StoreError.
        """
        id = kept.call.id
        running = self._running.get(id)
        if running is None:
            now_s = self._clock()
            claimed = msgspec.structs.replace(kept.call, state=RUNNING, beat_s=now_s, changed_s=now_s)
            if self.send is None or not await self.held.change(kept, claimed):
                return
            running = asyncio.get_running_loop().create_task(self._run(claimed, fields, read))
            self._running[id] = running
            running.add_done_callback(lambda _: self._running.pop(id, None))
        await asyncio.wait((running,), timeout=wait_s)

    async def hold(self, kept: Kept) -> bool:
        """Claim a call whose caller waits for its stream here, so that nobody else carries it out; False where another
        has it. Raises StoreError."""
        now_s = self._clock()
        claimed = msgspec.structs.replace(kept.call, state=RUNNING, beat_s=now_s)
        id = kept.call.id
        if id in self._held_here or not await self.held.change(kept, claimed):
            return False
        self._held_here[id] = asyncio.get_running_loop().create_task(self._beat(id))
        return True

    def let_go(self, id: str, *, is_free: bool) -> None:
        """Its caller waits no more. `is_free`: it never went out, so whoever asks for its task may have it done."""
        beating = self._held_here.pop(id, None)
        if beating is not None:
            beating.cancel()
            if is_free:
                self._note(self._put_back(id))

    def over(self, id: str, answer: bytes, other: str) -> None:
        """The stream of such a call is over: write down what was said in it."""
        self._note(self._end(id, answer, "", other))

    def _note(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._noting.add(task)
        task.add_done_callback(self._noted)

    def _noted(self, task: asyncio.Task[None]) -> None:
        self._noting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("where a held call stands could not be written down: %s", error)

    def is_lost(self, call: HeldCall) -> bool:
        """Say whether whoever carried a call out has gone without a word."""
        if call.id in self._running or call.id in self._held_here:
            return False
        return self._clock() - max(call.beat_s, call.changed_s) > LOST_S

    async def _run(self, call: HeldCall, fields: Headers, read: Callable[[Answer], tuple[bytes, str]]) -> None:
        beating = asyncio.get_running_loop().create_task(self._beat(call.id))
        try:
            body = await self.held.body(call)
            if body is None:
                await self._end(call.id, b"", "What was asked for is gone from the store.", "")
                return
            assert self.send is not None
            answer = await self.send(call.direction, call.path, fields, body)
            kept, other = read(answer)
            await self._end(call.id, kept, "", other)
        except Refused as refused:
            if refused.is_retryable or refused.reason in NOT_OVER:
                await self._put_back(call.id)
            else:
                await self._end(call.id, b"", refused.message, "")
        except StoreError as error:
            log.error("the held call %s could not be carried out: %s", call.id, error)
        finally:
            beating.cancel()

    async def _end(self, id: str, answer: bytes, failure: str, other: str) -> None:
        for tries in range(END_TRIES):
            try:
                await self.held.end(id, answer, failure, other, self._clock())
                return
            except StoreError as error:
                if tries == END_TRIES - 1:
                    log.error("the answer to the held call %s could not be written down: %s", id, error)
                await asyncio.sleep(END_S * 2**tries)

    async def _put_back(self, id: str) -> None:
        kept = await self.held.read(id)
        if kept is not None and kept.call.state != ENDED:
            await self.held.change(kept, msgspec.structs.replace(kept.call, state=ASKED, changed_s=self._clock()))

    async def _beat(self, id: str) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            try:
                kept = await self.held.read(id)
                if kept is not None and kept.call.state == RUNNING:
                    await self.held.change(kept, msgspec.structs.replace(kept.call, beat_s=self._clock()))
            except StoreError as error:
                log.warning("the held call %s cannot say that it is alive: %s", id, error)

    async def close(self) -> None:
        """End what runs: nobody knows whether it was carried out, and its approval stays used."""
        running = (*self._running.values(), *self._held_here.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._noting:
            await asyncio.wait(tuple(self._noting), timeout=NOTED_S)
