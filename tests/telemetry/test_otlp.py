"""How spans arrive at a real collector, and what happens where there is none."""

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

from meshd.call import Usage
from meshd.refusal import Reason, Refused
from meshd.span import Span
from meshd.telemetry import names
from meshd.telemetry.endpoint import traces_url
from meshd.telemetry.otlp import Collector, EndpointError, OtlpSink, encode
from meshd.telemetry.spans import FinishedSpan
from meshd.telemetry.tally import Tally
from meshd.telemetry.telemetry import Telemetry
from tests.telemetry.calls import PARENT, call, outcome, run_through, upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage


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
    run_through(telemetry, made, outcome(usage=Usage(12, 34)))
    run_through(
        telemetry, call(upstream()), None, Refused(Reason.BUDGET_EXHAUSTED, "used up", rule="workflow-budget"), 402
    )
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
    run_through(telemetry, call(upstream()), outcome())
    await asyncio.to_thread(telemetry.close, 10.0)
    assert telemetry.tally.spans_failed == 1
    assert "the collector took no spans: ConnectionRefusedError" in caplog.text


async def test_a_collector_that_never_answers_does_not_hold_up_the_end(receiver: Receiver) -> None:
    receiver.held = asyncio.Event()
    telemetry = Telemetry(otlp_endpoint=receiver.url, ratio=1.0)
    run_through(telemetry, call(upstream()), outcome())
    await asyncio.to_thread(telemetry.close, 0.01)
    assert telemetry.tally.spans_exported == 0
    receiver.held.set()
    ending = [thread for thread in threading.enumerate() if thread.name == "meshd-spans-end"]
    await asyncio.to_thread(lambda: [thread.join() for thread in ending])


async def test_a_strange_value_does_not_cost_the_batch(receiver: Receiver) -> None:
    telemetry = Telemetry(otlp_endpoint=receiver.url, ratio=1.0)
    made = call(upstream(), model="\ud800 model")
    made.agent = "\udfff"
    run_through(telemetry, made, outcome(usage=Usage(10**30, -(10**30))))
    run_through(telemetry, call(upstream()), outcome())
    await asyncio.to_thread(telemetry.close, 10.0)
    assert [span.name for span in receiver.spans] == ["chat ? model", "chat gpt-4o"]
    assert plain(receiver.spans[0])["gen_ai.usage.input_tokens"] == 2**63 - 1


@pytest.mark.parametrize(
    "url", ["localhost:4318", "ftp://a/b", "http://", "http://a:99999/", "http://[::1", "grpc://a:1"]
)
def test_an_endpoint_that_cannot_be_used_is_named_at_start(url: str) -> None:
    with pytest.raises(EndpointError, match=r"OTLP endpoint: .* MESHD_OTLP_ENDPOINT or"):
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


VALUES = (
    st.text(max_size=300)
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.lists(st.text(max_size=20)).map(tuple)
)


@given(st.lists(st.dictionaries(st.text(min_size=1, max_size=20), VALUES, max_size=8), max_size=5), st.text())
def test_what_is_encoded_is_what_a_collector_decodes(batch: list[dict[str, Any]], name: str) -> None:
    spans = [FinishedSpan(Span(True), name, 3, 1, 2**40, attributes, False) for attributes in batch]
    request = ExportTraceServiceRequest.FromString(encode(spans, b"", b""))
    decoded = request.resource_spans[0].scope_spans[0].spans
    assert [plain(span) for span in decoded] == [
        {key: list(value) if isinstance(value, tuple) else value for key, value in attributes.items()}
        for attributes in batch
    ]
    assert [type(value) for span in decoded for value in plain(span).values() if value in (0, 1)] == [
        type(value) for attributes in batch for value in attributes.values() if value in (0, 1)
    ]
    assert [(span.name, span.span_id) for span in decoded] == [
        (name, span.span_id.to_bytes(8, "big")) for span in spans
    ]
