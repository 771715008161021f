"""Health, metrics, logs and spans from outside: true, bounded, and without a secret in them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from meshd.telemetry.series import MODELS_MAX
from tests.end_to_end.documents import document
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar, fetch
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHAT = "/openai/v1/chat/completions"
ASK: dict[str, Any] = {"model": "m", "max_tokens": 8, "messages": [{"role": "user", "content": "go"}]}


class Collector:
    """Takes OTLP over HTTP and keeps it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def spans(self) -> list[dict[str, Any]]:
        """Every span as name, trace id, parent and attributes."""
        found = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        values = {
                            one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value")
                            for one in span.attributes
                        }
                        found.append(
                            {"name": span.name, "trace": span.trace_id.hex(), "parent": span.parent_span_id.hex()}
                            | values
                        )
        return found

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def chat(sidecar: Sidecar, headers: dict[str, str] | None = None, path: str = CHAT, **more: Any) -> tuple[int, str]:
    found: tuple[int, str] = fetch(sidecar.url + path, "POST", headers or {}, json.dumps(ASK | more).encode())
    return found


def act(**what: Any) -> dict[str, str]:
    return {"x-act": json.dumps({"id": uuid.uuid4().hex, **what})}


def all_sorts(sidecar: Sidecar, secret: str = "none") -> None:
    """Every way in which a call may end, each with the secret wherever a caller may put one."""
    secrets = {
        "authorization": f"Bearer {secret}",
        "x-api-key": secret,
        "cookie": f"session={secret}",
        "x-custom-token": secret,
    }
    query = f"?api_key={secret}&q={secret}"
    spoken: Any = [{"role": "user", "content": f"my secret is {secret}"}]
    for more in (
        {},
        {"statuses": [500]},
        {"statuses": [429]},
        {"statuses": [401]},
        {"dies_at": 1},
        {"reply": "not JSON"},
        {"usage": False},
        {"encoding": "gzip"},
        {"encoding": "br"},
        {"tool": "look"},
    ):
        for is_stream in (False, True):
            chat(sidecar, {**secrets, **act(**more)}, CHAT + query, stream=is_stream, messages=spoken, user=secret)
            chat(
                sidecar, {**secrets, **act(**more)}, "/anthropic/v1/messages" + query, stream=is_stream, messages=spoken
            )
    # Of a path, a tool's name and a workflow nobody can know that it is a secret, unless it has the shape of one.
    odd = secret if secret.startswith("sk-") else "x"
    for path in ("/plain/x", f"/plain/x{query}", "/nobody/x", "/openai/v1/nonsense", "/dead/x", f"/{odd}/x"):
        fetch(sidecar.url + path + ("" if "?" in path else query), "GET", secrets)
    chat(sidecar, secrets, CHAT + query, model="dear", messages=spoken)
    chat(sidecar, {**secrets, "x-meshd-context": secret}, messages=spoken)
    chat(sidecar, {**secrets, "x-meshd-workflow": "bad name " + secret}, messages=spoken)
    chat(sidecar, {**secrets, "x-meshd-hops": secret}, messages=spoken)
    fetch(f"{sidecar.url}/w/{secret}/openai/v1/models", "GET", secrets)
    fetch(sidecar.url + CHAT, "POST", secrets, f'{{"model": "{secret}'.encode())
    fetch(sidecar.url + CHAT, "POST", secrets, f'{{"a": 1, "a": "{secret}"}}'.encode())


def policy(provider: Provider) -> str:
    return document(
        provider.url,
        f'  dead: {{url: "http://127.0.0.1:{free_port()}", kind: tool}}\n'
        "limits: {unattributed_tokens: 1000000}\n"
        "rules:\n  - {name: no-dear, match: {kind: llm, model: dear}, deny: too dear}\n"
        "  - {name: trial, match: {kind: host}, deny: perhaps, shadow: true}\n",
    )


def test_the_metrics_are_clean_after_all_sorts_of_calls(
    sidecar: Sidecar, provider: Provider, require_engine: Callable[[str], str]
) -> None:
    promtool = require_engine("promtool")
    sidecar.start(policy(provider))
    for _ in range(2):
        status, text = sidecar.get("/metrics")
        assert status == 200
        checked = subprocess.run([promtool, "check", "metrics"], input=text.encode(), capture_output=True, check=False)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
        all_sorts(sidecar)
        sidecar.signal(signal.SIGHUP)
    results = {labels["result"] for labels, value in sidecar.series("meshd_calls_total") if value}
    assert {"refused", "failed"} < results
    assert sidecar.metric("meshd_refusals_total", reason="not_allowed") >= 1
    assert sidecar.metric("meshd_shadow_refusals_total", rule="trial") >= 1


def test_no_label_grows_with_what_callers_send(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(policy(provider))

    def call_oddly(numbers: range) -> int:
        for number in numbers:
            odd = f"odd-{number}"
            headers = {"x-meshd-workflow": odd, "authorization": f"Bearer {odd}", "user-agent": odd}
            if number % 2:
                chat(sidecar, headers, model=odd)
            else:
                method = "GET" if number % 4 else f"M{number}"
                fetch(f"{sidecar.url}/{'plain' if number % 3 else odd}/{odd}?{odd}", method, headers)
        return len(sidecar.get("/metrics")[1].splitlines())

    # A model is named once an upstream has answered for it, and this one answers for any: but not for ever.
    grown = call_oddly(range(700))
    assert call_oddly(range(700, 1000)) == grown
    odd = set(re.findall(r'(\w+)="(odd-[^"]*)"', sidecar.get("/metrics")[1]))
    assert {label for label, _ in odd} == {"gen_ai_request_model"}
    assert len(odd) <= MODELS_MAX
    assert sidecar.metric("meshd_calls_total") == 1000


def test_health_says_what_is_so(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url))
    assert sidecar.get("/livez") == (200, "ok\n")
    for path in ("/readyz", "/readyz/outbound"):
        status, text = sidecar.get(path)
        assert (status, json.loads(text)["ready"]) == (200, True)
        assert str(sidecar.policy) not in text
    checks = {check["name"]: check for check in json.loads(sidecar.get("/readyz")[1])["checks"]}
    assert checks["policy"]["detail"] == sidecar.admin("/v1/policy")["digest"][:12]
    assert sidecar.running is not None
    for path in ("/v1/policy", "/v1/status", "/v1/accounts", "/v1/calls", "/v1/breakers"):
        assert fetch(f"http://{sidecar.running['admin']}{path}")[0] == 401
        assert sidecar.get(path)[0] == 404, "the open port has none of it"


def test_breakers_of_one_upstream_are_told_apart(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url))
    for key in ("sk-one", "sk-two"):
        chat(sidecar, {"authorization": f"Bearer {key}", **act(statuses=[500])})
    breakers = sidecar.admin("/v1/breakers")["breakers"]
    assert len({one["credential"] for one in breakers}) == 2
    assert "sk-" not in json.dumps(breakers)


@pytest.mark.parametrize("shape", ["sk-canary-", "canary"])
def test_no_secret_comes_out_anywhere(sidecar: Sidecar, provider: Provider, collector: Collector, shape: str) -> None:
    secret = f"{shape}{uuid.uuid4().hex}"
    sidecar.start(policy(provider), MESHD_LOG="debug", MESHD_OTLP_ENDPOINT=collector.url, MESHD_SAMPLE_RATIO="1")
    all_sorts(sidecar, secret)
    for path in ("/v1/policy", "/v1/status", "/v1/accounts?limit=1000", "/v1/calls?limit=1000", "/v1/breakers"):
        assert secret not in json.dumps(sidecar.admin(path)), path
    for path in ("/metrics", "/readyz", "/livez"):
        assert secret not in sidecar.get(path)[1], path
    assert sidecar.stop() == 0
    assert secret not in sidecar.log
    spans = collector.spans()
    assert len(spans) > 40
    assert not [body for body in collector.bodies if secret.encode() in body], [
        span for span in spans if secret in str(span)
    ]
    for path in (one for one in sidecar.home.rglob("*") if one.is_file()):
        assert secret.encode() not in path.read_bytes(), path.name


def test_spans_tell_of_calls_in_the_callers_trace(sidecar: Sidecar, provider: Provider, collector: Collector) -> None:
    sidecar.start(document(provider.url), MESHD_OTLP_ENDPOINT=collector.url, MESHD_SAMPLE_RATIO="0")
    trace, parent = uuid.uuid4().hex, "b2" * 8
    assert chat(sidecar, {"traceparent": f"00-{trace}-{parent}-01"})[0] == 200
    assert chat(sidecar)[0] == 200
    assert sidecar.stop() == 0
    (span,) = collector.spans()
    assert (span["trace"], span["parent"]) == (trace, parent)
    assert span["name"] == "chat m"
    assert span["gen_ai.usage.output_tokens"] == 5
    assert span["gen_ai.request.model"] == "m"


def test_a_collector_that_is_dead_disturbs_nobody(sidecar: Sidecar, provider: Provider) -> None:
    sidecar.start(document(provider.url), MESHD_OTLP_ENDPOINT=f"http://127.0.0.1:{free_port()}", MESHD_SAMPLE_RATIO="1")
    for _ in range(20):
        assert chat(sidecar)[0] == 200
    assert sidecar.stop() == 0
    assert "Traceback" not in sidecar.log
