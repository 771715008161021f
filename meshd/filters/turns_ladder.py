"""What is done about a loop: note it, tell, hold the call for the supervisor, refuse it."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from meshd.call import Reply, Target
from meshd.dialects.canned import Canned, answer, can_answer
from meshd.filters.holding import hold_s
from meshd.refusal import Reason, Refused
from meshd.turns.supervision import EdgeTold, Story, Verdict
from meshd.turns.turn import DETECTORS, MAX_TURNS
from meshd.turns.words import told

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call
    from meshd.filters.turns_events import HeldEvent
    from meshd.filters.turns_settings import TurnsSettings
    from meshd.turns.supervision import Action, Supervisor
    from meshd.turns.turn import Judgement, Turn
    from meshd.turns.workflow import Workflow
    from meshd_sdk.context import Context

NOTICE: Final = b"x-meshd-notice"
"""On a reply, and on a request to an agent: what was found, where the policy's highest step is to tell it."""
EDGES_TOLD_MAX: Final = 64
_ALL: Final[tuple[Action, ...]] = ("continue", "redirect", "finish", "stop")
_UNFINISHED: Final[tuple[Action, ...]] = ("continue", "redirect", "stop")
"""Where no text can be made an answer, as over gRPC."""


class Tally:
    """Counts for the metrics."""

    __slots__ = ("by_detector", "held", "noted", "refused", "waited")

    def __init__(self) -> None:
        self.noted = 0
        self.waited = 0
        self.held = 0
        self.refused = 0
        self.by_detector: dict[str, int] = dict.fromkeys(DETECTORS, 0)

    def decisions(self) -> tuple[tuple[str, int], ...]:
        """Return how often each was decided."""
        return (("noted", self.noted), ("waited", self.waited), ("held", self.held), ("refused", self.refused))

    def found(self, judgement: Judgement) -> None:
        """Count a loop by what found it."""
        self.by_detector[judgement.detector] += 1


class Ladder:
    """The steps, and who is asked on the way."""

    __slots__ = ("_judge", "hold_s", "supervisor", "tally")

    def __init__(self, judge: Callable[[Call, Any], None] | None) -> None:
        self._judge = judge
        self.supervisor: Supervisor | None = None
        self.hold_s: Callable[[Call], float] = hold_s
        """How long a call's caller can be kept waiting, in seconds."""
        self.tally = Tally()

    def tell(self, call: Call, judgement: Judgement) -> None:
        """Let the call pass, and say on the way what was found: models read it where their agent shows it to them."""
        notice = f"{judgement.detector}: {judgement.amount} of {judgement.limit}".encode()
        call.reply_headers = [*call.reply_headers, (NOTICE, notice)]
        call.inject = [*call.inject, (NOTICE, notice)]

    def asks(self, policy: Any, judgement: Judgement) -> bool:
        """Say whether somebody is asked before a workflow is stopped."""
        return self.supervisor is not None and policy.supervisor is not None and judgement.detector != "stopped"

    async def ask(
        self, call: Call, workflow: Workflow, turn: Turn, judgement: Judgement, settings: TurnsSettings
    ) -> Reply | None:
        """Ask the supervisor, and do what it says. Raises Refused where it stops the workflow, or does not answer."""
        verdict = await self._verdict(workflow, story_of(call, workflow, turn, judgement), self.hold_s(call))
        if verdict is not None:
            if verdict.action == "continue" and verdict.turns > 0:
                return None
            if verdict.action == "redirect" and self._redirect(call, verdict.target):
                return None
            if verdict.action == "finish" and can_finish(call):
                return finished(call, verdict)
        raise self.refused(call, workflow, turn, judgement, settings, words(verdict))

    async def ask_event(self, held: HeldEvent, id: str, wall_s: float) -> Verdict:
        """Ask the supervisor about an event, by an id for the question; return what it says where that is not to stop.
        Raises Refused where it stops the workflow, or does not answer before the workflow's deadline."""
        deadline_s = held.context.deadline_s
        hold_s = None if deadline_s is None else max(deadline_s - wall_s, 0.0)
        verdict = await self._verdict(held.workflow, story_of_event(held, id), hold_s)
        if verdict is None or verdict.action == "stop":
            raise self.refused_event(held, words(verdict))
        if held.is_going_out:
            held.workflow.let_in = max(held.workflow.let_in, held.context.path.count(held.context.agent))
        return verdict

    async def _verdict(self, workflow: Workflow, story: Story, hold_s: float | None) -> Verdict | None:
        """Ask, for at most so many seconds; note what is said about the workflow. None where nobody answers."""
        assert self.supervisor is not None
        try:
            async with asyncio.timeout(hold_s):
                verdict = await self.supervisor.ask(story)
        except TimeoutError:
            return None
        if verdict is not None and verdict.action == "continue" and verdict.turns > 0:
            # Calls and events that were held together share one answer, and so its turns.
            workflow.grace = max(workflow.grace, verdict.turns - 1)
            workflow.is_changed = True
        if verdict is not None and verdict.action == "stop":
            workflow.is_stopped = workflow.is_changed = True
        return verdict

    def refused(
        self,
        call: Call,
        workflow: Workflow,
        turn: Turn,
        judgement: Judgement,
        settings: TurnsSettings,
        more: str = "",
    ) -> Refused:
        """Count a refusal and return it. The model has been told where it is refused again on the same edge."""
        self.tally.refused += 1
        workflow.refused(turn)
        refused = refusal(call, turn, judgement, settings, more)
        edge = turn.source, turn.target
        if edge in workflow.told:
            refused.is_repeated = True
        elif len(workflow.told) < EDGES_TOLD_MAX:
            workflow.told.add(edge)
        return refused

    def _redirect(self, call: Call, name: str) -> bool:
        """Call another target in place of the one that the call names; return whether that may be."""
        old, new = call.upstream, call.policy.upstreams.get(name)
        if old is None or new is None:
            return False
        if new.kind is not old.kind or new.dialect != old.dialect or new.is_peer != old.is_peer:
            return False
        target = Target(new.kind, name, call.target.model)
        operation = call.ask.operation if call.ask is not None else f"{call.method} {call.path.partition('?')[0]}"
        plan = call.policy.plan(target, call.agent, operation)
        before = call.target, call.plan, call.upstream
        call.target, call.plan, call.upstream = target, plan, new
        if plan.allow is not None and self._judge is not None:
            try:
                self._judge(call, plan.allow)
            except Refused as refused:
                if not refused.is_shadow:
                    call.target, call.plan, call.upstream = before
                    return False
        if call.path.startswith(old.base_path):
            call.path = new.base_path + call.path[len(old.base_path) :]
        return True

    def refused_event(self, held: HeldEvent, more: str = "") -> Refused:
        """Count the refusal of an event and return it."""
        self.tally.refused += 1
        judgement, workflow = held.judgement, f"workflow {held.context.workflow}"
        reason = Reason.MAX_TURNS if judgement.verdict == MAX_TURNS else Reason.LOOP
        return Refused(reason, told(judgement, held.turn, workflow) + more, rule=held.settings.rule)


def refusal(call: Call, turn: Turn, judgement: Judgement, settings: TurnsSettings, more: str = "") -> Refused:
    """Return the refusal of a call, in words for the model."""
    reason = Reason.MAX_TURNS if judgement.verdict == MAX_TURNS else Reason.LOOP
    context = call.context
    workflow = f"workflow {context.workflow}" if context is not None and context.workflow else "no workflow"
    return Refused(reason, told(judgement, turn, workflow) + more, rule=settings.rule)


def can_finish(call: Call) -> bool:
    """Say whether a supervisor's text can be made an answer to a call."""
    return can_answer(call.dialect, call.ask, call.rpc)


def finished(call: Call, verdict: Verdict) -> Reply:
    """Return the answer that a supervisor gives in place of the target, as its caller's dialect has one."""
    if call.ask is None and call.rpc is None:
        content_type, body = verdict.content_type.encode("latin-1", "replace"), verdict.answer
    else:
        canned = Canned(verdict.answer.decode("utf-8", "replace"), "meshd-supervisor", call.id, int(call.wall_s))
        content_type, body = answer(call.dialect, call.ask, call.rpc, canned)
    return Reply(200, [(b"content-type", content_type), (b"cache-control", b"no-store")], body)


def mark(call: Call, judgement: Judgement) -> None:
    """Note on the call's span what was found."""
    if call.span is not None:
        call.span.loop = judgement.detector


def story_of(call: Call, workflow: Workflow, turn: Turn, judgement: Judgement) -> Story:
    """Return what a supervisor is told of a call. No content: payloads are named by their digests."""
    context = call.context
    assert context is not None
    actions = _ALL if can_finish(call) else _UNFINISHED
    asked = turn.source, turn.target, turn.operation, call.id, turn.payload
    return _story(context, workflow, turn, judgement, asked, actions, call.policy)


def story_of_event(held: HeldEvent, id: str) -> Story:
    """Return what a supervisor is told of an event: likewise."""
    asked = held.context.agent, held.topic, held.operation, id, held.data
    return _story(held.context, held.workflow, held.turn, held.judgement, asked, held.actions, held.policy)


def _story(
    context: Context,
    workflow: Workflow,
    turn: Turn,
    judgement: Judgement,
    asked: tuple[str, str, str, str, bytes | None],
    actions: tuple[Action, ...],
    policy: Any,
) -> Story:
    edges = [
        EdgeTold(
            source=one.source,
            target=one.target,
            kind=one.kind,
            turns=one.tenths / 10,
            rounds=max([question.rounds for question in one.questions], default=0),
        )
        for one in list(workflow.edges.values())[:EDGES_TOLD_MAX]
    ]
    source, target, operation, id, payload = asked
    return Story(
        workflow=context.workflow,
        account=context.account,
        source=source,
        target=target,
        operation=operation,
        call_id=id,
        detector=judgement.detector,
        why=told(judgement, turn, f"workflow {context.workflow}" if context.workflow else "no workflow"),
        path=(*context.path, context.agent),
        edges=tuple(edges),
        tokens_stale=workflow.stale_tokens,
        tokens_budget=policy.workflow_tokens or 0,
        payloads=(sha256(payload).hexdigest(),) if payload else (),
        actions=actions,
    )


def words(verdict: Verdict | None) -> str:
    """Say of a refusal what the supervisor had to do with it."""
    if verdict is None:
        return " The supervisor was asked and did not answer in time."
    reason = f": {verdict.reason[:300]}" if verdict.reason else "."
    if verdict.action == "stop":
        return f" The supervisor has stopped the task{reason}"
    return f" What the supervisor answered could not be done{reason}"
