"""Spans: whose child, whether kept, what they say, and how they arrive at a real collector."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from meshd.call import Direction, Fault, Kind, Usage, Verdict
from meshd.refusal import Reason, Refused
from meshd.telemetry import names
from meshd.telemetry.endpoint import traces_url
from meshd.telemetry.otlp import Collector, EndpointError, OtlpSink
from meshd.telemetry.spans import FinishedSpan, Span, Tracer, parse_traceparent
from meshd.telemetry.tally import Tally
from meshd.telemetry.telemetry import Telemetry
from tests.telemetry.calls import Facts, call, outcome, upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage

    from meshd.call import Call, Outcome

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
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


def run(
    telemetry: Telemetry, made: Call, ended: Outcome | None = None, refused: Refused | None = None, status: int = 200
) -> None:
    telemetry.started(made)
    if ended is not None:
        telemetry.attempted(made, ended)
    telemetry.ended(made, status, ended, refused, meter=Facts())


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
        run(telemetry_with(sink, chance), made, outcome())
        assert bool(sink.spans) is expected, (chance, header)


def test_a_span_is_the_child_of_what_the_call_brought() -> None:
    sink = Kept()
    made = call(upstream(), headers=[(b"traceparent", PARENT.encode())])
    run(telemetry_with(sink), made, outcome())
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
    run(telemetry_with(sink, 0.99), made, ended, refused, 502)
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
    run(telemetry_with(sink, 0.0), made, outcome(usage=usage, first_byte_s=0.1))
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
    run(telemetry_with(sink, 0.0), made, outcome())
    span = sink.spans[0]
    assert (span.name, span.kind) == (name, kind)
    assert expected.items() <= span.attributes.items()


def test_nonsense_in_a_call_stays_out_of_span_names_and_grows_nothing() -> None:
    sink = Kept()
    made = call(upstream("example", Kind.HOST, "e"), path="/" + "x" * 10_000 + "?key=hush")
    made.method = "DROP TABLE"
    run(telemetry_with(sink, 0.0), made, outcome())
    span = sink.spans[0]
    assert (span.name, span.attributes["http.request.method"]) == ("HTTP", "_OTHER")
    assert max(len(value) for value in span.attributes.values() if isinstance(value, str)) <= 256
    assert "hush" not in str(span.attributes)


def test_every_attribute_stands_in_the_table() -> None:
    sink = Kept()
    telemetry = telemetry_with(sink, 0.0)
    for kind in Kind:
        run(telemetry, call(upstream("x", kind, "h")), outcome(usage=Usage(1, 1)))
        run(telemetry, call(upstream("x", kind, "h")), None, Refused(Reason.LOOP, "no", rule="r"))
    assert {key for span in sink.spans for key in span.attributes} <= names.ATTRIBUTES


class Receiver:
    """A collector on a real socket."""

    def __init__(self) -> None:
        self.port = 0
        self.statuses: list[int] = []
        self.requests: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        self.held: asyncio.Event | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/traces"

    @property
    def spans(self) -> list[SpanMessage]:
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    async def receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.headers.append({key.lower(): value for key, value in request.headers.items()})
        if self.held is not None:
            await self.held.wait()
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            self.requests.append(ExportTraceServiceRequest.FromString(body))
        return web.Response(status=status)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_post("/v1/traces", made.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.port = runner.addresses[0][1]
    yield made
    await runner.cleanup()


def plain(span: SpanMessage) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in span.attributes:
        which = pair.value.WhichOneof("value")
        value = getattr(pair.value, which or "string_value")
        found[pair.key] = [item.string_value for item in value.values] if which == "array_value" else value
    return found


async def test_a_collector_receives_what_was_meant(receiver: Receiver) -> None:
    telemetry = Telemetry(version="1.2.3", agent="researcher", otlp_endpoint=receiver.url, ratio=1.0)
    made = call(upstream(), headers=[(b"traceparent", PARENT.encode())])
    run(telemetry, made, outcome(usage=Usage(12, 34)))
    run(telemetry, call(upstream()), None, Refused(Reason.BUDGET_EXHAUSTED, "used up", rule="workflow-budget"), 402)
    await asyncio.to_thread(telemetry.close, 10.0)
    kept, refused = receiver.spans
    assert kept.name == "chat gpt-4o"
    assert kept.kind == 3
    assert kept.trace_id.hex() == PARENT[3:35]
    assert kept.parent_span_id.hex() == PARENT[36:52]
    assert kept.span_id.hex() == made.span.traceparent[36:52]
    assert kept.start_time_unix_nano == 1_790_000_000 * 10**9
    assert kept.end_time_unix_nano - kept.start_time_unix_nano == 250_000_000
    found = plain(kept)
    assert found["gen_ai.provider.name"] == "openai"
    assert found["gen_ai.usage.input_tokens"] == 12
    assert found["gen_ai.response.finish_reasons"] == ["stop"]
    assert found["meshd.workflow"] == "wf-1"
    assert set(found) <= names.ATTRIBUTES
    assert refused.status.code == 2
    assert plain(refused)["error.type"] == plain(refused)["meshd.reason"] == "budget_exhausted"
    assert not refused.parent_span_id
    resource = {
        pair.key: pair.value.string_value for pair in receiver.requests[0].resource_spans[0].resource.attributes
    }
    assert resource["service.name"] == "meshd"
    assert resource["service.version"] == "1.2.3"
    assert (telemetry.tally.spans_exported, telemetry.tally.spans_failed) == (2, 0)


async def test_a_busy_collector_is_tried_again_and_a_refusing_one_is_not(receiver: Receiver) -> None:
    collector = Collector(receiver.url)
    receiver.statuses = [503]
    assert await asyncio.to_thread(collector.send, b"") == ""
    assert len(receiver.headers) == 2
    receiver.statuses = [400]
    assert await asyncio.to_thread(collector.send, b"") == "status 400"
    assert len(receiver.headers) == 3
    collector.stop_retrying()
    receiver.statuses = [503, 503]
    assert await asyncio.to_thread(collector.send, b"") == "status 503"
    assert len(receiver.headers) == 4
    collector.close()


async def test_headers_and_compression_come_from_the_environment(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc,x-tenant=a")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    sink = OtlpSink(receiver.url, Tally(), version="1", agent="a")
    sink.put(FinishedSpan(Span(True), "x", 3, 1, 2, {}, False))
    await asyncio.to_thread(sink.close, 10.0)
    assert receiver.headers[0]["authorization"] == "Bearer abc"
    assert receiver.headers[0]["x-tenant"] == "a"
    assert receiver.headers[0]["content-encoding"] == "gzip"
    assert [span.name for span in receiver.spans] == ["x"]


async def test_a_full_queue_drops_and_counts(receiver: Receiver) -> None:
    receiver.held = asyncio.Event()
    tally = Tally()
    sink = OtlpSink(receiver.url, tally, version="1", agent="a", queue_max=10)
    for _ in range(25):
        sink.put(FinishedSpan(Span(True), "x", 3, 1, 2, {}, False))
    assert tally.spans_dropped == 15
    receiver.held.set()
    await asyncio.to_thread(sink.close, 10.0)
    assert len(receiver.spans) == tally.spans_exported == 10


async def test_an_absent_collector_costs_spans_and_nothing_else(
    unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = Telemetry(otlp_endpoint=f"http://127.0.0.1:{unused_tcp_port}/v1/traces", ratio=1.0)
    run(telemetry, call(upstream()), outcome())
    await asyncio.to_thread(telemetry.close, 10.0)
    assert telemetry.tally.spans_failed == 1
    assert "the collector took no spans: ConnectionRefusedError" in caplog.text


async def test_a_collector_that_never_answers_does_not_hold_up_the_end(receiver: Receiver) -> None:
    receiver.held = asyncio.Event()
    telemetry = Telemetry(otlp_endpoint=receiver.url, ratio=1.0)
    run(telemetry, call(upstream()), outcome())
    await asyncio.to_thread(telemetry.close, 0.01)
    assert telemetry.tally.spans_exported == 0
    receiver.held.set()
    ending = [thread for thread in threading.enumerate() if thread.name == "meshd-spans-end"]
    await asyncio.to_thread(lambda: [thread.join() for thread in ending])


async def test_a_strange_value_does_not_cost_the_batch(receiver: Receiver) -> None:
    telemetry = Telemetry(otlp_endpoint=receiver.url, ratio=1.0)
    made = call(upstream(), model="\ud800 model")
    made.agent = "\udfff"
    run(telemetry, made, outcome(usage=Usage(10**30, -(10**30))))
    run(telemetry, call(upstream()), outcome())
    await asyncio.to_thread(telemetry.close, 10.0)
    assert [span.name for span in receiver.spans] == ["chat ? model", "chat gpt-4o"]
    assert plain(receiver.spans[0])["gen_ai.usage.input_tokens"] == 2**63 - 1


@pytest.mark.parametrize(
    "url", ["localhost:4318", "ftp://a/b", "http://", "http://a:99999/", "http://[::1", "grpc://a:1"]
)
def test_an_endpoint_that_cannot_be_used_is_named_at_start(url: str) -> None:
    with pytest.raises(EndpointError, match="OTLP endpoint"):
        Telemetry(otlp_endpoint=url)


def test_settings_that_cannot_be_used_are_named_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem")
    with pytest.raises(EndpointError, match="OTLP certificates"):
        Collector("https://collector:4318/v1/traces")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "zip")
    with pytest.raises(EndpointError, match="OTLP compression"):
        Collector("http://collector:4318/v1/traces")
    with pytest.raises(ValueError, match="ratio"):
        Telemetry(ratio=1.5)


def test_the_endpoint_is_found_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MESHD_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert traces_url() == ""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:4318/")
    assert traces_url() == "http://a:4318/v1/traces"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:4318/custom")
    assert traces_url() == "http://b:4318/custom"
    monkeypatch.setenv("MESHD_OTLP_ENDPOINT", "http://c:4318")
    assert traces_url() == "http://c:4318/v1/traces"


def test_without_an_endpoint_no_sdk_is_imported() -> None:
    program = (
        "import sys\nimport meshd.telemetry.endpoint, meshd.telemetry.logs\n"
        "from meshd.telemetry.telemetry import Telemetry\nTelemetry(otlp_endpoint='').render()\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'opentelemetry', 'google', 'aiohttp'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
