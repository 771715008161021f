"""The life of one call: from its head to its last ticket settled.

    begin -> (body held, where a dialect must read it) -> chain -> attempt -> reply -> finish

Everything here is a plain function call made from a connection's callback. Only a filter that must wait makes a
task, and only for its own call. The tickets of an attempt are settled when the attempt ends, those of the call when
the call does; both exactly once, whoever hung up first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd.call import Call, Direction, Fault, Kind, Outcome, Reply, ReplyHead, Target, Usage, Verdict, classify
from meshd.chain import Pending, settle
from meshd.dialects.table import DIALECTS
from meshd.proxy.answer import (
    Answer,
    AnswerError,
    PlainAnswer,
    StreamAnswer,
    forbidden_reply,
    inflater_for,
    is_event_stream,
)
from meshd.proxy.refusing import failure_of, refusal_reply
from meshd.refusal import Reason, Refused
from meshd.wire.fields import forwardable_reply, forwardable_trailers

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.filters.contract import Cut, Ticket
    from meshd.proxy.caller import Caller, Stream
    from meshd.proxy.proxy import Proxy
    from meshd.wire.message import Request, WireError

BACKLOG_BYTES_MAX = 65_536
"""Body bytes that wait for a connection before the caller is paused."""
DETACHED_S_MAX = 60.0
DETACHED_BYTES_MAX = 8 * 1024 * 1024
"""How long, and for how much, a reply is read on for its usage record after its caller has gone."""


class Exchange:
    """One call on its way, between a `Caller` and a `Stream`."""

    __slots__ = (
        "_answer",
        "_attempt_tickets",
        "_backlog",
        "_backlog_bytes",
        "_body_bytes",
        "_detached_bytes",
        "_fault",
        "_first_byte_s",
        "_forward",
        "_has_streamed",
        "_head",
        "_heard_s",
        "_held",
        "_is_reply_paused",
        "_is_waiting",
        "_operation",
        "_sent_s",
        "_status",
        "_tickets",
        "call",
        "caller",
        "is_answered",
        "is_caller_gone",
        "is_done",
        "is_request_whole",
        "is_tunnel",
        "pool",
        "proxy",
        "request",
        "stream",
    )

    def __init__(self, proxy: Proxy, caller: Caller, request: Request, direction: Direction) -> None:
        now_s = proxy.clock()
        self.proxy = proxy
        self.caller = caller
        self.request = request
        self.call = Call(
            id=proxy.next_id(),
            direction=direction,
            method=request.method,
            path=request.target,
            authority=request.authority,
            headers=request.headers,
            now_s=now_s,
            wall_s=proxy.wall_clock(),
            peer=caller.peer,
            governed=request.governed,
            credentials=request.credentials,
        )
        self.stream: Stream | None = None
        self.pool: Any = None
        self.is_request_whole = not request.has_body
        self.is_answered = False
        self.is_caller_gone = False
        self.is_done = False
        self.is_tunnel = False
        self._tickets: list[Ticket] = []
        self._attempt_tickets: list[Ticket] = []
        self._held: list[bytes] | None = None
        self._operation = ""
        self._backlog: list[bytes] = []
        self._backlog_bytes = 0
        self._body_bytes = 0
        self._detached_bytes = 0
        self._has_streamed = False
        self._is_waiting = False
        self._is_reply_paused = False
        self._answer: Answer | None = None
        self._head: tuple[int, Headers, int | None] | None = None
        self._status = 0
        self._fault = Fault.NONE
        self._sent_s = 0.0
        self._heard_s = now_s
        self._first_byte_s: float | None = None
        self._forward: Headers = []

    # ------------------------------------------------------------------ the request comes in

    def begin(self) -> None:
        """The head is there: say what the call is for, then hold its body or admit it."""
        proxy, call, request = self.proxy, self.call, self.request
        proxy.live.add(self)
        try:
            self._locate()
            proxy.telemetry.started(call)
            if self.is_tunnel:
                self._judge_tunnel()
            elif call.upstream is not None and call.upstream.kind is Kind.LLM:
                operation = call.dialect.recognise(call.method, call.path)
                if operation is not None:
                    self._hold(operation)
                    return
        except Refused as refused:
            self.refuse(refused)
            return
        if request.expects_continue:
            self.caller.send_informational(100, [])
        self._admit()

    def _locate(self) -> None:
        proxy, call, request = self.proxy, self.call, self.request
        call.policy = proxy.policy
        if request.method == "CONNECT":
            located = proxy.book.locate_tunnel(request.target)
            self.is_tunnel = True
        else:
            located = proxy.book.locate(request, call.direction)
            self.is_tunnel = bool(request.upgrade)
        call.path = located.path
        call.run_token = located.run_token
        upstream = call.upstream = located.upstream
        if upstream is None:
            call.target = Target(Kind.HOST, located.name)
            call.dialect = DIALECTS["plain"]
        else:
            call.target = Target(upstream.kind, upstream.name)
            call.dialect = DIALECTS[upstream.dialect]
        if request.origin and not proxy.is_origin_allowed(request.origin):
            raise Refused(
                Reason.NOT_ALLOWED,
                "Web pages may not call through this sidecar (the request has an Origin). Call it from the agent's "
                "own process, or add the page's host to hosts_allowed in the policy.",
            )

    def _judge_tunnel(self) -> None:
        upstream = self.call.upstream
        if upstream is not None and upstream.kind is Kind.LLM and not upstream.is_unmetered:
            raise Refused(
                Reason.NOT_ALLOWED,
                f"A tunnel to {upstream.name} cannot be metered. Point the SDK's base URL at "
                f"http://<sidecar>/{upstream.name}, or set `unmetered: true` on that upstream in the policy.",
            )

    def _hold(self, operation: str) -> None:
        request = self.request
        bytes_max = self.call.policy.limits.request_body_bytes_max
        if request.content_length is not None and request.content_length > bytes_max:
            raise self._too_large(bytes_max)
        self._operation = operation
        self._held = []
        if request.expects_continue:
            self.caller.send_informational(100, [])
        if not request.has_body:
            self._read(b"")

    def _too_large(self, bytes_max: int) -> Refused:
        return Refused(
            Reason.TOO_LARGE,
            f"The request's body is over {bytes_max} bytes; raise limits.request_body in the policy if it is meant",
        )

    def request_data(self, data: bytes) -> None:
        """A piece of the request's body."""
        if self.is_done:
            return
        self._body_bytes += len(data)
        if self._held is not None:
            self._held.append(data)
            bytes_max = self.call.policy.limits.request_body_bytes_max
            if self._body_bytes > bytes_max:
                self.refuse(self._too_large(bytes_max))
        elif self.stream is not None:
            self.stream.send_data(data)
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
            held, self._held = self._held, None
            self._read(held[0] if len(held) == 1 else b"".join(held))
        elif self.stream is not None and self.request.has_body:
            self.stream.send_end(forwardable_trailers(trailers) if trailers else trailers)

    def request_broken(self, error: WireError) -> None:
        """The bytes of the request's body are not what its head promised."""
        if self.is_done:
            return
        if self.stream is not None:
            self.stream.cancel()
            self.stream = None
        if self.is_answered:
            self._finish(Fault.CALLER_GONE)
            self.caller.abort()
        else:
            self.refuse(error)

    def _read(self, body: bytes) -> None:
        call = self.call
        try:
            ask = call.dialect.read(self._operation, body)
        except Refused as refused:
            self._held = None
            self.refuse(refused)
            return
        self._held = None
        call.body = body
        call.ask = ask
        call.target = Target(call.target.kind, call.target.name, ask.model)
        self._admit()

    # ------------------------------------------------------------------ the chain

    def _admit(self, start: int = 0) -> None:
        proxy = self.proxy
        try:
            decision = proxy.chain.admit(proxy.chain.per_call, self.call, self._tickets, start)
        except Refused as refused:
            self.refuse(refused)
            return
        if decision is None:
            self._attempt()
        elif isinstance(decision, Pending):
            proxy.wait(self, decision, self._tickets, self._admit)
            self._is_waiting = True
        else:
            self._answer_here(decision)

    def _attempt(self, start: int = 0) -> None:
        proxy, call = self.proxy, self.call
        if start == 0:
            call.attempt += 1
        try:
            decision = proxy.chain.admit(proxy.chain.per_attempt, call, self._attempt_tickets, start)
        except Refused as refused:
            self.refuse(refused)
            return
        if decision is None:
            self._send()
        elif isinstance(decision, Pending):
            proxy.wait(self, decision, self._attempt_tickets, self._attempt)
            self._is_waiting = True
        else:
            self._answer_here(decision)

    def waited(self, tickets: list[Ticket], result: Any, go_on: Any, resume_at: int) -> None:
        """What a filter waited for is there: a ticket, a Reply, None, or the exception that it ended in."""
        self._is_waiting = False
        if isinstance(result, Refused):
            if not result.is_shadow:
                self._end_unless_gone(result)
                return
            self.proxy.telemetry.shadowed(self.call, result)
        elif isinstance(result, BaseException):
            self._end_unless_gone(Refused(Reason.STORE_UNAVAILABLE, f"A rule could not be decided: {result}"))
            return
        elif isinstance(result, Reply):
            self._answer_here(result)
            return
        elif result is not None:
            tickets.append(result)
        if self.is_caller_gone:
            self._finish(Fault.CALLER_GONE)
        else:
            go_on(resume_at)

    def _end_unless_gone(self, refused: Refused) -> None:
        if self.is_caller_gone:
            self._finish(Fault.CALLER_GONE, refused)
        else:
            self.refuse(refused)

    # ------------------------------------------------------------------ the attempt

    def _send(self) -> None:
        call = self.call
        self._status = 0
        self._first_byte_s = None
        self._sent_s = 0.0
        self.pool = self.proxy.pools.pool_for(call.upstream, is_grpc=self.request.is_grpc, is_tunnel=self.is_tunnel)
        try:
            self._forward = self._forward_headers()
        except Refused as refused:
            self.refuse(refused)
            return
        connection = self.pool.acquire(self)
        if connection is not None:
            self.connected(connection)

    def connected(self, connection: Any) -> None:
        """The pool has a connection for this attempt: write the request, and whatever body there is."""
        call, request = self.call, self.request
        self._sent_s = self._heard_s = self.proxy.clock()
        body: bytes | None = None
        has_body, length = request.has_body, request.content_length
        if call.ask is not None:
            body = call.dialect.rewrite(call.ask, call.body or b"")
            has_body, length = True, len(body)
        self.stream = connection.open(
            self,
            method=call.method,
            path=call.path,
            headers=self._forward,
            has_body=has_body,
            content_length=length,
            body=body,
            upgrade=request.upgrade if self.is_tunnel else b"",
        )
        if body is None and has_body and self.stream is not None:
            self._send_backlog()

    def _send_backlog(self) -> None:
        stream = self.stream
        assert stream is not None
        for data in self._backlog:
            stream.send_data(data)
        if self._backlog_bytes > BACKLOG_BYTES_MAX:
            self.caller.resume_request()
        self._has_streamed = True
        self._backlog = []
        self._backlog_bytes = 0
        if self.is_request_whole:
            stream.send_end([])

    def _forward_headers(self) -> Headers:
        call, request = self.call, self.request
        headers = request.forward[:]
        if call.ask is not None:
            headers.append(_IDENTITY)
        elif request.accept_encoding:
            headers += request.accept_encoding
        if self.pool.key is None:
            headers += request.credentials
        else:
            headers.append((call.upstream.key_header, self.pool.key))
        headers += self.proxy.chain.context.forward_headers(call)
        if call.inject:
            headers += call.inject
        return headers

    # ------------------------------------------------------------------ the reply comes back

    def reply_informational(self, status: int, headers: Headers) -> None:
        """A 1xx before the reply: passed on, but for 100, which the caller has had from us."""
        self._heard_s = self.proxy.clock()
        if status != 100 and not self.is_caller_gone:
            self.caller.send_informational(status, forwardable_reply(headers))

    def reply_head(self, status: int, headers: Headers, content_length: int | None) -> None:
        """The upstream's status and fields."""
        self._heard_s = now_s = self.proxy.clock()
        self._first_byte_s = now_s - self._sent_s
        self._status = status
        if (status >= 500 or status == 429) and self._try_again(Fault.NONE, _retry_after_s(headers)):
            return
        try:
            self._choose_answer(status, headers)
        except AnswerError as error:
            self._broken(str(error))
            return
        head = ReplyHead(status, headers)
        for ticket in (*self._tickets, *self._attempt_tickets):
            on_head = getattr(ticket, "on_head", None)
            if on_head is not None:
                on_head(head)
        answer = self._answer
        if answer is not None:
            if isinstance(answer, PlainAnswer) and answer.is_held:
                self._head = (status, headers, content_length)
                return
            if isinstance(answer, StreamAnswer) or answer.is_inflated:
                content_length = None
        self._send_head(status, headers, content_length)

    def _send_head(self, status: int, headers: Headers, content_length: int | None) -> None:
        if self.is_caller_gone:
            return
        call = self.call
        answer = self._answer
        without = (b"content-encoding",) if answer is not None and answer.is_inflated else ()
        fields = forwardable_reply(headers, without)
        fields += call.reply_headers
        self.is_answered = True
        has_body = not (status in (204, 304) or call.method == "HEAD")
        self.caller.send_head(status, fields, content_length, has_body=has_body or self.is_tunnel)

    def _choose_answer(self, status: int, headers: Headers) -> None:
        call = self.call
        if call.ask is None or not 200 <= status < 300:
            return
        watchers: list[Any] = []
        is_judged = False
        for ticket in (*self._tickets, *self._attempt_tickets):
            on_event = getattr(ticket, "on_event", None)
            if on_event is not None:
                watchers.append(on_event)
                is_judged = is_judged or getattr(ticket, "judges_whole", False)
        bytes_max = call.policy.limits.reply_body_bytes_max
        meter = call.dialect.meter(call.ask)
        try:
            inflater = inflater_for(headers, bytes_max)
        except AnswerError:
            if is_judged:
                raise
            return  # It cannot be metered, so it is charged at its bound; it can still be passed on.
        if is_event_stream(headers):
            self._answer = StreamAnswer(meter, tuple(watchers), inflater)
        else:
            self._answer = PlainAnswer(meter, tuple(watchers), inflater, is_held=is_judged, bytes_max=bytes_max)

    def reply_data(self, data: bytes) -> None:
        """A piece of the reply's body."""
        self._heard_s = self.proxy.clock()
        answer = self._answer
        if answer is not None:
            try:
                data = answer.data(data)
            except AnswerError as error:
                self._broken(str(error))
                return
            if answer.cut is not None:
                self._end_cut(data, answer.cut)
                return
        if self.is_caller_gone:
            self._detached_bytes += len(data)
            if self._detached_bytes > DETACHED_BYTES_MAX:
                self._give_up_detached()
        elif data:
            self.caller.send_data(data)

    def reply_end(self, trailers: Headers) -> None:
        """The reply's last byte."""
        answer = self._answer
        if answer is not None and not self._end_answer(answer):
            return
        if not self.is_caller_gone:
            self.caller.send_end(forwardable_trailers(trailers) if trailers else trailers)
        self._finish(Fault.NONE)

    def _end_answer(self, answer: Answer) -> bool:
        try:
            data = answer.end()
        except AnswerError as error:
            self._broken(str(error))
            return False
        if self._head is not None:
            status, headers, length = self._head
            self._head = None
            if answer.cut is not None:
                self._settle_attempt(Fault.CUT)
                self.refuse(forbidden_reply(answer.cut))
                return False
            self._send_head(status, headers, len(data) if answer.is_inflated else length)
        elif answer.cut is not None:
            self._end_cut(data, answer.cut)
            return False
        if data and not self.is_caller_gone:
            self.caller.send_data(data)
        return True

    def _end_cut(self, data: bytes, cut: Cut) -> None:
        """A ticket ended the stream: close it well-formed, and leave the upstream."""
        answer = self._answer
        assert answer is not None
        if cut.is_error:
            data += answer.meter.error_event(forbidden_reply(cut))
        else:
            data += answer.meter.cut()
        self._leave_upstream()
        if not self.is_caller_gone:
            self.caller.send_data(data)
            self.caller.send_end([])
        self._finish(Fault.CUT)

    def _leave_upstream(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.cancel()
        elif self.pool is not None:
            self.pool.forget(self)

    def _broken(self, message: str) -> None:
        """The reply is not what it says it is: nothing more of it is forwarded."""
        self._leave_upstream()
        self.reply_failed(Fault.GARBAGE, f"The reply of {self.call.target.name} cannot be used: {message}")

    def reply_failed(self, fault: Fault, message: str) -> None:
        """The attempt has failed: try again, answer with an error, or end what has begun so that it shows."""
        if self.is_done:
            return
        self.stream = None
        if not self.is_answered and self._try_again(fault, None):
            return
        if self.is_caller_gone:
            self._finish(fault)
        elif self.is_answered:
            self._finish(fault)
            self.caller.abort()
        else:
            self._settle_attempt(fault)
            self.refuse(failure_of(fault, self.call, message))

    def _try_again(self, fault: Fault, retry_after_s: float | None) -> bool:
        if self.is_caller_gone or self.is_answered or self.is_tunnel or self._has_streamed:
            return False
        call = self.call
        outcome = self._outcome(fault)
        outcome.retry_after_s = retry_after_s
        following = self.proxy.chain.fallback.next(call, outcome)
        if following is None:
            return False
        if self.stream is not None:
            self._leave_upstream()
        self._settle(self._attempt_tickets, outcome)
        self.proxy.telemetry.attempted(call, outcome)
        self._status = 0
        self.proxy.later(following.delay_s, self._again)
        return True

    def _again(self) -> None:
        if self.is_caller_gone:
            self._finish(Fault.CALLER_GONE)
        elif not self.is_done:
            self._attempt()

    # ------------------------------------------------------------------ pace

    def pause_reply(self) -> None:
        """The caller cannot take more for now."""
        self._is_reply_paused = True
        if self.stream is not None:
            self.stream.pause_reply()

    def resume_reply(self) -> None:
        """The caller can take more again."""
        self._is_reply_paused = False
        self._heard_s = self.proxy.clock()
        if self.stream is not None:
            self.stream.resume_reply()

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
        self._heard_s = self.proxy.clock()
        if self._is_waiting:
            return
        if self.stream is not None and self.call.ask is not None and not self.is_tunnel:
            if self._is_reply_paused:
                self.resume_reply()
            return
        self._leave_upstream()
        self._finish(Fault.CALLER_GONE)

    def _give_up_detached(self) -> None:
        self._leave_upstream()
        self._finish(Fault.CALLER_GONE)

    def expire(self, now_s: float, wall_s: float) -> None:
        """Called about once a second: end what has taken too long."""
        call = self.call
        if self.is_done or self._is_waiting:
            return
        if self.is_caller_gone:
            if now_s - self._heard_s > DETACHED_S_MAX:
                self._give_up_detached()
            return
        context = call.context
        if context is not None and context.deadline_s is not None and wall_s > context.deadline_s:
            self._expire_with(Fault.DEADLINE, "The workflow's deadline passed while the call was under way")
        elif not self.is_request_whole and not self._has_streamed:
            self._expire_request(now_s)
        elif self._sent_s and not self.is_tunnel and self.stream is not None and not self._is_reply_paused:
            self._expire_reply(now_s)

    def _expire_request(self, now_s: float) -> None:
        taken_s = now_s - self.call.now_s
        limits = self.call.policy.limits
        if taken_s > limits.header_timeout_s and self._body_bytes < limits.body_rate_min_bytes_s * taken_s:
            self.refuse(Refused(Reason.MALFORMED, "The request's body came too slowly", status=408))

    def _expire_reply(self, now_s: float) -> None:
        upstream = self.call.upstream
        if self._first_byte_s is None:
            if self.is_request_whole and now_s - self._heard_s > upstream.first_byte_timeout_s:
                self._expire_with(
                    Fault.FIRST_BYTE_TIMEOUT,
                    f"{upstream.name} sent no reply within {upstream.first_byte_timeout_s:g} s",
                )
        elif now_s - self._heard_s > upstream.gap_timeout_s:
            self._expire_with(Fault.GAP_TIMEOUT, f"{upstream.name} fell silent for {upstream.gap_timeout_s:g} s")

    def _expire_with(self, fault: Fault, message: str) -> None:
        self._leave_upstream()
        self.reply_failed(fault, message)

    def shut_down(self) -> None:
        """The drain's deadline has passed: end now."""
        if not self.is_done and not self._is_waiting:
            self._expire_with(Fault.SHUTDOWN, "This sidecar is shutting down")

    def refuse(self, refused: Refused) -> None:
        """Answer with a refusal, or with our own words for an upstream's failure."""
        self._leave_upstream()
        if not self.is_caller_gone:
            reply = refusal_reply(refused, self.call, is_grpc=self.request.is_grpc)
            self._write(reply)
        self._finish(self._fault, refused)

    def _answer_here(self, reply: Reply) -> None:
        if not self.is_caller_gone:
            self._write(reply)
        self._finish(Fault.NONE)

    def _write(self, reply: Reply) -> None:
        self.is_answered = True
        self._status = self._status or reply.status
        has_body = self.call.method != "HEAD" and bool(reply.body)
        self.caller.send_head(reply.status, reply.headers, len(reply.body), has_body=has_body)
        if has_body:
            self.caller.send_data(reply.body)
        self.caller.send_end([])

    def _outcome(self, fault: Fault, refused: Refused | None = None) -> Outcome:
        now_s = self.proxy.clock()
        answer = self._answer
        meter = answer.meter if answer is not None else None
        usage: Usage | None = meter.usage if meter is not None else None
        is_terminal = meter is None or meter.is_terminal
        if refused is not None and not self._sent_s:
            verdict = Verdict.NEUTRAL
        else:
            verdict = classify(self._status, fault, is_terminal)
        return Outcome(
            verdict=verdict,
            now_s=now_s,
            status=self._status,
            fault=fault,
            is_forwarded=bool(self._sent_s) and fault not in _NOT_FORWARDED,
            is_answered=self.is_answered,
            usage=usage,
            first_byte_s=self._first_byte_s,
            duration_s=now_s - self.call.now_s,
            reason=refused.reason if refused is not None else None,
        )

    def _settle(self, tickets: list[Ticket], outcome: Outcome) -> None:
        if tickets:
            settle(tickets, outcome)

    def _settle_attempt(self, fault: Fault) -> None:
        self._fault = fault
        outcome = self._outcome(fault)
        self._settle(self._attempt_tickets, outcome)
        self.proxy.telemetry.attempted(self.call, outcome)

    def _finish(self, fault: Fault, refused: Refused | None = None) -> None:
        if self.is_done:
            return
        self.is_done = True
        self.stream = None
        self._fault = fault
        outcome = self._outcome(fault, refused)
        telemetry = self.proxy.telemetry
        if self._attempt_tickets:
            settle(self._attempt_tickets, outcome)
            telemetry.attempted(self.call, outcome)
        if self._tickets:
            settle(self._tickets, outcome)
        self.proxy.live.discard(self)
        status = refused.status if refused is not None else self._status
        telemetry.ended(self.call, status, outcome, refused, meter=self._answer.meter if self._answer else None)
        self._backlog = []


_IDENTITY = (b"accept-encoding", b"identity")
"""What must be metered must be readable; the field says so to the upstream (RFC 9110, 12.5.3)."""
_NOT_FORWARDED = frozenset({Fault.CONNECT, Fault.TLS, Fault.CONNECT_TIMEOUT, Fault.REFUSED_STREAM, Fault.POOL_FULL})


def _retry_after_s(headers: Headers) -> float | None:
    for name, value in headers:
        if name == b"retry-after" and value.isdigit() and len(value) < 8:
            return float(value)
    return None
