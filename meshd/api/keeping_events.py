"""Events on their way to the bus, an agent's or the sidecar's own: written into the trace, kept, and counted.

That an event is published stands in the trace before the bus has it, as a call does before it goes out.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from meshd.engines.bus_port import HANDLING_S, EventMalformed
from meshd.engines.port import StoreError
from meshd.refusal import Reason, Refused
from meshd.trace import acts
from meshd.trace.acts import Actor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.api.mesh import Mesh
    from meshd.engines.bus_port import Bus, Event, Published, Subscription
    from meshd.trace.recorder import Recorder


class Publication(NamedTuple):
    """An event that is to be published."""

    event: Event
    actor: Actor
    causes: tuple[int | str, ...] | None = None
    """Events of the trace that it follows from; None for what its agent serves."""


def bus_of(mesh: Mesh) -> Any:
    """Return the bus. Raises Refused(STORE_UNAVAILABLE) where there is none."""
    if mesh.bus is None:
        raise Refused(Reason.STORE_UNAVAILABLE, "This sidecar has no bus", is_retryable=False)
    return mesh.bus


async def publish_all(mesh: Mesh, publications: Sequence[Publication]) -> list[Published]:
    """Give events to the bus, all or none. Raises StoreError, EventMalformed, and Refused(STORE_UNAVAILABLE) without a
    bus, or where the trace must be written and cannot be."""
    bus, trace = bus_of(mesh), mesh.telemetry.provenance.trace
    written = [(0, one.event) for one in publications]
    if trace is not None:
        written = [acts.published(trace, one.actor, _named(one.event), one.causes) for one in publications]
        await acts.on_disk(trace, *(sequence for sequence, _ in written))
    try:
        done: list[Published] = await bus.publish([event for _, event in written])
    except (StoreError, EventMalformed) as error:
        if trace is not None:
            for one, (sequence, event) in zip(publications, written, strict=True):
                acts.unpublished(trace, one.actor, event, sequence, str(error))
        raise
    for at, ended in enumerate(done):
        _ended(mesh, trace, publications[at], written[at], ended)
    return done


def _ended(mesh: Mesh, trace: Recorder | None, one: Publication, written: tuple[int, Event], ended: Published) -> None:
    mesh.event_counts.kept(one.event.topic, is_duplicate=ended.is_duplicate)
    if trace is not None and ended.is_duplicate:
        acts.unpublished(trace, one.actor, written[1], written[0], acts.DUPLICATE)


def _named(event: Event) -> Event:
    """Return an event with an id: the trace must know it before the bus would give it one."""
    return event if event.id else replace(event, id=os.urandom(16).hex())


class OwnBus:
    """The bus as the sidecar itself uses it: what it publishes is written down and counted as what agents publish."""

    def __init__(self, bus: Any, mesh: Callable[[], Mesh]) -> None:
        self._bus = bus
        self._mesh = mesh

    async def publish(self, events: Sequence[Event]) -> list[Published]:
        """See `Bus.publish`. What is published belongs to the workflow that its `correlation_id` names."""
        try:
            return await publish_all(
                self._mesh(), [Publication(one, Actor(one.correlation_id, one.source), ()) for one in events]
            )
        except Refused as refused:
            raise StoreError(refused.message) from refused

    async def subscribe(
        self, topic: str, group: str, *, starts_at_oldest: bool = False, handling_s: float = HANDLING_S
    ) -> Subscription:
        """See `Bus.subscribe`."""
        bus: Bus = self._bus
        return await bus.subscribe(topic, group, starts_at_oldest=starts_at_oldest, handling_s=handling_s)
