"""A workflow for others: spans of OTLP, CloudEvents, W3C PROV. Written as it is read, never held whole.

`otlp` is the JSON form of an export request, one a line; `cloudevents` one event a line (CloudEvents 1.0, JSON format,
with the extensions for distributed tracing, sequence, partitioning and dataref); `prov` one document of PROV-JSON.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from meshd.clocks import ClockMalformed
from meshd.trace import kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from meshd.trace.record import Event

FORMATS: Final = ("otlp", "cloudevents", "prov")
BATCH_MAX: Final = 512
"""Spans of one request."""
OPEN_MAX: Final = 100_000
"""Calls whose end is waited for; the first is written as it stands then."""
SEQUENCE_DIGITS: Final = 20
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


def export(form: str, events: Callable[[], Iterable[Event]]) -> Iterator[str]:
    """Yield the lines of an export. `events` returns a workflow's events, oldest first, each time anew."""
    if form == "otlp":
        return _otlp(events())
    return _cloudevents(events()) if form == "cloudevents" else _prov(events)


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
        "facts": {name: _plain(value) for name, value in event.facts.items()},
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


def _plain(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _cloudevents(events: Iterable[Event]) -> Iterator[str]:
    for event in events:
        payload = event.payload
        found: dict[str, Any] = {
            "specversion": "1.0",
            "id": event.id,
            "source": f"urn:meshd:sidecar:{event.sidecar}",
            "type": f"io.meshd.trace.{event.kind}.v1",
            "time": when(payload.hlc_us),
            "sequence": f"{event.sequence:0{SEQUENCE_DIGITS}d}",
            "datacontenttype": "application/json",
        }
        if payload.workflow:
            found |= {"subject": payload.workflow, "correlationid": payload.workflow, "partitionkey": payload.workflow}
        if event.causes:
            found["causationid"] = event.causes[0]
        if len(payload.span) == 25:
            digits = payload.span.hex()
            found["traceparent"] = f"00-{digits[:32]}-{digits[32:48]}-{digits[48:]}"
        if payload.digest:
            found["dataref"] = f"urn:sha256:{payload.digest.hex()}"
        shown = as_json(event)
        found["data"] = {key: shown[key] for key in ("call", "agent", "target", "causes", "clock", "hash", "facts")}
        yield _line(found)


def _ids(event: Event) -> tuple[str, str]:
    """Return trace and span id: those of its span, or else such that follow from its workflow and its own id."""
    span = event.payload.span
    if len(span) == 25:
        return span[:16].hex(), span[16:24].hex()
    trace = sha256(b"meshd trace 1\0" + event.payload.workflow.encode("utf-8", "replace")).digest()[:16]
    return trace.hex(), _span_id(event.id)


def _span_id(event: str) -> str:
    return sha256(b"meshd event 1\0" + event.encode()).digest()[:8].hex()


def _otlp(events: Iterable[Event]) -> Iterator[str]:
    batch: dict[str, list[dict[str, Any]]] = {}
    waiting: dict[str, Event] = {}
    known: dict[str, str] = {}
    count = 0

    def put(event: Event, ended: Event | None) -> None:
        batch.setdefault(event.sidecar, []).append(_span(event, ended, known))

    for event in events:
        payload = event.payload
        if len(payload.span) == 25:
            # Its children must name the span that others have seen.
            known[event.id] = payload.span[16:24].hex()
            if len(known) > OPEN_MAX:
                del known[next(iter(known))]
        if payload.kind in kinds.ENDINGS:
            waiting[event.id] = event
            if len(waiting) > OPEN_MAX:
                put(waiting.pop(next(iter(waiting))), None)
        elif payload.kind in _ENDS and event.causes and event.causes[0] in waiting:
            put(waiting.pop(event.causes[0]), event)
        else:
            put(event, None)
        count = sum(map(len, batch.values()))
        if count >= BATCH_MAX:
            yield _request(batch)
            batch = {}
    for event in waiting.values():
        put(event, None)
    if batch:
        yield _request(batch)


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
    return _line({"resourceSpans": resources})


def _span(event: Event, ended: Event | None, known: dict[str, str]) -> dict[str, Any]:
    payload, facts = event.payload, event.facts
    trace_id, span_id = _ids(event)
    until_us = ended.payload.hlc_us if ended is not None else payload.hlc_us
    cause = next((cause for cause in event.causes if cause != event.id), "")
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
        "traceId": trace_id,
        "spanId": span_id,
        "name": f"{event.kind} {payload.target}".rstrip(),
        "kind": kind,
        "startTimeUnixNano": str(payload.hlc_us * 1000),
        "endTimeUnixNano": str(max(until_us, payload.hlc_us) * 1000),
        "attributes": [_attribute(key, _plain(value)) for key, value in told.items() if value not in ("", None, b"")],
        "status": {"code": _ERROR} if is_error else {},
    }
    if cause:
        found["parentSpanId"] = known.get(cause) or _span_id(cause)
    return found


def _attribute(key: str, value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"key": key, "value": {"boolValue": value}}
    if isinstance(value, int):
        return {"key": key, "value": {"intValue": str(value)}}
    if isinstance(value, float):
        return {"key": key, "value": {"doubleValue": value}}
    return {"key": key, "value": {"stringValue": str(value)}}


def _prov(events: Callable[[], Iterable[Event]]) -> Iterator[str]:
    """Yield the document in pieces. Each of its parts is a pass over the events, so that none is held."""
    yield '{"prefix":{"meshd":"urn:meshd:","xsd":"http://www.w3.org/2001/XMLSchema#"}'
    agents: dict[str, dict[str, Any]] = {}
    for event in events():
        agents.setdefault(f"meshd:sidecar:{event.sidecar}", {"prov:type": "prov:SoftwareAgent"})
        if event.payload.agent:
            agents.setdefault(f"meshd:agent:{event.payload.agent}", {"prov:type": "prov:SoftwareAgent"})
    yield ',"agent":' + _line(agents)
    yield from _part("activity", (_activity(event) for event in events()))
    yield from _part("entity", _entities(events()))
    yield from _part("wasInformedBy", _informed(events()))
    yield from _part("wasAssociatedWith", _associated(events()))
    yield from _part("used", _used(events()))
    yield from _part("wasGeneratedBy", _generated(events()))
    yield "}"


def _part(name: str, members: Iterable[tuple[str, Any]]) -> Iterator[str]:
    yield f',"{name}":{{'
    comma = ""
    for key, value in members:
        yield f"{comma}{json.dumps(key)}:{_line(value)}"
        comma = ","
    yield "}"


def _activity(event: Event) -> tuple[str, Any]:
    moment = when(event.payload.hlc_us)
    told = {f"meshd:{name}": str(_plain(value)) for name, value in event.facts.items() if value not in ("", None, b"")}
    target = {"meshd:target": event.payload.target} if event.payload.target else {}
    times = {"prov:startTime": moment, "prov:endTime": moment}
    return f"meshd:event:{event.id}", {**times, "prov:type": f"meshd:{event.kind}", **target, **told}


def _entities(events: Iterable[Event]) -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    for event in events:
        digest = event.payload.digest
        named = {f"meshd:sha256:{digest.hex()}": "payload"} if digest else {}
        for name, kind in named.items() | _things(event).items():
            if name not in seen:
                seen.add(name)
                yield name, {"prov:type": f"meshd:{kind}"}


def _things(event: Event) -> dict[str, str]:
    """Return what an event makes or takes, by name: a message of the bus, or a version of shared state."""
    facts, kind = event.facts, event.payload.kind
    if kind in (kinds.PUBLISHED, kinds.HANDED):
        return {f"meshd:message:{facts.get('topic')}:{facts.get('event_id')}": "message"}
    if kind in (kinds.STATE, kinds.READ) and facts.get("version"):
        return {f"meshd:state:{facts.get('key')}@{facts.get('version')}": "version"}
    return {}


def _informed(events: Iterable[Event]) -> Iterator[tuple[str, Any]]:
    for event in events:
        for number, cause in enumerate(event.causes):
            told = {"prov:informed": f"meshd:event:{event.id}", "prov:informant": f"meshd:event:{cause}"}
            yield f"_:i-{event.id}-{number}", told


def _associated(events: Iterable[Event]) -> Iterator[tuple[str, Any]]:
    for event in events:
        agent = f"agent:{event.payload.agent}" if event.payload.agent else f"sidecar:{event.sidecar}"
        yield f"_:a-{event.id}", {"prov:activity": f"meshd:event:{event.id}", "prov:agent": f"meshd:{agent}"}


def _used(events: Iterable[Event]) -> Iterator[tuple[str, Any]]:
    for event in events:
        digest = event.payload.digest
        taken = [f"meshd:sha256:{digest.hex()}"] if digest else []
        if event.payload.kind in (kinds.HANDED, kinds.READ):
            taken += _things(event)
        for number, entity in enumerate(taken):
            yield f"_:u-{event.id}-{number}", {"prov:activity": f"meshd:event:{event.id}", "prov:entity": entity}


def _generated(events: Iterable[Event]) -> Iterator[tuple[str, Any]]:
    for event in events:
        kind = event.payload.kind
        if kind == kinds.PUBLISHED or (kind == kinds.STATE and event.facts.get("result") == "done"):
            for entity in _things(event):
                yield f"_:g-{event.id}", {"prov:activity": f"meshd:event:{event.id}", "prov:entity": entity}
