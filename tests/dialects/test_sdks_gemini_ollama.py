"""The official clients of Gemini and Ollama, unpatched, against the very bytes of our refusals, cuts and errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest
from google import genai
from google.genai import errors, types

from meshd.dialects.table import DIALECTS
from meshd.refusal import TABLE, Reason, Refused, refusal_headers
from tests.dialects.server import AnswerServer, serving

MESSAGES = [{"role": "user", "content": "Is it foggy?"}]
MESSAGE = "workflow w-1 of agent scout: used 50,000 of 50,000; ask the team"
NO = Refused(Reason.BUDGET_EXHAUSTED, MESSAGE)
PATH = "/v1beta/models/m:streamGenerateContent"


@pytest.fixture(scope="module")
def server() -> Iterator[AnswerServer]:
    yield from serving()


def prepare(server: AnswerServer, dialect: str, reason: Reason) -> str:
    no = Refused(reason, MESSAGE)
    content_type, body = DIALECTS[dialect].refusal_body(no, call_id="call-1")
    headers = [(b"content-type", content_type), *refusal_headers(no, call_id="call-1", workflow="w-1")]
    return server.prepare(no.status, headers, body)


def gemini(url: str) -> genai.Client:
    return genai.Client(api_key="k", http_options=types.HttpOptions(base_url=url))


def ask_gemini(url: str) -> Any:
    with gemini(url) as client:
        return client.models.generate_content(model="m", contents="Is it foggy?")


def stream_gemini(url: str) -> list[Any]:
    with gemini(url) as client:
        return list(client.models.generate_content_stream(model="m", contents="Is it foggy?"))


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.value)
def test_gemini_raises_a_refusal_with_its_code_and_status(server: AnswerServer, reason: Reason) -> None:
    url = prepare(server, "gemini", reason)
    kind = errors.ClientError if TABLE[reason].status < 500 else errors.ServerError
    for ask in (ask_gemini, stream_gemini):
        with pytest.raises(kind) as caught:
            ask(url)
        assert caught.value.code == TABLE[reason].status
        assert caught.value.message == MESSAGE
        assert caught.value.status not in (None, "UNKNOWN")
    assert server.asked(url) == 2


@pytest.mark.parametrize("reason", list(Reason), ids=lambda reason: reason.value)
def test_ollama_raises_a_refusal_with_its_message(server: AnswerServer, reason: Reason) -> None:
    url = prepare(server, "ollama", reason)
    client = ollama.Client(host=url)
    asks: list[Any] = [
        lambda: client.chat(model="m", messages=MESSAGES),
        lambda: list(client.chat(model="m", messages=MESSAGES, stream=True)),
        lambda: client.embed(model="m", input="x"),
    ]
    for ask in asks:
        with pytest.raises(ollama.ResponseError) as caught:
            ask()
        assert caught.value.status_code == TABLE[reason].status
        assert caught.value.error == MESSAGE
    assert server.asked(url) == 3


def gemini_stream(server: AnswerServer, *, is_error: bool) -> str:
    dialect: Any = DIALECTS["gemini"]
    meter = dialect.meter(dialect.read("chat", b'{"contents":[]}', PATH))
    words = {"candidates": [{"content": {"parts": [{"text": "Thick "}], "role": "model"}}], "modelVersion": "m-1"}
    events = [b"data: " + json.dumps(words | {"responseId": "r-1"}).encode() + b"\r\n\r\n"] * 2
    for event in events:
        meter.read_event(event)
    end = meter.error_event(NO) if is_error else meter.cut(is_event_forwarded=True)
    return server.prepare(200, [(b"content-type", b"text/event-stream")], b"".join(events) + end)


def test_gemini_reads_a_cut_as_the_end_for_length(server: AnswerServer) -> None:
    url = gemini_stream(server, is_error=False)
    chunks = stream_gemini(url)
    assert "".join(chunk.text or "" for chunk in chunks) == "Thick Thick "
    assert chunks[-1].candidates[0].finish_reason is types.FinishReason.MAX_TOKENS
    assert chunks[-1].usage_metadata.candidates_token_count > 0

    async def read() -> Any:
        async with gemini(url).aio as client:
            return [one async for one in await client.models.generate_content_stream(model="m", contents="x")]

    assert asyncio.run(read())[-1].candidates[0].finish_reason is types.FinishReason.MAX_TOKENS


def test_gemini_raises_an_error_event(server: AnswerServer) -> None:
    url = gemini_stream(server, is_error=True)
    with pytest.raises(errors.ClientError) as caught:
        stream_gemini(url)
    assert (caught.value.code, caught.value.status) == (402, "RESOURCE_EXHAUSTED")
    assert caught.value.message == MESSAGE
    assert server.asked(url) == 1


def ollama_stream(server: AnswerServer, *, is_error: bool, is_generate: bool = False) -> str:
    dialect = DIALECTS["ollama"]
    asked = {"model": "m", "prompt": "x"} if is_generate else {"model": "m", "messages": MESSAGES}
    meter = dialect.meter(dialect.read("chat", json.dumps(asked).encode()))
    said = {"response": "Thick "} if is_generate else {"message": {"role": "assistant", "content": "Thick "}}
    line = {"model": "m", "created_at": "2026-03-01T06:00:00Z", "done": False} | said
    lines = [json.dumps(line).encode() + b"\n"] * 2
    for each in lines:
        meter.read_event(each)
    end = meter.error_event(NO) if is_error else meter.cut(is_event_forwarded=True)
    return server.prepare(200, [(b"content-type", b"application/x-ndjson")], b"".join(lines) + end)


def test_ollama_reads_a_cut_as_the_end_for_length(server: AnswerServer) -> None:
    url = ollama_stream(server, is_error=False)
    parts = list(ollama.Client(host=url).chat(model="m", messages=MESSAGES, stream=True))
    assert "".join(part.message.content or "" for part in parts) == "Thick Thick "
    assert (parts[-1].done, parts[-1].done_reason) == (True, "length")
    assert (parts[-1].eval_count or 0) > 0
    url = ollama_stream(server, is_error=False, is_generate=True)
    pieces = list(ollama.Client(host=url).generate(model="m", prompt="x", stream=True))
    assert "".join(piece.response for piece in pieces) == "Thick Thick "
    assert pieces[-1].done_reason == "length"

    async def read() -> Any:
        stream = await ollama.AsyncClient(host=ollama_stream(server, is_error=False)).chat(
            model="m", messages=MESSAGES, stream=True
        )
        return [part async for part in stream]

    assert asyncio.run(read())[-1].done_reason == "length"


def test_ollama_raises_an_error_line(server: AnswerServer) -> None:
    url = ollama_stream(server, is_error=True)
    with pytest.raises(ollama.ResponseError) as caught:
        list(ollama.Client(host=url).chat(model="m", messages=MESSAGES, stream=True))
    assert caught.value.error == MESSAGE


def look(place: str) -> str:
    """Look at a place.

    Args:
        place: where to look
    """
    return place


def test_what_the_clients_send_is_read(server: AnswerServer) -> None:
    url = gemini_stream(server, is_error=False)
    config = types.GenerateContentConfig(
        max_output_tokens=8,
        candidate_count=1,
        system_instruction="Be brief.",
        tools=[look, types.Tool(google_search=types.GoogleSearch())],
        thinking_config=types.ThinkingConfig(thinking_budget=0),
        response_mime_type="text/plain",
    )
    with gemini(url) as client:
        list(client.models.generate_content_stream(model="gemini-x", contents=["Where?"], config=config))
    dialect: Any = DIALECTS["gemini"]
    ask = dialect.read("chat", server.body(url), "/v1beta/models/gemini-x:streamGenerateContent")
    assert (ask.model, ask.is_stream, ask.output_cap) == ("gemini-x", True, 8)
    assert set(ask.tools) == {"look", "google_search"}
    url = ollama_stream(server, is_error=False)
    options = ollama.Options(num_predict=8, num_ctx=512)
    list(ollama.Client(host=url).chat(model="m", messages=MESSAGES, tools=[look], options=options, stream=True))
    ask = DIALECTS["ollama"].read("chat", server.body(url))
    assert (ask.model, ask.is_stream, ask.output_cap, ask.tools) == ("m", True, 8, ("look",))
