"""ApprovalService: people asked about what an agent intends to do by itself. Nobody decides here.

What is asked becomes the same durable object as for a call that is held: people see it, decide on it and are told of it
alike. It holds for workflow, agent, operation and canonical arguments, once. Who may decide, how many must and for how
long is the policy's to say, by the rule that fits the agent itself (`app`) and the operation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.api.fields import checked_id, malformed, moment, seconds
from meshd.api.limits import call_in
from meshd.approvals.deciding import Declined, Why
from meshd.approvals.desk import Flooded
from meshd.approvals.hands import Whose
from meshd.approvals.holding import Holding
from meshd.approvals.question import Question, canonical
from meshd.approvals.record import ARGUMENTS_BYTES_MAX, OWN, read_id
from meshd.approvals.state import State
from meshd.call import Evidence, Kind, Target
from meshd.claims.keys import principal_of
from meshd.engines.port import StoreError
from meshd.filters.approval_settings import ApprovalSettings
from meshd.filters.asking import approvers_of, nobody_words
from meshd.policy.addressing import APP
from meshd.refusal import Reason, Refused
from meshd_sdk.v1 import approvals_pb2

if TYPE_CHECKING:
    from meshd.api.mesh import Mesh
    from meshd.approvals.desk import Desk
    from meshd.approvals.hands import Hand
    from meshd.approvals.record import Approval
    from meshd_sdk.context import Context

OPERATION_CHARACTERS_MAX: Final = 128
SUMMARY_CHARACTERS_MAX: Final = 1000
WAIT_S_MAX: Final = 50.0
"""Of one request: below the minute that the face of JSON gives each."""
WAITING_MAX: Final = 100
"""Questions of one workflow that wait for people at once, of those asked here: more would bury what others ask."""
BRIEF_S: Final = 60.0
LIST_MAX: Final = 200
PENDING: Final = (
    "Nobody has decided on the approval {id} yet, and the event's handling time is nearly over. Let its handler end so "
    "that it is tried again: it then is once somebody has decided, and asking for the same attaches to this approval."
)
WHY: Final = "the agent asks before it does this by itself"
STATES: Final = {
    State.PENDING: approvals_pb2.APPROVAL_STATE_PENDING,
    State.APPROVED: approvals_pb2.APPROVAL_STATE_APPROVED,
    State.DENIED: approvals_pb2.APPROVAL_STATE_DENIED,
    State.EXPIRED: approvals_pb2.APPROVAL_STATE_EXPIRED,
    State.USED: approvals_pb2.APPROVAL_STATE_USED,
    State.CANCELLED: approvals_pb2.APPROVAL_STATE_CANCELLED,
}
_BY_NUMBER: Final = {number: state for state, number in STATES.items()}


class ApprovalService:
    """Answers for meshd.v1.ApprovalService. Stands among the proxy's callers, to hear of its drain."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._asked: dict[str, tuple[str, float, float]] = {}
        """Approvals that were asked for here: of which workflow, when, and until when they wait."""
        self._waiting: set[Holding] = set()

    async def ask_approval(self, request: approvals_pb2.AskApprovalRequest) -> approvals_pb2.AskApprovalResponse:
        """Ask people. Raises Refused: CONTEXT_INVALID, MALFORMED, DEADLINE; APPROVAL_PENDING where nobody may decide;
        OVERLOADED, STORE_UNAVAILABLE."""
        context = self._mesh.read(request.token)
        place = self._place(context)
        self._check_time(context)
        question = self._question(context, place, request)
        desk = self._desk
        try:
            await self._check_room(desk, question, place)
            found = await desk.ask(question)
            is_decided = found.approval.state_at(desk.clock()) is not State.PENDING
            Holding(self._hands(request.token, context)).found(found.approval, is_decided=is_decided)
        except Flooded as error:
            raise Refused(Reason.OVERLOADED, f"Nobody can be asked now: {error}.", is_retryable=False) from None
        except StoreError as error:
            raise _unavailable(error) from error
        if found.approval.state is State.PENDING:
            self._asked[found.approval.id] = (place, found.approval.asked_s, found.approval.expires_s)
        return approvals_pb2.AskApprovalResponse(approval=self._shown(found.approval))

    async def wait_for_approval(
        self, request: approvals_pb2.WaitForApprovalRequest
    ) -> approvals_pb2.WaitForApprovalResponse:
        """Wait until an approval is decided, and use it. Raises Refused: CONTEXT_INVALID, MALFORMED, UNKNOWN_TARGET,
        NOT_ALLOWED, DEADLINE, DRAINING, STORE_UNAVAILABLE."""
        mesh, use = self._mesh, request.use_id
        context = mesh.read(request.token)
        place, id = self._place(context), read_id(request.approval_id)
        if not id:
            raise malformed("approval_id", "twelve letters and digits, such as k7x2-m9qr-tzab")
        wait_s = seconds("timeout", request.timeout) if request.HasField("timeout") else WAIT_S_MAX
        if use:
            checked_id("use_id", use)
            self._check_time(context)
        if context.deadline_s is not None:
            wait_s = min(wait_s, context.deadline_s - mesh.wall_clock())
        desk = self._desk
        holding = Holding(self._hands(request.token, context))
        for hand in holding.hands:
            wait_s = min(wait_s, hand.ends_s - desk.clock())
        # Not before: a service is made in a thread.
        mesh.proxy.sessions.add(self)
        self._waiting.add(holding)
        try:
            found = await desk.show(id)
            _check_own(found, place)
            if use:
                _check_user(found, context.agent)
            holding.found(found, is_decided=found.state_at(desk.clock()) is not State.PENDING)
            found = await desk.wait(id, max(0.0, min(wait_s, WAIT_S_MAX)), holding, use)
        except Declined as declined:
            raise _declined(declined) from None
        except StoreError as error:
            raise _unavailable(error) from error
        finally:
            self._waiting.discard(holding)
        state = found.state_at(desk.clock())
        holding.found(found, is_decided=state is not State.PENDING)
        if state is State.PENDING and any(desk.clock() >= hand.ends_s for hand in holding.hands):
            raise Refused(Reason.APPROVAL_PENDING, PENDING.format(id=id))
        if holding.is_gone and found.state is State.PENDING:
            raise Refused(Reason.DRAINING, "This sidecar is shutting down: wait again, the approval stays as it is.")
        is_granted = bool(use) and found.state is State.USED and found.used_by == use
        return approvals_pb2.WaitForApprovalResponse(approval=self._shown(found), is_granted=is_granted)

    async def list_approvals(self, request: approvals_pb2.ListApprovalsRequest) -> approvals_pb2.ListApprovalsResponse:
        """List those of the context's workflow. Raises Refused: CONTEXT_INVALID, MALFORMED, STORE_UNAVAILABLE."""
        place = self._place(self._mesh.read(request.token))
        state = _BY_NUMBER.get(request.state)
        if state is None and request.state != approvals_pb2.APPROVAL_STATE_UNSPECIFIED:
            raise malformed("state", "a state that this version knows")
        try:
            found = await self._desk.list(state, LIST_MAX, place)
        except StoreError as error:
            raise _unavailable(error) from error
        return approvals_pb2.ListApprovalsResponse(approvals=[self._shown(one) for one in reversed(found)])

    # ------------------------------------------------------------------ what is asked

    def _question(self, context: Context, place: str, request: approvals_pb2.AskApprovalRequest) -> Question:
        operation, policy = request.operation, self._mesh.policy
        # No space stands in it: rules would judge what precedes it as a method.
        if not 0 < len(operation) <= OPERATION_CHARACTERS_MAX or not all("!" <= one <= "~" for one in operation):
            raise malformed("operation", f"1 to {OPERATION_CHARACTERS_MAX} visible ASCII characters")
        if len(request.summary) > SUMMARY_CHARACTERS_MAX:
            raise malformed("summary", f"at most {SUMMARY_CHARACTERS_MAX} characters")
        if len(request.payload) > ARGUMENTS_BYTES_MAX:
            raise malformed("payload", f"at most {ARGUMENTS_BYTES_MAX} bytes: people could not be shown more")
        call = call_in(self._mesh, policy, context, Target(Kind.AGENT, context.agent))
        call.path = operation
        plan = policy.plan(Target(Kind.AGENT, APP), context.agent, operation)
        settings: ApprovalSettings | None = plan.approval
        if settings is None or settings.is_shadow:
            settings = ApprovalSettings()
        approvers = approvers_of(call, settings)
        if len(approvers) < settings.quorum:
            raise Refused(Reason.APPROVAL_PENDING, nobody_words(call, settings, WHY), rule=settings.rule)
        quorum, lasts_s = request.quorum or settings.quorum, settings.expires
        if not settings.quorum <= quorum <= len(approvers):
            raise malformed("quorum", f"from {settings.quorum} to {len(approvers)}, of whom the policy asks")
        if request.HasField("expires") and (lasts_s := seconds("expires", request.expires)) > settings.expires:
            raise malformed("expires", f"no longer than the {settings.expires:g} s of the policy")
        plan.hit()
        return Question(
            workflow=place,
            agent=context.agent,
            kind=OWN,
            target=context.agent,
            operation=operation,
            arguments=canonical(request.payload),
            approvers=approvers,
            owner=policy.owner,
            quorum=quorum,
            principal=principal_of(call),
            lasts_s=lasts_s,
            rule=settings.rule,
            said=request.summary,
            why=WHY,
            evidence=Evidence.TOKEN.value,
            call=call.id,
        )

    async def _check_room(self, desk: Desk, question: Question, place: str) -> None:
        """Raise Flooded where a workflow has asked for too much that nobody has decided on yet. What nobody had time to
        decide counts for a minute: people are told of it all the same, and it is kept."""
        now_s = desk.clock()
        self._asked = {
            id: (whose, asked_s, ends_s)
            for id, (whose, asked_s, ends_s) in self._asked.items()
            if (id in desk.pending if now_s < ends_s else now_s < asked_s + BRIEF_S)
        }
        if sum(one[0] == place for one in self._asked.values()) < WAITING_MAX:
            return
        if (await desk.shelf.in_force(question.digest, now_s))[0] is None:
            raise Flooded(f"{WAITING_MAX} approvals of this workflow wait for a decision already")

    # ------------------------------------------------------------------ whose it is

    def _hands(self, token: str, context: Context) -> tuple[Hand, ...]:
        """Return the events in whose handling this is asked."""
        return self._desk.hands.of(token.encode(), Whose.of(context), self._desk.clock())

    @property
    def _desk(self) -> Desk:
        if self._mesh.desk is None:
            raise Refused(Reason.APPROVAL_PENDING, "Nobody can be asked: this sidecar keeps no approvals.")
        return self._mesh.desk

    def _place(self, context: Context) -> str:
        """Return by what the approvals of a context are known to be its own; without a workflow, its shared account."""
        place = context.workflow or context.account
        if self._desk.clean("", place) != place:
            raise malformed("the workflow's name", "one that does not look like a secret: people are not shown those")
        return place

    def _check_time(self, context: Context) -> None:
        if context.deadline_s is not None and context.deadline_s <= self._mesh.wall_clock():
            raise Refused(Reason.DEADLINE, f"The time of workflow {context.workflow} is over: nothing more is allowed.")

    def _shown(self, approval: Approval) -> approvals_pb2.Approval:
        """Return an approval as the protocol has it: without its arguments, which its agent has."""
        return approvals_pb2.Approval(
            id=approval.id,
            summary=approval.summary,
            agent=approval.agent,
            workflow=approval.workflow,
            operation=approval.operation,
            digest=approval.digest,
            state=STATES[approval.state_at(self._desk.clock())],
            asked=moment(approval.asked_s),
            expires=moment(approval.expires_s),
            decisions=[
                approvals_pb2.ApprovalDecision(
                    approver=one.approver, is_approved=one.is_allowed, reason=one.reason, decided=moment(one.at_s)
                )
                for one in approval.decisions
            ],
            target=approval.target,
            kind=approval.kind,
            quorum=approval.quorum,
            used_by=approval.used_by,
            cancelled_for=approval.cancelled_for,
        )

    # ------------------------------------------------------------------ as one of the proxy's callers

    def expire(self, now_s: float) -> None:
        """Called about twice a second: nothing here grows old."""

    def drain(self) -> None:
        """Let those who wait go: they ask the next sidecar."""
        for holding in tuple(self._waiting):
            holding.leave()

    def close_now(self) -> None:
        """End all that waits."""
        self.drain()
        self._mesh.proxy.sessions.discard(self)


def _check_own(approval: Approval, place: str) -> None:
    """Raise Declined where an approval is another workflow's, in the words for one that is not there."""
    if approval.workflow != place:
        raise Declined(Why.UNKNOWN, f"There is no approval {approval.id}.")


def _check_user(approval: Approval, agent: str) -> None:
    if approval.kind != OWN:
        raise malformed("use_id", "empty for the approval of a call: the call itself uses it")
    if approval.agent != agent:
        raise Refused(Reason.NOT_ALLOWED, f"The approval {approval.id} is for {approval.agent}, and {agent} asks.")


def _declined(declined: Declined) -> Refused:
    if declined.why in (Why.UNKNOWN, Why.DAMAGED):
        return Refused(Reason.UNKNOWN_TARGET, f"{declined} This workflow has none of that id: ask anew.")
    return Refused(Reason.OVERLOADED, str(declined))


def _unavailable(error: StoreError) -> Refused:
    return Refused(Reason.STORE_UNAVAILABLE, f"Approvals can be neither asked for nor used: {error}")
