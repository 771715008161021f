"""A decision on a semantic event, as an entry of its workflow's trace."""

from __future__ import annotations

import logging
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from meshd.api.fields import moment
from meshd.api.session_contexts import publisher_of
from meshd.api.traces import trace_service
from meshd.refusal import Refused
from meshd_sdk.v1 import trace_pb2

if TYPE_CHECKING:
    from meshd.api.mesh import Mesh
    from meshd.engines.bus_port import Event

log = logging.getLogger("meshd.events")


def note(mesh: Mesh, event: Event, choice: str, decision: Any) -> None:
    """Put what was decided (`meshd.intent.deciding.Decision`) into the trace of the event's workflow."""
    context = publisher_of(mesh, event.token)
    if context is None:
        return
    entry = trace_pb2.TraceEntry(
        # The same event that is tried again is decided again: what was decided then is another entry.
        id="led-" + sha256(f"{event.source}\n{event.id}\n{choice}\n{decision.targets}".encode()).hexdigest()[:24],
        began=moment(mesh.wall_clock()),
        decision=trace_pb2.Decision(
            question=f"who handles the event {event.id[:256]}",
            choice=", ".join(decision.targets) or choice,
            rationale=f"{choice}: {decision.why}"[:4096],
        ),
        attributes={"score": f"{decision.score:.3f}"},
    )
    try:
        trace_service(mesh).take(context, [entry])
    except Refused as refused:
        log.warning("a decision could not be noted: %s", refused.message)
