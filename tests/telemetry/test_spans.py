"""Spans: whose child, whether kept, what they say, and how they arrive at a real collector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.call import Direction, Kind, Rpc, Usage
from meshd.outcome import Fault, Verdict
from meshd.refusal import Reason, Refused
from meshd.span import Span, parse_traceparent
from meshd.telemetry import names
from meshd.telemetry.span_attributes import attributes
from meshd.telemetry.spans import FinishedSpan, Tracer
from meshd.telemetry.telemetry import Telemetry
from tests.telemetry.calls import PARENT, call, outcome, run_through, upstream

if TYPE_CHECKING:
    from meshd.call import Call
    from meshd.outcome import Outcome

UNSAMPLED = PARENT[:-2] + "00"


class Kept:
    """A sink that keeps spans."""

    def __init__(self) -> None:
        self.spans: list[FinishedSpan] = []

    def put(self, span: FinishedSpan) -> None:
        self.spans.append(span)

    def close(self, timeout_s: float) -> None:
        pass


def telemetry_with(sink: Any, chance: float = 0.5, ratio: float = 0.1) -> Telemetry:
    telemetry = Telemetry()
    telemetry.tracer = Tracer(sink, ratio, lambda: chance)
    return telemetry


def test_a_parent_decides_over_the_dice() -> None:
    for chance, header, expected in [
        (0.0, PARENT, True),
        (0.99, PARENT, True),
        (0.0, UNSAMPLED, False),
        (0.09, None, True),
        (0.11, None, False),
    ]:
        sink = Kept()
        made = call(upstream(), headers=[(b"traceparent", header.encode())] if header else [])
        run_through(telemetry_with(sink, chance), made, outcome())
        assert bool(sink.spans) is expected, (chance, header)


def test_a_span_is_the_child_of_what_the_call_brought() -> None:
    sink = Kept()
    made = call(upstream(), headers=[(b"traceparent", PARENT.encode())])
    run_through(telemetry_with(sink), made, outcome())
    span = sink.spans[0]
    assert f"{span.trace_id:032x}" == PARENT[3:35]
    assert f"{span.parent_id:016x}" == PARENT[36:52]
    assert made.span.traceparent == f"00-{PARENT[3:35]}-{span.span_id:016x}-01"
    assert span.end_ns - span.start_ns == 250_000_000


@pytest.mark.parametrize(
    ("ended", "refused"),
    [
        (None, Refused(Reason.BUDGET_EXHAUSTED, "no")),
        (outcome(Verdict.FAILURE, status=502), None),
        (outcome(Verdict.FAILURE, status=0, fault=Fault.GAP_TIMEOUT), None),
        (outcome(Verdict.NEUTRAL, fault=Fault.CUT), None),
    ],
)
def test_refusals_and_failures_are_always_kept(ended: Outcome | None, refused: Refused | None) -> None:
    sink = Kept()
    made = call(upstream(), headers=[(b"traceparent", UNSAMPLED.encode())])
    run_through(telemetry_with(sink, 0.99), made, ended, refused, 502)
    assert [span.is_error for span in sink.spans] == [True]
    assert sink.spans[0].attributes[names.ERROR_TYPE]


def test_a_shadowed_call_is_kept_though_it_went_well() -> None:
    sink = Kept()
    telemetry, made = telemetry_with(sink, 0.99), call(upstream())
    telemetry.started(made)
    telemetry.shadowed(made, Refused(Reason.LOOP, "no", rule="r", is_shadow=True))
    telemetry.ended(made, 200, outcome(), None)
    assert sink.spans[0].attributes[names.MESHD_SHADOW] is True
    assert not sink.spans[0].is_error


def test_a_parent_found_later_is_taken_only_where_the_call_brought_none() -> None:
    telemetry = telemetry_with(Kept(), 0.99)
    made = call(upstream())
    telemetry.started(made)
    assert made.span.adopt(PARENT)
    assert made.span.is_sampled
    assert made.span.traceparent[3:35] == PARENT[3:35]
    assert not made.span.adopt(UNSAMPLED)
    assert made.span.is_sampled
    assert not Span(False).adopt("nonsense")


def test_without_a_collector_the_callers_parent_passes_as_it_came() -> None:
    telemetry = Telemetry()
    made, orphan = call(upstream(), headers=[(b"traceparent", PARENT.encode())]), call(upstream())
    telemetry.started(made)
    telemetry.started(orphan)
    assert made.span.traceparent == PARENT
    assert orphan.span.traceparent == ""
    assert orphan.span.adopt(UNSAMPLED)
    assert orphan.span.traceparent == UNSAMPLED


@pytest.mark.parametrize(
    "value",
    [
        "", "00", "nonsense", PARENT + "-00", "ff" + PARENT[2:], PARENT.upper(), PARENT.replace("-", "_"),
        "00-" + "0" * 32 + PARENT[35:], PARENT[:36] + "0" * 16 + PARENT[52:], PARENT[:-2] + "0x", " " + PARENT,
        PARENT[:-1], "00-" + "g" * 32 + PARENT[35:], "01" + PARENT[2:] + "x", PARENT * 1000, "\x00" * 55,
        "٠" * 2 + PARENT[2:],
    ],
)  # fmt: skip
def test_an_invalid_parent_begins_a_new_trace(value: str) -> None:
    assert parse_traceparent(value) is None
    made = call(upstream(), headers=[(b"traceparent", value.encode("utf-8"))])
    telemetry_with(Kept()).started(made)
    assert made.span.parent_id == 0
    assert len(made.span.traceparent) == 55


def test_a_later_version_is_read_by_its_first_fields() -> None:
    assert parse_traceparent("01" + PARENT[2:] + "-more") == parse_traceparent(PARENT)


@given(st.text(max_size=80) | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}.?", fullmatch=True))
def test_any_text_gives_a_parent_or_none(value: str) -> None:
    parsed = parse_traceparent(value)
    assert parsed is None or (0 < parsed[0] < 2**128 and 0 < parsed[1] < 2**64 and 0 <= parsed[2] < 256)


def test_an_llm_span_says_what_the_conventions_ask_for() -> None:
    sink = Kept()
    made = call(upstream(), is_stream=True)
    assert made.ask is not None
    made.ask.output_cap, made.ask.output_cap_granted = 500, 200
    usage = Usage(12, 34, cached_tokens=5, reasoning_tokens=6, is_estimated=True)
    run_through(telemetry_with(sink, 0.0), made, outcome(usage=usage, first_byte_s=0.1))
    span = sink.spans[0]
    assert (span.name, span.kind) == ("chat gpt-4o", 3)
    assert span.attributes == {
        "meshd.call": "call-1", "meshd.direction": "outbound", "meshd.evidence": "none", "meshd.attempts": 1,
        "http.request.method": "POST", "http.response.status_code": 200, "meshd.agent": "researcher",
        "meshd.kind": "llm", "meshd.target": "openai", "server.address": "api.openai.com", "server.port": 443,
        "url.path": "/v1/chat/completions", "meshd.workflow": "wf-1", "meshd.hops": 2,
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o",
        "gen_ai.request.max_tokens": 500, "meshd.output_cap_granted": 200, "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.1, "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 34, "gen_ai.usage.cache_read.input_tokens": 5,
        "gen_ai.usage.reasoning.output_tokens": 6, "meshd.usage.is_estimated": True,
        "gen_ai.response.id": "chatcmpl-1", "gen_ai.response.model": "gpt-4o-2026",
        "gen_ai.response.finish_reasons": ("stop",), "meshd.verdict": "success",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("made", "name", "kind", "expected"),
    [
        (call(upstream("writer", Kind.AGENT, "w")), "invoke_agent writer", 3, {"gen_ai.agent.name": "writer"}),
        (call(upstream("search", Kind.TOOL, "s")), "execute_tool search", 3, {"gen_ai.tool.name": "search"}),
        (call(upstream("example", Kind.HOST, "e")), "POST", 3, {"http.request.method": "POST"}),
        (
            call(upstream("app", Kind.AGENT, "a"), direction=Direction.INBOUND),
            "invoke_agent researcher",
            2,
            {"gen_ai.agent.name": "researcher", "gen_ai.operation.name": "invoke_agent"},
        ),
    ],
)
def test_other_targets_have_names_of_their_own(made: Call, name: str, kind: int, expected: dict[str, str]) -> None:
    sink = Kept()
    run_through(telemetry_with(sink, 0.0), made, outcome())
    span = sink.spans[0]
    assert (span.name, span.kind) == (name, kind)
    assert expected.items() <= span.attributes.items()


def test_nonsense_in_a_call_stays_out_of_span_names_and_grows_nothing() -> None:
    sink = Kept()
    made = call(upstream("example", Kind.HOST, "e"), path="/" + "x" * 10_000 + "?key=hush")
    made.method = "DROP TABLE"
    run_through(telemetry_with(sink, 0.0), made, outcome())
    span = sink.spans[0]
    assert (span.name, span.attributes["http.request.method"]) == ("HTTP", "_OTHER")
    assert max(len(value) for value in span.attributes.values() if isinstance(value, str)) <= 256
    assert "hush" not in str(span.attributes)


def test_every_attribute_stands_in_the_table() -> None:
    sink = Kept()
    telemetry = telemetry_with(sink, 0.0)
    for kind in Kind:
        run_through(telemetry, call(upstream("x", kind, "h")), outcome(usage=Usage(1, 1)))
        run_through(telemetry, call(upstream("x", kind, "h")), None, Refused(Reason.LOOP, "no", rule="r"))
    assert {key for span in sink.spans for key in span.attributes} <= names.ATTRIBUTES


def test_a_span_says_what_it_cost_and_that_the_model_is_another() -> None:
    sink = Kept()
    made = call(upstream(), headers=[(b"traceparent", PARENT.encode())])
    assert made.ask is not None
    made.ask.model_granted, made.ask.degraded_by = "gpt-4o-mini", "daily"
    ended = outcome(usage=Usage(10, 5))
    ended.microdollars = 42
    run_through(telemetry_with(sink), made, ended)
    found = sink.spans[0].attributes
    assert found[names.REQUEST_MODEL] == "gpt-4o-mini"
    assert (found[names.MESHD_MODEL_ASKED], found[names.MESHD_DEGRADED_BY]) == ("gpt-4o", "daily")
    assert found[names.MESHD_COST] == 42
    plain = Kept()
    run_through(telemetry_with(plain), call(upstream(), headers=[(b"traceparent", PARENT.encode())]), outcome())
    assert names.MESHD_COST not in plain.spans[0].attributes


def test_the_method_and_the_tool_of_a_message() -> None:
    made = call(upstream("tools", Kind.TOOL))
    made.rpc = Rpc("mcp", "tools/call", b"1", tool="search")
    found = attributes(made, 200, None, None, None, names.OK)
    assert (found["rpc.system"], found["rpc.method"]) == ("jsonrpc", "tools/call")
    assert found["gen_ai.tool.name"] == "search"
    made.rpc = Rpc("mcp", "tools/list", b"1")
    found = attributes(made, 200, None, None, None, names.OK)
    assert found["rpc.method"] == "tools/list"
    assert found["gen_ai.tool.name"] == made.target.name
