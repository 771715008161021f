"""TraceService: what agents say of their own reasoning, taken into the workflow's trace and kept for a while."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from meshd.api.fields import checked_id, malformed, unix_ns
from meshd.engines.port import StoreError
from meshd.refusal import Reason, Refused
from meshd.span import SAMPLED, parse_traceparent
from meshd.telemetry import names, redact
from meshd.telemetry.entries import Place, Told, span_id_of, tell, trace_of
from meshd.trace.kinds import ENTRIES
from meshd.trace.reading import Reader
from meshd_sdk.v1 import trace_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.api.mesh import Mesh
    from meshd_sdk.context import Context

ENTRIES_MAX: Final = 256
"""Of one request."""
ATTRIBUTES_MAX: Final = 32
KEY_CHARACTERS_MAX: Final = 64
NAME_CHARACTERS_MAX: Final = 128
VALUE_CHARACTERS_MAX: Final = 1024
TEXT_CHARACTERS_MAX: Final = 4096
OPTIONS_MAX: Final = 32
DIGEST_DIGITS: Final = 64

LIST_BYTES_MAX: Final = 2**20
"""Of one List, as encoded: it is one message."""
KEPT_IDS_MAX: Final = 4096
"""Ids of one workflow by which an entry that is sent again is known."""
ALL_IDS_MAX: Final = 2**17
"""Of all workflows; those of the one that was quiet for longest are forgotten first."""
WORKFLOWS_MAX: Final = 4096
LIST_DEFAULT: Final = 100
LIST_MAX: Final = 1000


Known = OrderedDict[str, tuple[int, int]]


def trace_service(mesh: Mesh) -> TraceService:
    """Return the one that keeps the traces of a sidecar, made when it is first asked for."""
    if mesh.traces is None:
        mesh.traces = TraceService(mesh)
    found: TraceService = mesh.traces
    return found


class TraceService:
    """Answers for meshd.v1.TraceService; a session records by `take`."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._known: OrderedDict[str, Known] = OrderedDict()
        """By workflow: the ids of its entries, with the span id and the event of each."""
        self._count = 0

    async def record(self, request: trace_pb2.RecordRequest) -> trace_pb2.RecordResponse:
        """Take entries in. Raises Refused: CONTEXT_INVALID; MALFORMED (then none of them is taken); see `take`."""
        return self.take(self._mesh.read(request.token), request.entries)

    def take(self, context: Context, entries: Sequence[trace_pb2.TraceEntry]) -> trace_pb2.RecordResponse:
        """Take entries in; those whose id was taken before are counted once.

        Raises Refused: MALFORMED; STORE_UNAVAILABLE where one could not be kept: those before it were, those after it
        were not looked at.
        """
        if len(entries) > ENTRIES_MAX:
            raise malformed("entries", f"at most {ENTRIES_MAX}")
        told = [_told(f"entries[{at}]", entry) for at, entry in enumerate(entries)]
        workflow, telemetry = _workflow(context), self._mesh.telemetry
        known = self._of(workflow)
        root = trace_of(workflow, context.parent, telemetry.tracer.ratio)
        counts, recorded = telemetry.tally.entries, 0
        for entry, one in zip(entries, told, strict=True):
            if entry.id in known:
                continue
            place = _place(entry, workflow, root, known)
            try:
                event = self._write(workflow, context.agent, entry, one, place, known)
            except StoreError as error:
                self._make_room(known)
                raise _unkept(entry.id, recorded, error) from error
            recorded += 1
            counts[one.entry] = counts.get(one.entry, 0) + 1
            attributes = {names.MESHD_WORKFLOW: context.workflow, names.MESHD_AGENT: context.agent}
            if event and (trace := telemetry.provenance.trace) is not None:
                attributes[names.MESHD_EVENT] = f"{trace.prefix}{event}"
            tell(telemetry.tracer, one._replace(attributes=attributes | one.attributes), place)
            known[entry.id] = (place.span_id, event)
            self._count += 1
        self._make_room(known)
        return trace_pb2.RecordResponse(recorded=recorded)

    async def list(self, request: trace_pb2.ListRequest) -> trace_pb2.ListResponse:
        """List what was taken, oldest first. Raises Refused: CONTEXT_INVALID, MALFORMED."""
        if request.entries_max > LIST_MAX:
            raise malformed("entries_max", f"at most {LIST_MAX}")
        workflow = _workflow(self._mesh.read(request.token))
        trace = self._mesh.telemetry.provenance.trace
        if trace is None:
            return trace_pb2.ListResponse()
        # Off the loop: a workflow may be old, and long.
        reader = Reader(trace.log.directory)
        found = await asyncio.to_thread(reader.said, workflow, request.entries_max or LIST_DEFAULT, LIST_BYTES_MAX)
        return trace_pb2.ListResponse(entries=[trace_pb2.TraceEntry.FromString(data) for data in found])

    def _write(
        self, workflow: str, agent: str, entry: trace_pb2.TraceEntry, told: Told, place: Place, known: Known
    ) -> int:
        """Write an entry into the trace; return its event's sequence, 0 where there is none. Raises StoreError."""
        trace = self._mesh.telemetry.provenance.trace
        if trace is None:
            return 0
        facts = (entry.id, entry.parent_id, told.start_ns, told.end_ns, told.is_error)
        data = _without_secrets(entry).SerializeToString()
        above = known[entry.parent_id][1] if entry.parent_id in known else 0
        causes = (above,) if above else ()
        return trace.entry(ENTRIES[told.entry], workflow, agent, data, facts, causes=causes, span=place.as_bytes)

    def _of(self, workflow: str) -> Known:
        known = self._known.get(workflow)
        if known is None:
            trace = self._mesh.telemetry.provenance.trace
            before = trace.entries.pop(workflow, []) if trace is not None else []
            known = OrderedDict((id, (int.from_bytes(span[16:24], "big"), event)) for id, span, event in before)
            self._known[workflow] = known
            self._count += len(known)
        self._known.move_to_end(workflow)
        return known

    def _make_room(self, known: Known) -> None:
        while len(known) > KEPT_IDS_MAX:
            known.popitem(last=False)
            self._count -= 1
        while len(self._known) > 1 and (self._count > ALL_IDS_MAX or len(self._known) > WORKFLOWS_MAX):
            _, quiet = self._known.popitem(last=False)
            self._count -= len(quiet)


def _unkept(id: str, recorded: int, error: StoreError) -> Refused:
    return Refused(
        Reason.STORE_UNAVAILABLE,
        f"The trace cannot be written, and has not kept the entry {id}: {error}. {recorded} new ones before it were "
        "kept. Send all of them again later: what was kept is counted once.",
    )


def _workflow(context: Context) -> str:
    """Return by what the entries of a context are kept together; without a workflow, its shared account."""
    return context.workflow or context.account


def _place(entry: trace_pb2.TraceEntry, workflow: str, root: Place, known: Known) -> Place:
    parent_id = root.span_id
    if entry.parent_id:
        above = known.get(entry.parent_id)
        parent_id = above[0] if above is not None else span_id_of(workflow, entry.parent_id)
    if entry.traceparent and (own := parse_traceparent(entry.traceparent)) is not None:
        is_sampled = root.is_sampled or bool(own[2] & SAMPLED)
        return Place(own[0], own[1], parent_id if own[0] == root.trace_id else 0, is_sampled)
    return Place(root.trace_id, span_id_of(workflow, entry.id), parent_id, root.is_sampled)


def _told(at: str, entry: trace_pb2.TraceEntry) -> Told:
    """Check an entry, and say what it tells. Raises Refused(MALFORMED), naming the field."""
    checked_id(f"{at}.id", entry.id)
    if entry.parent_id:
        checked_id(f"{at}.parent_id", entry.parent_id)
    if not entry.HasField("began"):
        raise malformed(f"{at}.began", "set")
    start_ns = unix_ns(f"{at}.began", entry.began)
    end_ns = unix_ns(f"{at}.ended", entry.ended) if entry.HasField("ended") else start_ns
    if end_ns < start_ns:
        raise malformed(f"{at}.ended", "no earlier than began")
    if entry.traceparent and parse_traceparent(entry.traceparent) is None:
        raise malformed(f"{at}.traceparent", "a W3C traceparent")
    error = _text(f"{at}.error", entry.error, VALUE_CHARACTERS_MAX)
    kind, name, attributes = _entry(at, entry)
    attributes[names.MESHD_ENTRY] = entry.id
    if error:
        attributes[names.MESHD_ERROR] = error
    attributes |= _attributes(at, entry)
    return Told(kind, name, start_ns, end_ns, bool(error), {key: one for key, one in attributes.items() if one})


def _attributes(at: str, entry: trace_pb2.TraceEntry) -> dict[str, Any]:
    if len(entry.attributes) > ATTRIBUTES_MAX:
        raise malformed(f"{at}.attributes", f"at most {ATTRIBUTES_MAX} pairs")
    found: dict[str, Any] = {}
    for key, value in entry.attributes.items():
        if not 0 < len(key) <= KEY_CHARACTERS_MAX or not key.isprintable():
            raise malformed(f"{at}.attributes", f"named by 1 to {KEY_CHARACTERS_MAX} printable characters")
        shown = _text(f"{at}.attributes[{key}]", value, VALUE_CHARACTERS_MAX)
        found[names.MESHD_ATTRIBUTE + redact.text(key)] = redact.MARK if redact.is_secret_header(key) else shown
    return found


def _entry(at: str, entry: trace_pb2.TraceEntry) -> tuple[str, str, dict[str, Any]]:
    kind = entry.WhichOneof("entry")
    if kind == "step":
        name = _name(f"{at}.step.name", entry.step.name)
        summary = _text(f"{at}.step.summary", entry.step.summary, TEXT_CHARACTERS_MAX)
        return kind, f"{names.STEP} {name}", {names.MESHD_STEP: name, names.MESHD_STEP_SUMMARY: summary}
    if kind == "tool_call":
        call = entry.tool_call
        tool = _name(f"{at}.tool_call.tool", call.tool)
        return (
            kind,
            f"{names.EXECUTE_TOOL} {tool}",
            {
                names.OPERATION_NAME: names.EXECUTE_TOOL,
                names.TOOL_NAME: tool,
                names.TOOL_CALL_ID: _text(f"{at}.tool_call.call_id", call.call_id, NAME_CHARACTERS_MAX),
                names.MESHD_TOOL_ARGUMENTS: _digest(f"{at}.tool_call.arguments_digest", call.arguments_digest),
                names.MESHD_TOOL_RESULT: _digest(f"{at}.tool_call.result_digest", call.result_digest),
            },
        )
    if kind == "decision":
        return kind, names.DECISION, _decision(f"{at}.decision", entry.decision)
    if kind == "note":
        return kind, names.NOTE, {names.MESHD_NOTE: _text(f"{at}.note.text", entry.note.text, TEXT_CHARACTERS_MAX)}
    raise malformed(f"{at}.entry", "a step, a tool_call, a decision or a note")


def _decision(at: str, decision: trace_pb2.Decision) -> dict[str, Any]:
    if len(decision.options) > OPTIONS_MAX:
        raise malformed(f"{at}.options", f"at most {OPTIONS_MAX}")
    options = tuple(_text(f"{at}.options", one, VALUE_CHARACTERS_MAX) for one in decision.options)
    return {
        names.MESHD_DECISION_QUESTION: _text(f"{at}.question", decision.question, VALUE_CHARACTERS_MAX),
        names.MESHD_DECISION_CHOICE: _text(f"{at}.choice", decision.choice, VALUE_CHARACTERS_MAX),
        names.MESHD_DECISION_OPTIONS: options,
        names.MESHD_DECISION_RATIONALE: _text(f"{at}.rationale", decision.rationale, TEXT_CHARACTERS_MAX),
    }


def _name(at: str, value: str) -> str:
    if not 0 < len(value) <= NAME_CHARACTERS_MAX or not value.isprintable():
        raise malformed(at, f"1 to {NAME_CHARACTERS_MAX} printable characters")
    return redact.text(value)


def _text(at: str, value: str, characters_max: int) -> str:
    if len(value) > characters_max:
        raise malformed(at, f"at most {characters_max} characters")
    return redact.text(value)


def _digest(at: str, value: str) -> str:
    if value and (len(value) != DIGEST_DIGITS or not set(value) <= set("0123456789abcdef")):
        raise malformed(at, f"{DIGEST_DIGITS} digits of hex in lower case, or empty")
    return value


def _without_secrets(entry: trace_pb2.TraceEntry) -> trace_pb2.TraceEntry:
    """Return a copy as it is kept and listed."""
    clean = trace_pb2.TraceEntry()
    clean.CopyFrom(entry)
    clean.DiscardUnknownFields()
    clean.error = redact.text(entry.error)
    clean.attributes.clear()
    for key, value in entry.attributes.items():
        clean.attributes[redact.text(key)] = redact.MARK if redact.is_secret_header(key) else redact.text(value)
    inner = getattr(clean, clean.WhichOneof("entry") or "note")
    for field, value in inner.ListFields():
        if isinstance(value, str):
            setattr(inner, field.name, redact.text(value))
        else:
            getattr(inner, field.name)[:] = [redact.text(one) for one in value]
    return clean
