"""TraceService: what agents say of their own reasoning, taken into the workflow's trace and kept for a while."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from meshd.api.fields import checked_id, malformed, unix_ns
from meshd.telemetry import names, redact
from meshd.telemetry.entries import Place, Told, span_id_of, tell, trace_of
from meshd.telemetry.spans import SAMPLED, parse_traceparent
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

KEPT_ENTRIES_MAX: Final = 1000
"""Of one workflow."""
KEPT_BYTES_MAX: Final = 2**20
"""Of one workflow, as encoded: a List of all of them is one message."""
KEPT_IDS_MAX: Final = 4096
"""Ids of one workflow by which an entry that is sent again is known."""
ID_BYTES: Final = 128
"""What an id counts as, in all."""
ALL_BYTES_MAX: Final = 16 * 2**20
"""Of all workflows; the one that was quiet for longest leaves first."""
WORKFLOWS_MAX: Final = 4096
LIST_DEFAULT: Final = 100
LIST_MAX: Final = 1000


def trace_service(mesh: Mesh) -> TraceService:
    """Return the one that keeps the traces of a sidecar, made when it is first asked for."""
    if mesh.traces is None:
        mesh.traces = TraceService(mesh)
    found: TraceService = mesh.traces
    return found


class _Kept:
    """The entries of one workflow."""

    __slots__ = ("entries", "ids", "size")

    def __init__(self) -> None:
        self.entries: OrderedDict[str, trace_pb2.TraceEntry] = OrderedDict()
        self.ids: OrderedDict[str, None] = OrderedDict()
        self.size = 0


class TraceService:
    """Answers for meshd.v1.TraceService; a session records by `take`."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._size = 0

    async def record(self, request: trace_pb2.RecordRequest) -> trace_pb2.RecordResponse:
        """Take entries in. Raises Refused: CONTEXT_INVALID, MALFORMED (then none of them is taken)."""
        return self.take(self._mesh.read(request.token), request.entries)

    def take(self, context: Context, entries: Sequence[trace_pb2.TraceEntry]) -> trace_pb2.RecordResponse:
        """Take entries in; those whose id was taken before are counted once. Raises Refused(MALFORMED)."""
        if len(entries) > ENTRIES_MAX:
            raise malformed("entries", f"at most {ENTRIES_MAX}")
        told = [_told(f"entries[{at}]", entry) for at, entry in enumerate(entries)]
        workflow = _workflow(context)
        kept = self._kept.get(workflow)
        if kept is None:
            kept = self._kept[workflow] = _Kept()
        self._kept.move_to_end(workflow)
        root = trace_of(workflow, context.parent, self._mesh.telemetry.tracer.ratio)
        counts, recorded = self._mesh.telemetry.tally.entries, 0
        for entry, one in zip(entries, told, strict=True):
            if entry.id in kept.ids:
                continue
            recorded += 1
            clean = _without_secrets(entry)
            counts[one.entry] = counts.get(one.entry, 0) + 1
            place = _place(entry, workflow, root, kept)
            attributes = {names.MESHD_WORKFLOW: context.workflow, names.MESHD_AGENT: context.agent}
            tell(self._mesh.telemetry.tracer, one._replace(attributes=attributes | one.attributes), place)
            self._keep(kept, clean)
        self._make_room()
        return trace_pb2.RecordResponse(recorded=recorded)

    async def list(self, request: trace_pb2.ListRequest) -> trace_pb2.ListResponse:
        """List what was taken, oldest first. Raises Refused: CONTEXT_INVALID, MALFORMED."""
        if request.entries_max > LIST_MAX:
            raise malformed("entries_max", f"at most {LIST_MAX}")
        kept = self._kept.get(_workflow(self._mesh.read(request.token)))
        found = [] if kept is None else [*kept.entries.values()]
        return trace_pb2.ListResponse(entries=found[-(request.entries_max or LIST_DEFAULT) :])

    def _keep(self, kept: _Kept, entry: trace_pb2.TraceEntry) -> None:
        size = entry.ByteSize()
        kept.entries[entry.id], kept.ids[entry.id] = entry, None
        kept.size += size
        self._size += size + ID_BYTES
        while len(kept.entries) > KEPT_ENTRIES_MAX or kept.size > KEPT_BYTES_MAX:
            _, oldest = kept.entries.popitem(last=False)
            kept.size -= oldest.ByteSize()
            self._size -= oldest.ByteSize()
        while len(kept.ids) > KEPT_IDS_MAX:
            kept.ids.popitem(last=False)
            self._size -= ID_BYTES

    def _make_room(self) -> None:
        while len(self._kept) > 1 and (self._size > ALL_BYTES_MAX or len(self._kept) > WORKFLOWS_MAX):
            _, quiet = self._kept.popitem(last=False)
            self._size -= quiet.size + ID_BYTES * len(quiet.ids)


def _workflow(context: Context) -> str:
    """Return by what the entries of a context are kept together; without a workflow, its shared account."""
    return context.workflow or context.account


def _place(entry: trace_pb2.TraceEntry, workflow: str, root: Place, kept: _Kept) -> Place:
    parent_id = root.span_id
    if entry.parent_id:
        above = kept.entries.get(entry.parent_id)
        own = parse_traceparent(above.traceparent) if above is not None and above.traceparent else None
        parent_id = own[1] if own is not None else span_id_of(workflow, entry.parent_id)
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
