"""The session with a sidecar: what an agent asks for, and what it is handed. Imports grpcio and protobuf.

Whatever is asked for has an `Operation` until it is answered. In a new session, where the sidecar has forgotten the old
one, publications, records and subscriptions are sent again; calls that were sent end with `SessionLost`, but those with
an idempotency key, which are sent again too.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any, Final, Protocol

from meshd_sdk.connection import GOODBYE_S, Connection, log
from meshd_sdk.errors import Malformed, NoSidecar, TimedOut
from meshd_sdk.messages import call_of, entry_of, event_of, failure_of, published_of, subscribe_of
from meshd_sdk.operations import CallOperation, Operation
from meshd_sdk.services_state import StateServices
from meshd_sdk.v1 import events_pb2, session_pb2, trace_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from meshd_sdk.handlers import Subscription
    from meshd_sdk.link import Ask, Entry, Event, Piece, Published
    from meshd_sdk.settings import Place
    from meshd_sdk.v1 import discovery_pb2

FRAME_REST_BYTES: Final = 64 * 1024
"""Of a frame, for all but its payload."""
SEQ_BYTES: Final = 64
"""Of a frame, for its numbers."""
ENTRIES_MAX: Final = 256
RECORD_BYTES_MAX: Final = 2**20
"""Entries of one record, but for a single one that has more."""
SUBSCRIBE_AGAIN_S: Final = 1.0
LATE_S: Final = 1.0
"""So much longer than its timeout a call waits for the sidecar's own word on it."""


class Deliveries(Protocol):
    """Who carries out what the sidecar hands over. Its methods do not wait."""

    @property
    def count(self) -> int:
        """How many are under way."""
        ...

    def call(self, delivery: session_pb2.CallDelivery) -> None:
        """Carry out a call."""
        ...

    def cancel(self, id: int) -> None:
        """Nobody waits for a call's reply any more."""
        ...

    def event(self, delivery: session_pb2.EventDelivery) -> None:
        """Handle an event."""
        ...

    def lose(self) -> None:
        """Nobody waits for anything any more: the session is lost."""
        ...


class Session(Connection, StateServices):
    """See the module. One event loop's: `begin` first, `end` last."""

    is_governed: Final = True

    def __init__(self, place: Place, agent: discovery_pb2.Agent, deliveries: Deliveries, *, credit: int) -> None:
        super().__init__(place, agent, credit=credit)
        self._deliveries = deliveries
        self._ids = itertools.count(1)
        self._operations: dict[int, Operation] = {}
        self._subscriptions: dict[int, Operation] = {}

    # What an agent asks for

    async def call(self, ask: Ask) -> Piece:
        """Make a call and return its whole reply."""
        operation = await self._call(ask)
        try:
            async with asyncio.timeout(None if ask.timeout_s is None else ask.timeout_s + LATE_S):
                return await operation.whole()
        except TimeoutError as error:
            raise TimedOut(f"no reply from {ask.target} within {ask.timeout_s} s") from error
        finally:
            self._leave(operation)

    async def stream(self, ask: Ask) -> AsyncIterator[Piece]:
        """Make a call and return the pieces of its reply as they come."""
        operation = await self._call(ask)
        try:
            ends_s = None if ask.timeout_s is None else asyncio.get_running_loop().time() + ask.timeout_s + LATE_S
            while True:
                async with asyncio.timeout_at(ends_s):  # never around the yield: that time is the reader's own
                    piece = await operation.next_piece()
                if piece is None:
                    return
                yield piece
        except TimeoutError as error:
            raise TimedOut(f"no whole reply from {ask.target} within {ask.timeout_s} s") from error
        finally:
            self._leave(operation)

    async def publish(self, token: str, event: Event) -> Published:
        """Publish an event; return when it is acknowledged."""
        self._measure(len(event.payload), "the event's data")
        id = next(self._ids)
        request = events_pb2.PublishRequest(token=token, event=event_of(event))
        frame = session_pb2.ConnectRequest(publish=session_pb2.Publish(id=id, request=request))
        await self.room()
        answer: session_pb2.PublishReply = await asyncio.shield(self._begin(Operation(id, "publish", frame)).answer)
        return published_of(answer.response)

    async def record(self, token: str, entries: list[Entry]) -> None:
        """Take entries for the trace; return when there is room for them."""
        for taken in _records([entry_of(one) for one in entries]):
            id = next(self._ids)
            request = trace_pb2.RecordRequest(token=token, entries=taken)
            frame = session_pb2.ConnectRequest(record=session_pb2.Record(id=id, request=request))
            await self.room()
            self._begin(Operation(id, "record", frame))

    async def subscribe(self, subscriptions: list[Subscription], by_id: dict[int, Subscription]) -> None:
        """Ask for events, and note under which id each one's come. Raises what the sidecar says against it."""
        made = []
        for one in subscriptions:
            id = next(self._ids)
            by_id[id] = one
            frame = session_pb2.ConnectRequest(subscribe=subscribe_of(id, one))
            await self.room()
            self._subscriptions[id] = self._begin(Operation(id, "subscribe", frame))
            made.append(self._subscriptions[id].answer)
        for answer in made:
            await asyncio.shield(answer)

    async def send(self, frame: session_pb2.ConnectRequest, era: int) -> bool:
        """Send what answers a delivery, in time; return False where its session is lost."""
        await self.room()
        if era != self.era:
            self.give_room()
            return False
        self.offer(frame)
        return True

    async def flush(self) -> None:
        """Wait until publications and records are answered."""
        waiting = [one.answer for one in self._operations.values() if one.kind in ("publish", "record")]
        if waiting:
            await asyncio.wait(waiting)

    async def end(self, reason: str = "") -> None:
        """Say goodbye, and let go; what waits for an answer ends with NoSidecar."""
        try:
            async with asyncio.timeout(GOODBYE_S):
                await self.flush()
        except TimeoutError:
            log.warning("meshd has not acknowledged all that was published and recorded")
        await super().end(reason)
        for operation in list(self._operations.values()):
            operation.fail(NoSidecar("the agent has left its session"))

    # The parts of it

    async def _call(self, ask: Ask) -> CallOperation:
        self._measure(len(ask.payload), "the payload")
        id = next(self._ids)
        frame = session_pb2.ConnectRequest(call=call_of(id, ask))
        await self.room()
        operation = CallOperation(id, frame)
        self._begin(operation)
        return operation

    def _measure(self, length: int, what: str) -> None:
        if length > self.frame_bytes_max - FRAME_REST_BYTES:
            most = self.frame_bytes_max - FRAME_REST_BYTES
            raise Malformed(f"{what} has {length:,} bytes, and {most:,} are the most", reason="too_large")

    def _begin(self, operation: Operation) -> Operation:
        if self.is_leaving:
            raise NoSidecar("the agent has left its session")
        # Said here: a frame that is too long would end the stream, be sent again on the next, and end that.
        if (length := operation.frame.ByteSize()) > self.frame_bytes_max - SEQ_BYTES:
            self.give_room()
            raise Malformed(
                f"with all that belongs to it the {operation.kind} has {length:,} bytes, and "
                f"{self.frame_bytes_max - SEQ_BYTES:,} are the most",
                reason="too_large",
            )
        self._operations[operation.id] = operation
        self.offer(operation.frame, is_work=operation.kind != "subscribe")
        return operation

    def _leave(self, operation: CallOperation) -> None:
        """Let go of a call; the sidecar is told where it has not ended."""
        if self._operations.get(operation.id) is not operation or operation.answer.done():
            return
        if self.state.withdraw(operation.frame):
            del self._operations[operation.id]
        else:
            # It stays, for the credit that comes back with its end.
            self.offer(session_pb2.ConnectRequest(cancel=session_pb2.CancelCall(id=operation.id)))
        operation.answer.cancel()

    def _end(self, id: int) -> Operation | None:
        operation = self._operations.pop(id, None)
        if operation is not None:
            self.state.answered(operation.frame)
            self._wake.set()
        return operation

    # What the sidecar says

    def handle(self, frame: session_pb2.ConnectResponse) -> None:
        """Carry out a frame that is new; one that this version does not know is passed over."""
        match frame.WhichOneof("frame"):
            case "call":
                self._deliveries.call(frame.call)
            case "event":
                self._deliveries.event(frame.event)
            case "cancel":
                self._deliveries.cancel(frame.cancel.id)
            case "reply":
                self._replied(frame.reply)
            case "published":
                self._answered(frame.published, frame.published.status.code)
            case "subscribed":
                self._answered(frame.subscribed, frame.subscribed.status.code)
            case "recorded":
                self._answered(frame.recorded, frame.recorded.status.code)
            case "credit":
                self.given_credit(frame.credit.frames)
            case "drain":
                self.hold()

    def _replied(self, reply: session_pb2.CallReply) -> None:
        operation = self._operations.get(reply.id)
        if not isinstance(operation, CallOperation):
            return
        if operation.take(reply):
            self._end(reply.id)
        elif operation.is_too_much and not operation.answer.done():
            self.offer(session_pb2.ConnectRequest(cancel=session_pb2.CancelCall(id=reply.id)))
            operation.give_up()

    def _answered(self, answer: Any, code: int) -> None:
        operation = self._end(answer.id)
        if operation is None:
            return
        if code == 0:
            if not operation.answer.done():
                operation.answer.set_result(answer)
            return
        error = failure_of(answer.status)
        if operation.kind == "subscribe" and operation.answer.done():
            # It was good in an earlier session: it is asked for until it is so again.
            log.warning("meshd did not renew a subscription, and is asked again: %s", error)
            delay_s = error.retry_after_s or SUBSCRIBE_AGAIN_S
            asyncio.get_running_loop().call_later(delay_s, self._subscribe_again, operation, self.era)
        elif operation.kind == "record":
            log.warning("meshd did not take entries for the trace: %s", error)
        operation.fail(error)

    def _subscribe_again(self, operation: Operation, era: int) -> None:
        if era == self.era and not self.is_leaving:
            self._operations[operation.id] = operation
            self.offer(operation.frame)

    @property
    def deliveries_count(self) -> int:
        """How many deliveries are under way."""
        return self._deliveries.count

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is under way in either direction."""
        return self.state.is_idle and self.state.under_way == 0 and self._deliveries.count == 0

    def lose(self) -> None:
        """The session cannot be resumed any more."""
        for operation in list(self._operations.values()):
            if self.state.withdraw(operation.frame):  # it was never sent: it still can be
                self.offer(operation.frame, is_work=True)
            elif operation.answer.done() or not operation.can_go_again():
                del self._operations[operation.id]
                operation.lose()
        self._deliveries.lose()

    def begin_anew(self, *, is_first: bool) -> None:
        """Offer again what an earlier session has lost, subscriptions first."""
        if is_first:
            return
        log.warning("meshd has forgotten this agent's session: a new one has begun")
        self.lose()
        self.state.clear()
        for subscription in self._subscriptions.values():
            self._operations[subscription.id] = subscription
            self.offer(subscription.frame)
        for operation in list(self._operations.values()):
            if operation.kind != "subscribe":
                self.offer(operation.frame, is_work=True)


def _records(entries: list[trace_pb2.TraceEntry]) -> Iterator[list[trace_pb2.TraceEntry]]:
    """Yield the entries of one record after the other."""
    taken: list[trace_pb2.TraceEntry] = []
    bytes_taken = 0
    for one in entries:
        size = one.ByteSize()
        if taken and (len(taken) == ENTRIES_MAX or bytes_taken + size > RECORD_BYTES_MAX):
            yield taken
            taken, bytes_taken = [], 0
        taken.append(one)
        bytes_taken += size
    if taken:
        yield taken
