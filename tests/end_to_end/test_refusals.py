"""What meshd refuses reaches the official SDKs as their own typed exceptions, after exactly one attempt."""

from __future__ import annotations

import gzip
import json
import socket
import uuid
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest

from tests.end_to_end.documents import document
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar, fetch
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "say something short"}]}
KEY = "sk-refusals"
DEAD_PORT = free_port()
RULES = f"""
  dead: {{url: "http://127.0.0.1:{DEAD_PORT}", kind: llm, dialect: openai}}
  dead-claude: {{url: "http://127.0.0.1:{DEAD_PORT}", kind: llm, dialect: anthropic}}
  writer: {{url: "http://127.0.0.1:{DEAD_PORT}", kind: agent}}
  banned: {{url: "http://127.0.0.1:{DEAD_PORT}", kind: llm, dialect: openai}}
limits: {{request_body: 32MB, hops: 3, unattributed_tokens: 1000000}}
rules:
  - name: no-dear-models
    match: {{kind: llm, model: "dear-*"}}
    deny: "ask for a smaller one"
  - name: two-tools
    match: {{kind: llm, model: "toolish"}}
    allow: {{tools: [look, search]}}
  - name: nobody
    match: {{target: banned}}
    deny: "not today"
  - name: quick-breaker
    match: {{target: [dead, dead-claude]}}
    breaker: {{consecutive: 2, open: 60s}}
    retry: {{attempts: 0}}
  - name: small-purse
    match: {{kind: llm, model: "small"}}
    budget: {{tokens: 400, account: small, output_default: 8}}
"""


@pytest.fixture(scope="module")
def through(provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    one = Sidecar(tmp_path_factory.mktemp("refusals") / "home")
    yield one.start(document(provider.url, RULES))
    one.kill()


@pytest.fixture(params=["openai", "anthropic"])
def sdk(request: pytest.FixtureRequest, through: Sidecar) -> Iterator[tuple[Any, Any]]:
    """(the library, its function that makes a message): with three attempts, as they come."""
    if request.param == "openai":
        with openai.OpenAI(base_url=f"{through.url}/openai/v1", api_key=KEY, max_retries=2) as one:
            yield openai, one.chat.completions.create
    else:
        with anthropic.Anthropic(base_url=f"{through.url}/anthropic", api_key=KEY, max_retries=2) as other:
            yield anthropic, other.messages.create


def refused(through: Sidecar, sdk: tuple[Any, Any], kind: str, **asked: Any) -> Any:
    """Make a call that is refused; return the exception, which one attempt alone has led to."""
    library, create = sdk
    before = through.metric("meshd_calls_total")
    with pytest.raises(getattr(library, kind)) as caught:
        create(**({"max_tokens": 8} | ASK | asked))
    assert through.metric("meshd_calls_total") == before + 1
    error = caught.value
    headers = error.response.headers
    assert headers["x-should-retry"] == "false"
    assert headers["x-meshd-decision"] == "refuse"
    assert "retry-after" not in headers
    assert headers["cache-control"] == "no-store"
    return error


def test_an_exhausted_budget(through: Sidecar, sdk: tuple[Any, Any], provider: Provider) -> None:
    library, create = sdk
    workflow = {"x-meshd-workflow": f"spent-{uuid.uuid4().hex[:8]}"}
    spent = 0
    for _ in range(60):
        try:
            answer = create(**(ASK | {"model": "small"}), max_tokens=8, extra_headers=workflow)
        except library.APIStatusError:
            break
        usage = answer.usage
        spent += usage.total_tokens if library is openai else usage.input_tokens + usage.output_tokens
    error = refused(through, sdk, "APIStatusError", model="small", extra_headers=workflow)
    assert error.status_code == 402
    body = error.body if library is openai else error.body["error"]
    assert body["type"] == ("budget_exhausted" if library is openai else "billing_error")
    assert "400" in str(error)
    assert error.response.headers["x-meshd-reason"] == "budget_exhausted"
    assert error.response.headers["x-meshd-workflow"] == workflow["x-meshd-workflow"]
    assert 100 < spent <= 400


def test_too_many_hops_to_an_agent(through: Sidecar, provider: Provider) -> None:
    seen = len(provider.seen)
    status, text = fetch(f"{through.url}/writer/ask", "POST", {"x-meshd-hops": "3"}, b"{}")
    assert (status, json.loads(text)["code"]) == (403, "meshd_hop_limit")
    with openai.OpenAI(base_url=f"{through.url}/writer/v1", api_key=KEY) as client:
        ask = client.chat.completions.create
        error = refused(through, (openai, ask), "PermissionDeniedError", extra_headers={"x-meshd-hops": "3"})
    assert error.response.headers["x-meshd-reason"] == "hop_limit"
    assert "This would be hop 4" in str(error)
    assert len(provider.seen) == seen


@pytest.mark.parametrize("hops", ["-1", "abc", "1" + "0" * 30, "1.5", "+1", " ", "٣"])
def test_hops_that_are_none_are_refused_and_never_zero(through: Sidecar, hops: str, provider: Provider) -> None:
    seen = len(provider.seen)
    status, head, _ = raw(
        through,
        b"POST /openai/v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
        b"x-meshd-hops: %s\r\ncontent-length: 2\r\n\r\n{}" % hops.encode(),
    )
    assert status == 400, head
    assert len(provider.seen) == seen


def test_a_model_that_is_not_allowed(through: Sidecar, sdk: tuple[Any, Any]) -> None:
    error = refused(through, sdk, "PermissionDeniedError", model="dear-1")
    assert error.response.headers["x-meshd-reason"] == "not_allowed"
    assert "ask for a smaller one" in str(error)


def tool_named(library: Any, name: str) -> Any:
    if library is openai:
        return [{"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}]
    return [{"name": name, "input_schema": {"type": "object", "properties": {}}}]


def test_a_tool_that_may_not_be_offered(through: Sidecar, sdk: tuple[Any, Any], provider: Provider) -> None:
    seen = len(provider.seen)
    error = refused(through, sdk, "PermissionDeniedError", model="toolish", tools=tool_named(sdk[0], "rm"))
    assert "'rm'" in str(error)
    assert len(provider.seen) == seen


def test_a_tool_call_in_a_plain_answer(through: Sidecar, sdk: tuple[Any, Any]) -> None:
    error = refused(
        through,
        sdk,
        "PermissionDeniedError",
        model="toolish",
        tools=tool_named(sdk[0], "look"),
        extra_headers={"x-act": json.dumps({"tool": "rm"})},
    )
    assert "called the tool 'rm'" in str(error)


def test_a_tool_call_in_a_stream(through: Sidecar, sdk: tuple[Any, Any]) -> None:
    library, create = sdk
    events = []
    stream = create(
        **ASK | {"model": "toolish", "max_tokens": 8},
        tools=tool_named(library, "look"),
        stream=True,
        extra_headers={"x-act": json.dumps({"tool": "rm"})},
    )
    with stream, pytest.raises(library.APIError) as caught:
        events += [event.model_dump_json() for event in stream]
    assert "called the tool 'rm'" in str(caught.value)
    assert not any('"rm"' in event for event in events)


def test_an_open_circuit(through: Sidecar, sdk: tuple[Any, Any]) -> None:
    library = sdk[0]
    if library is openai:
        client: Any = openai.OpenAI(base_url=f"{through.url}/dead/v1", api_key=KEY, max_retries=0)
        create = client.chat.completions.create
    else:
        client = anthropic.Anthropic(base_url=f"{through.url}/dead-claude", api_key=KEY, max_retries=0)
        create = client.messages.create
    with client:
        for _ in range(2):
            with pytest.raises(library.InternalServerError) as caught:
                create(**ASK, max_tokens=8)
            assert caught.value.status_code == 502
            assert caught.value.response.headers["x-meshd-reason"] == "upstream_unreachable"
        # Its own retries must not be tempted by what will stay shut for a minute.
        again = client.with_options(max_retries=2)
        made = again.chat.completions.create if library is openai else again.messages.create
        error = refused(through, (library, made), "InternalServerError")
    assert error.status_code == 503
    assert error.response.headers["x-meshd-reason"] == "circuit_open"


def test_an_upstream_that_nobody_knows(through: Sidecar) -> None:
    with openai.OpenAI(base_url=f"{through.url}/nobody/v1", api_key=KEY) as client:
        error = refused(through, (openai, client.chat.completions.create), "NotFoundError")
    assert "nobody" in str(error)


def test_an_upstream_that_is_denied(through: Sidecar) -> None:
    with openai.OpenAI(base_url=f"{through.url}/banned/v1", api_key=KEY) as client:
        error = refused(through, (openai, client.chat.completions.create), "PermissionDeniedError")
    assert "not today" in str(error)


def raw(through: Sidecar, request: bytes) -> tuple[int, str, bytes]:
    """Send bytes, read until the end: (status, head, body)."""
    with socket.create_connection(("127.0.0.1", through.port), 20) as one:
        one.sendall(request)
        data = b""
        while b"\r\n\r\n" not in data and (more := one.recv(65536)):
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
        )
        while len(body) < length and (more := one.recv(65536)):
            body += more
    return int(head.split()[1]), head.decode("latin-1"), body


BAD_BODIES = {
    "not JSON": b"{nonsense",
    "cut off": b'{"model": "m", "messages": [',
    "empty": b"",
    "a list": b"[]",
    "duplicate keys": b'{"model": "small", "model": "dear-1", "messages": []}',
    "deep": b'{"model": "m", "messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "not UTF-8": b'{"model": "m", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "a lone surrogate as a key": b'{"model": "m", "messages": [], "\\ud800": 1}',
    "a model of no name": b'{"model": 7, "messages": []}',
    "a negative cap": b'{"model": "m", "max_tokens": -5, "messages": [{"role": "user", "content": "x"}]}',
    "a cap of infinity": b'{"model": "m", "max_tokens": 1e999, "messages": [{"role": "user", "content": "x"}]}',
    "a cap of text": b'{"model": "m", "max_tokens": "9", "messages": [{"role": "user", "content": "x"}]}',
    "NaN": b'{"model": "m", "max_tokens": NaN, "messages": []}',
    "trailing": b'{"model": "m", "messages": []} {}',
    "a mark of byte order": b'\xef\xbb\xbf{"model": "m", "messages": []}',
}


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "deflate", "identity, br"])
@pytest.mark.parametrize(
    "body", [gzip.compress(b'{"model": "m"}'), b'{"model": "m", "messages": []}'], ids=["compressed", "JSON"]
)
@pytest.mark.parametrize("target", ["openai/v1/chat/completions", "anthropic/v1/messages"])
def test_an_encoded_body_is_refused_by_that_name(
    through: Sidecar, provider: Provider, target: str, body: bytes, encoding: str
) -> None:
    """Even one that looks like JSON: whoever decodes it may read another call than the one that was judged."""
    seen = len(provider.seen)
    headers = {"content-type": "application/json", "content-encoding": encoding, "x-api-key": KEY}
    status, said = fetch(f"{through.url}/{target}", "POST", headers, body)
    assert status == 400
    assert f"content-encoding '{encoding}'" in json.loads(said)["error"]["message"]
    assert len(provider.seen) == seen


CHAT, MESSAGES = "/openai/v1/chat/completions", "/anthropic/v1/messages"
BAD = [
    *((path, body) for path in (CHAT, MESSAGES) for body in BAD_BODIES.values()),
    (
        CHAT,
        b'{"model": "m", "tools": [{"type": "function", "function": {"name": "look", "name": "rm"}}], "messages": []}',
    ),
    (MESSAGES, b'{"model": "m", "max_tokens": 9, "tools": [{"name": "look", "name": "rm"}], "messages": []}'),
]


@pytest.mark.parametrize(("path", "body"), BAD, ids=lambda value: repr(value)[:60])
def test_a_body_that_cannot_be_judged_is_refused_and_costs_nothing(
    through: Sidecar, provider: Provider, path: str, body: bytes
) -> None:
    seen, books = len(provider.seen), through.accounts()
    status, text = fetch(through.url + path, "POST", {"authorization": f"Bearer {KEY}"}, body)
    assert status == 400, text
    error = json.loads(text)["error"]
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) > 15
    assert len(provider.seen) == seen
    assert through.accounts() == books


def test_a_body_over_the_limit_is_refused_however_it_is_framed(through: Sidecar, provider: Provider) -> None:
    seen, size = len(provider.seen), 33 * 1024 * 1024
    big = b'{"model": "m", "messages": [{"role": "user", "content": "' + b"a" * size + b'"}]}'
    status, text = fetch(f"{through.url}/openai/v1/chat/completions", "POST", {}, big)
    assert (status, json.loads(text)["error"]["code"]) == (413, "meshd_too_large")
    head = b"POST /openai/v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    chunked = head + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (big[: size // 2], big[size // 2 :]))
    status, _, body = raw(through, chunked + b"0\r\n\r\n")
    assert (status, json.loads(body)["error"]["code"]) == (413, "meshd_too_large")
    assert len(provider.seen) == seen
    # What nobody must read may be as large as it likes.
    status, text = fetch(f"{through.url}/plain/anything", "POST", {}, big)
    assert (status, json.loads(text)["body"]) == (200, len(big))


def test_a_web_page_may_not_call(through: Sidecar, provider: Provider) -> None:
    seen = len(provider.seen)
    for headers in ({"origin": "http://evil.test"}, {"origin": "null"}, {"host": "evil.test"}):
        status, text = fetch(f"{through.url}/plain/x", "GET", headers)
        assert status in (403, 421), text
    assert len(provider.seen) == seen


def test_what_cannot_be_bounded_is_refused_where_a_budget_applies(through: Sidecar, provider: Provider) -> None:
    seen = len(provider.seen)
    client = openai.OpenAI(base_url=f"{through.url}/openai/v1", api_key=KEY)
    with client, pytest.raises(openai.PermissionDeniedError, match="cannot bound"):
        client.images.generate(prompt="a cat")
    assert len(provider.seen) == seen
