"""TraceService: what agents record becomes spans and counts, is checked, kept within bounds, and holds no secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from meshd.api import traces
from meshd.telemetry import names
from meshd.telemetry.spans import FinishedSpan, Tracer
from meshd.trace import kinds
from meshd.trace.reading import Reader
from meshd.trace.segment import NEW
from meshd.trace.texts import SUFFIX
from meshd_sdk.v1 import trace_pb2
from tests.api.house import House, house, refusal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BEGAN = Timestamp(seconds=1_800_000_000, nanos=5)
ENDED = Timestamp(seconds=1_800_000_002)
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
AS_JSON = {"began": "2027-01-15T08:00:00Z", "note": {"text": "seen"}}
OWN = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"


def note(id: str = "n", **more: Any) -> trace_pb2.TraceEntry:
    return trace_pb2.TraceEntry(**({"id": id, "began": BEGAN, "note": trace_pb2.Note(text="seen")} | more))


def step(id: str, name: str = "plan", **more: Any) -> trace_pb2.TraceEntry:
    given = {"id": id, "began": BEGAN, "ended": ENDED, "step": trace_pb2.ReasoningStep(name=name, summary="two tasks")}
    return trace_pb2.TraceEntry(**(given | more))


async def record(one: House, token: str, *entries: trace_pb2.TraceEntry) -> int:
    found = await one.traces.Record(trace_pb2.RecordRequest(token=token, entries=entries))
    return int(found.recorded)


async def listed(one: House, token: str, entries_max: int = 0) -> list[trace_pb2.TraceEntry]:
    return list((await one.traces.List(trace_pb2.ListRequest(token=token, entries_max=entries_max))).entries)


class Sink:
    """Takes spans, as the exporter's queue does."""

    def __init__(self) -> None:
        self.spans: list[FinishedSpan] = []

    def put(self, span: FinishedSpan) -> None:
        self.spans.append(span)

    def close(self, timeout_s: float) -> None:
        """Nothing is queued."""


def sink_of(one: House) -> Sink:
    sink = Sink()
    one.mesh.telemetry.tracer = Tracer(sink, 0.1)
    return sink


def full_of_words(one: House) -> Callable[[], None]:
    """Have no more room for words; return what makes room."""
    texts, path = one.trace.texts, one.trace.log.path.with_suffix(SUFFIX)
    assert texts is not None
    kept = path.rename(path.with_suffix(".kept"))
    path.symlink_to("/dev/full")
    texts.close()

    def repair() -> None:
        kept.replace(path)
        texts.close()

    return repair


def full_of_events(one: House) -> Callable[[], None]:
    """Have no more room for events; return what makes room."""
    new = one.trace.log.directory / NEW
    new.mkdir()
    long = "k" * 2**15
    while one.trace.note(kinds.STATE, "other", (long, 1, "put", "")):
        pass
    # What fits into the last bytes is written still.
    while one.trace.note(kinds.STATE, "other", ("k", 1, "put", "")):
        pass
    one.trace.missed = one.trace._missed = 0
    return new.rmdir


async def test_each_sort_of_entry_becomes_a_span_under_the_workflows_trace(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        sink, token = sink_of(one), (await one.open(traceparent=PARENT)).token
        digest = "ab" * 32
        entries = (
            step("s"),
            trace_pb2.TraceEntry(
                id="t",
                parent_id="s",
                began=BEGAN,
                ended=ENDED,
                error="ValueError",
                attributes={"rows": "3"},
                tool_call=trace_pb2.ToolCall(tool="sql", call_id="call_1", arguments_digest=digest),
            ),
            trace_pb2.TraceEntry(
                id="d",
                parent_id="s",
                began=BEGAN,
                decision=trace_pb2.Decision(question="which?", choice="a", options=["a", "b"], rationale="cheaper"),
            ),
            note(),
        )
        assert await record(one, token, *entries) == 4
    step_span, tool, decision, noted = sink.spans
    assert [span.name for span in sink.spans] == ["meshd.step plan", "execute_tool sql", "meshd.decision", "meshd.note"]
    assert {f"{span.trace_id:032x}" for span in sink.spans} == {PARENT[3:35]}
    assert f"{step_span.parent_id:016x}" == f"{noted.parent_id:016x}" == PARENT[36:52]
    assert tool.parent_id == decision.parent_id == step_span.span_id
    assert (step_span.start_ns, step_span.end_ns) == (1_800_000_000_000_000_005, 1_800_000_002_000_000_000)
    assert noted.start_ns == noted.end_ns
    assert (tool.is_error, step_span.is_error) == (True, False)
    assert tool.attributes[names.TOOL_NAME] == "sql"
    assert tool.attributes[names.OPERATION_NAME] == "execute_tool"
    assert tool.attributes[names.MESHD_TOOL_ARGUMENTS] == digest
    assert tool.attributes[names.MESHD_ERROR] == "ValueError"
    assert tool.attributes["meshd.entry.attribute.rows"] == "3"
    assert step_span.attributes[names.MESHD_WORKFLOW] == "w"
    assert decision.attributes[names.MESHD_DECISION_OPTIONS] == ("a", "b")
    for span in sink.spans:
        ours = {key for key in span.attributes if not key.startswith(names.MESHD_ATTRIBUTE)}
        assert ours <= names.ATTRIBUTES


async def test_a_span_of_the_agents_own_keeps_its_ids(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        sink, token = sink_of(one), (await one.open(traceparent=PARENT)).token
        await record(one, token, step("s", traceparent=OWN), step("inner", parent_id="s"))
    outer, inner = sink.spans
    assert f"{outer.span_id:016x}" == OWN[36:52]
    assert f"{outer.parent_id:016x}" == PARENT[36:52]
    assert inner.parent_id == outer.span_id


async def test_without_a_parent_a_workflow_is_one_trace_and_sampled_as_one(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        sink = sink_of(one)
        kept: set[str] = set()
        for number in range(400):
            token = (await one.ask("ContextService/Open", {"workflow": f"w{number}"}))[1]["context"]["token"]
            before = len(sink.spans)
            body = {"token": token, "entries": [
                {"id": id, "began": "2027-01-15T08:00:00Z", "step": {"name": "s"}} for id in ("a", "b")
            ]}  # fmt: skip
            await one.ask("TraceService/Record", body)
            made = sink.spans[before:]
            assert len(made) in (0, 2)
            assert len({span.trace_id for span in made}) <= 1
            if made:
                kept.add(f"w{number}")
            if number == 60:
                break
        # A tenth is kept, drawn by the workflow's name: the same ones on every sidecar.
        assert 0 < len(kept) < 20
        before = len(sink.spans)
        await record(one, (await one.open("w0")).token, step("failed", error="it broke"))
        assert len(sink.spans) == before + 1


async def test_an_entry_is_counted_once(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token
        assert await record(one, token, note("a"), note("b"), note("a")) == 2
        assert await record(one, token, note("a"), note("c")) == 1
        assert await record(one, (await one.open("other")).token, note("a")) == 1
        assert [entry.id for entry in await listed(one, token)] == ["a", "b", "c"]
        assert one.mesh.telemetry.tally.entries == {"note": 4, "step": 0, "tool_call": 0, "decision": 0}
        one.mesh.telemetry.read_sources()
        assert 'meshd_trace_entries_total{entry="note"} 4.0' in one.mesh.telemetry.render()[0].decode()


async def test_what_is_listed_is_what_was_recorded(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token
        entries = [step("s", attributes={"a": "b"}), note("n", parent_id="s")]
        await record(one, token, *entries)
        assert await listed(one, token) == entries
        assert await listed(one, token, 1) == entries[1:]
        assert await listed(one, (await one.open("empty")).token) == []
        ended = await refusal(listed(one, token, 1001))
        assert ended.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_memory_is_bounded_by_workflow_and_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token
        for batch in range(5):
            await record(one, token, *[note(f"{batch}-{number}") for number in range(256)])
        found = await listed(one, token, 1000)
        assert len(found) == 1000
        assert found[-1].id == "4-255"
        long = trace_pb2.Note(text="x" * 4096)
        for batch in range(2):
            await record(one, token, *[note(f"l{batch}-{number}", note=long) for number in range(256)])
        found = await listed(one, token, 1000)
        assert sum(entry.ByteSize() for entry in found) <= 2**20
        assert len(found) == len(await listed(one, token, 1000)) < 1000
        service = traces.trace_service(one.mesh)
        monkeypatch.setattr(traces, "ALL_IDS_MAX", 2**9)
        for number in range(5):
            other = (await one.open(f"w{number}")).token
            await record(one, other, *[note(f"{at}", note=long) for at in range(256)])
        assert sum(map(len, service._known.values())) == service._count <= 2**9 == traces.ALL_IDS_MAX
        assert len(await listed(one, other)) == 100


async def test_what_was_recorded_outlives_the_process(tmp_path: Path) -> None:
    entries = [step("s", traceparent=OWN), note("n", parent_id="s")]
    async with house(tmp_path) as one:
        await record(one, (await one.open()).token, *entries)
    async with house(tmp_path) as one:
        sink, token = sink_of(one), (await one.open()).token
        assert await listed(one, token) == entries
        # It is known by its id, and whose parent it is.
        assert await record(one, token, *entries, step("late", parent_id="s", error="it broke")) == 1
        assert [entry.id for entry in await listed(one, token)] == ["s", "n", "late"]
    assert [f"{span.parent_id:016x}" for span in sink.spans] == [OWN[36:52]]


@pytest.mark.parametrize("what", ["words", "event"])
async def test_what_cannot_be_kept_is_refused_and_can_be_sent_again(tmp_path: Path, what: str) -> None:
    async with house(tmp_path) as one:
        sink, token = sink_of(one), (await one.open(traceparent=PARENT)).token
        await record(one, token, note("a"))
        repair = full_of_words(one) if what == "words" else full_of_events(one)
        ended = await refusal(record(one, token, note("a"), note("b"), note("c")))
        assert ended.code() is grpc.StatusCode.UNAVAILABLE
        assert "has not kept the entry b:" in str(ended.details())
        status, answer = await one.ask("TraceService/Record", {"token": token, "entries": [{**AS_JSON, "id": "b"}]})
        assert (status, answer["code"]) == (503, "unavailable")
        assert (len(sink.spans), one.mesh.telemetry.tally.entries["note"], one.trace.missed) == (1, 1, 2)
        repair()
        assert await record(one, token, note("a"), note("b"), note("c")) == 2
        assert [entry.id for entry in await listed(one, token)] == ["a", "b", "c"]
        assert len(sink.spans) == 3
        missed = [event for event in Reader(one.trace.log.directory).events(None) if event.kind == "missed"]
        assert missed[-1].facts["count"] == 2


async def test_an_entrys_span_names_its_event_and_the_event_its_span(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        sink, token = sink_of(one), (await one.open(traceparent=PARENT)).token
        await record(one, token, step("s"))
        (span,) = sink.spans
        reader = Reader(one.trace.log.directory)
        by_span = reader.find(f"{span.span_id:016x}")
        by_event = reader.find(span.attributes[names.MESHD_EVENT])
    assert by_span == by_event
    assert by_span is not None
    assert by_span.kind == "step"
    assert reader.find(PARENT[3:35]) is not None


async def test_secrets_are_in_no_sink(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        sink, token = sink_of(one), (await one.open(traceparent=PARENT)).token
        secret = "sk-proj-abcdefgh12345678"
        entry = step(
            "s",
            step=trace_pb2.ReasoningStep(name="plan", summary=f"with {secret}"),
            error=f"authorization: Bearer {secret}",
            attributes={"x-api-key": "hush", "url": f"https://u:{secret}@example.test", "plain": "kept"},
        )
        decision = trace_pb2.Decision(question=secret, options=[secret, "b"], rationale=secret)
        await record(one, token, entry, trace_pb2.TraceEntry(id="d", began=BEGAN, decision=decision))
        said = str(await listed(one, token)) + str([span.attributes for span in sink.spans])
    assert "sk-proj" not in said
    assert "hush" not in said
    assert "kept" in said


WRONG: list[tuple[trace_pb2.TraceEntry, str]] = [
    (note(""), "id"),
    (note("a b"), "id"),
    (note("x" * 65), "id"),
    (note(parent_id="ä"), "parent_id"),
    (trace_pb2.TraceEntry(id="a", note=trace_pb2.Note()), "began"),
    (trace_pb2.TraceEntry(id="a", began=BEGAN), "entry"),
    (note(began=Timestamp(seconds=-1)), "began"),
    (note(began=Timestamp(seconds=2**40)), "began"),
    (note(began=Timestamp(seconds=1, nanos=-1)), "began"),
    (note(ended=Timestamp(seconds=1)), "ended"),
    (note(traceparent="00-zz"), "traceparent"),
    (note(error="x" * 1025), "error"),
    (note(note=trace_pb2.Note(text="x" * 4097)), "note.text"),
    (note(attributes={str(number): "" for number in range(33)}), "attributes"),
    (note(attributes={"": "x"}), "attributes"),
    (note(attributes={"k" * 65: "x"}), "attributes"),
    (note(attributes={"k": "x" * 1025}), "attributes[k]"),
    (step("s", name=""), "step.name"),
    (step("s", name="x" * 129), "step.name"),
    (step("s", name="a\nb"), "step.name"),
    (step("s", step=trace_pb2.ReasoningStep(name="a", summary="x" * 4097)), "step.summary"),
    (trace_pb2.TraceEntry(id="a", began=BEGAN, tool_call=trace_pb2.ToolCall()), "tool_call.tool"),
    (
        trace_pb2.TraceEntry(id="a", began=BEGAN, tool_call=trace_pb2.ToolCall(tool="t", arguments_digest="AB" * 32)),
        "tool_call.arguments_digest",
    ),
    (
        trace_pb2.TraceEntry(id="a", began=BEGAN, decision=trace_pb2.Decision(rationale="x" * 4097)),
        "decision.rationale",
    ),
    (trace_pb2.TraceEntry(id="a", began=BEGAN, decision=trace_pb2.Decision(options=["x"] * 33)), "decision.options"),
]


@pytest.mark.parametrize(("entry", "field"), WRONG, ids=[f"{at}-{field}" for at, (_, field) in enumerate(WRONG)])
async def test_what_is_no_entry_names_its_field_and_takes_none(
    tmp_path: Path, entry: trace_pb2.TraceEntry, field: str
) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token
        ended = await refusal(record(one, token, note("good"), entry))
        assert ended.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert str(ended.details()).startswith(f"entries[1].{field} must be ")
        assert await listed(one, token) == []


async def test_too_many_entries(tmp_path: Path) -> None:
    async with house(tmp_path) as one:
        token = (await one.open()).token
        ended = await refusal(record(one, token, *[note(str(number)) for number in range(257)]))
        assert ended.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await record(one, token) == 0
