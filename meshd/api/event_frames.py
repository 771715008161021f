"""An event as the protocol has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.api import session_frames as frames
from meshd_sdk.v1 import events_pb2

if TYPE_CHECKING:
    from meshd.engines.bus_port import Event


def event_frame(event: Event) -> events_pb2.Event:
    """Return an event of the bus as a message."""
    made = events_pb2.Event(
        id=event.id,
        source=event.source,
        type=event.type or event.topic,
        subject=event.subject,
        data_content_type=event.data_content_type or frames.CONTENT_TYPE,
        data_schema=event.data_schema,
        data=event.data,
        data_ref=event.data_ref,
        partition_key=event.partition_key,
        correlation_id=event.correlation_id,
        causation_id=event.causation_id,
        sequence=event.sequence,
        extensions=event.extensions,
        topic=event.topic,
    )
    if event.time_ns:
        made.time.FromNanoseconds(event.time_ns)
    return made
