"""`meshd explain` asks the real wire, dialects and filters, and sends nothing."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshd.chain import FILTERS
from meshd.cli import main

POLICIES = Path(__file__).parents[2] / "policies"
CHAT: dict[str, Any] = {
    "url": "/openai/v1/chat/completions",
    "headers": {"x-meshd-workflow": "report-7"},
    "body": {"model": "gpt-4o-mini", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]},
}
POLICY = """\
agent: researcher
limits: {hops: 3}
upstreams:
  openai: {url: "https://api.openai.com"}
  billing: {url: "http://127.0.0.1:9/api", kind: tool}
  writer: {url: "http://127.0.0.1:9", kind: agent, peer: true}
rules:
  - {name: small, match: {kind: llm}, budget: {tokens: 200}, allow: {models: "*-mini"}}
  - {name: trial, match: {kind: llm}, allow: {tools: []}, shadow: true}
  - {name: no-deletes, match: {target: billing, operation: "DELETE *"}, deny: "ask billing"}
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise AssertionError("explain must not connect")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def run(policy: Path, request: bytes | dict[str, Any], *options: str) -> Result:
    data = request if isinstance(request, bytes) else json.dumps(request).encode()
    return CliRunner().invoke(main, ["explain", str(policy), "-", *options], input=data, catch_exceptions=False)


def said(policy: Path, request: bytes | dict[str, Any], *options: str) -> tuple[dict[str, Any], dict[str, str]]:
    result = run(policy, request, "--json", *options)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    return document, {step["name"]: step["verdict"] for step in document["steps"]}


@pytest.mark.uncompiled
def test_every_filter_in_its_order(policy: Path) -> None:
    document, steps = said(policy, CHAT)
    names = [step["name"] for step in document["steps"]]
    assert names[:2] == ["address", "body"]
    assert names[2:] == [vars(place.filter)["name"] for place in FILTERS]
    assert set(steps.values()) == {"pass"}
    assert document["result"] == "pass"
    assert (document["workflow"], document["agent"]) == ("report-7", "researcher")
    assert document["target"] == {"kind": "llm", "name": "openai", "model": "gpt-4o-mini"}


def test_a_web_page_is_refused_as_the_proxy_refuses_it(policy: Path) -> None:
    document, steps = said(policy, CHAT | {"headers": {"origin": "https://evil.test"}})
    assert (document["result"], document["status"], document["reason"]) == ("refuse", 403, "not_allowed")
    assert steps["address"] == "refuse"
    assert steps["body"] == "skip"
    assert "Web pages" in document["steps"][0]["text"]


def test_lines_are_aligned_and_end_in_what_becomes_of_the_call(policy: Path) -> None:
    lines = run(policy, CHAT).stdout.splitlines()
    assert lines[-1] == "The call goes to https://api.openai.com/v1/chat/completions."
    starts = {line.index("pass") for line in lines if "  pass  " in line}
    assert len(starts) == 1
    refused = run(policy, {**CHAT, "body": {**CHAT["body"], "model": "o3"}}).stdout.splitlines()
    assert refused[-1] == "The call is refused: 403 not_allowed."


def test_a_model_that_is_not_allowed(policy: Path) -> None:
    document, steps = said(policy, {**CHAT, "body": {**CHAT["body"], "model": "gpt-4o"}})
    assert (document["status"], document["reason"], document["rule"]) == (403, "not_allowed", "small")
    assert steps["allow_list"] == "refuse"
    assert steps["budget"] == "skip"


def test_a_budget_that_is_too_small(policy: Path) -> None:
    body = {**CHAT["body"], "messages": [{"role": "user", "content": "a gale " * 150}]}
    document, steps = said(policy, {**CHAT, "body": body})
    assert (document["status"], document["reason"]) == (402, "budget_exhausted")
    assert (steps["budget"], steps["breaker"]) == ("refuse", "skip")


def test_a_path_in_another_spelling(policy: Path) -> None:
    document, _ = said(policy, {"method": "DELETE", "url": "/billing/%69nvoices/7"})
    assert (document["status"], document["rule"]) == (403, "no-deletes")
    assert said(policy, {"method": "GET", "url": "/billing/invoices/7"})[0]["result"] == "pass"


def test_raw_http_written_by_hand_or_captured(policy: Path) -> None:
    by_hand = b'POST /openai/v1/chat/completions HTTP/1.1\nx-meshd-workflow: a\n\n{"model": "x-mini", "messages": []}\n'
    captured = (
        b"POST /openai/v1/chat/completions HTTP/1.1\r\nHost: openai.mesh\r\nx-meshd-workflow: a\r\n"
        b'Transfer-Encoding: chunked\r\n\r\n23\r\n{"model": "x-mini", "messages": []}\r\n0\r\n\r\n'
    ).replace(b"/openai/v1", b"/v1")
    for request in (by_hand, captured):
        document, _ = said(policy, request)
        assert document["target"]["model"] == "x-mini"
        assert document["workflow"] == "a"
    assert said(policy, b"GET /writer/card HTTP/1.1\n")[0]["target"]["kind"] == "agent"


def test_a_model_in_the_path_and_a_key_in_the_query(tmp_path: Path) -> None:
    document = tmp_path / "policy.yaml"
    document.write_text(
        'upstreams: {gemini: {url: "https://generativelanguage.googleapis.com"}}\n'
        "rules: [{name: cheap, match: {model: dear}, route: {model: small}}]\n"
    )
    request = {"url": "/gemini/v1beta/models/dear:generateContent?key=AIza-secret", "body": {"contents": []}}
    result = run(document, request)
    assert "AIza-secret" not in result.output
    assert "gemini chat, model dear" in " ".join(result.output.split())
    assert "googleapis.com/v1beta/models/small:generateContent" in result.output


def test_a_signed_request_that_would_have_to_be_changed(tmp_path: Path) -> None:
    document = tmp_path / "policy.yaml"
    document.write_text(
        'upstreams: {aws: {url: "https://bedrock-runtime.eu-west-1.amazonaws.com", kind: llm, dialect: bedrock}}\n'
        "rules: [{match: {kind: llm}, budget: {tokens: 9000, output_default: 64}}]\n"
    )
    request: dict[str, Any] = {"url": "/aws/model/anthropic.x/invoke", "body": {"messages": []}}
    request["headers"] = {"authorization": "AWS4-HMAC-SHA256 Credential=x"}
    assert "This request is signed" in run(document, request).output
    request["body"]["max_tokens"] = 60
    assert "The call goes to" in run(document, request).output


def test_what_the_wire_the_address_and_the_dialect_refuse(policy: Path) -> None:
    for request, status, step in (
        (
            b"POST /openai/v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "wire",
        ),
        (b"BREW / HTTP/1.1\n\n", 501, "wire"),
        ({"method": "GET", "url": "/openai/v1/models", "headers": {"host": "evil.example"}}, 421, "address"),
        ({"url": "/openai/v1/chat/completions", "body": "{not json"}, 400, "body"),
        ({"method": "GET", "url": "/nobody/x"}, 404, "routing"),
        ({"method": "GET", "url": "/billing/x", "headers": {"x-meshd-context": "forged"}}, 403, "context"),
    ):
        document, steps = said(policy, request)
        assert document["status"] == status, document
        assert steps[step] == "refuse"


def test_who_calls(policy: Path) -> None:
    assert said(policy, {**CHAT, "agent": "intern-7"})[0]["agent"] == "intern-7"
    assert said(policy, CHAT, "--agent", "intern-8")[0]["agent"] == "intern-8"


def test_inbound(policy: Path) -> None:
    document, _ = said(policy, {"url": "/tasks", "body": "{}"}, "--inbound")
    assert document["target"] == {"kind": "agent", "name": "app", "model": ""}
    assert document["workflow"]


def test_a_policy_that_does_not_load(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("limit: {}")
    result = run(path, CHAT)
    assert result.exit_code == 1
    assert f'{path}:1:1: unknown key "limit"' in result.stderr


NONSENSE: list[bytes | dict[str, Any]] = [
    b"",
    b"\n\n",
    b"{",
    b"{}",
    b'{"a": 1}',
    b"GET",
    b"GET / HTTP/1.1\nhost",
    b"\xff\xfe\x00",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /openai/x HTTP/1.1\nContent-Length: 99\n\nx",
    {"url": 7},
    {"url": "/a\r\nevil: 1"},
    {"url": "/a", "headers": []},
    {"url": "/a", "headers": {"x": 1}},
    {"url": "/a", "headers": {"x\r\ny": "1"}},
    {"url": "/a", "agent": "No Name"},
    b'{"url": "/a", "body": ' + b"[" * 100_000,
]


@pytest.mark.parametrize("request_", NONSENSE, ids=range(len(NONSENSE)))
def test_what_is_no_request_is_said_to_be_none(policy: Path, request_: bytes | dict[str, Any]) -> None:
    result = run(policy, request_)
    if result.exit_code == 0:
        assert "refused: 4" in result.stdout or "refused: 5" in result.stdout
    else:
        assert result.exit_code == 2
        assert "Error: REQUEST: " in result.stderr


@pytest.mark.parametrize("request_", [b"", b" \n\n", b"hello\n", b"- [x] POST it\n\nthen\n", b"\xff\xfe\x00"])
def test_a_file_of_something_else_holds_no_request(policy: Path, request_: bytes) -> None:
    result = run(policy, request_)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no whole HTTP/1.1 request: a request line" in result.stderr


LINES = b"""\
GET /|POST /openai/v1/chat/completions| HTTP/1.1|\n|\r\n|\n\n|Host: a|host: openai.mesh|\
Content-Length: 3|Transfer-Encoding: chunked|Upgrade: websocket|Connection: upgrade|{}|0\r\n\r\n|{"model": "x-mini"}|\
x-meshd-context: a|x-meshd-hops: 9|\
CONNECT api.openai.com:443|\0|:| """.split(b"|")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(st.sampled_from(LINES) | st.binary(max_size=6), max_size=14).map(b"".join))
def test_any_bytes_are_explained_or_refused(policy: Path, data: bytes) -> None:
    assert run(policy, data).exit_code in (0, 2)


@pytest.mark.parametrize(
    ("path", "field", "verdict"),
    [
        ("/pay.v1.Billing/Pay", "billing", "refuse"),
        ("/api/pay.v1.Billing/Pay", "", "skip"),
        ("/pay.v1.Other/Pay", "billing", "pass"),
    ],
)
def test_a_grpc_call_is_explained_whatever_the_wire(policy: Path, path: str, field: str, verdict: str) -> None:
    policy.write_text(POLICY.replace('"DELETE *"', '"api/pay.v1.Billing/*"'))
    headers = {"content-type": "application/grpc"} | ({"x-meshd-target": field} if field else {})
    _, steps = said(policy, {"url": path, "headers": headers})
    assert steps["allow_list"] == verdict
    assert steps["address"] == ("pass" if field else "refuse")


MCP_POLICY = """\
upstreams:
  tools: {url: "http://127.0.0.1:9", kind: tool, dialect: mcp}
  maybe: {url: "http://127.0.0.1:9", kind: tool}
rules:
  - {name: no-deletes, match: {tool: "delete_*"}, deny: "ask a person"}
"""


def message(upstream: str, tool: str) -> dict[str, Any]:
    return {
        "url": f"/{upstream}/mcp",
        "headers": {"accept": "application/json, text/event-stream", "content-type": "application/json"},
        "body": {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": {}}},
    }


def test_a_tool_that_is_called_over_mcp(policy: Path) -> None:
    policy.write_text(MCP_POLICY)
    result = run(policy, message("tools", "list_all"))
    assert "mcp tools/call, tool list_all" in result.output
    refused = run(policy, message("tools", "delete_all"))
    assert "ask a person" in refused.output
    guessed = run(policy, message("maybe", "delete_all"))
    assert "without dialect in the policy, rules see no tool in it" in " ".join(guessed.output.split())
    assert "ask a person" not in guessed.output
    broken = message("tools", "x")
    del broken["body"]["jsonrpc"]
    assert "no JSON-RPC 2.0 message" in run(policy, broken).output


def test_a_key_file_that_is_not_there_is_named_and_not_made(policy: Path, tmp_path: Path) -> None:
    path = tmp_path / "none.key"
    result = run(policy, CHAT, "--mesh-key", str(path))
    assert (result.exit_code, f"{path}: there is no mesh key file" in result.output) == (2, True)
    assert not path.exists()
