"""A gRPC call on its way: its deadline, which is kept to the millisecond, and its refusals, which are statuses.

Everything else is an `Exchange` as any: frames pass as they are, both ways, and so does what an upstream says itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.outcome import Fault
from meshd.proxy.exchange import Exchange
from meshd.proxy.grpc_attempt import GrpcAttempt
from meshd.proxy.grpc_refusing import grpc_reply, status_fields
from meshd.proxy.proxy import SWEEP_S
from meshd.proxy.recording import unrecorded
from meshd.proxy.refusing import is_told
from meshd.refusal import Reason, Refused
from meshd.wire.grpc import read_timeout, write_timeout
from meshd.wire.message import WireError

if TYPE_CHECKING:
    import asyncio

    from meshd.call import Direction, Headers, Reply
    from meshd.proxy.attempt import Attempt
    from meshd.proxy.caller import Caller
    from meshd.proxy.proxy import Proxy
    from meshd.wire.message import Request

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_DEADLINE: Final = Fault.DEADLINE

NEAR_S: Final = 2 * SWEEP_S
"""Deadlines nearer than this get a timer of their own; the others wait for a sweep that finds them near. So a call that
is over before has cost none: a timer, set and cancelled, costs 0.8 us."""


class GrpcExchange(Exchange):
    """One gRPC call."""

    __slots__ = ("_timer", "grpc_status")

    def __init__(self, proxy: Proxy, caller: Caller, request: Request, direction: Direction) -> None:
        super().__init__(proxy, caller, request, direction)
        self._timer: asyncio.Handle | None = None
        self.grpc_status = -1
        """The status that meshd itself has ended the call with; -1 where it has not."""

    def _arrive(self) -> None:
        request, timeouts = self.request, self.request.fields.grpc_timeouts
        # First, so that a refusal is told in the words of gRPC whatever comes.
        super()._arrive()
        if request.method != "POST":
            raise WireError(405, "A gRPC call is a POST")
        if timeouts:
            if len(timeouts) > 1:
                raise WireError(400, "grpc-timeout stands more than once in the call: which one holds cannot be told")
            timeout_s = self.call.timeout_s = read_timeout(timeouts[0][1])
            if timeout_s <= NEAR_S:
                self._timer = self.proxy.later(timeout_s, self._out_of_time, self)

    def left_s(self) -> float | None:
        """Return the seconds that are left of the call's deadline or its workflow's; None where there is neither."""
        call, context = self.call, self.call.context
        used_s = self.proxy.now_s - call.now_s
        left_s = call.timeout_s
        if left_s is not None:
            left_s -= used_s
        if context is not None and context.deadline_s is not None:
            # By the wall's clock: near enough for what comes from elsewhere, and no longer than the call's own.
            of_workflow_s = context.deadline_s - call.wall_s - used_s
            if left_s is None or of_workflow_s < left_s:
                left_s = of_workflow_s
        return left_s

    def timeout_to_send(self) -> bytes:
        """Return the `grpc-timeout` to forward, empty where there is no deadline: what is left, never more."""
        context = self.call.context
        if self.call.timeout_s is None and (context is None or context.deadline_s is None):
            return b""
        left_s = self.left_s()
        return b"" if left_s is None else write_timeout(left_s)

    def expire(self, now_s: float, wall_s: float) -> None:
        """See `Exchange.expire`. What is due before the next sweep gets a timer."""
        super().expire(now_s, wall_s)
        if self._timer is None and not self.is_done:
            left_s = self.left_s()
            if left_s is not None and left_s <= NEAR_S:
                self._timer = self.proxy.later(left_s, self._out_of_time, self)

    def watch_deadline(self) -> None:
        """The context is there, and may have a deadline that is nearer than the call's own."""
        context = self.call.context
        if self._timer is None and context is not None and context.deadline_s is not None:
            left_s = self.left_s()
            if left_s is not None and left_s <= NEAR_S:
                self._timer = self.proxy.later(left_s, self._out_of_time, self)

    def _out_of_time(self) -> None:
        self._timer = None
        if self.is_done or self.is_caller_gone:
            return
        message = f"The call's deadline passed while it was under way to {self.call.target.name or 'its upstream'}"
        if self._is_waiting:
            # What the filter takes all the same is paid back when it comes: see `waited`.
            self.refuse(Refused(Reason.DEADLINE, message), _DEADLINE)
        else:
            self._end_with(_DEADLINE, message)

    def _new_attempt(self) -> Attempt:
        return GrpcAttempt(self)

    def refuse(self, refused: Refused, fault: Fault = Fault.NONE) -> None:
        """Answer with a status: in trailers alone, or behind what has been answered already."""
        attempt = self.attempt
        if attempt is not None:
            attempt.leave()
        self.caller = unrecorded(self.caller)
        self.grpc_status = refused.grpc
        if not self.is_caller_gone:
            if self.is_answered:
                self.caller.send_end(self._status_fields(refused))
            elif not is_told(self, refused):
                context = self.call.context
                self._write(grpc_reply(refused, self.call.id, context.workflow if context is not None else ""))
        self.finish(attempt, fault, refused)

    def break_off(self, attempt: GrpcAttempt, refused: Refused, fault: Fault) -> None:
        """The reply has begun and cannot go on: end it with a status, never as a whole one."""
        self.grpc_status = refused.grpc
        self.caller.send_end(self._status_fields(refused))
        self.finish(attempt, fault)

    def break_reply(self, refused: Refused, fault: Fault) -> None:
        """See `Exchange.break_reply`: here its end is a status too."""
        self.refuse(refused, fault)

    def _status_fields(self, refused: Refused) -> Headers:
        context = self.call.context
        return status_fields(refused, self.call.id, context.workflow if context is not None else "")

    def _write(self, reply: Reply) -> None:
        """Send a reply. Without a body it is one of trailers alone: its only frame ends the stream."""
        self.is_answered = True
        has_body = bool(reply.body or reply.rest or reply.trailers)
        self.caller.send_head(reply.status, reply.headers, None, has_body=has_body)
        if reply.body:
            self.caller.send_data(reply.body)
        if reply.rest is None:
            self.caller.send_end(reply.trailers)

    def finish(self, attempt: Attempt | None, fault: Fault, refused: Refused | None = None) -> None:
        """See `Exchange.finish`."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        super().finish(attempt, fault, refused)
