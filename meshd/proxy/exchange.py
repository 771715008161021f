"""The life of one call: from its head to its last ticket settled.

    begin -> (body held, where a dialect must read it) -> chain -> attempt -> reply -> finish

Everything here is a plain function call made from a connection's callback; only a filter that must wait makes a task.
Tickets of a call are settled when it ends, those of an attempt when that does; exactly once, whoever hung up first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.call import Reply
from meshd.chain import Pending, settle
from meshd.filters.holding import is_kept_alive
from meshd.outcome import Fault, Outcome, Verdict
from meshd.proxy.arrival import PLAIN
from meshd.proxy.attempt import Attempt
from meshd.proxy.diverting import Diverting
from meshd.proxy.held_task import HeldTaskCaller
from meshd.proxy.holding import FIRST_S, HeldCaller
from meshd.proxy.patience import is_body_too_slow
from meshd.proxy.recording import Recording, unrecorded
from meshd.proxy.refusing import is_told, refusal_reply
from meshd.proxy.replaying import Replaying
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.filters.contract import Ticket

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_CALLER_GONE: Final = Fault.CALLER_GONE
_DEADLINE: Final = Fault.DEADLINE
_FAULT_NONE: Final = Fault.NONE
_SHUTDOWN: Final = Fault.SHUTDOWN
_NEUTRAL: Final = Verdict.NEUTRAL


class Exchange(Diverting):
    """One call on its way: the caller on one side, one attempt after the other on the other."""

    __slots__ = ()

    # ------------------------------------------------------------------ the request is there

    def begin(self) -> None:
        """The head is there: say what the call is for, then hold its body or admit it."""
        proxy, call, request = self.proxy, self.call, self.request
        proxy.live.add(self)
        call.policy = proxy.policy
        proxy.telemetry.started(call)
        try:
            self._arrive()
            if call.upstream is None and self._is_page():
                return
            if call.dialect is not PLAIN and not self.is_tunnel:
                operation = call.dialect.recognise(call.method, call.path)
                if operation is not None:
                    self._hold(operation)
                    return
                self._keep_back()
        except Refused as refused:
            self.refuse(refused)
            return
        self._admit()
        if request.expects_continue and not self.is_done:
            self.caller.send_informational(100, [])

    # ------------------------------------------------------------------ the chain

    def _admit(self, start: int = 0) -> None:
        chain = self.proxy.chain
        try:
            decision = chain.admit(chain.each_call, self.call, self.tickets, start)
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
            passage = self.call.passage
            if passage is not None:
                try:
                    pending = passage.prepare(self)
                except Refused as refused:
                    self.refuse(refused)
                    return
                if pending is not None:
                    self._wait(pending, [], self._attempt)  # It takes nothing: see `_refuse_unprepared`.
                    return
            if self.call.plan.chain is not None and self._is_diverted():
                return
            self.call.attempt += 1
            attempt = self.attempt = self._new_attempt()
            if self.call.claim is not None and self.call.attempt == 1:
                self.caller = Recording(self, self.caller, self.call.claim.tape)
        try:
            decision = chain.admit(chain.each_attempt, self.call, attempt.tickets, start)
            if decision is None:
                attempt.send()
        except Refused as refused:
            self.refuse_attempt(refused)
            return
        if decision is not None:
            self._decided(decision, attempt.tickets, self._attempt)

    def _new_attempt(self) -> Attempt:
        return Attempt(self)

    def _decided(self, decision: Reply | Pending, tickets: list[Ticket], go_on: Any) -> None:
        if isinstance(decision, Reply):
            self._answer_here(decision)
        elif decision.wait is None:
            self.collect(go_on, decision.resume_at, is_wish=decision.is_wish)
        elif decision.wait.is_hold:
            self._wait_for_people(decision, tickets, go_on)
        else:
            self._wait(decision, tickets, go_on)

    def _wait(self, pending: Pending, tickets: list[Ticket], go_on: Any) -> None:
        self._is_waiting = True
        self.proxy.wait(self, pending, tickets, go_on)

    def _wait_for_people(self, pending: Pending, tickets: list[Ticket], go_on: Any) -> None:
        proxy, wait = self.proxy, pending.wait
        assert wait is not None
        if proxy.is_draining:
            wait.coroutine.close()
            self.refuse(Refused(Reason.DRAINING, "This sidecar is shutting down"), _SHUTDOWN)
            return
        self._is_waiting = True
        self._hold_task = proxy.wait(self, pending, tickets, go_on)
        if self.call.claim is not None:
            self.call.claim.is_held = True
        if self._is_shown_life:
            self._signs_s = proxy.now_s + FIRST_S

    @property
    def _is_shown_life(self) -> bool:
        # A caller that no wire lies before is told nothing: see `is_told`.
        return is_kept_alive(self.call) and not hasattr(self.caller, "refuse")

    def _show_life(self, now_s: float) -> None:
        held = self.held_caller
        if self.is_caller_gone:
            return
        if not self._signs_s:
            # It waits for no person itself; the same call, made before it, may.
            if not getattr(self.call.on_gone, "is_held", False) or not self._is_shown_life:
                return
            if now_s < self.call.now_s + FIRST_S:
                return
            self._signs_s = now_s
        if held is None and now_s < self._signs_s:
            return
        is_task = getattr(self.call.holding, "task", None) is not None
        if held is None or (is_task and not isinstance(held, HeldTaskCaller)):
            # A task may be there only after the first sign: a store takes its time.
            caller = self.caller if held is None else held.behind
            made = HeldTaskCaller if is_task else HeldCaller
            held = self.held_caller = made(self.call, caller, now_s, is_begun=held is not None)
            self.caller = held
        held.tick(now_s)

    def let_go(self) -> None:
        """The drain has begun: nobody waits for people any more, and the same call made elsewhere finds their answer.
        Ends in `waited`, with the refusal."""
        if self._hold_task is not None:
            self._hold_task.cancel()
        elif self._replaying is not None:
            self._replaying.let_go()

    def waited(self, tickets: list[Ticket], result: Any, go_on: Any, resume_at: int) -> None:
        """What a filter waited for is there: a ticket, a Reply, None, or the exception that it ended in."""
        self._is_waiting = False
        if self._hold_task is not None:
            self._hold_task = None
            if self.call.claim is not None:
                self.call.claim.is_held = False
        if self.held_caller is None:
            self._signs_s = 0.0  # What is waited for from here on is no person.
        if self.is_done:
            # The call ended meanwhile; what the filter took all the same is paid back.
            self._settle_late(result)
            return
        if isinstance(result, BaseException) and not isinstance(result, Refused):
            result = Refused(Reason.STORE_UNAVAILABLE, f"A rule could not be decided: {result}")
        if isinstance(result, Refused):
            if not result.is_shadow:
                if tickets is self.tickets:
                    self.refuse(result)
                else:
                    self.refuse_attempt(result)
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
        if isinstance(result, Reply) and result.rest is not None:
            result.rest.close()
        if hasattr(result, "settle"):
            now_s = self.proxy.now_s
            settle([result], Outcome(_NEUTRAL, now_s, fault=_CALLER_GONE, duration_s=now_s - self.call.now_s))

    def again(self, delay_s: float) -> None:
        """Make another attempt after `delay_s` seconds."""
        self.attempt = None
        self.proxy.later(delay_s, self._again, self)

    def _later_by(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.proxy.later(delay_s, callback, self)

    def _again(self) -> None:
        if not self.is_done:
            self._attempt()

    # ------------------------------------------------------------------ pace

    def pause_reply(self) -> None:
        """The caller cannot take more for now."""
        if self.attempt is not None:
            self.attempt.pause_reply()
        if self._replaying is not None:
            self._replaying.pause()

    def resume_reply(self) -> None:
        """The caller can take more again."""
        if self.attempt is not None:
            self.attempt.resume_reply()
        if self._replaying is not None:
            self._replaying.resume()

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
        call, attempt = self.call, self.attempt
        if call.on_gone is not None:
            call.on_gone()
        if attempt is not None and attempt.stream is not None and self._detach():
            attempt.resume_reply()
            return
        self.is_caller_gone = True
        if self._is_waiting:
            # What the filter takes must be settled: `waited` ends the call. Who waits for people has taken nothing.
            if self.call.holding is not None:
                self.call.holding.leave()
            else:
                self.let_go()
            return
        if attempt is None:
            self.finish(None, _CALLER_GONE)
        elif attempt.stream is not None and call.ask is not None:
            attempt.resume_reply()
        else:
            attempt.give_up()

    def _detach(self) -> bool:
        """Go on without the caller, for one who makes the same call again, or asks for its task."""
        if self.is_detached or not self.is_request_whole:
            return self.is_detached
        held, claim = self.held_caller, self.call.claim
        if isinstance(held, HeldTaskCaller):
            held.leave(self)
            self.is_detached = True
        elif claim is not None and isinstance(self.caller, Recording):
            self.caller.leave()
            self.is_detached = True
        if self.is_detached and claim is not None:
            claim.is_orphaned = True
        return self.is_detached

    def expire(self, now_s: float, wall_s: float) -> None:
        """Called about twice a second: end what has taken too long."""
        if self.is_done:
            return
        if self._is_waiting:
            self._show_life(now_s)
            return
        call, context, attempt = self.call, self.call.context, self.attempt
        if context is not None and context.deadline_s is not None and wall_s > context.deadline_s:
            if not self.is_caller_gone:
                self._end_with(_DEADLINE, "The workflow's deadline passed while the call was under way")
        elif not self.is_request_whole and (self._held is not None or self._collected is not None):
            if is_body_too_slow(call.policy.limits, now_s - call.now_s, self._body_bytes):
                self.refuse(Refused(Reason.MALFORMED, "The request's body came too slowly", status=408))
        elif self._replaying is not None:
            self._replaying.expire(now_s)
        elif attempt is not None:
            attempt.expire(now_s)

    def shut_down(self) -> None:
        """The drain's deadline has passed: end now."""
        if not self.is_done and not self._is_waiting:
            self._end_with(_SHUTDOWN, "This sidecar is shutting down")

    def _end_with(self, fault: Fault, message: str) -> None:
        reason = Reason.DEADLINE if fault is _DEADLINE else Reason.DRAINING
        if self._replaying is not None:
            self.break_reply(Refused(reason, message), fault)
        elif self.attempt is not None:
            self.attempt.abandon(fault, message)
        else:
            self.refuse(Refused(reason, message), fault)

    def break_reply(self, refused: Refused, fault: Fault) -> None:
        """A reply of ours has begun and cannot go on: end it so that it cannot be taken for a whole one."""
        self.finish(self.attempt, fault)
        self.caller.abort()

    def refuse(self, refused: Refused, fault: Fault = Fault.NONE) -> None:
        """Answer with a refusal, or with our own words for an upstream's failure."""
        attempt = self.attempt
        if attempt is not None:
            attempt.leave()
        self.caller = unrecorded(self.caller)
        if not self.is_caller_gone and not is_told(self, refused):
            self._write(refusal_reply(refused, self.call))
        self.finish(attempt, fault, refused)

    def _answer_here(self, reply: Reply) -> None:
        rest = reply.rest
        if not self.is_caller_gone:
            if rest is not None:
                self.caller = unrecorded(self.caller)
            self._write(reply)
            if rest is not None:
                self._replaying = Replaying(self, rest, reply.trailers)
                self.proxy.follow(self._replaying.run())
                return
        elif rest is not None:
            rest.close()
        self.finish(self.attempt, _FAULT_NONE)

    def _write(self, reply: Reply) -> None:
        """Send a reply, or its beginning where there is a rest."""
        self.is_answered = True
        has_body = self.call.method != "HEAD" and bool(reply.body or reply.rest)
        # Trailers need a body whose end they follow; with a 304 a length is that of what is not sent.
        length = None if reply.trailers or reply.status == 304 else reply.size
        self.caller.send_head(reply.status, reply.headers, length, has_body=has_body)
        if has_body and reply.body:
            self.caller.send_data(reply.body)
        if reply.rest is None:
            self.caller.send_end(reply.trailers)

    def finish(self, attempt: Attempt | None, fault: Fault, refused: Refused | None = None) -> None:
        """Settle everything, and tell it. Whatever comes later finds the call done."""
        if self.is_done:
            return
        self.is_done = True
        self.let_go()
        if self._replaying is not None:
            self._replaying.stop()
            self._replaying = None
        proxy, call = self.proxy, self.call
        if self._is_waiting and call.on_gone is not None:
            call.on_gone()
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
