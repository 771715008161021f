"""Calls that come to an agent through its session: the agent is the upstream, a CallDelivery its request."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from meshd.api import session_frames as frames
from meshd.call import Direction
from meshd.filters.minting import moved
from meshd.outcome import Fault
from meshd.proxy.crash import ending
from meshd.proxy.recording import unrecorded
from meshd.refusal import Reason, Refused
from meshd_sdk import context as codec
from meshd_sdk.v1 import session_pb2 as pb
from meshd_sdk.v1.status_pb2 import Status

if TYPE_CHECKING:
    from meshd.api.session import Session
    from meshd.call import Call, Headers
    from meshd.proxy.attempt import Attempt
    from meshd.proxy.exchange import Exchange

WAITING_BYTES_MAX: Final = 8 * 2**20
"""Of a reply whose caller reads too slowly: the agent's frames cannot be held back for one call alone."""
REASON_MAX: Final = 4096
_INBOUND: Final = Direction.INBOUND
_TRACEPARENT: Final = b"traceparent"


class Delivery:
    """The `Stream` of one attempt: a CallDelivery, and the CallReplies to it."""

    __slots__ = (
        "_added", "_attempt", "_bytes", "_is_headed", "_is_paused", "_is_sent", "_path", "_pieces", "_session",
        "_waiting", "_waiting_bytes", "exchange", "id",
    )  # fmt: skip

    def __init__(self, session: Session, attempt: Attempt, id: int, path: str, added: Headers) -> None:
        """`added` has the fields that the proxy minted for this agent: its context, and what is left of the time."""
        self.id = id
        self.exchange: Exchange = attempt.exchange
        self._session = session
        self._attempt: Attempt | None = attempt
        self._path = path
        self._added = added
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._is_sent = False
        self._is_headed = False
        self._is_paused = False
        self._waiting: list[pb.CallReply] = []
        self._waiting_bytes = 0

    @property
    def is_sent(self) -> bool:
        """The agent is told of it, as soon as its connection allows."""
        return self._is_sent

    # ------------------------------------------------------------------ the request

    def send_data(self, data: bytes, is_last: bool = False) -> None:
        if self._attempt is None:
            return
        self._bytes += len(data)
        if self._bytes > frames.PAYLOAD_BYTES_MAX:
            # As with a body that came too slowly: it is the caller's doing, not the agent's.
            self.exchange.refuse(
                Refused(
                    Reason.TOO_LARGE,
                    f"The agent {self._session.name} is called through its session, which takes at most "
                    f"{frames.PAYLOAD_BYTES_MAX} bytes",
                ),
                Fault.CALLER_GONE,
            )
            return
        self._pieces.append(data)
        if is_last:
            self.send_end([])

    def send_end(self, trailers: Headers) -> None:
        if self._attempt is None:
            return
        call = self.exchange.call
        pieces, self._pieces = self._pieces, []
        delivery = pb.CallDelivery(
            id=self.id,
            operation=self._path.removeprefix("/"),
            payload=b"".join(pieces),
            content_type=self.exchange.request.fields.content_type.decode("latin-1"),
        )
        key = call.header(b"idempotency-key")
        if key is not None:
            delivery.idempotency_key = key.decode("latin-1")
        self._write_context(delivery, call)
        self._is_sent = True
        self._session.put(pb.ConnectResponse(call=delivery))

    def _write_context(self, delivery: pb.CallDelivery, call: Call) -> None:
        minted = dict(self._added)
        context, token = call.context, minted.get(codec.HEADER_CONTEXT)
        if context is not None and token is not None:
            if call.direction is not _INBOUND:
                path = (*context.path, context.agent)
                context = moved(context, self._session.name, context.hops + 1, path, policy=call.policy)
            traceparent = minted.get(_TRACEPARENT, b"").decode("ascii")
            evidence = call.evidence.name
            delivery.context.CopyFrom(frames.context_frame(context, token.decode("ascii"), evidence, traceparent))
        left_s = minted.get(codec.HEADER_DEADLINE)
        if left_s is not None:
            delivery.timeout.CopyFrom(frames.duration(float(left_s)))

    # ------------------------------------------------------------------ the reply

    def replied(self, reply: pb.CallReply) -> None:
        """A piece of the reply has come."""
        if self._is_paused:
            self._waiting.append(reply)
            self._waiting_bytes += len(reply.payload)
            if self._waiting_bytes > WAITING_BYTES_MAX:
                self._break_off()
            return
        attempt = self._attempt
        if attempt is None:
            return
        if not self._is_headed:
            self._is_headed = True
            if not reply.has_more:
                self._reply_whole(attempt, reply)
                return
            attempt.reply_head(200, self._headers(reply), None)
        if reply.payload and self._attempt is not None:
            attempt.reply_data(reply.payload)
        if reply.has_more or self._attempt is None:
            return
        if reply.status.code:
            self._say(attempt, reply.status)
            self._fail(Fault.RESET, _message(self._session.name, reply.status))
        else:
            self._forget()
            attempt.reply_end([])

    def _break_off(self) -> None:
        """More waits than is kept. It is the caller who does not read: nothing is said against the agent."""
        words = f"The reply of {self._session.name} came faster than it was read: {WAITING_BYTES_MAX:,} bytes are kept"
        if self._attempt is not None:
            self._say(self._attempt, Status(code=frames.UNAVAILABLE, message=words))
        self._fail(Fault.CALLER_GONE, words)

    def _reply_whole(self, attempt: Attempt, reply: pb.CallReply) -> None:
        code, payload, headers = reply.status.code, reply.payload, self._headers(reply)
        status = frames.http_status(code)
        if code and not payload:
            headers = [(b"content-type", b"application/problem+json")]
            detail = _message(self._session.name, reply.status)
            payload = json.dumps({"title": "The agent failed", "status": status, "detail": detail}).encode()
        attempt.is_late = code == frames.DEADLINE and codec.HEADER_DEADLINE in dict(self._added)
        attempt.reply_head(status, headers, len(payload))
        if self._attempt is None:
            return  # Another attempt took its place.
        if code:
            self._say(attempt, reply.status)
            if not reply.payload and getattr(unrecorded(self.exchange.caller), "session", None) is not None:
                payload = b""
        if payload:
            attempt.reply_data(payload)
        if self._attempt is not None:
            self._forget()
            attempt.reply_end([])

    @staticmethod
    def _headers(reply: pb.CallReply) -> Headers:
        content_type = reply.content_type
        if not content_type or not frames.is_visible(content_type):
            content_type = frames.CONTENT_TYPE
        return [(b"content-type", content_type.encode("ascii"))]

    def _say(self, attempt: Attempt, status: Status) -> None:
        """Let a caller that has a session itself hear the agent in its own words. A reason is ours alone to give."""
        caller: Any = unrecorded(attempt.exchange.caller)
        if hasattr(caller, "said"):
            code = status.code if 0 < status.code <= 16 else frames.UNKNOWN
            caller.said = Status(code=code, message=status.message[:REASON_MAX], is_retryable=status.is_retryable)
            if status.HasField("retry_after"):
                caller.said.retry_after.CopyFrom(status.retry_after)
            for key in sorted(status.metadata)[:16]:
                caller.said.metadata[key[:64]] = status.metadata[key][:256]

    # ------------------------------------------------------------------ pace and the end

    def pause_reply(self) -> None:
        self._is_paused = True

    def resume_reply(self) -> None:
        self._is_paused = False
        waiting, self._waiting = self._waiting, []
        self._waiting_bytes = 0
        for reply in waiting:
            self.replied(reply)

    def cancel(self) -> None:
        """Nobody waits any more."""
        if self._attempt is None:
            return
        self._forget()
        if self._is_sent:
            self._session.put(pb.ConnectResponse(cancel=pb.CancelCall(id=self.id)))
        else:
            # The agent never heard of it, so it gives no credit back.
            self._session.keep_credit()

    def lost(self) -> None:
        """The session has ended without a reply."""
        with ending(self.exchange):
            self._fail(Fault.RESET, f"The agent {self._session.name} ended its session before it replied")

    def _fail(self, fault: Fault, message: str) -> None:
        attempt = self._attempt
        self._forget()
        if attempt is not None:
            attempt.reply_failed(fault, message)

    def _forget(self) -> None:
        self._attempt = None
        self._waiting.clear()
        self._session.deliveries.pop(self.id, None)


def _message(name: str, status: Status) -> str:
    return status.message[:REASON_MAX] or f"The agent {name} failed with code {status.code}"
