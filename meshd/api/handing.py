"""An event that the bus has for a group, before somebody is handed it: its context, and whether the policy lets it.

What may not be handed out is tried again at once, or, where time or another of the group may mend it, later, until its
attempts are used up: it then is a dead letter with the reason in it, which can be redriven, and never lost.
"""

from __future__ import annotations

import logging
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from meshd.api.fields import unix_ns
from meshd.api.keeping_events import bus_of
from meshd.api.publishing import HANDLE, Cause, check_allowed, check_funds
from meshd.api.session_contexts import actor_of, for_consumer, own_context, publisher_of
from meshd.api.setting_aside import KEEP_S, LEAST_S
from meshd.approvals.hands import Whose
from meshd.call import Kind
from meshd.engines.bus_event import REASON_CHARACTERS_MAX, check_group, check_pattern, is_topic
from meshd.engines.bus_moment import EXPIRY, is_expired
from meshd.engines.bus_port import ATTEMPTS_MAX, EventMalformed, Start, Verdict
from meshd.filters.holding import less_margin
from meshd.refusal import Reason, Refused
from meshd.trace import acts

if TYPE_CHECKING:
    from meshd.api.mesh import Mesh
    from meshd.approvals.hands import Hand
    from meshd.engines.bus_port import DeadLetter, Delivery, Event, Subscription
    from meshd.trace.acts import Actor
    from meshd.trace.knowledge import Told
    from meshd_sdk.context import Context
    from meshd_sdk.v1 import events_pb2

SEQUENCE_DIGITS: Final = 20
JOINED_MAX: Final = 500
"""Groups that one agent may join between two starts of its sidecar: a bus remembers 10,000."""
LATE: Final = "late"
EXPIRED: Final = "expired"
DEFERRED: Final = "deferred"
"""What becomes of an attempt, beside what its handler says of it and acts.DEAD_LETTER: what is said comes too late, the
event was of no more use before anybody was handed it, or a person must decide first, so that it does not count."""
LAST_MAX: Final = 10_000
"""Last attempts of which it is remembered who was handed them."""
UNTIMELY: Final = "it was not handed over in its time, and went back unseen"
_PASSING: Final = frozenset({Reason.BUDGET_EXHAUSTED, Reason.STORE_UNAVAILABLE})
"""What may be otherwise in a while."""
log = logging.getLogger("meshd.api")


class Handed(NamedTuple):
    """An event that the bus has for an agent."""

    delivery: Delivery
    context: Context | None
    """To handle it in; None where the one that it was published in does not hold any more."""
    token: bytes
    actor: Actor
    """Who is handed it, as the trace has it."""
    told: Told | None
    """What its publisher's sidecar knew; None where nothing of that came along."""
    noted: int = 0
    """The record of the trace that says that it is handed out; 0 for none."""
    hand: Hand | None = None
    """By which calls are known that follow from it; None where nobody can be asked about any."""

    @property
    def cause(self) -> Cause:
        """What follows from it."""
        return Cause(self.delivery.event.id, self.noted)


def start_of(request: events_pb2.SubscribeRequest) -> Start | None:
    """Return where a new group is to begin, None where the request does not say. Raises EventMalformed."""
    has_moment, after = request.HasField("starts_at"), request.starts_after
    if not has_moment and not after:
        return None
    if has_moment + bool(after) + request.starts_at_oldest > 1:
        raise EventMalformed("starts_at", "only one of starts_at, starts_after and starts_at_oldest can hold")
    if has_moment:
        return Start(at_s=unix_ns("starts_at", request.starts_at) / 1e9)
    if not (after.isascii() and after.isdecimal() and len(after) <= SEQUENCE_DIGITS):
        raise EventMalformed("starts_after", f"{after[:40]!r} is no sequence of an event: {SEQUENCE_DIGITS} digits")
    return Start(after=int(after))


async def join(
    mesh: Mesh,
    agent: str,
    topic: str,
    group: str | None,
    *,
    handling_s: float,
    starts_at_oldest: bool = False,
    start: Start | None = None,
) -> Subscription:
    """Let `agent` join a group, its own where `group` names none.

    Raises EventMalformed, StoreError, and Refused(NOT_ALLOWED) for one topic that the rules let it handle nothing of:
    in a group with others it would use up the attempts at what those may handle. Of a pattern each event is judged.
    Refused(OVERLOADED) where the agent has joined too many: a bus remembers each, and has room for so many in all.
    """
    check_pattern(topic)
    name = group or agent
    check_group(name)
    if is_topic(topic):
        try:
            check_allowed(mesh, mesh.policy, own_context(mesh, agent), topic, HANDLE)
        except Refused as refused:
            mesh.event_counts.refused(HANDLE, refused.reason)
            raise
    joined = mesh.joined.setdefault(agent, set())
    if len(joined) >= JOINED_MAX and (name, topic) not in joined:
        raise Refused(
            Reason.OVERLOADED,
            f"{agent} has joined {JOINED_MAX:,} groups since this sidecar began, and each is remembered. Join one of "
            "them again, or use a pattern.",
            is_retryable=False,
        )
    subscription: Subscription = await bus_of(mesh).subscribe(
        topic, name, starts_at_oldest=starts_at_oldest, handling_s=handling_s, start=start
    )
    joined.add((name, topic))
    return subscription


async def next_for(mesh: Mesh, agent: str, subscription: Subscription) -> Handed:
    """Wait for an event that `agent` may be handed. Raises StoreError."""
    while True:
        handed = await admitted(mesh, agent, subscription, await subscription.next())
        if handed is not None:
            return handed


async def admitted(
    mesh: Mesh, agent: str, subscription: Subscription, delivery: Delivery, within_s: float = inf
) -> Handed | None:
    """Return an event that `agent` may be handed, once that is written down and counted; None where it is kept back, or
    another's by then. `within_s`: in how many seconds it must be handled, where that is less than the bus gives it.
    Raises StoreError."""
    handed = _taken(mesh, agent, delivery)
    if is_expired(delivery.event, mesh.wall_clock()):
        await _let_go(mesh, subscription, handed)
        return None
    try:
        await _check(mesh, handed.context or own_context(mesh, agent), delivery)
        trace = mesh.telemetry.provenance.trace
        if trace is not None:
            noted = acts.handed(trace, handed.actor, subscription.group, delivery, handed.told)
            await acts.on_disk(trace, noted)
            handed = handed._replace(noted=noted)
    except Refused as refused:
        await _keep_back(mesh, subscription, handed, refused)
        return None
    if not await is_held(mesh, subscription, handed):
        return None
    if handed.noted and delivery.attempt >= ATTEMPTS_MAX:
        mesh.last_attempts[subscription.group, delivery.event.sequence] = (handed.actor, handed.noted)
        if len(mesh.last_attempts) > LAST_MAX:
            del mesh.last_attempts[next(iter(mesh.last_attempts))]
    mesh.event_counts.handed(delivery.event.topic)
    desk = mesh.desk
    if desk is None or not desk.has_approvers():
        return handed
    whose = Whose.of(handed.context or own_context(mesh, agent))
    ends_s = desk.clock() + min(subscription.left_s(delivery), less_margin(within_s))
    return handed._replace(hand=desk.hands.begin(handed.token, whose, ends_s))


def buried(mesh: Mesh, letter: DeadLetter) -> None:
    """Write down that nothing was heard of the last attempt at an event."""
    trace = mesh.telemetry.provenance.trace
    actor, noted = mesh.last_attempts.pop((letter.group, letter.event.sequence), (None, 0))
    if trace is not None:
        acts.buried(trace, letter, workflow_of(mesh, letter.event), actor, noted)


def workflow_of(mesh: Mesh, event: Event) -> str:
    """Return what its publisher's trace had an event in: a workflow, or an account in its place."""
    context = publisher_of(mesh, event.token)
    return event.correlation_id if context is None else actor_of(context).workflow


async def is_held(mesh: Mesh, subscription: Subscription, handed: Handed) -> bool:
    """Say whether an agent may be handed an event at this moment; to be asked right before it is. Where not, the event
    was given back, and that is written down."""
    if await subscription.holds(handed.delivery):
        return True
    if handed.noted:
        _ended(mesh, subscription, handed, LATE, UNTIMELY, (handed.noted,))
    return False


def _taken(mesh: Mesh, agent: str, delivery: Delivery) -> Handed:
    context, token = for_consumer(mesh, agent, delivery.token)
    actor, told = noted_of(mesh, delivery, actor_of(context or own_context(mesh, agent)))
    return Handed(delivery, context, token, actor, told)


def noted_of(mesh: Mesh, delivery: Delivery, actor: Actor) -> tuple[Actor, Told | None]:
    """Return who is handed an event, in the workflow that it is of, and what its publisher's sidecar knew."""
    event, trace = delivery.event, mesh.telemetry.provenance.trace
    if trace is None or not event.clock:
        return actor, None
    # What meshd itself publishes comes without a context, and may be about a workflow all the same.
    workflow = actor.workflow if delivery.token else event.correlation_id
    told = acts.heard(trace, event, workflow, workflow)
    return (actor, None) if told is None else (actor._replace(workflow=workflow or actor.workflow), told)


async def settle(
    mesh: Mesh,
    subscription: Subscription,
    handed: Handed,
    verdict: Verdict,
    *,
    retry_after_s: float | None = None,
    reason: str = "",
) -> bool:
    """Say what became of an event, write it down and count it. Returns and raises as `Subscription.settle` does."""
    if verdict is Verdict.RETRY and handed.hand is not None and handed.hand.undecided:
        return await _set_aside(mesh, subscription, handed, tuple(handed.hand.undecided), retry_after_s, reason)
    delivery = handed.delivery
    noted = _ended(mesh, subscription, handed, ended_by(delivery, verdict), reason)
    counted = await subscription.settle(
        delivery, verdict, retry_after_s=retry_after_s, reason=reason[:REASON_CHARACTERS_MAX]
    )
    _count(mesh, subscription, handed, verdict.value, noted, is_counted=counted)
    return counted


async def _set_aside(
    mesh: Mesh,
    subscription: Subscription,
    handed: Handed,
    ids: tuple[str, ...],
    retry_after_s: float | None,
    reason: str,
) -> bool:
    """Have an event that is to be tried again wait for what people decide, without using up an attempt: it is handed
    out again once they have, or when its handler says. Returns and raises as `settle` does."""
    event = handed.delivery.event
    bare = handed._replace(
        delivery=handed.delivery._replace(event=msgspec.structs.replace(event, data=b"")), context=None, hand=None
    )
    noted = _ended(mesh, subscription, handed, DEFERRED, f"a person must decide first ({', '.join(ids)}): {reason}")
    counted = await subscription.defer(
        handed.delivery, KEEP_S if retry_after_s is None else max(retry_after_s, LEAST_S)
    )
    _count(mesh, subscription, handed, DEFERRED, noted, is_counted=counted)

    async def lapse(why: str) -> bool:
        noted = _ended(mesh, subscription, bare, ended_by(bare.delivery, Verdict.RETRY), why)
        counted = await subscription.lapse(bare.delivery, why)
        _count(mesh, subscription, bare, Verdict.RETRY.value, noted, is_counted=counted)
        return counted

    if counted and retry_after_s is None and mesh.aside is not None:
        mesh.aside.watch(ids, lambda wait_s: subscription.defer(bare.delivery, wait_s), lapse)
    return counted


def _count(
    mesh: Mesh, subscription: Subscription, handed: Handed, result: str, noted: int, *, is_counted: bool
) -> None:
    """Count what became of an attempt, which is no longer in hand; or write down that it came too late."""
    event = handed.delivery.event
    if handed.hand is not None and mesh.desk is not None:
        mesh.desk.hands.end(handed.hand)
    if is_counted:
        mesh.last_attempts.pop((subscription.group, event.sequence), None)
        mesh.event_counts.ended(event.topic, result)
    elif noted:
        _ended(mesh, subscription, handed, LATE, "its time was over, or somebody had settled it", (noted,))


def ended_by(delivery: Delivery, verdict: Verdict) -> str:
    """Return what a verdict makes of an event: itself, or a dead letter at the last attempt."""
    return acts.DEAD_LETTER if verdict is Verdict.RETRY and delivery.attempt >= ATTEMPTS_MAX else verdict.value


def _ended(
    mesh: Mesh,
    subscription: Subscription,
    handed: Handed,
    result: str,
    reason: str,
    causes: tuple[int | str, ...] = (),
) -> int:
    """Write down what became of an attempt; return that record, 0 for none."""
    trace = mesh.telemetry.provenance.trace
    if trace is None:
        return 0
    if not causes:
        # Where it was handed out, and what it follows from wherever that was published.
        published = () if handed.told is None else (handed.told.event,)
        causes = (handed.noted, *published) if handed.noted else published
    return acts.handled(trace, handed.actor, subscription.group, handed.delivery, result, reason, causes)


async def _check(mesh: Mesh, context: Context, delivery: Delivery) -> None:
    """Raise Refused where an event may not be handed to the agent of `context`."""
    policy, wall_s, event = mesh.policy, mesh.wall_clock(), delivery.event
    # A first attempt that is marked was redriven: somebody has looked.
    if delivery.may_have_been_handled and delivery.attempt > 1 and policy.parked.fits(event.topic):
        raise Refused(
            Reason.KEY_UNKNOWN,
            "Nothing was heard of an earlier attempt, which may have been carried out, and events of "
            f"{event.topic} are parked then (park). Redrive it once it is known what was done.",
        )
    if context.hops > policy.limits.hops:
        raise Refused(
            Reason.HOP_LIMIT,
            f"This would be hop {context.hops} of workflow {context.workflow}, and {policy.limits.hops} are "
            "allowed here (limits.hops).",
        )
    if context.deadline_s is not None and context.deadline_s <= wall_s:
        raise Refused(Reason.DEADLINE, f"The time of workflow {context.workflow} was over before it was handled.")
    check_allowed(mesh, policy, context, event.topic, HANDLE)
    await check_funds(mesh, policy, context)
    turns = mesh.turns
    held = turns.events.reenters(context, event.topic, event.data, policy, now_s=mesh.proxy.now_s, wall_s=wall_s)
    if held is not None:
        await turns.ladder.ask_event(held, mesh.proxy.next_id(), wall_s)


async def _let_go(mesh: Mesh, subscription: Subscription, handed: Handed) -> None:
    """Hand an event to nobody, since its publisher has no more use for it. Raises StoreError."""
    delivery = handed.delivery
    reason = f"{EXPIRY} was {delivery.event.extensions[EXPIRY]}"
    _ended(mesh, subscription, handed, EXPIRED, reason)
    if await subscription.settle(delivery, Verdict.DROP, reason=reason):
        mesh.event_counts.ended(delivery.event.topic, EXPIRED)


async def _keep_back(mesh: Mesh, subscription: Subscription, handed: Handed, refused: Refused) -> None:
    """Do not hand out an event. Raises StoreError."""
    delivery, event = handed.delivery, handed.delivery.event
    mesh.event_counts.refused(HANDLE, refused.reason)
    log.warning(
        "an event is not handed out: %s",
        refused.message,
        extra={"fields": {"topic": event.topic, "event": event.id, "reason": refused.reason.value}},
    )
    # In a group that is not the agent's own, others may be let: they shall have time to take it.
    is_for_others = refused.reason is Reason.NOT_ALLOWED and subscription.group != handed.actor.agent
    wait_s = None if is_for_others or refused.reason in _PASSING else 0.0
    reason = f"{refused.reason.value}: {refused.message}"
    trace = mesh.telemetry.provenance.trace
    if trace is not None:
        causes = () if handed.told is None else (handed.told.event,)
        noted = acts.refused(trace, handed.actor, HANDLE, Kind.EVENT.value, event.topic, refused, causes)
        result = ended_by(delivery, Verdict.RETRY)
        acts.handled(trace, handed.actor, subscription.group, delivery, result, reason, (noted,) if noted else causes)
    await subscription.settle(delivery, Verdict.RETRY, retry_after_s=wait_s, reason=reason)
