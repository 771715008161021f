"""A workflow for others: spans of OTLP, CloudEvents, W3C PROV. Written as it is read, never held whole.

`otlp` is the JSON form of an export request, one a line; `cloudevents` one event a line (CloudEvents 1.0, JSON format,
with the extensions for distributed tracing, sequence, partitioning and dataref); `prov` one document of PROV-JSON.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from meshd.trace import kinds
from meshd.trace.event_json import as_json, line_of, plain, when
from meshd.trace.exporting_otlp import otlp
from meshd.trace.record import CALLERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from meshd.trace.record import Event

FORMATS: Final = ("otlp", "cloudevents", "prov")
SEQUENCE_DIGITS: Final = 20


def export(form: str, events: Callable[[], Iterable[Event]]) -> Iterator[str]:
    """Yield the lines of an export. `events` returns a workflow's events, oldest first, each time anew."""
    if form == "otlp":
        return otlp(events())
    return _cloudevents(events()) if form == "cloudevents" else _prov(events)


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
            digits, flags = payload.span.hex(), payload.span[24] & ~CALLERS
            found["traceparent"] = f"00-{digits[:32]}-{digits[32:48]}-{flags:02x}"
        if payload.digest:
            found["dataref"] = f"urn:sha256:{payload.digest.hex()}"
        shown = as_json(event)
        found["data"] = {key: shown[key] for key in ("call", "agent", "target", "causes", "clock", "hash", "facts")}
        yield line_of(found)


def _prov(events: Callable[[], Iterable[Event]]) -> Iterator[str]:
    """Yield the document in pieces. Each of its parts is a pass over the events, so that none is held."""
    yield '{"prefix":{"meshd":"urn:meshd:","xsd":"http://www.w3.org/2001/XMLSchema#"}'
    agents: dict[str, dict[str, Any]] = {}
    for event in events():
        agents.setdefault(f"meshd:sidecar:{event.sidecar}", _type("prov:SoftwareAgent"))
        if event.payload.agent:
            agents.setdefault(_name("agent", event.payload.agent), _type("prov:SoftwareAgent"))
    yield ',"agent":' + line_of(agents)
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
        yield f"{comma}{json.dumps(key)}:{line_of(value)}"
        comma = ","
    yield "}"


def _name(*parts: Any) -> str:
    """Return a qualified name of ours: what no name may have in it is written in percent."""
    return "meshd:" + ":".join(quote(str(part), safe="/@") for part in parts)


def _type(name: str) -> dict[str, Any]:
    return {"prov:type": {"$": name, "type": "prov:QUALIFIED_NAME"}}


def _activity(event: Event) -> tuple[str, Any]:
    moment = when(event.payload.hlc_us)
    told = {f"meshd:{name}": str(plain(value)) for name, value in event.facts.items() if value not in ("", None, b"")}
    target = {"meshd:target": event.payload.target} if event.payload.target else {}
    times = {"prov:startTime": moment, "prov:endTime": moment}
    return f"meshd:event:{event.id}", {**times, **_type(f"meshd:{event.kind}"), **target, **told}


def _entities(events: Iterable[Event]) -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    for event in events:
        digest = event.payload.digest
        named = {f"meshd:sha256:{digest.hex()}": "payload"} if digest else {}
        for name, kind in named.items() | _things(event).items():
            if name not in seen:
                seen.add(name)
                yield name, _type(f"meshd:{kind}")


def _things(event: Event) -> dict[str, str]:
    """Return what an event makes or takes, by name: a message of the bus, or a version of shared state."""
    facts, kind = event.facts, event.payload.kind
    if kind in (kinds.PUBLISHED, kinds.HANDED):
        return {_name("message", facts.get("topic"), facts.get("event_id")): "message"}
    if kind in (kinds.STATE, kinds.READ) and facts.get("version"):
        return {_name("state", f"{facts.get('key')}@{facts.get('version')}"): "version"}
    return {}


def _informed(events: Iterable[Event]) -> Iterator[tuple[str, Any]]:
    for event in events:
        for number, cause in enumerate(event.causes):
            told = {"prov:informed": f"meshd:event:{event.id}", "prov:informant": f"meshd:event:{cause}"}
            yield f"_:i-{event.id}-{number}", told


def _associated(events: Iterable[Event]) -> Iterator[tuple[str, Any]]:
    for event in events:
        agent = _name("agent", event.payload.agent) if event.payload.agent else _name("sidecar", event.sidecar)
        yield f"_:a-{event.id}", {"prov:activity": f"meshd:event:{event.id}", "prov:agent": agent}


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
