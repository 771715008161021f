"""Turns: agents that go in circles are stopped.

Calls from agent to agent are turns, and counted; calls of tools and models are judged by what they ask and are
answered. A body that streams is not held for it: a sample is taken as it passes, and only where the same was asked so
often already that the next call decides is the body waited for. What a loop is, `meshd.turns` says.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from meshd.call import OURS, WANT_BODY, Direction, Kind, NeedBody, Reply, Wait
from meshd.dialects.marks_answer import answer_marks
from meshd.filters.turns_events import EventTurns
from meshd.filters.turns_hearing import Hearing, HearingModel, hears
from meshd.filters.turns_ladder import Ladder, mark, refusal
from meshd.filters.turns_settings import TurnsSettings
from meshd.refusal import Reason, Refused
from meshd.turns.asking import Asking, asking_of
from meshd.turns.book import Book, key_of
from meshd.turns.places import Places
from meshd.turns.sample import sampled
from meshd.turns.turn import AGENT, LLM, PASS, STOPS, TOOL, WAIT, Limits, Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from meshd.call import Call, Rpc
    from meshd.filters.contract import Ticket
    from meshd.filters.plan import Plan
    from meshd.turns.sharing import Sharing
    from meshd.turns.supervision import Supervisor
    from meshd.turns.turn import Judgement
    from meshd.turns.workflow import Workflow
    from meshd_sdk.context import Context

# Bound here: looking a member up on its enum takes 0.1 us on Python 3.11.
_INBOUND: Final = Direction.INBOUND
_AGENT: Final = Kind.AGENT
_LLM: Final = Kind.LLM
_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
LIMITS_MAX: Final = 256
_CALL: Final = "tools/call"


class Turns:
    """Judges the turns of workflows, and keeps what they have said."""

    __slots__ = (
        "_asking",
        "_body",
        "_dialect",
        "_limits",
        "_places",
        "_settings",
        "_shadowed",
        "_sleep",
        "book",
        "events",
        "ladder",
        "sharing",
    )

    name = "turns"

    def __init__(
        self,
        shadowed: Callable[[Call, Refused], None] | None = None,
        judge: Callable[[Call, Any], None] | None = None,
        sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        """`shadowed` is told what a rule on trial would have refused; `judge` is AllowList's, for a target that a
        supervisor names."""
        self._shadowed = shadowed
        self._sleep = sleep
        self._limits: dict[tuple[int, int], tuple[TurnsSettings, Limits]] = {}
        self._places = Places()
        self._body = b""
        self._dialect: Any = None
        self._settings: TurnsSettings | None = None
        self._asking: Asking | None = None
        self.book = Book()
        self.ladder = Ladder(judge)
        self.sharing: Sharing | None = None
        """What shares the book with other sidecars; None where there is no store."""
        self.events = EventTurns(self.book, self.ladder, self._limits_of, lambda: self.sharing)

    @property
    def supervisor(self) -> Supervisor | None:
        """Who is asked before a workflow is stopped; None for nobody."""
        return self.ladder.supervisor

    @supervisor.setter
    def supervisor(self, supervisor: Supervisor | None) -> None:
        self.ladder.supervisor = supervisor

    # ------------------------------------------------------------------ calls

    def admit(self, call: Call) -> Ticket | Reply | Wait | NeedBody | None:
        """Raise Refused(LOOP), Refused(MAX_TURNS) or Refused(STORE_UNAVAILABLE)."""
        plan: Plan = call.plan
        settings, context = plan.turns, call.context
        if settings is None or context is None or call.agent.startswith(OURS):
            return None
        if call.direction is _INBOUND:
            self._judge_path(call, context, settings)
            return None
        kind = call.target.kind
        if kind is _LLM:
            return self._admit_model(call, context, settings) if call.ask is not None else None
        rpc = call.rpc
        if rpc is not None and rpc.protocol == "mcp" and rpc.method != _CALL:
            return None
        turn, prefix = self._turn_of(call, context, rpc)
        workflow = self.book.of(key_of(context.workflow, context.account, call.wall_s))
        limits = self._limits_of(settings, call.policy)
        if turn.payload is None and not call.is_body_late and self._needs_payload(call, workflow, turn, limits):
            return WANT_BODY
        return self._judge(call, workflow, turn, limits, settings, prefix)

    def _judge(
        self, call: Call, workflow: Workflow, turn: Turn, limits: Limits, settings: TurnsSettings, prefix: bytes
    ) -> Ticket | Reply | Wait | None:
        judgement = workflow.judge(turn, limits)
        sharing = self.sharing
        if sharing is not None and (turn.is_counted or turn.is_known):
            context = call.context
            assert context is not None
            if not workflow.is_read:
                sharing.want(key_of(context.workflow, context.account, call.wall_s), workflow)
            if sharing.fault is not None and settings.on_store_error == "refuse":
                workflow.withdraw(turn)
                raise Refused(
                    Reason.STORE_UNAVAILABLE,
                    f"The turns that other sidecars counted cannot be read: {sharing.fault}.",
                    rule=settings.rule,
                )
        verdict = judgement.verdict
        if verdict != PASS and verdict != WAIT:
            return self._stop(call, workflow, turn, judgement, settings, prefix)
        plan: Plan = call.plan
        if plan.trials and self._shadowed is not None:
            self._try(call, workflow, turn)
        ticket = self._ticket(call, workflow, turn, settings, prefix)
        if verdict == WAIT:
            self.ladder.tally.waited += 1
            return Wait(self._slowed(judgement.wait_s, ticket))
        return ticket

    def _needs_payload(self, call: Call, workflow: Workflow, turn: Turn, limits: Limits) -> bool:
        if workflow.needs_payload(turn, limits):
            return True
        plan: Plan = call.plan
        return bool(plan.trials) and any(
            workflow.needs_payload(turn, self._limits_of(trial, call.policy))
            for trial in plan.trials
            if isinstance(trial, TurnsSettings)
        )

    def _try(self, call: Call, workflow: Workflow, turn: Turn) -> None:
        """Say what rules on trial would have refused."""
        for trial in call.plan.trials:
            if isinstance(trial, TurnsSettings) and self._shadowed is not None:
                judgement = workflow.trial(turn, self._limits_of(trial, call.policy))
                if judgement.verdict in STOPS:
                    refused = refusal(call, turn, judgement, trial)
                    refused.is_shadow = True
                    self._shadowed(call, refused)

    def _stop(
        self,
        call: Call,
        workflow: Workflow,
        turn: Turn,
        judgement: Judgement,
        settings: TurnsSettings,
        prefix: bytes,
    ) -> Ticket | Reply | Wait | None:
        """Take the step of the ladder that the policy allows."""
        ladder = self.ladder
        ladder.tally.found(judgement)
        rung = settings.ladder
        mark(call, judgement)
        if settings.is_shadow or rung in ("note", "tell"):
            if settings.is_shadow and self._shadowed is not None:
                refused = refusal(call, turn, judgement, settings)
                refused.is_shadow = True
                self._shadowed(call, refused)
            ladder.tally.noted += 1
            if rung == "tell" and not settings.is_shadow:
                ladder.tell(call, judgement)
            # It is known already what is asked and answered here: nobody need listen any more.
            workflow.passed_over(turn)
            return None
        workflow.withdraw(turn)
        if ladder.asks(call.policy, judgement):
            ladder.tally.held += 1
            return Wait(ladder.ask(call, workflow, turn, judgement, settings), is_hold=True)
        raise ladder.refused(call, workflow, turn, judgement, settings)

    def _ticket(
        self, call: Call, workflow: Workflow, turn: Turn, settings: TurnsSettings, prefix: bytes
    ) -> Ticket | None:
        if turn.kind == LLM:
            if turn.nearness == 0:
                workflow.begun(turn)
                return None
            ask = call.ask
            assert ask is not None
            return HearingModel(workflow, turn, answer_marks(call.dialect.name, ask.operation))
        is_heard = turn.payload is None
        hearing = Hearing(workflow, turn, prefix, settings.sample, is_heard=is_heard)
        if is_heard and turn.edge is not None:
            turn.edge.unasked.append(hearing)
        hears(call, hearing)
        return hearing

    async def _slowed(self, wait_s: float, ticket: Ticket | None) -> Ticket | None:
        await self._sleep(wait_s)
        return ticket

    def _turn_of(self, call: Call, context: Context, rpc: Rpc | None) -> tuple[Turn, bytes]:
        """Return what a call to an agent or a tool is as a turn, and what stands before its body."""
        target = call.target
        is_agent = target.kind is _AGENT or (call.upstream is not None and call.upstream.is_peer)
        method, path = call.method, call.path
        payload: bytes | None = None
        prefix = b""
        if rpc is not None:
            operation = f"{rpc.method} {rpc.tool}"
            payload = bytes(rpc.arguments)
            is_read_only = rpc.is_read_only
        else:
            operation, prefix, is_check = self._places.of(path)
            is_read_only = is_check or method in _READS
            body = call.body
            if body is not None:
                payload = prefix + sampled(body, call.plan.turns.sample)
            elif is_read_only:
                payload = prefix
        turn = Turn(
            context.agent,
            target.name,
            AGENT if is_agent else TOOL,
            operation,
            payload,
            context.path,
            call.now_s,
            is_read_only,
            0,
            not context.workflow,
        )
        return turn, prefix

    def _judge_path(self, call: Call, context: Context, settings: TurnsSettings) -> None:
        """Judge re-entry on the callee's side too: the path came signed, whatever its caller's policy says."""
        if len(context.path) <= settings.reentry or context.path.count(context.agent) <= settings.reentry:
            return
        caller = context.path[-1]
        turn = Turn(caller, context.agent, AGENT, "", b"", context.path[:-1])
        judgement = self.book.of("").judge(turn, Limits(reentry=settings.reentry))
        self.ladder.tally.found(judgement)
        mark(call, judgement)
        refused = refusal(call, turn, judgement, settings)
        if settings.is_shadow or settings.ladder in ("note", "tell"):
            self.ladder.tally.noted += 1
            return
        self.ladder.tally.refused += 1
        raise refused

    # ------------------------------------------------------------------ calls of models

    def _admit_model(self, call: Call, context: Context, settings: TurnsSettings) -> Ticket | Reply | Wait | None:
        ask, body = call.ask, call.body
        assert ask is not None
        if body is None or not ask.has_output:
            return None
        is_many = not context.workflow
        limits = self._limits_of(settings, call.policy)
        if is_many and body.count(b'"assistant"') + body.count(b'"model"') + body.count(b"_call") < limits.periods:
            return None
        # The very bytes again are what a retry sends, and a sampler.
        if body == self._body and call.dialect is self._dialect and self._settings is settings:
            asking = self._asking
        else:
            asking = asking_of(call.dialect.name, ask, limits.periods, settings.sample)
            self._body, self._dialect, self._settings, self._asking = body, call.dialect, settings, asking
        if asking is None or (is_many and not asking.rounds):
            return None
        turn = Turn(
            context.agent,
            call.target.name,
            LLM,
            ask.operation,
            asking.payload,
            (),
            call.now_s,
            False,
            asking.rounds,
            is_many,
            asking.period,
        )
        turn.is_sampled = asking.is_sampled
        workflow = self.book.of(key_of(context.workflow, context.account, call.wall_s))
        return self._judge(call, workflow, turn, limits, settings, b"")

    # ------------------------------------------------------------------ the rest

    def _limits_of(self, settings: TurnsSettings, policy: Any) -> Limits:
        key = (id(settings), policy.workflow_tokens or 0)
        known = self._limits.get(key)
        if known is not None and known[0] is settings:
            return known[1]
        stale_tokens = int((policy.workflow_tokens or 0) * settings.stale_spend)
        limits = Limits(
            settings.reentry,
            settings.edge,
            settings.connected,
            settings.workflow,
            settings.periods,
            stale_tokens,
            settings.polls,
        )
        if len(self._limits) >= LIMITS_MAX:
            self._limits.clear()
        # The settings are kept beside, so that no others can come to have their id.
        self._limits[key] = (settings, limits)
        return limits

    def explain(self, call: Call) -> str:
        """Say how many turns the edge has had, and what holds."""
        settings, context = call.plan.turns, call.context
        if settings is None or context is None:
            return "no rule counts turns here"
        workflow = self.book.of(key_of(context.workflow, context.account, call.wall_s))
        edge = workflow.edges.get((context.agent, call.target.name))
        turns = edge.tenths / 10 if edge is not None else 0
        return (
            f"{turns:g} of {settings.edge} turns from {context.agent} to {call.target.name}, a loop after "
            f"{settings.periods} rounds of the same; highest step: {settings.ladder}"
        )
