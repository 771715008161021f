"""One session: what is said in it, kept over broken connections, counted, and handed to whom it concerns.

It knows no connection: `receive` takes a frame, `put` leaves one for whoever writes, and `next_frame` gives that out.
Frames with a `seq` are kept until the agent has acknowledged them, so that a new connection can go on with them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from meshd.api import session_frames as frames
from meshd.api.session_calls import begin
from meshd.api.session_deliveries import Delivery
from meshd.api.session_events import Events, status_of_error
from meshd.api.traces import trace_service
from meshd.proxy.crash import ending
from meshd.refusal import Reason, Refused
from meshd_sdk.v1 import session_pb2 as pb

if TYPE_CHECKING:
    from meshd.api.mesh import Mesh
    from meshd.api.session_calls import SessionCaller
    from meshd.call import Headers
    from meshd.proxy.attempt import Attempt


class Wire:
    """One connection that a session is held over, as both of its loops see it."""

    __slots__ = ("ended", "is_writing", "wake")

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.is_writing = False
        self.ended: asyncio.Future[Refused | None] = asyncio.get_running_loop().create_future()
        """Why it ends: None where the agent has ended it, or nobody needs to be told."""

    def end(self, why: Refused | None) -> None:
        """End it; only the first reason counts."""
        if not self.ended.done():
            self.ended.set_result(why)


class Session:
    """What lasts from an agent's Hello to its Goodbye, or until it has been away for too long."""

    __slots__ = (
        "_acked", "_credit_owed", "_deliveries_count", "_is_over", "_kept", "_kept_bytes", "_received_bytes", "_said",
        "_unsent", "agent", "calls", "credit", "deliveries", "end", "events", "id", "is_callable", "mesh", "name",
        "parted_s", "peer", "received", "seq", "under_way", "wire",
    )  # fmt: skip

    def __init__(self, mesh: Mesh, id: str, hello: pb.Hello, peer: str, end: Any) -> None:
        """`end(session)` is called where the session ends by itself."""
        self.mesh = mesh
        self.id = id
        self.name = hello.agent.name
        self.agent = hello.agent
        """As its last Hello said: version, intents, tools."""
        self.peer = peer
        self.end = end
        self.wire: Wire | None = None
        """The connection; None while it is broken."""
        self.parted_s = 0.0
        """Monotonic seconds since which it is broken."""
        self.is_callable = False
        """Calls to the agent's name come here."""
        self.received = 0
        """Highest `seq` of the agent's, all before it included."""
        self._received_bytes = 0
        self._said = 0
        """What of it has been acknowledged."""
        self.seq = 0
        """Highest `seq` of ours."""
        self._acked = 0
        self._kept: deque[tuple[pb.ConnectResponse, int]] = deque()
        """Frames with a seq that are not acknowledged, with their bytes."""
        self._kept_bytes = 0
        self._unsent: deque[pb.ConnectResponse] = deque()
        self.under_way = 0
        """Frames of the agent's work that are not done."""
        self._credit_owed = 0
        """Of those that are done, how many it does not know of."""
        self.credit = 0
        """Deliveries that may still be sent."""
        self._deliveries_count = 0
        self.calls: dict[int, SessionCaller] = {}
        self.deliveries: dict[int, Delivery] = {}
        self.events = Events(self)
        self._is_over = False

    # ------------------------------------------------------------------ to the agent

    def put(self, frame: pb.ConnectResponse) -> None:
        """Leave a frame that must not be lost."""
        if self._is_over:
            return
        self.seq += 1
        frame.seq = self.seq
        size = frame.ByteSize()
        self._kept.append((frame, size))
        self._kept_bytes += size
        if self._kept_bytes > frames.KEPT_BYTES_MAX or len(self._kept) > frames.KEPT_FRAMES_MAX:
            self.stop(
                frames.too_much(
                    f"{len(self._kept)} frames ({self._kept_bytes} bytes) wait for an acknowledgement: read what "
                    "comes, and send `ack`."
                )
            )
            return
        self._leave(frame)

    def put_unkept(self, frame: pb.ConnectResponse) -> None:
        """Leave a frame that means nothing after a broken connection."""
        if self.wire is not None:
            self._leave(frame)

    def _leave(self, frame: pb.ConnectResponse) -> None:
        if self.wire is not None:
            self._unsent.append(frame)
            self.wire.wake.set()

    def next_frame(self) -> pb.ConnectResponse | None:
        """Return the next frame to write, with the newest acknowledgement in it."""
        if not self._unsent:
            return None
        frame = self._unsent.popleft()
        frame.ack = self._said = self.received
        self._received_bytes = 0
        return frame

    @property
    def is_crowded(self) -> bool:
        """So much waits for the agent that nothing more should be read for it."""
        return self._kept_bytes > frames.KEPT_BYTES_HIGH or len(self._kept) > frames.KEPT_FRAMES_HIGH

    def say_received(self) -> None:
        """Acknowledge what came since the last frame."""
        if self.wire is not None and self._said < self.received and not self._unsent:
            self._said = self.received
            self._leave(pb.ConnectResponse())

    # ------------------------------------------------------------------ connections

    def join(self, wire: Wire, welcome: pb.ConnectResponse, hello: pb.Hello) -> None:
        """Go on over a connection: Welcome first, then whatever the agent has not received."""
        if welcome.welcome.is_resumed:
            self._acknowledged(hello.received, "hello.received")
        self.agent = hello.agent
        older, self.wire = self.wire, wire
        if older is not None:
            # Calls that wait for credit need not hear of it.
            why = "The session goes on over another stream."
            older.end(frames.ended(frames.ABORTED, Reason.NOT_ALLOWED, why))
        self._unsent.clear()
        self._unsent.append(welcome)
        self._unsent.extend(frame for frame, _ in self._kept)
        # What the agent says is what it has room for now; what it has not seen takes of that.
        unseen = sum(1 for frame, _ in self._kept if frame.WhichOneof("frame") in ("call", "event"))
        unseen += sum(1 for delivery in self.deliveries.values() if not delivery.is_sent)
        self.credit = min(hello.credit, frames.CREDIT_MAX) - unseen
        self._credit_owed = 0
        wire.wake.set()
        agents = self.mesh.proxy.agents
        if older is not None:
            agents.has_credit(self.name)
        elif self.is_callable:
            agents.connected(self.name, self)
        self.events.has_credit()

    def leave(self, why: Refused | None) -> None:
        """The connection is gone, or is to go; what was left for it stays kept."""
        wire, self.wire = self.wire, None
        if wire is None:
            return
        self.parted_s = self.mesh.proxy.clock()
        self._unsent.clear()
        wire.end(why)
        self.mesh.proxy.agents.parted(self.name, self)

    def stop(self, why: Refused | None) -> None:
        """End the session, and tell everybody who waits for it."""
        if self._is_over:
            return
        self._is_over = True
        self.leave(why)
        self.mesh.proxy.agents.parted(self.name, self)
        for caller in tuple(self.calls.values()):
            if caller.exchange is not None:
                with ending(caller.exchange):
                    caller.exchange.caller_gone()
        self.calls.clear()
        for delivery in tuple(self.deliveries.values()):
            delivery.lost()
        self.deliveries.clear()
        self.events.close()
        self._kept.clear()
        self._kept_bytes = 0
        self.end(self)

    # ------------------------------------------------------------------ from the agent

    def receive(self, frame: pb.ConnectRequest) -> None:
        """Take a frame. Raises Refused where it breaks the protocol."""
        if frame.ack:
            self._acknowledged(frame.ack, "ack")
        if self._is_over:
            return  # What was acknowledged let more go out than is kept.
        seq = frame.seq
        if seq:
            if seq <= self.received:
                return  # It was handled before the connection broke.
            if seq != self.received + 1:
                raise frames.malformed("seq", f"{seq} came after {self.received}: they count up by one")
            self.received = seq
            self._received_bytes += frame.ByteSize()
            if seq - self._said >= frames.ACK_FRAMES or self._received_bytes >= frames.ACK_BYTES:
                self.say_received()
        kind = frame.WhichOneof("frame")
        if kind is None:
            return  # An acknowledgement, or a frame of a newer revision.
        handler = _HANDLERS.get(kind)
        if handler is None:
            raise frames.malformed(kind, "it may come once, as the first frame of a stream")
        handler(self, getattr(frame, kind))

    def _acknowledged(self, ack: int, field: str) -> None:
        if ack > self.seq:
            raise frames.malformed(field, f"{ack} was never sent; the highest seq is {self.seq}")
        kept, was_crowded = self._kept, self.is_crowded
        while kept and kept[0][0].seq <= ack:
            self._kept_bytes -= kept.popleft()[1]
        if was_crowded and not self.is_crowded:
            for caller in tuple(self.calls.values()):
                caller.resume()

    def _on_credit(self, credit: pb.Credit) -> None:
        self.credit = min(self.credit + credit.frames, frames.CREDIT_MAX)
        self._serve()

    def _serve(self) -> None:
        self.mesh.proxy.agents.has_credit(self.name)
        self.events.has_credit()

    def _on_call(self, call: pb.Call) -> None:
        self.work(call.id, "call.id")
        if call.id in self.calls:
            raise frames.malformed("call.id", f"{call.id} is under way already")
        begin(self, call)

    def _on_cancel(self, cancel: pb.CancelCall) -> None:
        caller = self.calls.get(cancel.id)
        if caller is not None:
            caller.cancel()

    def _on_reply(self, reply: pb.CallReply) -> None:
        delivery = self.deliveries.get(reply.id)
        if delivery is not None:
            with ending(delivery.exchange):
                delivery.replied(reply)

    def _on_publish(self, publish: pb.Publish) -> None:
        self.work(publish.id, "publish.id")
        self.events.publish(publish)

    def _on_subscribe(self, subscribe: pb.Subscribe) -> None:
        self.events.subscribe(subscribe)

    def _on_unsubscribe(self, unsubscribe: pb.Unsubscribe) -> None:
        self.events.unsubscribe(unsubscribe.id)

    def _on_settle(self, settle: pb.Settle) -> None:
        self.events.settle(settle)

    def _on_record(self, record: pb.Record) -> None:
        self.work(record.id, "record.id")
        reply = pb.RecordReply(id=record.id)
        mesh = self.mesh
        try:
            trace_service(mesh).take(mesh.read(record.request.token, self.name), record.request.entries)
            reply.status.code = frames.OK
        except Exception as error:  # noqa: BLE001 - it ends in a reply
            reply.status.CopyFrom(status_of_error(error))
        self.put(pb.ConnectResponse(recorded=reply))
        self.done()

    def _on_goodbye(self, goodbye: pb.Goodbye) -> None:
        self.stop(None)

    # ------------------------------------------------------------------ credit

    def work(self, id: int, field: str) -> None:
        """A frame of work has come. Raises Refused where it has no id, or there was no credit for it."""
        if not id:
            raise frames.malformed(field, "it is missing; ids count from 1")
        self.under_way += 1
        if self.under_way > frames.CREDIT:
            raise frames.too_much(
                f"{self.under_way} frames of work are under way, and there was credit for {frames.CREDIT}: wait for "
                "Credit before the next."
            )

    def done(self) -> None:
        """A frame of work is done: its credit goes back, several at a time where that makes nobody wait."""
        self.under_way -= 1
        self._credit_owed += 1
        known = frames.CREDIT - self.under_way - self._credit_owed
        if (known <= frames.CREDIT // 2 or self._credit_owed >= frames.CREDIT // 4) and self.wire is not None:
            owed, self._credit_owed = self._credit_owed, 0
            self._leave(pb.ConnectResponse(credit=pb.Credit(frames=owed)))

    @property
    def credit_left(self) -> int:
        """Frames of work that the agent may send now."""
        return frames.CREDIT - self.under_way

    # ------------------------------------------------------------------ as an upstream's connection

    def can_take(self) -> bool:
        """Say whether another call may be delivered."""
        return self.credit > 0 and self.wire is not None

    def keep_credit(self) -> None:
        """A delivery ended before it was sent: let its credit serve the next."""
        self.credit += 1
        self.mesh.proxy.later(0, self._serve)

    def next_delivery(self) -> int:
        """Return an id for a delivery, of a call or an event, and spend its credit."""
        self.credit -= 1
        self._deliveries_count += 1
        return self._deliveries_count

    def open(
        self,
        attempt: Attempt,
        *,
        method: str,
        path: str,
        added: Headers,
        has_body: bool,
        content_length: int | None,
        body: bytes | None,
        upgrade: bytes = b"",
    ) -> None:
        """Begin a call to the agent."""
        self.mesh.proxy.commit()
        delivery = Delivery(self, attempt, self.next_delivery(), path, added)
        attempt.stream = self.deliveries[delivery.id] = delivery
        if body is not None:
            delivery.send_data(body)
        if (body is not None or not has_body) and attempt.stream is delivery:
            delivery.send_end([])

    @property
    def is_idle(self) -> bool:
        """Nothing is under way, on either side, and all that was to be said is said."""
        if self.under_way or self.deliveries or self.events.is_busy or self._unsent:
            return False
        return self.wire is None or not self.wire.is_writing

    @property
    def is_over(self) -> bool:
        """It has ended for good."""
        return self._is_over


_HANDLERS: Final[dict[str, Any]] = {
    "call": Session._on_call,
    "cancel": Session._on_cancel,
    "reply": Session._on_reply,
    "publish": Session._on_publish,
    "subscribe": Session._on_subscribe,
    "unsubscribe": Session._on_unsubscribe,
    "settle": Session._on_settle,
    "record": Session._on_record,
    "credit": Session._on_credit,
    "goodbye": Session._on_goodbye,
}
