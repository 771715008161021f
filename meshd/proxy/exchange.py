"""The life of one call: from its head to its last ticket settled.

    begin -> (body held, where a dialect must read it) -> chain -> attempt -> reply -> finish

Everything here is a plain function call made from a connection's callback. Only a filter that must wait makes a
task, and only for its own call. Tickets of the call are settled when it ends, those of an attempt when that does;
both exactly once, whoever hung up first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.call import Call, Direction, Kind, Reply, Target
from meshd.chain import Pending, settle
from meshd.outcome import Fault, Outcome, Verdict
from meshd.proxy.arrival import arrive, too_large
from meshd.proxy.attempt import Attempt
from meshd.proxy.patience import is_body_too_slow
from meshd.proxy.refusing import is_told, refusal_reply
from meshd.refusal import Reason, Refused
from meshd.wire.fields import forwardable_trailers

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.filters.contract import Ticket
    from meshd.proxy.caller import Caller, Stream
    from meshd.proxy.proxy import Proxy
    from meshd.wire.message import Request, WireError

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_CALLER_GONE: Final = Fault.CALLER_GONE
_DEADLINE: Final = Fault.DEADLINE
_FAULT_NONE: Final = Fault.NONE
_SHUTDOWN: Final = Fault.SHUTDOWN
_LLM: Final = Kind.LLM
_NEUTRAL: Final = Verdict.NEUTRAL

BACKLOG_BYTES_MAX: Final = 65_536
"""Body bytes that wait for a connection before the caller is paused."""


class Exchange:
    """One call on its way: the caller on one side, one attempt after the other on the other."""

    __slots__ = (
        "_backlog", "_backlog_bytes", "_body_bytes", "_held", "_is_half_closed", "_is_waiting", "_operation",
        "_trailers", "attempt", "call", "caller", "is_answered", "is_caller_gone", "is_done", "is_request_whole",
        "is_tunnel", "is_tunnel_open", "proxy", "request", "tickets",
    )  # fmt: skip

    def __init__(self, proxy: Proxy, caller: Caller, request: Request, direction: Direction) -> None:
        self.proxy = proxy
        self.caller = caller
        self.request = request
        fields = request.fields
        self.call = Call(
            proxy.next_id(),
            direction,
            request.method,
            request.target,
            fields.authority,
            fields.headers,
            proxy.now_s,
            proxy.wall_clock(),
            caller.peer,
            fields.governed,
            fields.credentials,
        )
        self.attempt: Attempt | None = None
        self.tickets: list[Ticket] = []
        self.is_request_whole = not request.has_body
        self.is_answered = False
        """At least one byte of a reply has left for the caller."""
        self.is_caller_gone = False
        self.is_done = False
        self.is_tunnel = False
        """The caller asks for bytes to be passed on as they are, both ways."""
        self.is_tunnel_open = False
        self._is_half_closed = False
        self._is_waiting = False
        self._trailers: Headers = []
        self._held: list[bytes] | None = None
        """Pieces of a body that a dialect must read whole."""
        self._operation = ""
        self._backlog: list[bytes] = []
        """Pieces of a body that streams, while there is no connection to stream it to."""
        self._backlog_bytes = 0
        self._body_bytes = 0

    # ------------------------------------------------------------------ the request comes in

    def begin(self) -> None:
        """The head is there: say what the call is for, then hold its body or admit it."""
        proxy, call, request = self.proxy, self.call, self.request
        proxy.live.add(self)
        call.policy = proxy.policy
        proxy.telemetry.started(call)
        try:
            self._arrive()
            if call.target.kind is _LLM and not self.is_tunnel:
                operation = call.dialect.recognise(call.method, call.path)
                if operation is not None:
                    self._hold(operation)
                    return
        except Refused as refused:
            self.refuse(refused)
            return
        self._admit()
        if request.expects_continue and not self.is_done:
            self.caller.send_informational(100, [])

    def _arrive(self) -> None:
        """Say what the call is for. Raises Refused."""
        self.is_tunnel = arrive(self.proxy, self.call, self.request)

    def _hold(self, operation: str) -> None:
        request = self.request
        bytes_max = self.call.policy.limits.request_body_bytes_max
        if request.content_length is not None and request.content_length > bytes_max:
            raise too_large(bytes_max)
        self._operation = operation
        self._held = []
        if request.expects_continue:
            self.caller.send_informational(100, [])
        if not request.has_body:
            self._read(b"")

    def request_data(self, data: bytes) -> None:
        """A piece of the request's body."""
        if self.is_done:
            return
        self._body_bytes += len(data)
        if self.call.heard_by is not None:
            self.call.heard_by.hear(data)
        if self._held is not None:
            self._held.append(data)
            bytes_max = self.call.policy.limits.request_body_bytes_max
            if self._body_bytes > bytes_max:
                self.refuse(too_large(bytes_max))
        elif (
            self.attempt is not None and self.attempt.stream is not None and (self.is_tunnel_open or not self.is_tunnel)
        ):
            self.attempt.send_data(data)
        else:
            self._backlog.append(data)
            self._backlog_bytes += len(data)
            if self._backlog_bytes > BACKLOG_BYTES_MAX:
                self.caller.pause_request()

    def request_end(self, trailers: Headers) -> None:
        """The request's last byte."""
        self.is_request_whole = True
        if self.is_done:
            return
        if self._held is not None:
            held = self._held
            self._read(held[0] if len(held) == 1 else b"".join(held))
        elif self.request.has_body:
            self._trailers = forwardable_trailers(trailers) if trailers else trailers
            if self.is_tunnel:
                self.half_closed()
            elif self.attempt is not None and self.attempt.stream is not None:
                self.attempt.stream.send_end(self._trailers)

    def send_backlog(self, stream: Stream) -> None:
        """Give the attempt's stream what has come of the body so far."""
        backlog, self._backlog = self._backlog, []
        was_paused = self._backlog_bytes > BACKLOG_BYTES_MAX
        self._backlog_bytes = 0
        if was_paused:
            self.caller.resume_request()
        # Only now: an upstream that cannot take it all pauses the caller again.
        for data in backlog:
            stream.send_data(data)
        if self._is_half_closed or (self.is_request_whole and not self.is_tunnel):
            stream.send_end(self._trailers)

    def half_closed(self) -> None:
        """The caller of a tunnel will send no more; the other half may go on."""
        self._is_half_closed = True
        if self.is_tunnel_open and self.attempt is not None and self.attempt.stream is not None:
            self.attempt.stream.send_end([])

    def request_broken(self, error: WireError) -> None:
        """The bytes of the request's body are not what its head promised."""
        if self.is_done:
            return
        if self.is_answered and self.attempt is not None:
            self.attempt.give_up()
            self.caller.abort()
        else:
            self.refuse(error, _CALLER_GONE)

    def _read(self, body: bytes) -> None:
        call = self.call
        self._held = None
        try:
            ask = call.dialect.read(self._operation, body, call.path, call.headers)
        except Refused as refused:
            self.refuse(refused)
            return
        call.body = body
        call.ask = ask
        call.target = Target(call.target.kind, call.target.name, ask.model)
        self._admit()

    # ------------------------------------------------------------------ the chain

    def _admit(self, start: int = 0) -> None:
        chain = self.proxy.chain
        try:
            decision = chain.admit(chain.per_call, self.call, self.tickets, start)
        except Refused as refused:
            self.refuse(refused)
            return
        if decision is None:
            self._attempt()
        else:
            self._decided(decision, self.tickets, self._admit)

    def _attempt(self, start: int = 0) -> None:
        chain = self.proxy.chain
        attempt = self.attempt
        if start == 0 or attempt is None:
            self.call.attempt += 1
            attempt = self.attempt = self._new_attempt()
        try:
            decision = chain.admit(chain.per_attempt, self.call, attempt.tickets, start)
            if decision is None:
                attempt.send()
        except Refused as refused:
            self.refuse(refused)
            return
        if decision is not None:
            self._decided(decision, attempt.tickets, self._attempt)

    def _new_attempt(self) -> Attempt:
        return Attempt(self)

    def _decided(self, decision: Reply | Pending, tickets: list[Ticket], go_on: Any) -> None:
        if isinstance(decision, Reply):
            self._answer_here(decision)
        else:
            self._is_waiting = True
            self.proxy.wait(self, decision, tickets, go_on)

    def waited(self, tickets: list[Ticket], result: Any, go_on: Any, resume_at: int) -> None:
        """What a filter waited for is there: a ticket, a Reply, None, or the exception that it ended in."""
        self._is_waiting = False
        if self.is_done:
            # The call ended meanwhile; what the filter took all the same is paid back.
            self._settle_late(result)
            return
        if isinstance(result, BaseException) and not isinstance(result, Refused):
            result = Refused(Reason.STORE_UNAVAILABLE, f"A rule could not be decided: {result}")
        if isinstance(result, Refused):
            if not result.is_shadow:
                self.refuse(result)
                return
            self.proxy.telemetry.shadowed(self.call, result)
        elif isinstance(result, Reply):
            self._answer_here(result)
            return
        elif result is not None:
            tickets.append(result)
        if self.is_caller_gone:
            self.finish(self.attempt, _CALLER_GONE)
        else:
            go_on(resume_at)

    def _settle_late(self, result: Any) -> None:
        if hasattr(result, "settle"):
            now_s = self.proxy.now_s
            settle([result], Outcome(_NEUTRAL, now_s, fault=_CALLER_GONE, duration_s=now_s - self.call.now_s))

    def again(self, delay_s: float) -> None:
        """Make another attempt after `delay_s` seconds."""
        self.attempt = None
        self.proxy.later(delay_s, self._again, self)

    def _again(self) -> None:
        if not self.is_done:
            self._attempt()

    # ------------------------------------------------------------------ pace

    def pause_reply(self) -> None:
        """The caller cannot take more for now."""
        if self.attempt is not None:
            self.attempt.pause_reply()

    def resume_reply(self) -> None:
        """The caller can take more again."""
        if self.attempt is not None:
            self.attempt.resume_reply()

    def pause_request(self) -> None:
        """The upstream cannot take more for now."""
        if not self.is_caller_gone:
            self.caller.pause_request()

    def resume_request(self) -> None:
        """The upstream can take more again."""
        if not self.is_caller_gone:
            self.caller.resume_request()

    # ------------------------------------------------------------------ the end

    def caller_gone(self) -> None:
        """The caller hung up. What it asked for may still be billed, so a metered reply is read to its usage."""
        if self.is_done or self.is_caller_gone:
            return
        self.is_caller_gone = True
        attempt = self.attempt
        if self._is_waiting:
            return  # What the filter takes must be settled: `waited` ends the call.
        if attempt is None:
            self.finish(None, _CALLER_GONE)
        elif attempt.stream is not None and self.call.ask is not None:
            attempt.resume_reply()
        else:
            attempt.give_up()

    def expire(self, now_s: float, wall_s: float) -> None:
        """Called about twice a second: end what has taken too long."""
        if self.is_done or self._is_waiting:
            return
        call, context, attempt = self.call, self.call.context, self.attempt
        if context is not None and context.deadline_s is not None and wall_s > context.deadline_s:
            if not self.is_caller_gone:
                self._end_with(_DEADLINE, "The workflow's deadline passed while the call was under way")
        elif not self.is_request_whole and self._held is not None:
            if is_body_too_slow(call.policy.limits, now_s - call.now_s, self._body_bytes):
                self.refuse(Refused(Reason.MALFORMED, "The request's body came too slowly", status=408))
        elif attempt is not None:
            attempt.expire(now_s)

    def shut_down(self) -> None:
        """The drain's deadline has passed: end now."""
        if not self.is_done and not self._is_waiting:
            self._end_with(_SHUTDOWN, "This sidecar is shutting down")

    def _end_with(self, fault: Fault, message: str) -> None:
        if self.attempt is not None:
            self.attempt.abandon(fault, message)
        else:
            reason = Reason.DEADLINE if fault is _DEADLINE else Reason.DRAINING
            self.refuse(Refused(reason, message), fault)

    def refuse(self, refused: Refused, fault: Fault = Fault.NONE) -> None:
        """Answer with a refusal, or with our own words for an upstream's failure."""
        attempt = self.attempt
        if attempt is not None:
            attempt.leave()
        if not self.is_caller_gone and not is_told(self, refused):
            self._write(refusal_reply(refused, self.call))
        self.finish(attempt, fault, refused)

    def _answer_here(self, reply: Reply) -> None:
        if not self.is_caller_gone:
            self._write(reply)
        self.finish(self.attempt, _FAULT_NONE)

    def _write(self, reply: Reply) -> None:
        self.is_answered = True
        has_body = self.call.method != "HEAD" and bool(reply.body)
        self.caller.send_head(reply.status, reply.headers, len(reply.body), has_body=has_body)
        if has_body:
            self.caller.send_data(reply.body)
        self.caller.send_end([])

    def finish(self, attempt: Attempt | None, fault: Fault, refused: Refused | None = None) -> None:
        """Settle everything, and tell it. Whatever comes later finds the call done."""
        if self.is_done:
            return
        self.is_done = True
        proxy, call = self.proxy, self.call
        if attempt is not None:
            outcome = attempt.outcome(fault, refused)
            attempt.settle(outcome)
        else:
            now_s = proxy.now_s
            outcome = Outcome(_NEUTRAL, now_s, fault=fault, is_answered=True, duration_s=now_s - call.now_s)
            outcome.reason = refused.reason if refused is not None else None
        if self.tickets:
            settle(self.tickets, outcome)
        proxy.left(self)
        status = refused.status if refused is not None else outcome.status
        proxy.telemetry.ended(call, status, outcome, refused, meter=attempt.meter if attempt is not None else None)
        # Exchange and Attempt hold each other; without this every call would wait for the garbage collector.
        self.attempt = None
