"""What is counted of a request: every text that its model reads, and never less than the published way of counting."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.dialects.anthropic import Anthropic
from meshd.dialects.openai import OpenAI
from meshd.tokens.counter import Counter, whole
from meshd.tokens.encodings import encoding_of
from tests.tokens.texts import any_text, encode

DIALECT = OpenAI()
COUNTER = Counter(load=encode)


def read(body: dict[str, Any], operation: str = "chat") -> Any:
    return DIALECT.read(operation, json.dumps(body).encode())


def counted(body: dict[str, Any], operation: str = "chat") -> int:
    ask = read(body, operation)
    found = DIALECT.texts(ask)
    assert found is not None
    assert len(found.parts) == len(found.labels)
    counts = COUNTER.count_here(encoding_of(body["model"]), found.parts)
    assert counts is not None
    return sum(counts) + found.overhead


def published(messages: list[dict[str, str]], model: str) -> int:
    """The cookbook's count of a chat."""
    encoder = encode(encoding_of(model))
    tokens = 3
    for message in messages:
        tokens += 3 + ("name" in message) + sum(len(encoder(value)) for value in message.values())
    return tokens


messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant"]), "content": any_text.map(whole)},
        optional={"name": st.text("abcz_", min_size=1, max_size=9)},
    ),
    max_size=5,
)


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4-turbo", "gpt-5.2", "gpt-3.5-turbo", "gpt-oss:20b"])
@given(given=messages, is_ascii=st.booleans())
@settings(max_examples=80)
def test_a_count_lies_between_the_published_one_and_the_bytes(
    model: str, given: list[dict[str, str]], is_ascii: bool
) -> None:
    body = json.dumps({"model": model, "messages": given}, ensure_ascii=is_ascii).encode()
    ask = DIALECT.read("chat", body)
    found = DIALECT.texts(ask)
    assert found is not None
    counts = COUNTER.count_here(encoding_of(model), found.parts)
    assert counts is not None
    total = sum(counts) + found.overhead
    assert published(given, model) <= total
    assert published(given, model) <= ask.input_bound
    # On English the count is what makes a budget usable.
    english = read({"model": model, "messages": [{"role": "user", "content": "a word of English text " * 200}]})
    assert counted(
        {"model": model, "messages": [{"role": "user", "content": "a word of English text " * 200}]}
    ) * 3.5 < (english.input_bound)


TEXT = "a word of English text " * 20
BASE = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}]}


@pytest.mark.parametrize(
    "members",
    [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": TEXT}]}]},
        {"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": TEXT}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "extra": TEXT}]}]},
        {"messages": [{"role": TEXT, "content": "x"}]},
        {"messages": [{"role": "user", "name": TEXT}]},
        {"messages": [{"role": "assistant", "refusal": TEXT}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": TEXT}}]}]},
        {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": TEXT}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "description": TEXT}}]},
        {"functions": [{"name": "f", "description": TEXT}]},
        {"response_format": {"type": "json_schema", "json_schema": {"name": TEXT}}},
        {"prediction": {"type": "content", "content": TEXT}},
        {"something_new": TEXT},
        {"documents": [{"text": TEXT}]},
    ],
)
def test_no_text_is_left_out(members: dict[str, Any]) -> None:
    assert counted(BASE | members) > counted(BASE) + 90


def test_tools_and_formats_bring_their_hidden_prompts() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    assert counted(BASE | {"tools": [tool]}) > counted(BASE) + 256
    assert counted(BASE | {"response_format": {"type": "json_object"}}) > counted(BASE) + 256
    many = counted(BASE | {"tools": [tool] * 20}) - counted(BASE | {"tools": [tool]})
    assert many >= 19 * (16 + 10)


def test_images_are_counted_at_their_most_and_not_as_text() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    found = counted({"model": "gpt-4o", "messages": [{"role": "user", "content": [part]}]})
    assert 1_445 < found < 1_800


@pytest.mark.parametrize(
    ("given", "least", "most"),
    [
        ("a b c", 3, 8),
        (["a", "b"], 2, 8),
        ([1, 2, 3], 3, 8),
        ([[1, 2], [3]], 3, 8),
        ("", 0, 4),
        ([], 0, 4),
    ],
)
def test_embeddings(given: Any, least: int, most: int) -> None:
    assert least <= counted({"model": "text-embedding-3-small", "input": given}, "embeddings") <= most


def test_what_cannot_be_told_apart_is_not_counted() -> None:
    # A key twice where nothing decides is forwarded as it is; which of the two is read is not known.
    ask = DIALECT.read("chat", b'{"model":"gpt-4o","messages":[{"role":"user","content":"a","content":"b"}]}')
    assert DIALECT.texts(ask) is None
    assert DIALECT.texts(DIALECT.read("chat", b'{"model":"gpt-4o","tools":[]}')) is not None


def test_no_count_for_tokenizers_that_nobody_published() -> None:
    assert not hasattr(Anthropic(), "texts")
    assert encoding_of("claude-opus-5-5") == ""
