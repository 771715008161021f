"""A workflow as spans of OTLP: export requests in its JSON form, one a line.

An event has the ids of the span that meshd has made for it, and others that follow from its own id: where it has none,
where an earlier event has that span already, and where the span is the caller's, under which it stands then. So no two
spans have one id, and none is its own parent.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from meshd.trace import kinds
from meshd.trace.event_json import line_of, plain
from meshd.trace.record import CALLERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from meshd.trace.record import Event

BATCH_MAX: Final = 512
"""Spans of one request."""
OPEN_MAX: Final = 100_000
"""Calls whose end is waited for; the first is written as it stands then. Where so many events stand is known."""
_INTERNAL, _SERVER, _CLIENT, _PRODUCER, _CONSUMER = 1, 2, 3, 4, 5
_KINDS: Final = {
    kinds.FORWARDED: _CLIENT,
    kinds.ARRIVED: _SERVER,
    kinds.PUBLISHED: _PRODUCER,
    kinds.HANDED: _CONSUMER,
    kinds.WRITING: _CLIENT,
}
_ERROR: Final = 2
_ENDS: Final = frozenset(kinds.ENDINGS.values())
_FAILED: Final = frozenset({"drop", "dead_letter"})
"""What handlers may make of an event that is an error."""
_SPAN_BYTES: Final = 25

Ids = tuple[str, str]
"""Of a trace and a span, in hexadecimal digits."""
V = TypeVar("V")


class Place(NamedTuple):
    """Where a span stands."""

    trace: str
    span: str
    parent: str = ""
    link: Ids | None = None
    """The span that it follows from, where that stands in another trace."""


class _Placing:
    """Gives each event its place, in the order in which they are read."""

    def __init__(self) -> None:
        self._known: dict[str, Ids] = {}
        """By event: its ids, where they are not those that follow from workflow and event alone."""
        self._given: dict[str, None] = {}
        """Ids of meshd's own spans that an event has."""

    def place(self, event: Event) -> Place:
        """Return where an event stands. Ask once for each."""
        span = event.payload.span
        cause = next((cause for cause in event.causes if cause != event.id), "")
        above = self._ids(event.payload.workflow, cause) if cause else None
        if len(span) != _SPAN_BYTES:
            trace = above[0] if above is not None else _trace_of(event.payload.workflow)
            made = Place(trace, _span_id(event.id), above[1] if above is not None else "")
        else:
            made = self._within(event, (span[:16].hex(), span[16:24].hex()), bool(span[24] & CALLERS), above)
        if (made.trace, made.span) != (_trace_of(event.payload.workflow), _span_id(event.id)):
            _keep(self._known, event.id, (made.trace, made.span))
        return made

    def _within(self, event: Event, own: Ids, is_callers: bool, above: Ids | None) -> Place:
        """Return the place of an event that has a span, or stands in one."""
        parent = above[1] if above is not None and above[0] == own[0] else ""
        link = above if above is not None and not parent else None
        if not is_callers and own[1] not in self._given:
            _keep(self._given, own[1], None)
            return Place(*own, parent if parent != own[1] else "", link)
        return Place(own[0], _span_id(event.id), parent or own[1], link)

    def _ids(self, workflow: str, event: str) -> Ids:
        return self._known.get(event) or (_trace_of(workflow), _span_id(event))


def otlp(events: Iterable[Event]) -> Iterator[str]:
    """Yield the requests of an export, written as its events are read, oldest first."""
    batch: dict[str, list[dict[str, Any]]] = {}
    waiting: dict[str, tuple[Event, Place]] = {}
    placing = _Placing()

    def put(event: Event, ended: Event | None, place: Place) -> None:
        batch.setdefault(event.sidecar, []).append(_span(event, ended, place))

    for event in events:
        kind = event.payload.kind
        if kind in kinds.ENDINGS:
            waiting[event.id] = event, placing.place(event)
            if len(waiting) > OPEN_MAX:
                first, place = waiting.pop(next(iter(waiting)))
                put(first, None, place)
        elif kind in _ENDS and event.causes and event.causes[0] in waiting:
            first, place = waiting.pop(event.causes[0])
            put(first, event, place)
        else:
            put(event, None, placing.place(event))
        if sum(map(len, batch.values())) >= BATCH_MAX:
            yield _request(batch)
            batch = {}
    for event, place in waiting.values():
        put(event, None, place)
    if batch:
        yield _request(batch)


def _trace_of(workflow: str) -> str:
    return sha256(b"meshd trace 1\0" + workflow.encode("utf-8", "replace")).digest()[:16].hex()


def _span_id(event: str) -> str:
    return sha256(b"meshd event 1\0" + event.encode()).digest()[:8].hex()


def _keep(kept: dict[str, V], key: str, value: V) -> None:
    kept[key] = value
    if len(kept) > OPEN_MAX:
        del kept[next(iter(kept))]


def _request(batch: dict[str, list[dict[str, Any]]]) -> str:
    resources = [
        {
            "resource": {
                "attributes": [_attribute("service.name", "meshd"), _attribute("service.instance.id", sidecar)]
            },
            "scopeSpans": [{"scope": {"name": "meshd.trace"}, "spans": spans}],
        }
        for sidecar, spans in batch.items()
    ]
    return line_of({"resourceSpans": resources})


def _span(event: Event, ended: Event | None, place: Place) -> dict[str, Any]:
    payload, facts = event.payload, event.facts
    until_us = ended.payload.hlc_us if ended is not None else payload.hlc_us
    verdict = ended.facts.get("verdict") if ended is not None else None
    is_error = payload.kind == kinds.REFUSED or verdict in ("failure", "backpressure") or bool(facts.get("failed"))
    if ended is not None and ended.payload.kind == kinds.HANDLED:
        is_error = ended.facts.get("result") in _FAILED
    kind = _KINDS.get(payload.kind, _INTERNAL)
    told = {"meshd.event": event.id, "meshd.workflow": payload.workflow, "meshd.call": payload.call}
    told |= {"meshd.agent": payload.agent, "meshd.target": payload.target}
    told |= {f"meshd.{name}": value for name, value in facts.items()}
    if ended is not None:
        told |= {f"meshd.{name}": value for name, value in ended.facts.items()}
    found: dict[str, Any] = {
        "traceId": place.trace,
        "spanId": place.span,
        "name": f"{event.kind} {payload.target}".rstrip(),
        "kind": kind,
        "startTimeUnixNano": str(payload.hlc_us * 1000),
        "endTimeUnixNano": str(max(until_us, payload.hlc_us) * 1000),
        "attributes": [_attribute(key, plain(value)) for key, value in told.items() if value not in ("", None, b"")],
        "status": {"code": _ERROR} if is_error else {},
    }
    if place.parent:
        found["parentSpanId"] = place.parent
    if place.link is not None:
        found["links"] = [{"traceId": place.link[0], "spanId": place.link[1]}]
    return found


def _attribute(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"key": key, "value": {"boolValue": value}}
    if isinstance(value, int):
        return {"key": key, "value": {"intValue": str(value)}}
    if isinstance(value, float):
        return {"key": key, "value": {"doubleValue": value}}
    return {"key": key, "value": {"stringValue": str(value)}}
