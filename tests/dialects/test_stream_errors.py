"""An error that comes within an answer: the status that it stands for, in the words of each provider."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.dialects.stream_errors import status_of, status_of_word
from meshd.dialects.table import DIALECTS
from meshd.wire import event_stream
from tests.wire.frames import chunk

REQUEST = {"model": "m", "max_tokens": 10, "stream": True, "messages": [{"role": "user", "content": "go"}]}
ANTHROPIC, CHAT, RESPONSES, IMAGES = "/v1/messages", "/v1/chat/completions", "/v1/responses", "/v1/images/generations"
GEMINI, OLLAMA = "/v1/models/m:streamGenerateContent?alt=sse", "/api/chat"
BEDROCK = "/model/anthropic.m/invoke-with-response-stream"
CASES: dict[str, tuple[str, str, dict[str, Any], int]] = {
    "overloaded": ("anthropic", ANTHROPIC, {"type": "error", "error": {"type": "overloaded_error"}}, 529),
    "rate": ("anthropic", ANTHROPIC, {"type": "error", "error": {"type": "rate_limit_error"}}, 429),
    "of another kind": ("anthropic", ANTHROPIC, {"type": "error", "error": {"type": "api_error"}}, 0),
    "none": ("anthropic", ANTHROPIC, {"type": "error"}, 0),
    "no object": ("anthropic", ANTHROPIC, {"type": "error", "error": "overloaded_error"}, 0),
    "bedrock": ("bedrock", BEDROCK, {"type": "error", "error": {"type": "overloaded_error"}}, 529),
    "chat": ("openai", CHAT, {"error": {"type": "service_unavailable_error", "code": "server_is_overloaded"}}, 529),
    "chat, full": ("openai", CHAT, {"error": {"type": "tokens", "code": "rate_limit_exceeded"}}, 429),
    "chat, broken": ("openai", CHAT, {"error": {"type": "server_error", "code": None}}, 0),
    "chat, a text": ("openai", CHAT, {"error": "overloaded_error"}, 0),
    "a gateway's number": ("openai", CHAT, {"error": {"code": 429, "message": "x"}, "choices": []}, 429),
    "another number of a gateway's": ("openai", CHAT, {"error": {"code": 502, "message": "x"}}, 0),
    "responses": (
        "openai", RESPONSES,
        {"type": "error", "error": {"type": "service_unavailable_error", "code": "server_is_overloaded"}}, 529,
    ),
    "responses, as documented": ("openai", RESPONSES, {"type": "error", "code": "rate_limit_exceeded"}, 429),
    "responses, failed": (
        "openai", RESPONSES,
        {"type": "response.failed", "response": {"status": "failed", "error": {"code": "rate_limit_exceeded"}}}, 429,
    ),
    "responses, failed otherwise": (
        "openai", RESPONSES,
        {"type": "response.failed", "response": {"status": "failed", "error": {"code": "server_error"}}}, 0,
    ),
    "images": ("openai", IMAGES, {"type": "error", "error": {"code": "rate_limit_exceeded"}}, 429),
    "gemini": ("gemini", GEMINI, {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}, 429),
    "gemini, away": ("gemini", GEMINI, {"error": {"code": 503, "status": "UNAVAILABLE"}}, 0),
    "ollama": ("ollama", OLLAMA, {"error": "the model is busy"}, 0),
}  # fmt: skip


def meter_of(name: str, path: str) -> Any:
    dialect: Any = DIALECTS[name]
    operation = dialect.recognise("POST", path)
    asked = REQUEST | {"contents": []} | ({"prompt": "x"} if path == IMAGES else {"input": "x"})
    meter = dialect.meter(dialect.read(operation, json.dumps(asked).encode(), path))
    if hasattr(meter, "splitter_for"):
        meter.splitter_for(b"text/event-stream", 1 << 20)
    return meter


@pytest.mark.parametrize("case", CASES)
def test_the_status_that_it_stands_for(case: str) -> None:
    name, path, event, status = CASES[case]
    meter = meter_of(name, path)
    assert meter.error_status == 0
    if name == "bedrock":
        raw = chunk(event)
    else:
        raw = json.dumps(event).encode() + b"\n"
        raw = raw if name == "ollama" else b"data: " + raw + b"\n"
    assert meter.read_event(raw) is not None
    assert meter.error_status == status
    assert meter.is_terminal is False


def test_an_exception_of_amazons() -> None:
    meter = meter_of("bedrock", BEDROCK)
    headers = {":exception-type": "throttlingException", ":message-type": "exception"}
    meter.read_event(event_stream.encode(headers, b'{"message": "Too many tokens"}'))
    assert (meter.error_status, meter.is_terminal) == (429, False)


NONSENSE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner)
    | st.dictionaries(st.sampled_from(["code", "type", "status", "x"]), inner), max_leaves=8,
)  # fmt: skip


@given(NONSENSE)
def test_nonsense_stands_for_nothing(error: Any) -> None:
    assert status_of(error) in (0, 429, 529)
    assert status_of_word(error) in (0, 429, 529)
