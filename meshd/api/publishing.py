"""An event before it goes to the bus: whose it is, what context goes with it, and whether the policy lets it.

The filters' order holds for events too, as far as it means something for them: context, hops and deadline, what is
allowed, turns, and whether the workflow has anything left. Sessions, EventService and HTTP publish through here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec.structs import replace

from meshd.api.fields import unix_ns
from meshd.api.keeping_events import Publication
from meshd.api.limits import amounts_of, call_in, limits_of
from meshd.api.session_contexts import actor_of, publisher, token_for_bus
from meshd.call import Kind, Target
from meshd.engines.bus_event import check_topic
from meshd.engines.bus_port import Event, EventMalformed
from meshd.filters.allow_list import judge
from meshd.filters.allow_list_settings import AllowSettings
from meshd.filters.turns_ladder import words
from meshd.refusal import Reason, Refused
from meshd.state.keys import PREFIX, KeyMalformed, reference_of
from meshd.trace import acts
from meshd.trace.acts import Actor
from meshd.view_books import LedgerBooks

if TYPE_CHECKING:
    from meshd.api.mesh import Mesh
    from meshd.filters.turns_events import HeldEvent
    from meshd.policy.compiled import Policy
    from meshd.turns.supervision import Verdict
    from meshd_sdk.context import Context
    from meshd_sdk.v1 import events_pb2

PUBLISH: Final = "PUBLISH"
HANDLE: Final = "HANDLE"
SUPERVISOR: Final = "meshdsupervisor"
"""Extension of an event that says what this supervisor answered, in place of what its publisher would have said."""
FUNDED_S: Final = 0.25
"""For so long an account that had something left is not asked again: what is published spends nothing by itself."""
FUNDED_MAX: Final = 1024
JUDGED_MAX: Final = 4096


class Cause(NamedTuple):
    """What an agent was handed, by the token that came with it: what is published under that follows from it."""

    event: str
    """The event's id."""
    noted: int
    """The record of the trace that says so; 0 for none."""


NO_CAUSE: Final = Cause("", 0)


class Draft(NamedTuple):
    """What an agent wants published."""

    mesh: Mesh
    policy: Policy
    context: Context
    event: Event
    cause: Cause

    async def publication(self, event: Event) -> Publication:
        """Return what goes to the bus: `event`, which may be another than the agent's. Raises Refused:
        BUDGET_EXHAUSTED, STORE_UNAVAILABLE."""
        await check_funds(self.mesh, self.policy, self.context)
        return Publication(event, actor_of(self.context), (self.cause.noted,) if self.cause.noted else None)

    def refused(self, refused: Refused) -> None:
        """Count that it is not published, and write it down."""
        _refused(self.mesh, self.context.agent, self.context, self.event.topic, refused, self.cause)


class HeldPublication:
    """An event with which a workflow goes in circles: the supervisor decides what is published."""

    __slots__ = ("_draft", "_held")

    def __init__(self, draft: Draft, held: HeldEvent) -> None:
        self._draft = draft
        self._held = held

    async def decided(self) -> Publication:
        """Ask, and return what is published then. Raises Refused: LOOP, MAX_TURNS, and as `Draft.publication` does."""
        draft, ladder = self._draft, self._draft.mesh.turns.ladder
        try:
            verdict = await ladder.ask_event(self._held, draft.mesh.proxy.next_id(), draft.mesh.wall_clock())
            event = draft.event
            if verdict.action == "redirect":
                if not self._may_go_to(verdict.target):
                    raise ladder.refused_event(self._held, words(verdict))
                event = replace(event, topic=verdict.target)
            elif verdict.action == "finish":
                event = _finished(event, verdict)
            return await draft.publication(event)
        except Refused as refused:
            draft.refused(refused)
            raise

    def _may_go_to(self, topic: str) -> bool:
        draft = self._draft
        try:
            check_topic(topic)
            check_allowed(draft.mesh, draft.policy, draft.context, topic, PUBLISH)
        except (EventMalformed, Refused):
            return False
        return True


def _finished(event: Event, verdict: Verdict) -> Event:
    """Return an event that says what the supervisor says, in place of its publisher."""
    return replace(
        event,
        data=verdict.answer,
        data_content_type=verdict.content_type,
        data_ref="",
        data_schema="",
        extensions={**event.extensions, SUPERVISOR: verdict.by},
    )


async def event_of(
    mesh: Mesh, agent: str, request: events_pb2.PublishRequest, cause: Cause
) -> Publication | HeldPublication:
    """Return the event that `agent` publishes, for the bus; or what it waits for.

    Raises EventMalformed, and Refused: CONTEXT_INVALID, HOP_LIMIT, DEADLINE, NOT_ALLOWED, LOOP, MAX_TURNS,
    BUDGET_EXHAUSTED, STORE_UNAVAILABLE.
    """
    event, context = request.event, None
    try:
        check_topic(event.topic)
        source = event.source or agent
        if source != agent and not source.startswith(f"{agent}/"):
            # An event is known by (source, id): another's source would take its place.
            raise EventMalformed("event.source", f"empty, {agent}, or what begins with {agent}/")
        _check_reference(event.data_ref)
        context = publisher(mesh, agent, request.token)
        return await _judged(_draft(mesh, context, request, source, cause))
    except Refused as refused:
        _refused(mesh, agent, context, event.topic, refused, cause)
        raise
    except EventMalformed:
        mesh.event_counts.refused(PUBLISH, Reason.MALFORMED)
        raise


def _check_reference(text: str) -> None:
    """Raise EventMalformed for what begins as a reference to shared state, and is none, or says of nobody whose it is:
    with a dot there each reader would be led to an object of its own."""
    if text.startswith(PREFIX):
        try:
            reference_of(text)
        except KeyMalformed as error:
            raise EventMalformed("event.data_ref", f"is no reference to shared state: one is {error}") from None


async def _judged(draft: Draft) -> Publication | HeldPublication:
    mesh, policy, context, event, _ = draft
    check_allowed(mesh, policy, context, event.topic, PUBLISH)
    held = _turn(draft)
    return await draft.publication(event) if held is None else HeldPublication(draft, held)


def _turn(draft: Draft) -> HeldEvent | None:
    """Judge the turn that an event is; return what the supervisor is to be asked about. Raises Refused(LOOP) or
    Refused(MAX_TURNS).

    The same (source, id) is the same event: whoever had no acknowledgement publishes it again, and goes in no circle.
    """
    mesh, policy, context, event, _ = draft
    judged, name = mesh.judged, (context.workflow, event.source, event.id)
    if name in judged:
        return None
    held: HeldEvent | None = mesh.turns.events.publish(
        context, event.topic, event.data, policy, now_s=mesh.proxy.now_s, wall_s=mesh.wall_clock()
    )
    if held is None and event.id and context.workflow:
        if len(judged) >= JUDGED_MAX:
            del judged[next(iter(judged))]
        judged[name] = None
    return held


def _draft(mesh: Mesh, context: Context, request: events_pb2.PublishRequest, source: str, cause: Cause) -> Draft:
    event = request.event
    made = Event(
        topic=event.topic,
        source=source,
        id=event.id,
        type=event.type,
        subject=event.subject,
        time_ns=unix_ns("event.time", event.time) if event.HasField("time") else 0,
        data_content_type=event.data_content_type,
        data_schema=event.data_schema,
        data=event.data,
        data_ref=event.data_ref,
        partition_key=event.partition_key,
        correlation_id=context.workflow,
        causation_id=cause.event,
        extensions=dict(event.extensions),
        token=token_for_bus(mesh, context),
    )
    return Draft(mesh, mesh.policy, context, made, cause)


def _refused(mesh: Mesh, agent: str, context: Context | None, topic: str, refused: Refused, cause: Cause) -> None:
    """Count that something is not published, and write it down."""
    mesh.event_counts.refused(PUBLISH, refused.reason)
    trace = mesh.telemetry.provenance.trace
    if trace is not None:
        actor = Actor("", agent) if context is None else actor_of(context)
        causes = (cause.noted,) if cause.noted else None
        acts.refused(trace, actor, PUBLISH, Kind.EVENT.value, topic, refused, causes)


def check_allowed(mesh: Mesh, policy: Policy, context: Context, topic: str, verb: str) -> None:
    """Raise Refused(NOT_ALLOWED) where the rules do not let an agent publish to a topic, or handle what is there."""
    plan = policy.plan(Target(Kind.EVENT, topic), context.agent, f"{verb} {topic}")
    plan.hit()
    trials = [one for one in plan.trials if isinstance(one, AllowSettings)]
    allow: Any = plan.allow
    if allow is None and not trials:
        return
    call = call_in(mesh, policy, context, Target(Kind.EVENT, topic))
    call.path = f"{verb} {topic}"
    for one in trials if allow is None or not allow.is_shadow else (*trials, allow):
        try:
            judge(call, one)
        except Refused as refused:
            refused.is_shadow = True
            mesh.telemetry.shadowed(call, refused)
    if allow is not None and not allow.is_shadow:
        judge(call, allow)


async def check_funds(mesh: Mesh, policy: Policy, context: Context) -> None:
    """Raise Refused(BUDGET_EXHAUSTED) where an account of the workflow has nothing left to spend: whoever handled the
    event could not call an LLM. What belongs to no workflow is not judged: its account is made anew each day."""
    if not context.workflow:
        return
    now_s, funded = mesh.proxy.clock(), mesh.funded
    for one in limits_of(mesh, policy, context):
        if funded.get(one.account, now_s) > now_s:
            continue
        amounts = await amounts_of(LedgerBooks(lambda: mesh.ledger), one.account, one.limit)
        if amounts.available <= 0 and amounts.reserved <= 0:
            raise Refused(
                Reason.BUDGET_EXHAUSTED,
                f"Account {one.account} has nothing left of its {one.limit:,}, so that nobody could act on the event. "
                "Finish with what you have; or raise the budget.",
                rule=one.rule,
            )
        if len(funded) >= FUNDED_MAX:
            del funded[next(iter(funded))]
        funded[one.account] = now_s + FUNDED_S
