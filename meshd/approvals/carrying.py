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
from meshd.approvals.state import State
from meshd.engines.port import StoreError
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from meshd.approvals.held_calls import HeldCall, HeldCalls, Kept
    from meshd.approvals.record import Approval

log = logging.getLogger("meshd.approvals")

NEVER: Final = frozenset({State.DENIED, State.EXPIRED, State.CANCELLED})
"""States of an approval after which its call never goes out."""
BATCH: Final = 200
NOTED_S: Final = 5.0
"""For which the end waits for what is still to be written down."""
END_TRIES: Final = 8
END_S: Final = 0.25
"""Between two tries to write an answer down, doubling."""

Headers = list[tuple[bytes, bytes]]


class Answer(Protocol):
    """What came back of a call that was made."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Headers: ...

    @property
    def trailers(self) -> Headers: ...

    @property
    def body(self) -> bytes: ...

    @property
    def is_stream(self) -> bool: ...


class Carrying:
    """One for the process, on the loop's thread."""

    def __init__(
        self, held: HeldCalls, clock: Callable[[], float], here: Callable[[], tuple[str, int]] = lambda: ("", 0)
    ) -> None:
        """`clock` gives unix seconds; `here` the name by which the ledger knows this sidecar, and its epoch."""
        self.held = held
        self.send: Callable[[str, Headers, bytes | None, str], Awaitable[Answer]] | None = None
        """Makes a call: path with its upstream's name before it, header fields, body (None for a GET); the approval
        that it uses, empty for a call that only asks for a task. Raises Refused."""
        self._clock = clock
        self._here = here
        self._running: dict[str, asyncio.Task[None]] = {}
        self._held_here: set[str] = set()
        self._claimed: set[str] = set()
        """What this sidecar says that it is at."""
        self._beating: asyncio.Task[None] | None = None
        self._noting: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ calls that are made for whoever asks

    async def carry_out(
        self, kept: Kept, path: str, fields: Headers, read: Callable[[Answer], tuple[bytes, str]], wait_s: float
    ) -> None:
        """Carry a call out that was allowed, unless that is done already; return when it ended, or after a while.

        `read` returns what is to be kept of an answer, and the id of the task that the upstream made of the call. The
        work goes on when nobody waits for it.
        """
        id = kept.call.id
        running = self._running.get(id)
        if running is None:
            running = asyncio.get_running_loop().create_task(self._run(kept, path, fields, read))
            self._running[id] = running
            running.add_done_callback(lambda _: self._running.pop(id, None))
        await asyncio.wait((running,), timeout=wait_s)

    async def _run(self, kept: Kept, path: str, fields: Headers, read: Callable[[Answer], tuple[bytes, str]]) -> None:
        id = kept.call.id
        try:
            if self.send is None or not await self._claim(kept, changed_s=self._clock()):
                return
        except StoreError as error:
            log.error("the held call %s could not be claimed: %s", id, error)
            return
        try:
            body = await self.held.body(kept.call)
            if body is None:
                await self._end(id, b"", "What was asked for is gone from the store.", "")
                return
            await self._end(id, *await self._made(id, self.send(path, fields, body, id), read))
        except _Back:
            await self._put_back(id)
        except _Left:
            pass
        except StoreError as error:
            log.error("the held call %s could not be carried out: %s", id, error)
        finally:
            self._claimed.discard(id)

    async def _made(
        self, id: str, sending: Awaitable[Answer], read: Callable[[Answer], tuple[bytes, str]]
    ) -> tuple[bytes, str, str]:
        """Return what came of a call: its answer, why there is none, and the upstream's own task."""
        try:
            answer, other = read(await sending)
        except Refused as refused:
            if refused.reason is Reason.APPROVAL_DENIED:
                raise _Left from None
            if refused.is_retryable:
                raise _Back from None
            return b"", refused.message, ""
        except Exception:
            log.exception("a fault of meshd ended the held call %s", id)
            return b"", "meshd met a fault of its own: nobody knows whether it was carried out.", ""
        return answer, "", other

    # ------------------------------------------------------------------ calls whose callers wait for a stream

    async def hold(self, kept: Kept) -> bool:
        """Claim a call whose caller waits for its stream here, so that nobody else carries it out; False where another
        has it. Raises StoreError."""
        id = kept.call.id
        is_taken = kept.call.state == ENDED or (kept.call.state == RUNNING and not await self.is_lost(kept.call))
        if is_taken or id in self._held_here or not await self._claim(kept, changed_s=kept.call.changed_s):
            return False
        self._held_here.add(id)
        return True

    def let_go(self, id: str, *, is_free: bool) -> None:
        """Its caller waits no more. `is_free`: it never went out, so whoever asks for its task may have it done."""
        if id in self._held_here:
            self._held_here.discard(id)
            self._claimed.discard(id)
            if is_free:
                self._note(self._put_back(id))

    def over(self, id: str, answer: bytes, other: str) -> None:
        """The stream of such a call is over: write down what was said in it."""
        self._note(self._end(id, answer, "", other))

    def closed(self, approval: Approval) -> None:
        """Hear of an approval that has changed: a call that will never go out need not be kept whole."""
        if approval.state in NEVER:
            self._note(self.held.empty(approval.id))

    # ------------------------------------------------------------------ within

    def _note(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._noting.add(task)
        task.add_done_callback(self._noted)

    def _noted(self, task: asyncio.Task[None]) -> None:
        self._noting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("where a held call stands could not be written down: %s", error)

    async def is_lost(self, call: HeldCall) -> bool:
        """Say whether whoever carried a call out has gone without a word. Raises StoreError.

        One that was started again is known to be; one that is only silent is taken for it, since it may be slow: that
        is a guess, and harms nothing, since the approval is used once whoever guesses.
        """
        if call.id in self._running or call.id in self._held_here:
            return False
        if self._clock() - max(call.beat_s, call.changed_s) > LOST_S:
            return True
        return bool(call.holder) and await self.held.has_begun_anew(call.holder, call.epoch)

    async def _claim(self, kept: Kept, changed_s: float) -> bool:
        holder, epoch = self._here()
        claimed = msgspec.structs.replace(
            kept.call, state=RUNNING, beat_s=self._clock(), changed_s=changed_s, holder=holder, epoch=epoch
        )
        if not await self.held.change(kept, claimed):
            return False
        self._claimed.add(kept.call.id)
        if self._beating is None:
            self._beating = asyncio.get_running_loop().create_task(self._beat())
        return True

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
        """Let whoever asks next have it done. Its claim is lost after a while where that cannot be written down."""
        while (kept := await self.held.read(id)) is not None and kept.call.state == RUNNING:
            freed = msgspec.structs.replace(kept.call, state=ASKED, changed_s=self._clock())
            if await self.held.change(kept, freed):
                return

    async def _beat(self) -> None:
        """Say of all that runs and is held here that it is: one task, whatever their number."""
        while self._claimed:
            await asyncio.sleep(BEAT_S)
            ids = list(self._claimed)
            try:
                for at in range(0, len(ids), BATCH):
                    await self.held.beat(ids[at : at + BATCH], self._clock())
            except StoreError as error:
                log.warning("held calls cannot say that they are alive: %s", error)
        self._beating = None

    async def close(self) -> None:
        """End what runs: nobody knows whether it was carried out, and its approval stays used."""
        running = [*self._running.values()]
        if self._beating is not None:
            running.append(self._beating)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._noting:
            await asyncio.wait(tuple(self._noting), timeout=NOTED_S)


class _Back(Exception):
    """Nothing has gone out: the call is as it was, and the next to ask tries again."""


class _Left(Exception):
    """Its approval does not hold here: what it says, or who has used it, is what is told."""
