"""What the sidecar hands over, each in a task of its own: calls and their replies, events and their verdicts.

Imports protobuf. Credit bounds how many there are at once; each gives its own back as it ends, however it ends.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any, Final

from meshd_sdk.errors import CallFailed, Failure
from meshd_sdk.link import Given
from meshd_sdk.messages import duration, event_from, given_of, seconds, status_of, text
from meshd_sdk.v1 import events_pb2, session_pb2

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from meshd_sdk.handlers import Subscription
    from meshd_sdk.link import Piece
    from meshd_sdk.serving import Serving
    from meshd_sdk.session import Session

PIECE_BYTES_MAX: Final = 2**20
"""Of a reply's payload in one frame; what is longer goes in several."""
log = logging.getLogger("meshd_sdk")


class Delivering:
    """See the module. `session` is set before anything comes."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self.session: Session | None = None
        self.subscriptions: dict[int, Subscription] = {}
        """By the id under which their events come."""
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def count(self) -> int:
        """How many are under way."""
        return len(self._tasks)

    def call(self, delivery: session_pb2.CallDelivery) -> None:
        """Carry out a call."""
        self._calls[delivery.id] = self._start(self._run_call(self._open, delivery), f"call {delivery.id}")

    def event(self, delivery: session_pb2.EventDelivery) -> None:
        """Handle an event."""
        self._start(self._run_event(self._open, delivery), f"event {delivery.id}")

    def cancel(self, id: int) -> None:
        """Nobody waits for a call's reply any more."""
        if (task := self._calls.get(id)) is not None:
            task.cancel()

    def lose(self) -> None:
        """Nobody waits for any reply; events are handled to their end, and handed over again."""
        for task in self._calls.values():
            task.cancel()
        self._calls.clear()

    def close(self) -> None:
        """Take no more."""
        self._is_closed = True

    async def finish(self, within_s: float) -> None:
        """Wait for what runs; cancel what has not ended in time."""
        try:
            if self._tasks:
                await asyncio.wait(set(self._tasks), timeout=within_s)
        finally:
            late = set(self._tasks)
            for task in late:
                task.cancel()
        if late:
            await asyncio.wait(late, timeout=1.0)

    @property
    def _open(self) -> Session:
        assert self.session is not None
        return self.session

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._open.give_back()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a delivery failed by a fault of the SDK's", exc_info=error)

    async def _run_call(self, session: Session, delivery: session_pb2.CallDelivery) -> None:
        era, id = session.era, delivery.id
        last: Piece | None = None
        status = None
        try:
            if self._is_closed:
                raise CallFailed(f"{self._serving.agent} is about to end", code="UNAVAILABLE", is_retryable=True)
            pieces = self._serving.run_call(
                given_of(delivery.context) if delivery.HasField("context") else Given(),
                delivery.operation,
                delivery.payload,
                delivery.content_type,
                timeout_s=seconds(delivery.timeout) if delivery.HasField("timeout") else None,
                idempotency_key=delivery.idempotency_key,
            )
            async for piece in pieces:
                parts = _parts(piece)
                if not piece.is_of_stream:
                    last = parts.pop()  # it goes out with the status: a short reply is one frame
                for part in parts:
                    await session.send(_reply(id, part, has_more=True), era)
        except Failure as error:
            last, status = None, status_of(error)
        finally:
            if self._calls.get(id) is asyncio.current_task():
                del self._calls[id]
        frame = _reply(id, last, has_more=False)
        if status is not None:
            frame.reply.status.CopyFrom(status)
        await session.send(frame, era)

    async def _run_event(self, session: Session, delivery: session_pb2.EventDelivery) -> None:
        era = session.era
        settle = session_pb2.Settle(id=delivery.id, verdict=events_pb2.VERDICT_RETRY)
        subscription = self.subscriptions.get(delivery.subscription)
        if subscription is None or self._is_closed:
            settle.reason = f"{self._serving.agent} does not take events now"
        else:
            given = given_of(delivery.context) if delivery.HasField("context") else Given()
            verdict = await self._serving.run_event(subscription, event_from(delivery), given)
            settle.verdict = events_pb2.Verdict.Value(f"VERDICT_{verdict.word}")
            settle.reason = text(verdict.reason)
            if verdict.after_s is not None and math.isfinite(verdict.after_s):
                settle.retry_after.CopyFrom(duration(verdict.after_s))
        await session.send(session_pb2.ConnectRequest(settle=settle), era)


def _reply(id: int, piece: Piece | None, *, has_more: bool) -> session_pb2.ConnectRequest:
    reply = session_pb2.CallReply(id=id, has_more=has_more)
    if piece is not None:
        reply.payload, reply.content_type = piece.payload, piece.content_type
    return session_pb2.ConnectRequest(reply=reply)


def _parts(piece: Piece) -> list[Piece]:
    if len(piece.payload) <= PIECE_BYTES_MAX:
        return [piece]
    payload = piece.payload
    return [
        type(piece)(payload[at : at + PIECE_BYTES_MAX], piece.content_type)
        for at in range(0, len(payload), PIECE_BYTES_MAX)
    ]
