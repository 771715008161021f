"""The official clients, unpatched: what they send is translated, and what they are answered is a translation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter

from meshd.call import Headers
from meshd.dialects.table import DIALECTS
from meshd.dialects.translation import Translation
from tests.dialects.server import AnswerServer, serving
from tests.dialects.test_translation_golden import FOLDERS, case_of, sent_for
from tests.dialects.translating import between

SSE: Headers = [(b"content-type", b"text/event-stream")]
JSON: Headers = [(b"content-type", b"application/json")]
BY_NAME = {folder.name: folder for folder in FOLDERS}
PARAMS: dict[str, TypeAdapter[Any]] = {
    "openai": TypeAdapter(CompletionCreateParamsNonStreaming),
    "anthropic": TypeAdapter(MessageCreateParamsNonStreaming),
}


@pytest.fixture(scope="module")
def server() -> Iterator[AnswerServer]:
    yield from serving()


def exhausted(value: Any) -> Any:
    """Return a validated value with everything in it read: pydantic validates the items of an Iterable as they come."""
    if isinstance(value, dict):
        return {name: exhausted(inner) for name, inner in value.items()}
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return value
    return [exhausted(inner) for inner in value]


def asked(folder: Path) -> dict[str, Any]:
    """Return the request of a case as the arguments of a client's method."""
    members: dict[str, Any] = json.loads((folder / "asked.json").read_bytes())
    members.pop("stream", None)
    # What the clients no longer take as arguments.
    extra = {name: members.pop(name) for name in ("temperature", "top_k") if name in members}
    return members | ({"extra_body": extra} if extra else {})


def served(server: AnswerServer, folder: Path) -> str:
    stream = folder / "reply.sse"
    if stream.exists():
        return server.prepare(200, SSE, stream.read_bytes())
    return server.prepare(200, JSON, (folder / "reply.json").read_bytes())


@pytest.mark.parametrize("name", BY_NAME)
def test_what_is_sent_is_what_the_other_client_would_send(name: str) -> None:
    folder = BY_NAME[name]
    _, _, sent = sent_for(folder)
    body = json.loads(sent)
    body.pop("stream", None)
    exhausted(PARAMS[case_of(folder)["to"]].validate_python(body, strict=False))
    body["messages"][0]["content"] = 5
    with pytest.raises(ValueError, match="content"):
        exhausted(PARAMS[case_of(folder)["to"]].validate_python(body))


def test_openai_reads_a_message(server: AnswerServer) -> None:
    folder = BY_NAME["openai-tools"]
    url = served(server, folder)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k") as client:
        answer = client.chat.completions.create(**asked(folder))
    choice = answer.choices[0]
    assert (answer.id, answer.created, choice.finish_reason) == ("msg_gull1", 1_790_000_000, "tool_calls")
    assert choice.message.content == "High water at Brest is at 04:12."
    calls = [(call.id, call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
    assert calls == [("toolu_9", "now", "{}"), ("toolu_10", "tide_table", '{"harbour":"Dover"}')]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert (answer.usage.prompt_tokens, answer.usage.prompt_tokens_details.cached_tokens) == (1040, 900)
    # What the client sent is what was translated.
    translate_again("openai", server.body(url), "claude-sonnet-4-6", folder)


def translate_again(caller: str, body: bytes, model: str, folder: Path) -> None:
    ask = DIALECTS[caller].read("chat", body)
    cap = case_of(folder)["output_cap"]
    _, sent = between(caller).request(ask, body, model=model, output_cap=cap)
    assert json.loads(sent) == json.loads((folder / "sent.json").read_bytes())


def test_openai_accumulates_a_stream_of_messages(server: AnswerServer) -> None:
    folder = BY_NAME["openai-stream"]
    url = served(server, folder)
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="k") as client,
        client.chat.completions.stream(**asked(folder)) as stream,
    ):
        kinds = [event.type for event in stream]
        answer = stream.get_final_completion()
    message = answer.choices[0].message
    assert (message.content, answer.choices[0].finish_reason) == ("Let me look: \u00e9\u2028", "tool_calls")
    calls = [(call.id, call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or ()]
    assert calls == [("toolu_2", "tide_table", {"harbour": "Brest"}), ("toolu_3", "now", {})]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (840, 96)
    assert kinds.count("tool_calls.function.arguments.done") == 2
    translate_again("openai", server.body(url), "claude-opus-4-8", folder)


def test_openai_accumulates_a_refusal(server: AnswerServer) -> None:
    folder = BY_NAME["openai-refusal"]
    with (
        openai.OpenAI(base_url=f"{served(server, folder)}/v1", api_key="k") as client,
        client.chat.completions.stream(**asked(folder)) as stream,
    ):
        kinds = [event.type for event in stream]
        choice = stream.current_completion_snapshot.choices[0]
    assert (choice.finish_reason, choice.message.refusal) == ("content_filter", "That could do harm.")
    assert "refusal.done" in kinds


def test_anthropic_reads_a_completion(server: AnswerServer) -> None:
    folder = BY_NAME["anthropic-tools"]
    url = served(server, folder)
    with anthropic.Anthropic(base_url=url, api_key="k") as client:
        answer = client.messages.create(**asked(folder))
    assert (answer.id, answer.stop_reason, answer.model) == ("chatcmpl-1", "tool_use", "gpt-4o-2024-11-20")
    text, *uses = answer.content
    assert text.type == "text"
    assert text.text == "Dover, then."
    assert [(one.name, one.input) for one in uses if one.type == "tool_use"] == [
        ("tide_table", {"harbour": "Dover"}), ("now", {}),
    ]  # fmt: skip
    usage = answer.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (40, 900, 100)
    translate_again("anthropic", server.body(url), "gpt-4o", folder)


def test_anthropic_accumulates_a_stream_of_chunks(server: AnswerServer) -> None:
    folder = BY_NAME["anthropic-stream"]
    url = served(server, folder)
    with (
        anthropic.Anthropic(base_url=url, api_key="k") as client,
        client.messages.stream(**asked(folder)) as stream,
    ):
        kinds = [event.type for event in stream]
        answer = stream.get_final_message()
    text, first, second = answer.content
    assert (text.type, first.type, second.type) == ("text", "tool_use", "tool_use")
    assert text.type == "text"
    assert text.text == "Let me look: \u00e9\u2028"
    assert first.type == second.type == "tool_use"
    assert (first.id, first.input, second.id, second.input) == ("call_1", {"harbour": "Brest"}, "call_2", {})
    assert (answer.stop_reason, answer.usage.input_tokens, answer.usage.output_tokens) == ("tool_use", 640, 96)
    assert kinds.count("content_block_stop") == 3
    assert kinds[-1] == "message_stop"
    translate_again("anthropic", server.body(url), "gpt-5.4", folder)


def test_anthropic_reads_a_stop_sequence(server: AnswerServer) -> None:
    folder = BY_NAME["anthropic-local-stream"]
    with (
        anthropic.Anthropic(base_url=served(server, folder), api_key="k") as client,
        client.messages.stream(**asked(folder)) as stream,
    ):
        answer = stream.get_final_message()
    assert (answer.stop_reason, answer.stop_sequence, stream.get_final_text()) == ("stop_sequence", "3", "1 2 ")


def test_the_async_clients_read_the_same(server: AnswerServer) -> None:
    async def both() -> tuple[str | None, str | None]:
        chat, messages = BY_NAME["openai-stream"], BY_NAME["anthropic-stream"]
        async with (
            openai.AsyncOpenAI(base_url=f"{served(server, chat)}/v1", api_key="k") as client,
            client.chat.completions.stream(**asked(chat)) as stream,
        ):
            finish = (await stream.get_final_completion()).choices[0].finish_reason
        async with (
            anthropic.AsyncAnthropic(base_url=served(server, messages), api_key="k") as other,
            other.messages.stream(**asked(messages)) as events,
        ):
            return finish, (await events.get_final_message()).stop_reason

    assert asyncio.run(both()) == ("tool_calls", "tool_use")


# -- errors


def failing(server: AnswerServer, made: Translation, status: int, error: dict[str, Any]) -> str:
    status, body = made.error(status, json.dumps(error).encode())
    return server.prepare(status, JSON, body)


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (400, "invalid_request_error", openai.BadRequestError),
        (401, "authentication_error", openai.AuthenticationError),
        (404, "not_found_error", openai.NotFoundError),
        (429, "rate_limit_error", openai.RateLimitError),
        (529, "overloaded_error", openai.InternalServerError),
    ],
)
def test_openai_raises_anthropic_s_errors(
    server: AnswerServer, status: int, kind: str, expected: type[openai.APIStatusError]
) -> None:
    error = {"type": "error", "error": {"type": kind, "message": "the reason why"}}
    url = failing(server, between("openai"), status, error)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client, pytest.raises(expected) as caught:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}])
    assert "the reason why" in caught.value.message
    assert caught.value.type == kind


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, anthropic.BadRequestError),
        (401, anthropic.AuthenticationError),
        (404, anthropic.NotFoundError),
        (429, anthropic.RateLimitError),
        (500, anthropic.InternalServerError),
    ],
)
def test_anthropic_raises_openai_s_errors(
    server: AnswerServer, status: int, expected: type[anthropic.APIStatusError]
) -> None:
    url = failing(
        server, between("anthropic"), status, {"error": {"message": "the reason why", "type": "t", "code": "c"}}
    )
    with anthropic.Anthropic(base_url=url, api_key="k", max_retries=0) as client, pytest.raises(expected) as caught:
        client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "Hi"}])
    assert "the reason why" in caught.value.message


def test_an_error_in_mid_stream_is_raised(server: AnswerServer) -> None:
    stream = between("openai").stream()
    begun = stream.feed(b'data: {"type":"message_start","message":{"id":"msg_1","content":[]}}\n\n')
    failed = stream.feed(b'data: {"type":"error","error":{"type":"overloaded_error","message":"too many"}}\n\n')
    url = server.prepare(200, SSE, begun + failed)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k") as client, pytest.raises(openai.APIError, match="too many"):
        list(client.chat.completions.create(model="m", messages=[{"role": "user", "content": "Hi"}], stream=True))
    other = between("anthropic").stream()
    begun = other.feed(b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"a"}}]}\n\n')
    failed = other.feed(b'data: {"error":{"message":"too many"}}\n\n')
    url = server.prepare(200, SSE, begun + failed)
    with (
        anthropic.Anthropic(base_url=url, api_key="k") as messages,
        pytest.raises(anthropic.APIStatusError, match="too many"),
    ):
        list(
            messages.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "Hi"}], stream=True)
        )
