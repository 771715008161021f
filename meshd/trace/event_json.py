"""An event of the trace as JSON, and what all that is written of it in JSON has in common."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from meshd.clocks import ClockMalformed

if TYPE_CHECKING:
    from meshd.trace.record import Event


def as_json(event: Event, said: Any = None) -> dict[str, Any]:
    """Return an event as JSON has it: bytes in hexadecimal digits, its clock by sidecar, when it was in UTC."""
    payload = event.payload
    found: dict[str, Any] = {
        "id": event.id,
        "kind": event.kind,
        "time": when(payload.hlc_us),
        "workflow": payload.workflow,
        "call": payload.call,
        "agent": payload.agent,
        "target": payload.target,
        "causes": list(event.causes),
        "clock": _clock(event),
        "trace_id": payload.span[:16].hex(),
        "span_id": payload.span[16:24].hex(),
        "digest": payload.digest.hex(),
        "hash": event.head.hex(),
        "facts": {name: plain(value) for name, value in event.facts.items()},
    }
    if said is not None:
        found["said"] = said
    return found


def when(hlc_us: int) -> str:
    """Return a time of Unix microseconds as RFC 3339 has it."""
    try:
        return datetime.fromtimestamp(hlc_us / 1e6, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return ""


def _clock(event: Event) -> dict[str, int]:
    try:
        return event.clock.counts
    except ClockMalformed:
        return {}


def plain(value: Any) -> Any:
    """Return a fact as JSON has it."""
    return value.hex() if isinstance(value, bytes) else value


def line_of(value: Any) -> str:
    """Return JSON on one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
