"""Where requests name prompts, in each dialect; what is left alone; and what is put in their places."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.prompts.finding import MARK, NOTHING, REFERENCES_MAX, Path, find, replaced
from meshd.refusal import Reason, Refused

ROLES = frozenset({"system", "developer", "user"})
REF = "prompt://summarise@^1"
PART = {"text": REF}


def message(role: str, content: Any = REF) -> dict[str, Any]:
    return {"role": role, "content": content}


def part(text: str = REF, kind: str = "text") -> dict[str, Any]:
    return {"type": kind, "text": text}


def paths(dialect: str, operation: str, body: dict[str, Any], roles: frozenset[str] = ROLES) -> list[Path]:
    return [place.path for place in find(dialect, operation, json.dumps(body).encode(), roles).places]


@pytest.mark.parametrize(
    ("dialect", "operation", "body", "found"),
    [
        ("openai", "chat", {"messages": [message("system"), message("developer"), message("user")]},
         [("messages", 0, "content"), ("messages", 1, "content"), ("messages", 2, "content")]),
        ("openai", "chat", {"messages": [message("user", [part("hi"), part()])]},
         [("messages", 0, "content", 1, "text")]),
        ("openai", "responses", {"input": REF, "instructions": REF}, [("instructions",), ("input",)]),
        ("openai", "responses", {"input": [message("user"), message("user", [part(kind="input_text")])]},
         [("input", 0, "content"), ("input", 1, "content", 0, "text")]),
        ("openai", "compaction", {"input": [message("user")], "instructions": REF},
         [("instructions",), ("input", 0, "content")]),
        ("openai", "text_completion", {"prompt": REF}, [("prompt",)]),
        ("openai", "text_completion", {"prompt": ["x", REF]}, [("prompt", 1)]),
        ("anthropic", "chat", {"system": REF, "messages": [message("user", [part()])]},
         [("system",), ("messages", 0, "content", 0, "text")]),
        ("anthropic", "chat", {"system": [part("x"), part() | {"cache_control": {"type": "ephemeral"}}]},
         [("system", 1, "text")]),
        ("gemini", "chat", {"systemInstruction": {"parts": [{"text": REF}]}, "contents": [{"parts": [{"text": REF}]}]},
         [("systemInstruction", "parts", 0, "text"), ("contents", 0, "parts", 0, "text")]),
        ("gemini", "chat", {"system_instruction": {"parts": {"text": REF}}, "contents": {"parts": PART}},
         [("system_instruction", "parts", "text"), ("contents", "parts", "text")]),
        ("gemini", "chat", {"systemInstruction": REF, "contents": []}, [("systemInstruction",)]),
        ("ollama", "chat", {"messages": [message("system"), message("user")]},
         [("messages", 0, "content"), ("messages", 1, "content")]),
        ("ollama", "chat", {"system": REF, "prompt": REF}, [("system",), ("prompt",)]),
    ],
)  # fmt: skip
def test_where_prompts_are_named(dialect: str, operation: str, body: dict[str, Any], found: list[Path]) -> None:
    assert paths(dialect, operation, body) == found
    raw = json.dumps(body).encode()
    changed = json.loads(replaced(raw, dict.fromkeys(found, 'He said "no".\n{{x}} \u2028')))
    for path in found:
        here, there = changed, body
        for step in path:
            here, there = here[step], there[step]
        assert (here, there) == ('He said "no".\n{{x}} \u2028', REF)
    # Nothing else has changed.
    back = json.loads(replaced(json.dumps(changed).encode(), dict.fromkeys(found, REF)))
    assert back == body


@pytest.mark.parametrize(
    ("dialect", "operation", "body"),
    [
        ("openai", "chat", {"messages": [message("assistant"), message("tool"), message("function")]}),
        ("openai", "chat", {"messages": [message("user", f"What is {REF}?"), message("user", f" {REF}")]}),
        ("openai", "chat", {"messages": [message("user", [{"type": "image_url", "image_url": {"url": REF}}])]}),
        ("openai", "chat", {"messages": [{"content": REF}], "model": REF, "user": REF, "metadata": {"a": REF}}),
        ("openai", "embeddings", {"input": REF}),
        ("openai", "text_completion", {"prompt": f"What is {REF}?", "suffix": REF}),
        ("openai", "text_completion", {"prompt": [[1, 2], 3], "user": REF}),
        ("openai", "moderation", {"input": REF}),
        ("openai", "responses", {"input": [{"type": "function_call_output", "output": REF}]}),
        ("anthropic", "chat", {"messages": [message("assistant"), message("user", [
            {"type": "tool_result", "content": [part()]}])]}),
        ("gemini", "chat", {"contents": [{"role": "model", "parts": [{"text": REF}]}]}),
        ("gemini", "embeddings", {"content": {"parts": [{"text": REF}]}}),
        ("ollama", "embeddings", {"input": REF}),
    ],
)  # fmt: skip
def test_what_is_left_alone(dialect: str, operation: str, body: dict[str, Any]) -> None:
    assert find(dialect, operation, json.dumps(body).encode(), ROLES) is NOTHING


def test_only_messages_of_the_roles_that_the_policy_names() -> None:
    body = {"messages": [message("system"), message("user")], "system": REF, "prompt": REF, "input": REF}
    only = frozenset({"system"})
    assert paths("openai", "chat", body, only) == [("messages", 0, "content")]
    assert paths("anthropic", "chat", body, only) == [("system",), ("messages", 0, "content")]
    assert paths("openai", "responses", body, only) == []
    del body["messages"]
    assert paths("ollama", "chat", body, only) == [("system",)]
    assert paths("gemini", "chat", {"contents": [{"parts": [{"text": REF}]}]}, only) == []


def test_slashes_may_be_escaped() -> None:
    body = rb'{"messages":[{"role":"user","content":"prompt:\/\/summarise@^1?topic=x"}]}'
    assert MARK in body
    (place,) = find("openai", "chat", body, ROLES).places
    assert place.reference.variables == {"topic": "x"}


def test_values_beside_the_messages() -> None:
    body = rb'{"messages":[{"role":"user","content":"prompt://a"}],"prompt_variables":{"t":"\u00fc","n":1.50,"b":true}}'
    found = find("openai", "chat", body, ROLES)
    assert found.variables == {"t": "ü", "n": "1.50", "b": "true"}
    assert json.loads(replaced(body, {("messages", 0, "content"): "x"})) == {"messages": [message("user", "x")]}


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"messages": [message("user", "prompt://Bad")]}, r"messages\[0\]\.content is no reference to a prompt: 'Bad'"),
        ({"messages": [message("user", "prompt://a@^^")]}, "no range"),
        ({"messages": [message("user")] * (REFERENCES_MAX + 1)}, "names 65 prompts"),
        ({"messages": [message("user")], "prompt_variables": []}, "prompt_variables"),
        ({"messages": [message("user")], "prompt_variables": {"a": None}}, "must be a text, a number"),
        ({"messages": [message("user")], "prompt_variables": {"a": {}}}, "must be a text, a number"),
        ({"messages": [message("user")], "prompt_variables": {"a b": "x"}}, "no name of a variable"),
        ({"messages": [message("user")], "prompt_variables": {f"a{n}": "" for n in range(65)}}, "65 variables"),
    ],
)
def test_what_is_wrong(body: dict[str, Any], word: str) -> None:
    with pytest.raises(Refused, match=word) as caught:
        find("openai", "chat", json.dumps(body).encode(), ROLES)
    assert caught.value.reason is Reason.MALFORMED


def test_a_member_that_stands_twice_is_refused() -> None:
    body = b'{"messages":[{"role":"user","content":"prompt://a","content":"b"}]}'
    with pytest.raises(Refused, match="more than once"):
        find("openai", "chat", body, ROLES)


@given(st.text(), st.text())
def test_a_text_of_any_sort_is_put_in_its_place_and_no_other(text: str, other: str) -> None:
    body = json.dumps({"a": other, "messages": [message("user", other), message("user")]}).encode()
    try:
        text.encode()
        other.encode()
    except UnicodeEncodeError:
        return
    changed = json.loads(replaced(body, {("messages", 1, "content"): text}))
    assert changed == {"a": other, "messages": [message("user", other), message("user", text)]}


@given(st.binary(max_size=200))
def test_nonsense_is_refused_or_names_nothing(junk: bytes) -> None:
    for dialect in ("openai", "anthropic", "gemini", "ollama"):
        for body in (junk, b'{"messages":' + junk + b"}", b'{"contents":[{"parts":' + junk + b"}]}"):
            with contextlib.suppress(Refused):
                find(dialect, "chat", body, ROLES)
