"""The part of an exchange that gives a target's place to something else: another, what is no upstream, or several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.call import Reply, Wait
from meshd.chain import Pending
from meshd.filters.substituting import forget
from meshd.outcome import Fault, Outcome, Verdict
from meshd.proxy.heuristics import kept_reply
from meshd.proxy.incoming import Incoming
from meshd.proxy.listed import Listed
from meshd.proxy.quarantine import check_quarantine
from meshd.proxy.substituting import meant, request_for
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.filters.contract import Ticket
    from meshd.filters.substituting import Next

_FAULT_NONE: Final = Fault.NONE
_CONNECT: Final = Fault.CONNECT
_NEUTRAL: Final = Verdict.NEUTRAL
_FAILURE: Final = Verdict.FAILURE
_UNREACHABLE: Final = Reason.UPSTREAM_UNREACHABLE
_TIMEOUT: Final = Reason.UPSTREAM_TIMEOUT


class Diverting(Incoming):
    """An exchange, as far as what takes its target's place is concerned."""

    __slots__ = ()

    def _is_diverted(self) -> bool:
        """Say whether a call with a chain does not go to its target now: its body is waited for, without which nobody
        else could serve it, or it is too long for the target."""
        call, request = self.call, self.request
        if call.attempt or call.substitution is not None or self.is_tunnel:
            return False
        if call.ask is None:
            if call.body is None and request.has_body and not request.fields.is_grpc:
                self.collect(self._attempt, 0)
                return True
            return False
        now_s = self.proxy.now_s
        following = self.proxy.chain.fallback.chain.before(call, Outcome(_NEUTRAL, now_s))
        if following is None:
            return False
        self.substitute(
            following, Refused(Reason.TOO_LARGE, f"The request is too long for {call.ask.model_sent[:128]}.")
        )
        return True

    def _is_page(self) -> bool:
        """Answer what is asked of this sidecar itself; say whether it was."""
        from meshd.proxy.card_pages import page_of

        page = page_of(self.proxy, self.call, self.request.target, self.request.fields.authority)
        if page is None:
            return False
        if isinstance(page, Reply):
            self._answer_here(page)
        else:
            self._wait(Pending(Wait(page), 0), self.tickets, self._went_without)
        return True

    def refuse_attempt(self, refused: Refused) -> None:
        """A filter refuses an attempt: what may take its target's place is tried first."""
        call, attempt = self.call, self.attempt
        if attempt is None and call.passage is not None:
            self._refuse_unprepared(refused)
            return
        if attempt is not None and (call.plan.chain is not None or call.substitution is not None):
            if not (self.is_caller_gone or self.is_answered or self.is_tunnel):
                outcome = attempt.outcome(_FAULT_NONE, refused)
                following = self.proxy.chain.fallback.next(call, outcome)
                if following is not None:
                    attempt.leave()
                    attempt.settle(outcome)
                    self.substitute(following, refused)
                    return
            refused = self.meant(refused)
        self.refuse(refused)

    def _refuse_unprepared(self, refused: Refused) -> None:
        """No session can be had with an MCP server behind the gateway: as if nobody had been there to take the call."""
        call = self.call
        is_down = refused.reason is _UNREACHABLE or refused.reason is _TIMEOUT
        if is_down and call.plan is not None and not (self.is_caller_gone or self.is_answered):
            outcome = Outcome(_FAILURE, self.proxy.now_s, fault=_CONNECT)
            following = self.proxy.chain.fallback.chain.down(call, outcome)
            if following is not None:
                self.substitute(following, refused)
                return
        self.refuse(self.meant(refused))

    def meant(self, refused: Refused) -> Refused:
        """Return what the caller is told of a call that nothing serves."""
        if self.failure is None:
            return refused
        forget(self.call)
        return meant(self.call, self.failure, refused)

    def substitute(self, following: Next, failure: Refused) -> None:
        """Go on with what takes the target's place, after `failure`."""
        call = self.call
        self.attempt = None
        if self.failure is None:
            self.failure = failure
        self.proxy.chain.fallback.chain.take(call, following)
        if call.rpc is not None and not self._may_stand_in():
            self._went_without(0)
        elif following.standing is not None:
            call.substitution.request = request_for(self.request, following.standing)
            self._later_by(0.0, self._again)
        else:
            self._following = following
            self._later_by(0.0, self._answer_without)

    def _may_stand_in(self) -> bool:
        """Say whether what a message calls is out of quarantine where it is called now, too."""
        call, quarantine = self.call, self.proxy.quarantine
        if isinstance(call.passage, Listed):
            call.passage = None
        if quarantine:
            try:
                check_quarantine(call, quarantine)
            except Refused:
                call.substitution.why = "in quarantine"
                return False
            self._keep_back()
        return True

    def _answer_without(self) -> None:
        """Answer without an upstream."""
        following, call = self._following, self.call
        self._following = None
        if self.is_done or following is None or following.link is None:
            return
        if following.kept is not None:
            made: Any = kept_reply(call, following.kept, self.proxy.now_s)
        else:
            made = self.proxy.heuristics.answer(call, following.link)
        if made is None:
            self._went_without(0)
        elif isinstance(made, Reply):
            self._answer_here(made)
        else:
            self._wait(Pending(Wait(made), 0), self.tickets, self._went_without)

    def _went_without(self, _: int) -> None:
        """What was to answer gave nothing."""
        failure = self.failure
        assert failure is not None
        following = self.proxy.chain.fallback.chain.further(self.call, self.proxy.now_s)
        if following is None:
            self.refuse(self.meant(failure))
        else:
            self.substitute(following, failure)

    def _scatter(self, body: bytes) -> None:
        from meshd.proxy.scattering import Scattering

        # What comes of it ends this call: no filter judges it but as the calls that it is made into.
        scattering = Scattering(self, body)
        self.call.on_gone = scattering.cancel
        self._wait(Pending(Wait(scattering.run()), 0), self.tickets, self._admit)

    # ------------------------------------------------------------------ what the exchange makes of it

    def _attempt(self, start: int = 0) -> None:
        raise NotImplementedError

    def _again(self) -> None:
        raise NotImplementedError

    def _answer_here(self, reply: Reply) -> None:
        raise NotImplementedError

    def _wait(self, pending: Pending, tickets: list[Ticket], go_on: Any) -> None:
        raise NotImplementedError
