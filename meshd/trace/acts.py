"""What agents do without a call, written down: events that are published and handled, shared state.

An event takes its publisher's clock along, and a version its writer's, signed as on a hop between two sidecars: what
follows from it names the record from which it follows, whichever sidecar wrote that.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshd.trace import kinds
from meshd.trace.recorder import DIGESTED_BYTES_MAX
from meshd.trace.writer import MESSAGE_CHARACTERS_MAX, TEXT_CHARACTERS_MAX, unwritten

if TYPE_CHECKING:
    from meshd.engines.bus_port import DeadLetter, Delivery, Event
    from meshd.refusal import Refused
    from meshd.trace.knowledge import Told
    from meshd.trace.recorder import Recorder

DUPLICATE: Final = "duplicate"
"""Why nothing was published: the bus has the event already."""
REDRIVEN: Final = "redriven"
"""What became of a dead letter."""
DEAD_LETTER: Final = "dead_letter"
"""What became of an event at its last attempt."""


class Actor(NamedTuple):
    """Who does something, where."""

    workflow: str
    """Or the account of what nothing ties to one."""
    agent: str
    hops: int = 0
    evidence: str = "none"
    """How it is known that this is so."""


def digest_of(data: bytes) -> bytes:
    """Return the SHA-256 of a payload; nothing where there is none, or it is so long that it would cost too much."""
    return sha256(data).digest() if 0 < len(data) <= DIGESTED_BYTES_MAX else b""


async def on_disk(trace: Recorder, *events: int) -> None:
    """Return once what was written may be acted on; 0 is an event that could not be. Raises Refused(STORE_UNAVAILABLE)
    where the log must be durable and is not."""
    if trace.is_durable:
        if 0 in events:
            raise unwritten("it is full, or its disk fails")
        await trace.whole()


def refused(
    trace: Recorder,
    actor: Actor,
    verb: str,
    kind: str,
    name: str,
    why: Refused,
    causes: tuple[int | str, ...] | None = None,
    span: bytes = b"",
) -> int:
    """What was asked for is not done: `verb` to an `event` or to `state` of this name. Never raises."""
    shown = _text(trace, name)
    head = ("outbound", kind, verb, shown, "", "", 0, None, 0, False, "", "", actor.hops, actor.evidence, 0)
    facts = (*head, why.reason, why.rule, why.status, trace.clean(why.message[:MESSAGE_CHARACTERS_MAX]))
    return _note(trace, kinds.REFUSED, actor, shown, facts, causes, span=span)


# ---------------------------------------------------------------------- events


def published(trace: Recorder, actor: Actor, event: Event, causes: tuple[int | str, ...] | None) -> tuple[int, Event]:
    """An event is about to be published: return that record's sequence, and the event with the clock that goes with it.
    Without `causes` it follows from what its agent serves. Never raises; 0 where it could not be written."""
    source, key = _text(trace, event.source), _text(trace, event.partition_key)
    facts = (_text(trace, event.id), event.topic, key, source)
    sequence = _note(trace, kinds.PUBLISHED, actor, event.topic, facts, causes, digest=digest_of(event.data))
    clock = trace.signed(actor.workflow, sequence) if sequence else b""
    return sequence, msgspec.structs.replace(event, clock=clock)


def unpublished(trace: Recorder, actor: Actor, event: Event, sequence: int, why: str) -> None:
    """It was not: the bus had it before, or has not said that it has it. Never raises."""
    facts = (_text(trace, event.id), event.topic, trace.clean(why[:MESSAGE_CHARACTERS_MAX]))
    _note(trace, kinds.UNPUBLISHED, actor, event.topic, facts, (sequence,) if sequence else ())


def heard(trace: Recorder, event: Event, workflow: str, here: str) -> Told | None:
    """Take what came with an event of `workflow`, for what follows from it in `here`. See `Recorder.heard`."""
    return trace.heard(event.clock, workflow, here, f"the event {event.id[:TEXT_CHARACTERS_MAX]}")


def handed(trace: Recorder, actor: Actor, group: str, delivery: Delivery, told: Told | None) -> int:
    """An agent is about to be handed an event: what it does next follows from that. Never raises; 0 as above."""
    event = delivery.event
    head = told.head if told is not None else b""
    facts = (_text(trace, event.id), event.topic, group, delivery.attempt, delivery.may_have_been_handled, head)
    # Where no clock came along nothing is known to have led to it: not what the agent was at before.
    causes = (told.event,) if told is not None else ()
    sequence = _note(trace, kinds.HANDED, actor, event.topic, facts, causes, digest=digest_of(event.data))
    if sequence:
        trace.arrived(actor.workflow, actor.agent, sequence)
    return sequence


def handled(
    trace: Recorder,
    actor: Actor,
    group: str,
    delivery: Delivery,
    result: str,
    why: str,
    causes: tuple[int | str, ...],
) -> int:
    """What became of an attempt at an event, in a word and for what reason. Never raises; 0 as above."""
    event = delivery.event
    shown = trace.clean(why[:MESSAGE_CHARACTERS_MAX])
    facts = (_text(trace, event.id), event.topic, group, result, delivery.attempt, shown)
    return _note(trace, kinds.HANDLED, actor, event.topic, facts, causes)


def redriven(trace: Recorder, letter: DeadLetter, workflow: str) -> int:
    """A dead letter of `workflow` is about to be handed to its group again, as an operator asks. Never raises; 0 as
    above."""
    return _letter(trace, letter, REDRIVEN, workflow, Actor(workflow, ""), ())


def buried(trace: Recorder, letter: DeadLetter, workflow: str, actor: Actor | None, noted: int) -> int:
    """Nothing was heard of the last attempt at an event of `workflow`, which is a dead letter. Who was handed it, and
    the record of that, where that was here. Never raises; 0 as above."""
    causes = (noted,) if noted else ()
    return _letter(trace, letter, DEAD_LETTER, workflow, actor or Actor(workflow, ""), causes)


def _letter(
    trace: Recorder, letter: DeadLetter, result: str, workflow: str, actor: Actor, causes: tuple[int | str, ...]
) -> int:
    event = letter.event
    told = heard(trace, event, workflow, workflow) if event.clock else None
    shown = trace.clean(letter.reason[:MESSAGE_CHARACTERS_MAX])
    facts = (_text(trace, event.id), event.topic, letter.group, result, letter.attempts, shown)
    if told is not None:
        causes = (*causes, told.event)
    return _note(trace, kinds.HANDLED, actor, event.topic, facts, causes)


# ---------------------------------------------------------------------- shared state


def writing(trace: Recorder, actor: Actor, act: str, key: str, base: int, value: bytes, span: bytes) -> int:
    """A version is about to be written, from the one that it was made from. Never raises; 0 as above."""
    shown = _text(trace, key)
    return _note(trace, kinds.WRITING, actor, shown, (shown, base, act), None, digest=digest_of(value), span=span)


def state(
    trace: Recorder,
    actor: Actor,
    act: str,
    key: str,
    version: int,
    result: str,
    causes: tuple[int | str, ...] | None,
    digest: bytes,
    span: bytes,
) -> int:
    """What became of it, or of a lease or tentative versions; `version` is there now. Never raises; 0 as above."""
    shown = _text(trace, key)
    return _note(trace, kinds.STATE, actor, shown, (shown, version, act, result), causes, digest=digest, span=span)


def read(
    trace: Recorder,
    actor: Actor,
    act: str,
    key: str,
    version: int,
    result: str,
    writer: str,
    told: Told | None,
    span: bytes,
) -> int:
    """An agent is about to be told of a version, and by whom it was written. Never raises; 0 as above."""
    shown, head = _text(trace, key), told.head if told is not None else b""
    facts = (shown, version, act, result, _text(trace, writer), head)
    causes: tuple[int | str, ...] = trace.serving(actor.workflow, actor.agent)
    if told is not None:
        causes = (*causes, told.event)
    return _note(trace, kinds.READ, actor, shown, facts, causes, span=span)


# ---------------------------------------------------------------------- writing


def _text(trace: Recorder, text: str) -> str:
    """Return a text that callers write, cut to length and without secrets. Ids have no end: they are not remembered, as
    names are."""
    return trace.clean(text[:TEXT_CHARACTERS_MAX])


def _note(
    trace: Recorder,
    kind: int,
    actor: Actor,
    target: str,
    facts: tuple[Any, ...],
    causes: tuple[int | str, ...] | None,
    *,
    digest: bytes = b"",
    span: bytes = b"",
) -> int:
    return trace.note(
        kind, actor.workflow, facts, agent=actor.agent, target=target, causes=causes, digest=digest, span=span
    )
