"""Approval: what a person must allow first.

A call that must ask is held, with nothing reserved for it: no tokens, no breaker's permit, no connection. Its caller
is told after a while that the approval is pending; the same call made again attaches to it. What was allowed is used,
once, before the call goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.approvals.deciding import Declined
from meshd.approvals.desk import Flooded, NotAllowed, SentAlready
from meshd.approvals.hands import Whose
from meshd.approvals.holding import Holding
from meshd.approvals.state import State
from meshd.call import NEED_BODY, Direction, Wait
from meshd.engines.port import StoreError
from meshd.filters.approval_settings import ApprovalSettings
from meshd.filters.asking import (
    Cost,
    approvers_of,
    asked_words,
    changed_words,
    covered,
    denied_words,
    left_of,
    nobody_words,
    question_of,
    why_asked,
)
from meshd.filters.deferring import SHOWN_S, is_streamed, takes_task
from meshd.filters.deferring import hold_s as task_hold_s
from meshd.filters.holding import hold_s
from meshd.filters.resuming import ASK_S, asks_user
from meshd.refusal import Reason, Refused
from meshd_sdk.context import HEADER_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.approvals.desk import Desk
    from meshd.approvals.hands import Hand
    from meshd.approvals.question import Question
    from meshd.approvals.record import Approval as Record
    from meshd.call import Call, NeedBody, Reply
    from meshd.filters.deferring import Deferring
    from meshd.filters.plan import Plan
    from meshd.filters.resuming import Resuming
    from meshd.ledger import Ledger
    from meshd.outcome import Outcome

_INBOUND: Final = Direction.INBOUND


class Approval:
    """Asks people, and holds the call until they have decided."""

    __slots__ = ("_deferring", "_desk", "_hold_s", "_observe", "_resuming", "_shadowed", "ledger")

    name = "approval"

    def __init__(
        self,
        shadowed: Callable[[Call, Refused], None] | None = None,
        desk: Desk | None = None,
        ledger: Ledger | None = None,
        hold_s: Callable[[Call], float] = hold_s,
        observe: Callable[[float], None] | None = None,
        deferring: Deferring | None = None,
        resuming: Resuming | None = None,
    ) -> None:
        """`shadowed` is told what a rule on trial would have asked beside one that binds. Without a `desk` nobody can
        be asked, and what must ask is refused. `ledger` says what is left; `hold_s` how long a caller can be held;
        `observe` hears how many seconds each was; `deferring` makes tasks of calls whose clients take one;
        `resuming` lets those who do not make the call again by themselves."""
        self._shadowed = shadowed
        self._desk = desk
        self.ledger = ledger
        self._hold_s = hold_s
        self._observe = observe
        self._deferring = deferring
        self._resuming = resuming

    def admit(self, call: Call) -> Wait | NeedBody | None:
        """Let a call pass that need not ask, or hold it. Raises Refused: approval_pending where nobody can be asked."""
        plan: Plan = call.plan
        if plan.trials and self._shadowed is not None:
            for trial in plan.trials:
                if isinstance(trial, ApprovalSettings) and (why := why_asked(call, trial)):
                    refused = would_ask(call, trial, why)
                    refused.is_shadow = True
                    self._shadowed(call, refused)
        rpc = call.rpc
        if rpc is not None and rpc.state and self._resuming is not None and self._desk is not None:
            self._resuming.check(call, self._desk.clock())
        if call.resumes and self._desk is not None:
            return Wait(self._redeem(self._desk, call, call.resumes))
        if rpc is not None and rpc.task and self._deferring is not None and call.resumes is None:
            # What is not ours is judged as any call, and may be held for as long.
            return Wait(self._of_task(self._deferring, call), is_hold=True)
        return self._judge(call)

    def _judge(self, call: Call) -> Wait | NeedBody | None:
        plan: Plan = call.plan
        settings = plan.approval
        if settings is None:
            return None
        why = why_asked(call, settings)
        if not why:
            return None
        if settings.is_shadow:
            raise would_ask(call, settings, why)
        desk = self._desk
        if desk is None or len(approvers_of(call, settings)) < settings.quorum:
            raise Refused(Reason.APPROVAL_PENDING, nobody_words(call, settings, why), rule=settings.rule)
        if call.body is None:
            return NEED_BODY
        return Wait(self._ask(desk, call, settings, why), is_hold=True)

    def explain(self, call: Call) -> str:
        """Say whether a person must be asked, whom, and of what the rule asks in all."""
        settings: ApprovalSettings | None = call.plan.approval
        if settings is None or not settings.required:
            return "no rule asks for approval"
        rule = settings.rule or "the policy"
        why = why_asked(call, settings)
        if not why:
            return f"{rule} asks for {covered(settings)}: not for this call"
        who = ", ".join(approvers_of(call, settings))
        return f"{rule} asks {settings.quorum} of {who or 'nobody'} first, since {why}. It covers {covered(settings)}."

    async def _of_task(self, deferring: Deferring, call: Call) -> Reply | Used | None:
        """Answer a request that names a task of ours; judge one that is to go on to the upstream, as any call."""
        reply = await deferring.answer(call)
        if reply is not None:
            return reply
        decision = self._judge(call)
        if isinstance(decision, Wait):
            found: Reply | Used | None = await decision.coroutine
            return found
        return None

    async def _redeem(self, desk: Desk, call: Call, id: str) -> Used:
        """Use the approval of a call that was held as a task, now that it is made again: it goes out with that one or
        not at all, and once, though the policy asks nobody any more. Raises Refused."""
        settings: ApprovalSettings | None = call.plan.approval
        why, digest = "", ""
        if settings is not None and not settings.is_shadow:
            why = why_asked(call, settings)
        if settings is not None and why:
            digest = question_of(call, settings, why, Cost(None, None)).digest
        try:
            return Used(desk, call, await desk.redeem(id, digest, call.id))
        except NotAllowed as error:
            if error.state is State.APPROVED:
                raise Refused(Reason.APPROVAL_PENDING, changed_words(error.approval, call)) from None
            raise Refused(Reason.APPROVAL_DENIED, denied_words(error.approval, call, error.state.value)) from None
        except Declined as declined:
            raise Refused(Reason.APPROVAL_DENIED, f"What was allowed is no more: {declined}") from None
        except StoreError as error:
            raise Refused(Reason.STORE_UNAVAILABLE, f"What was allowed cannot be used: {error}.") from error

    async def _ask(self, desk: Desk, call: Call, settings: ApprovalSettings, why: str) -> Any:
        """Hold the call until it is allowed, and return the ticket for what it uses, or the answer that there is a
        task now. Raises Refused otherwise.

        Where the same call, by its key, goes out at another sidecar: return that one's answer.
        """
        holding = call.holding = Holding(_hands_of(desk, call))
        began_s = desk.clock()
        try:
            question = question_of(call, settings, why, await left_of(call, self.ledger))
            while True:
                try:
                    return await self._obtain(desk, call, question, self._hold_of(call, settings, desk), holding)
                except SentAlready as sent:
                    holding.found(sent.approval, is_decided=True)
                    decision = await call.claim.elsewhere()
                    if decision is not call.claim:
                        return decision
                # Not written down as sent yet, or it was not: the approval is looked at again.
        except NotAllowed as error:
            holding.found(error.approval, is_decided=error.state is not State.PENDING)
            reason = Reason.APPROVAL_DENIED
            if error.state is State.PENDING:
                reason, words = Reason.APPROVAL_PENDING, asked_words(error.approval, call, settings)
            else:
                words = denied_words(error.approval, call, error.state.value)
            refused = Refused(reason, words, rule=settings.rule)
            if reason is Reason.APPROVAL_PENDING and self._resuming is not None:
                self._resuming.offer(call, error.approval, refused)
            raise refused from None
        except Flooded as error:
            words = f"Nobody can be asked now: {error}."
            raise Refused(Reason.OVERLOADED, words, rule=settings.rule, is_retryable=False) from None
        except StoreError as error:
            words = f"An approval is needed and cannot be asked for or used, so the call is not sent: {error}."
            raise Refused(Reason.STORE_UNAVAILABLE, words, rule=settings.rule) from error
        finally:
            holding.held_s = max(0.0, desk.clock() - began_s)
            if self._observe is not None:
                self._observe(holding.held_s)

    async def _obtain(
        self, desk: Desk, call: Call, question: Question, hold_s: float, holding: Holding
    ) -> Used | Reply:
        """Wait for what is allowed; where that takes longer than a moment, and the caller takes a task, make one: for
        an answer, or to be shown while its stream is held. Raises NotAllowed; Flooded; StoreError."""
        later = self._deferring
        if later is None or not takes_task(call):
            return Used(desk, call, await desk.obtain(question, hold_s, holding))
        began_s = desk.clock()
        try:
            return Used(desk, call, await desk.obtain(question, min(hold_s, task_hold_s(call)), holding))
        except NotAllowed as error:
            if error.state is not State.PENDING or holding.is_gone:
                raise
            asked = error.approval
        held = ""
        if is_streamed(call) and hold_s >= SHOWN_S:
            held = await later.hold(call, asked, holding)
        elif (reply := await later.defer(call, asked)) is not None:
            return reply
        try:
            approval = await desk.obtain(question, hold_s - (desk.clock() - began_s), holding)
        except BaseException:
            if held:
                later.let_go(held, is_free=True)
            raise
        return Used(desk, call, approval, later if held else None)

    def _hold_of(self, call: Call, settings: ApprovalSettings, desk: Desk) -> float:
        """Return for how long a call is held: as long as its caller, its rule, its workflow's deadline and the time in
        which an event is to be handled allow."""
        if call.resumes is not None or (call.rpc is not None and call.rpc.is_declined):
            return 0.0
        # Its client has waited since it sent the call: for the body, or for the same call made before.
        seconds = self._hold_s(call) - max(0.0, desk.clock() - call.wall_s)
        if settings.hold is not None and settings.hold < seconds:
            seconds = settings.hold
        context = call.context
        if context is not None and context.deadline_s is not None:
            seconds = min(seconds, context.deadline_s - desk.clock())
        for hand in call.holding.hands:
            seconds = min(seconds, hand.ends_s - desk.clock())
        if self._resuming is not None and asks_user(call):
            seconds = min(seconds, ASK_S)
        return max(seconds, 0.0)


class Used:
    """The ticket of a call that has used an approval."""

    __slots__ = ("_approval", "_call", "_deferring", "_desk")

    def __init__(self, desk: Desk, call: Call, approval: Record, deferring: Deferring | None = None) -> None:
        """`deferring` is where the call is held too, where its caller may have been shown a task."""
        self._desk = desk
        self._call = call
        self._approval = approval
        self._deferring = deferring

    def settle(self, outcome: Outcome) -> None:
        """Note how the call ended; where nothing of it can have reached the upstream, give the approval back."""
        is_unsent = not (outcome.is_forwarded or self._call.is_forwarded)
        how = f"{outcome.status}" if outcome.status else outcome.fault.value
        if self._deferring is not None:
            self._deferring.let_go(self._approval.id, is_free=is_unsent)
        self._desk.settled(self._approval.id, self._call.id, is_unsent=is_unsent, outcome=how)


def _hands_of(desk: Desk, call: Call) -> tuple[Hand, ...]:
    """Return the events that a call may follow from, or the one that it hands over."""
    if call.hand is not None:
        return (call.hand,)
    if call.context is None or call.handed is not None or call.direction is _INBOUND:
        return ()  # nothing that an agent with events in hand does
    return desk.hands.of(call.header(HEADER_CONTEXT) or b"", Whose.of(call.context), desk.clock())


def would_ask(call: Call, settings: ApprovalSettings, why: str) -> Refused:
    """Return what a rule on trial would have done."""
    words = f"{settings.rule or 'the policy'} would ask a person first, since {why}."
    return Refused(Reason.APPROVAL_PENDING, words, rule=settings.rule, is_shadow=settings.is_shadow)
