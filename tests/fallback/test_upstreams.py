"""Another upstream or model in the place of one that fails, through real sockets and the official SDKs."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest

from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import Sidecar, fetch
from tests.fallback.conftest import KEYS, act, anthropic_of, chained, document, openai_of, saying

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVED = "x-meshd-served-by"
TOOLS: Any = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
CLAUDE_TOOLS: Any = [{"name": "look", "input_schema": {"type": "object", "properties": {}}}]
MESSAGES: Any = saying()

RULES = (
    chained("openai", "same", {"upstream": "backup"}),
    chained("openai", "swapped", {"upstream": "backup", "model": "m2"}),
    chained("openai", "keyless", {"upstream": "well"}),
    chained("openai", "translated", {"upstream": "claude", "model": "claude-x"}),
    chained("openai", "second", {"upstream": "other"}, {"upstream": "backup"}),
    chained("openai", "exhausted", {"upstream": "other"}, {"upstream": "claude", "model": "claude-x"}),
    chained("openai", "own", {"upstream": "other", "model": "chained"}, {"reply": "the first chain's"}),
    {"name": "other-own", "match": {"target": "other", "model": "chained"}, "retry": {"attempts": 0},
     "fallback": {"to": [{"upstream": "backup"}]}},
    chained("openai", "unserved", {"upstream": "other"}, on=("5xx",)),
    chained("anthropic", "translated", {"upstream": "well", "model": "m2"}),
    chained("well", "ill", {"upstream": "backup"}),
    chained("well", "model", {"model": "better"}),
    chained("well", "poor", {"upstream": "backup"}, {"reply": "no money left"}, on=("budget",))
    | {"budget": {"tokens": 10, "per": "model"}},
    {"name": "tools", "match": {"target": "shop", "operation": "* /fails/*"}, "retry": {"attempts": 0},
     "fallback": {"to": [{"upstream": "store"}, {"reply": "closed"}]}},
    {"name": "dead-tool", "match": {"target": "tool"}, "retry": {"attempts": 0},
     "fallback": {"to": [{"upstream": "store"}]}},
)  # fmt: skip


@pytest.fixture
def through(provider: Provider, dead: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    one = Sidecar(tmp_path_factory.mktemp("upstreams") / "home")
    yield one.start(document(provider.url, dead, *RULES), **KEYS)
    one.kill()


def chat(one: Sidecar, model: str, upstream: str = "openai", **more: Any) -> Any:
    """Return the raw response of a chat."""
    with openai_of(one, upstream) as client:
        return client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES, **more)


def test_another_upstream_answers_and_is_named(through: Sidecar, provider: Provider) -> None:
    id = uuid.uuid4().hex
    raw = chat(through, "same", extra_headers=act(id=id))
    assert raw.headers[SERVED] == "backup/same"
    assert raw.parse().choices[0].message.content == "word word word word word"
    (seen,) = provider.of(id)
    assert seen.headers["authorization"] == "Bearer sk-backup"


def test_another_model_is_asked_for_there(through: Sidecar, provider: Provider) -> None:
    id = uuid.uuid4().hex
    raw = chat(through, "swapped", extra_headers=act(id=id))
    assert raw.headers[SERVED] == "backup/m2"
    assert provider.of(id)[0].json["model"] == "m2"


def test_a_stream_comes_from_another_upstream(through: Sidecar) -> None:
    with openai_of(through) as client:
        chunks = list(client.chat.completions.create(model="same", messages=MESSAGES, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "word " * 5
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_callers_key_never_goes_to_another_address(through: Sidecar, provider: Provider) -> None:
    id = uuid.uuid4().hex
    headers = act(id=id) | {"cookie": "session=1", "openai-organization": "org-1", "x-goog-api-key": "g"}
    assert chat(through, "keyless", extra_headers=headers).headers[SERVED] == "well/keyless"
    (seen,) = provider.of(id)
    assert not {"authorization", "x-api-key", "cookie", "openai-organization", "x-goog-api-key"} & seen.headers.keys()
    assert "sk-caller" not in json.dumps(seen.headers)


def test_chat_is_translated_into_messages_and_back(through: Sidecar, provider: Provider) -> None:
    id = uuid.uuid4().hex
    raw = chat(through, "translated", extra_headers=act(id=id))
    answer = raw.parse()
    assert raw.headers[SERVED] == "claude/claude-x"
    assert (answer.object, answer.choices[0].message.content) == ("chat.completion", "word word word word word")
    assert answer.usage.total_tokens == 3 + 5
    (seen,) = provider.of(id)
    assert (seen.path, seen.json["model"]) == ("/v1/messages", "claude-x")
    assert seen.headers["x-api-key"] == "sk-claude"
    assert seen.headers["anthropic-version"]
    assert "authorization" not in seen.headers


def test_a_translated_stream_with_usage_and_with_tools(through: Sidecar) -> None:
    with openai_of(through) as client:
        asked: Any = {"model": "translated", "messages": MESSAGES, "stream": True}
        usage = {"stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(**asked, **usage))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "word " * 5
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 8
        chunks = list(client.chat.completions.create(**asked, tools=TOOLS, extra_headers=act(tool="look")))
        calls = [call for c in chunks if c.choices for call in c.choices[0].delta.tool_calls or ()]
        assert calls[0].function.name == "look"
        assert json.loads("".join(call.function.arguments or "" for call in calls)) == {"x": 1}
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
        plain = client.chat.completions.create(
            model="translated", messages=MESSAGES, tools=TOOLS, extra_headers=act(tool="look")
        )
        assert plain.choices[0].message.tool_calls[0].function.name == "look"


def test_messages_are_translated_into_chat_and_back(through: Sidecar, provider: Provider) -> None:
    id = uuid.uuid4().hex
    with anthropic_of(through) as client:
        asked: Any = {"model": "translated", "messages": MESSAGES, "max_tokens": 50}
        raw = client.messages.with_raw_response.create(**asked, extra_headers=act(id=id))
        assert raw.headers[SERVED] == "well/m2"
        assert raw.parse().content[0].text == "word word word word word"
        with client.messages.stream(**asked, tools=CLAUDE_TOOLS, extra_headers=act(tool="look")) as stream:
            whole = stream.get_final_message()
    assert (whole.stop_reason, whole.content[0].name) == ("tool_use", "look")
    assert provider.of(id)[0].path == "/v1/chat/completions"
    assert "x-api-key" not in provider.of(id)[0].headers


def test_what_cannot_be_translated_is_passed_over_and_said(through: Sidecar) -> None:
    with openai_of(through) as client, pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(model="translated", messages=MESSAGES, n=3)
    assert raised.value.code == "meshd_upstream_unreachable"
    with openai_of(through) as client, pytest.raises(openai.InternalServerError):
        client.embeddings.create(model="translated", input="x")


def test_a_substitute_that_fails_too_is_the_next_links_turn(through: Sidecar) -> None:
    assert chat(through, "second").headers[SERVED] == "backup/second"


def test_the_chain_of_what_failed_last_comes_first(through: Sidecar) -> None:
    assert chat(through, "own").headers[SERVED] == "backup/chained"


def test_an_exhausted_chain_says_what_failed_first_and_what_was_tried(through: Sidecar, provider: Provider) -> None:
    for status in (503, 400, 401):
        id = uuid.uuid4().hex
        with openai_of(through) as client, pytest.raises(openai.APIStatusError) as raised:
            client.chat.completions.create(
                model="exhausted", messages=MESSAGES, extra_headers=act(id=id, statuses=[status])
            )
        error = raised.value
        assert (error.status_code, error.code) == (502, "meshd_upstream_unreachable")
        body: Any = error.body
        assert "openai" in body["message"].partition("Tried")[0]
        assert f"Tried in its place: other/exhausted (connect); claude/claude-x ({status})." in body["message"]
        assert SERVED not in error.response.headers
        # The substitute's own retries hold for it.
        assert len(provider.of(id)) == (3 if status == 503 else 1)


def test_a_failure_that_the_chain_is_not_for_stands(through: Sidecar) -> None:
    with openai_of(through) as client, pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(model="unserved", messages=MESSAGES)
    assert "Tried" not in raised.value.message


@pytest.mark.parametrize("status", [500, 502, 503, 529, 429])
def test_an_upstreams_own_failure(through: Sidecar, provider: Provider, status: int) -> None:
    id = uuid.uuid4().hex
    raw = chat(through, "ill", "well", extra_headers=act(id=id, statuses=[status, 200]))
    assert raw.headers[SERVED] == "backup/ill"
    assert len(provider.of(id)) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_the_callers_own_mistakes_are_never_shown_to_another(through: Sidecar, provider: Provider, status: int) -> None:
    id = uuid.uuid4().hex
    with openai_of(through, "well") as client, pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(model="ill", messages=MESSAGES, extra_headers=act(id=id, statuses=[status, 200]))
    assert raised.value.status_code == status
    assert "words of theirs" in raised.value.message
    assert len(provider.of(id)) == 1


def test_another_model_of_the_same_upstream_keeps_the_key(through: Sidecar, provider: Provider) -> None:
    id = uuid.uuid4().hex
    raw = chat(through, "model", "well", extra_headers=act(id=id, statuses=[503, 200]))
    assert raw.headers[SERVED] == "well/better"
    first, second = provider.of(id)
    assert (first.json["model"], second.json["model"]) == ("model", "better")
    assert second.headers["authorization"] == "Bearer sk-caller"


def test_a_stream_that_breaks_after_its_first_byte_goes_nowhere_else(through: Sidecar, provider: Provider) -> None:
    id = uuid.uuid4().hex
    with openai_of(through, "well") as client, pytest.raises(Exception):  # noqa: B017 - httpx's own
        list(
            client.chat.completions.create(
                model="ill", messages=MESSAGES, stream=True, extra_headers=act(id=id, dies_at=2)
            )
        )
    assert len(provider.of(id)) == 1


def test_after_the_budget_only_what_costs_nothing(through: Sidecar, provider: Provider) -> None:
    id = uuid.uuid4().hex
    raw = chat(through, "poor", "well", extra_headers=act(id=id))
    assert (raw.headers[SERVED], raw.parse().choices[0].message.content) == ("reply", "no money left")
    assert not provider.of(id)


def test_a_tools_call_that_may_have_arrived_is_not_made_at_another(through: Sidecar, provider: Provider) -> None:
    def asked(method: str, path: str, target: str = "shop") -> tuple[int, str, int]:
        id = uuid.uuid4().hex
        headers = act(id=id, statuses=[503, 200]) | {"content-type": "application/json"}
        body = None if method == "GET" else b'{"item": 1}'
        status, text = fetch(f"{through.url}/{target}{path}", method, headers, body)
        return status, text, len(provider.of(id))

    assert asked("POST", "/fails/buy") == (200, "closed", 1)
    status, text, count = asked("GET", "/fails/list")
    assert (status, json.loads(text)["path"], count) == (200, "/fails/list", 2)
    assert asked("PUT", "/fails/item")[2] == 2
    # Nobody was there to take it: another may.
    id = uuid.uuid4().hex
    status, text = fetch(f"{through.url}/tool/buy", "POST", act(id=id), b'{"item": 2}')
    assert (status, json.loads(text)) == (200, {"path": "/buy", "body": 11})
    assert provider.of(id)[0].body == b'{"item": 2}'


def test_what_happened_is_counted(through: Sidecar) -> None:
    chat(through, "same")
    assert through.metric("meshd_fallbacks_total", target="openai", substitute="upstream") >= 1
    assert through.metric("meshd_calls_total", target="backup", result="ok") >= 1
    assert through.metric("meshd_retries_total", target="backup") == 0


def test_an_anthropic_client_sees_its_own_errors(through: Sidecar, provider: Provider) -> None:
    with anthropic_of(through) as client, pytest.raises(anthropic.InternalServerError) as raised:
        client.messages.create(
            model="translated", messages=MESSAGES, max_tokens=5, extra_headers=act(id=uuid.uuid4().hex, statuses=[500])
        )
    body: Any = raised.value.body
    assert (body["type"], body["error"]["details"]["error_code"]) == ("error", "meshd_upstream_unreachable")
    assert "well/m2 (500)" in body["error"]["message"]
