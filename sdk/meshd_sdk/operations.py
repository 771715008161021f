"""What an agent has asked the sidecar for and has no answer to yet. Imports protobuf."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from meshd_sdk.errors import CallFailed, SessionLost
from meshd_sdk.link import Piece
from meshd_sdk.messages import failure_of

if TYPE_CHECKING:
    from meshd_sdk.v1 import session_pb2

REPLY_BYTES_MAX: Final = 64 * 2**20
"""Of one reply that is held here: one that is longer, or read more slowly than it comes, ends the call."""


class Operation:
    """A piece of work: its frame, and whoever waits for the answer."""

    __slots__ = ("answer", "frame", "id", "kind")

    def __init__(self, id: int, kind: str, frame: session_pb2.ConnectRequest) -> None:
        self.id = id
        self.kind = kind
        """The name of the frame: call, publish, record or subscribe."""
        self.frame = frame
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        # Nobody may be waiting any more (a record, a call that was given up): that is no fault.
        self.answer.add_done_callback(_seen)

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def can_go_again(self) -> bool:
        """Say whether it may be sent in another session after it was sent in one that is lost."""
        return True

    def lose(self) -> None:
        """The session is lost, and it cannot go again."""
        self.fail(
            SessionLost("the sidecar forgot the session before the answer came: it may or may not have been done")
        )


class CallOperation(Operation):
    """A call: its reply comes in pieces."""

    __slots__ = ("_bytes", "_pieces", "_waiter", "call_id", "content_type")

    def __init__(self, id: int, frame: session_pb2.ConnectRequest) -> None:
        super().__init__(id, "call", frame)
        self.content_type = self.call_id = ""
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._waiter: asyncio.Event = asyncio.Event()

    def can_go_again(self) -> bool:
        """Say whether the caller gave it a key, and nothing of the reply has come."""
        return bool(self.frame.call.idempotency_key) and not self.content_type and not self._bytes

    def take(self, reply: session_pb2.CallReply) -> bool:
        """Take a piece; return whether it was the last, or more than may be held."""
        self.content_type = self.content_type or reply.content_type
        self.call_id = self.call_id or reply.call_id
        if reply.payload:
            self._pieces.append(reply.payload)
            self._bytes += len(reply.payload)
        if not reply.has_more and not self.answer.done():
            if reply.HasField("status") and reply.status.code != 0:
                self.fail(failure_of(reply.status, self.call_id))
            else:
                self.answer.set_result(None)
        self._waiter.set()
        return not reply.has_more

    @property
    def is_too_much(self) -> bool:
        """Whether more is held than may be."""
        return self._bytes > REPLY_BYTES_MAX

    def give_up(self) -> None:
        """End it as one whose reply is too much."""
        self.fail(
            CallFailed(
                f"more than {REPLY_BYTES_MAX:,} bytes of the reply are here unread: read it as a stream, and faster",
                code="RESOURCE_EXHAUSTED",
            )
        )
        self._pieces.clear()
        self._waiter.set()

    async def whole(self) -> Piece:
        """Wait for the end; return all of it."""
        await asyncio.shield(self.answer)
        return Piece(b"".join(self._pieces), self.content_type, self.call_id)

    async def next_piece(self) -> Piece | None:
        """Wait for a piece; None at the end. Raises what the call ended with."""
        while not self._pieces:
            if self.answer.done():
                self.answer.result()
                return None
            self._waiter.clear()
            await self._waiter.wait()
        payload = self._pieces.pop(0)
        self._bytes -= len(payload)
        return Piece(payload, self.content_type, self.call_id)

    def fail(self, error: Exception) -> None:
        """End it with an error; what has come before can still be read."""
        super().fail(error)
        self._waiter.set()


def _seen(answer: asyncio.Future[Any]) -> None:
    if not answer.cancelled():
        answer.exception()
