"""One send to one upstream, and the reply that it brings.

A call has one attempt or more, one after the other. Each takes its own tickets and settles them when it ends, and
none survives its end: a late byte finds nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.chain import settle
from meshd.outcome import NOT_FORWARDED, Fault, Outcome, Verdict, classify
from meshd.proxy.answer import Answer, AnswerError, choose_answer, forbidden_reply, show_head, watchers_in
from meshd.proxy.degrading import Degrading, verdict_of
from meshd.proxy.forwarding import added_fields, path_to_send
from meshd.proxy.patience import DETACHED_BYTES_MAX, DETACHED_S_MAX, overdue
from meshd.proxy.refusing import failure_of
from meshd.proxy.substituting import without_cookies
from meshd.refusal import Reason, Refused
from meshd.wire.fields import CALL_ID, forwardable_reply, forwardable_trailers, retry_after_s

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.filters.contract import Cut

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_CALLER_GONE: Final = Fault.CALLER_GONE
_CUT: Final = Fault.CUT
_GARBAGE: Final = Fault.GARBAGE
_FAULT_NONE: Final = Fault.NONE
_REFUSED_STREAM: Final = Fault.REFUSED_STREAM
_RESET: Final = Fault.RESET
_REFUSED_CODE: Final = 0x7
"""REFUSED_STREAM (RFC 9113, section 7): nothing of the request was processed."""
_NEUTRAL: Final = Verdict.NEUTRAL
_SUCCESS: Final = Verdict.SUCCESS


class Attempt(Degrading):
    """What the upstream's connection talks to while it serves a call."""

    __slots__ = ()

    # ------------------------------------------------------------------ it begins

    def send(self) -> None:
        """Every filter has admitted it: find a connection. Raises Refused where the context cannot be minted."""
        exchange, call, fields = self.exchange, self.call, self.request.fields
        assert call.upstream is not None
        proxy = exchange.proxy
        pool = self.pool = proxy.pools.pool_for(call.upstream, fields.is_grpc, exchange.is_tunnel)
        self._heard_s = proxy.now_s
        self._path = path_to_send(call, pool.key)
        is_held = exchange.held_caller is not None or call.card is not None or call.passage is not None
        self._fields_added = added_fields(call, fields, pool.key, proxy.chain.context, is_read=is_held)
        connection = pool.acquire(self)
        if connection is not None:
            self.connected(connection)

    # ------------------------------------------------------------------ the reply comes back

    def reply_informational(self, status: int, headers: Headers) -> None:
        """A 1xx before the reply: passed on, but for 100, which the caller has had from us."""
        self._heard_s = self.exchange.proxy.now_s
        if status != 100 and not self.exchange.is_caller_gone:
            self.exchange.caller.send_informational(status, forwardable_reply(headers))

    def reply_head(self, status: int, headers: Headers, content_length: int | None) -> None:
        """The upstream's status and fields."""
        exchange = self.exchange
        self._heard_s = now_s = exchange.proxy.now_s
        self._first_byte_s = now_s - self._sent_s
        self.status = status
        if status >= 400:
            if status >= 500 or status == 429:
                self._retry_after_s = retry_after_s(headers, exchange.proxy.wall_clock())
            if self._is_passed_over(status, headers, content_length):
                return
        call, watching = self.call, watchers_in(exchange.tickets, self.tickets)
        if (call.ask or call.earlier) is not None and 200 <= status < 300:
            try:
                self._answer = choose_answer(self.call, headers, watching) or self._unmetered(headers)
            except AnswerError as error:
                self._unread(headers, error)
                return
        through = call.plan.chain or call.substitution or call.card or call.passage
        if through is not None and not self._go_onward(headers):
            return
        if watching:
            show_head(watching, status, headers)
        answer = self._answer
        if answer is not None:
            if self._is_held_back(answer):
                self._head = (status, headers, content_length)
                return
            if answer.is_rewritten:
                content_length = None
        onward = self._onward
        if onward is not None:
            if onward.is_held:
                self._head = (status, headers, content_length)
                return
            if onward.is_rewritten:
                content_length = None
        self._send_head(status, headers, content_length)

    def _send_head(self, status: int, headers: Headers, content_length: int | None) -> None:
        exchange, call, answer = self.exchange, self.call, self._answer
        if exchange.is_caller_gone:
            return
        is_inflated = answer is not None and answer.is_inflated
        fields = forwardable_reply(headers, (b"content-encoding",) if is_inflated else ())
        if call.substitution is not None:
            fields = without_cookies(call, fields)
        if call.passage is not None:
            fields = call.passage.reply_fields(fields)
        fields.append((CALL_ID, call.id.encode()))
        if call.reply_headers:
            fields += call.reply_headers
        exchange.is_answered = True
        if exchange.is_tunnel and (status == 101 or (call.method == "CONNECT" and self.stream is not None)):
            exchange.is_tunnel_open = True
        has_body = status not in (204, 304) and call.method != "HEAD"
        exchange.caller.send_head(status, fields, content_length, has_body=has_body)
        if exchange.is_tunnel_open and self.stream is not None:
            # Not before: what an upstream that declines would take for its next request must not reach it.
            exchange.send_backlog(self.stream)

    def reply_data(self, data: bytes) -> None:
        """A piece of the reply's body."""
        exchange, answer = self.exchange, self._answer
        self._heard_s = exchange.proxy.now_s
        if self._error is not None:
            self._hold_error(self._error, data)
            return
        if self.call.reply_heard_by is not None:
            self.call.reply_heard_by.hear(data)
        if answer is not None:
            try:
                data = answer.data(data)
            except AnswerError as error:
                self._broken(str(error))
                return
            if answer.cut is not None:
                self._end_cut(data, answer.cut)
                return
            if self._first_token_s is None and answer.is_stream:
                data = self._until_token(answer, data)
        if exchange.is_caller_gone:
            self._detached_bytes += len(data)
            if self._detached_bytes > DETACHED_BYTES_MAX:
                self.give_up()
        elif data:
            if self._onward is not None:
                try:
                    data = self._onward.data(data)
                except AnswerError as error:
                    self._broken(str(error))
                    return
                if not data:
                    return
            exchange.caller.send_data(data)

    def half_closed(self) -> None:
        """The upstream of a tunnel will send no more; the other half may go on."""
        self.exchange.caller.half_close()

    def reply_end(self, trailers: Headers) -> None:
        """The reply's last byte."""
        exchange, self.stream = self.exchange, None
        if self._error is not None and self._error_ended():
            return
        answer = self._answer
        if not (self._end_answer(answer) if answer is not None else self._head is None or self._end_held()):
            return
        if answer is None and self.call.passage is not None:
            self._end_passage()
        if not exchange.is_caller_gone:
            exchange.caller.send_end(forwardable_trailers(trailers) if trailers else trailers)
            if self._onward is not None and self._is_well_ended:
                self._onward.keep(exchange.proxy.chain.fallback.chain.answers, self.status, exchange.proxy.now_s)
        exchange.finish(self, _FAULT_NONE)

    def _end_answer(self, answer: Answer) -> bool:
        # What nobody is there to have is not translated: what is missing of it would look like the upstream's fault.
        onward = self._onward if not self.exchange.is_caller_gone else None
        try:
            data = answer.end()
            if self._is_given_up_before_a_token(answer):
                return False
            if self._head is not None and answer.is_stream:
                data = self._begin_stream() + data
            if onward is not None and answer.cut is None:
                data = (onward.data(data) if data else b"") + onward.end()
        except AnswerError as error:
            self._broken(str(error))
            return False
        if self._head is not None:
            if answer.cut is not None:
                self.exchange.refuse(forbidden_reply(answer.cut), _CUT)
                return False
            status, headers, length = self._head
            is_other = answer.is_inflated or (onward is not None and onward.is_rewritten)
            self._send_head(status, headers, len(data) if is_other else length)
        elif answer.cut is not None:
            self._end_cut(data, answer.cut)
            return False
        if data and not self.exchange.is_caller_gone:
            self.exchange.caller.send_data(data)
        return True

    def _end_cut(self, data: bytes, cut: Cut) -> None:
        """A ticket ended the answer: close what has begun well-formed, refuse what has not, leave the upstream."""
        exchange, answer = self.exchange, self._answer
        assert answer is not None
        if answer.is_held or (not exchange.is_answered and (cut.is_error or not answer.is_stream)):
            exchange.refuse(forbidden_reply(cut), _CUT)
            return
        if self._head is not None:
            data = self._begin_stream() + data
        data += answer.meter.error_event(forbidden_reply(cut)) if cut.is_error else answer.meter.cut()
        if self._onward is not None:
            try:
                data = self._onward.data(data) + self._onward.end()
            except AnswerError:
                data = b""  # No well-formed end is known of what could not be translated.
        self.leave()
        if not exchange.is_caller_gone:
            exchange.caller.send_data(data)
            exchange.caller.send_end([])
        exchange.finish(self, _CUT)

    # ------------------------------------------------------------------ pace and time

    def pause_reply(self) -> None:
        """The caller cannot take more for now."""
        self._is_paused = True
        if self.stream is not None:
            self.stream.pause_reply()

    def resume_reply(self) -> None:
        """The caller can take more again."""
        if self._is_paused:
            self._is_paused = False
            self._heard_s = self.exchange.proxy.now_s
            if self.stream is not None:
                self.stream.resume_reply()

    def expire(self, now_s: float) -> None:
        """End what has taken too long; called about twice a second."""
        exchange, pool = self.exchange, self.pool
        if pool is None or exchange.is_tunnel:
            return
        silent_s = now_s - self._heard_s
        if exchange.is_caller_gone and self._sent_s:
            if silent_s > DETACHED_S_MAX:
                self.give_up()
            return
        late = overdue(
            pool.upstream,
            self.call.policy.limits,
            silent_s,
            is_sent=self._sent_s > 0.0,
            is_callers_turn=self._is_paused
            or not (self.is_request_whole or self._is_request_paused or self._first_byte_s),
            has_head=self._first_byte_s is not None,
            # Of what is metered a token is waited for, whatever comes before it.
            tokenless_s=now_s - self._sent_s if self._is_token_due else 0.0,
        )
        if late is None:
            return
        if late.fault is not _CALLER_GONE:
            self.abandon(late.fault, late.message)
        elif exchange.is_answered:
            self.give_up()
            exchange.caller.abort()
        else:
            exchange.refuse(Refused(Reason.MALFORMED, late.message, status=408), _CALLER_GONE)

    @property
    def _is_token_due(self) -> bool:
        """A stream was asked for, and no token of it has come."""
        ask = self.call.ask
        if ask is None or not ask.is_stream or not ask.has_output or self._first_token_s is not None:
            return False
        return self._first_byte_s is None or (self._answer is not None and self._answer.is_stream)

    # ------------------------------------------------------------------ the end

    def _broken(self, message: str) -> None:
        """The reply is not what it says it is: nothing more of it is forwarded."""
        self.abandon(_GARBAGE, f"The reply of {self.call.target.name} cannot be used: {message}")

    def abandon(self, fault: Fault, message: str) -> None:
        """Leave the upstream, and count the attempt as failed."""
        self.leave()
        self.reply_failed(fault, message)

    def give_up(self) -> None:
        """Leave the upstream, since nobody waits for the reply any more."""
        self.leave()
        self.exchange.finish(self, _CALLER_GONE)

    def leave(self) -> None:
        """Take this attempt off its connection, or out of the pool's queue."""
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.cancel()
        elif self.pool is not None and not self._sent_s:
            self.pool.forget(self)

    def reply_reset(self, code: int, message: str) -> None:
        """The upstream has reset the stream, with this code of HTTP/2."""
        self.reply_failed(_REFUSED_STREAM if code == _REFUSED_CODE else _RESET, message)

    def reply_failed(self, fault: Fault, message: str) -> None:
        """The attempt has failed: try again, answer with an error, or end what has begun so that it shows."""
        if self.is_over:
            return
        exchange = self.exchange
        self.stream = None
        if self._try_again(fault, message):
            return
        if exchange.is_answered and not exchange.is_caller_gone:
            exchange.finish(self, fault)
            exchange.caller.abort()
        else:
            exchange.refuse(exchange.meant(failure_of(fault, self.call, message)), fault)

    def _try_again(self, fault: Fault, message: str = "", *, is_too_long: bool = False) -> bool:
        exchange = self.exchange
        if exchange.is_caller_gone or exchange.is_answered or exchange.is_tunnel or self.has_streamed:
            return False
        outcome = self.outcome(fault)
        claim = self.call.claim
        if claim is not None and (exchange.is_detached or not claim.may_repeat(outcome)):
            return False
        outcome.is_too_long, outcome.is_final, outcome.is_unpaid = is_too_long, self._is_final, self._is_unpaid
        following = exchange.proxy.chain.fallback.next(self.call, outcome)
        if following is None:
            return False
        failure: Refused | None = None
        if following.link is not None:
            failure = self._failure(fault, message)
        self.leave()
        self.settle(outcome)
        if failure is not None:
            exchange.substitute(following, failure)
        else:
            exchange.again(following.delay_s)
        return True

    def outcome(self, fault: Fault, refused: Refused | None = None) -> Outcome:
        """Say how the attempt ended."""
        exchange, answer, sent_s = self.exchange, self._answer, self._sent_s
        now_s = exchange.proxy.now_s
        meter = answer.meter if answer is not None else None
        is_terminal = meter is None or meter.is_terminal
        if self.is_late or (not sent_s and fault is _FAULT_NONE):
            verdict = _NEUTRAL
        elif meter is None:
            verdict = classify(self.status, fault, True)
        else:
            verdict = verdict_of(meter, self.status, fault)
        # By position, in the order of the class: keywords cost half as much again, and every call pays.
        outcome = Outcome(
            verdict,
            now_s,
            self.status,
            fault,
            sent_s > 0.0 and fault not in NOT_FORWARDED,
            exchange.is_answered,
            is_terminal,
            meter.usage if meter is not None else None,
            self._retry_after_s,
            self._first_byte_s,
            now_s - self.call.now_s,
            refused.reason if refused is not None and not sent_s else None,
            now_s - sent_s if sent_s else 0.0,
        )
        outcome.first_token_s = self._first_token_s
        if meter is not None:
            outcome.error_status = meter.error_status
        return outcome

    def settle(self, outcome: Outcome) -> None:
        """Settle the attempt's tickets and count it. Nothing that comes later concerns it."""
        self.is_over = True
        if outcome.is_forwarded:
            self.call.is_forwarded = True
        settle(self.tickets, outcome)
        if outcome.verdict is _SUCCESS:
            self.exchange.proxy.chain.fallback.succeeded(self.call, outcome.now_s)
        if self._sent_s or self.pool is not None:
            self.exchange.proxy.telemetry.attempted(self.call, outcome)

    @property
    def meter(self) -> Any:
        """What read the reply, None where nothing did."""
        return self._answer.meter if self._answer is not None else None
