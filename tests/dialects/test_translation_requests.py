"""Requests, translated both ways: what maps to what, and what is refused before it is sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from meshd.dialects.translation import translation
from meshd.dialects.translation_models import cap_default, claude_version, is_reasoning, takes_sampling
from tests.dialects.translating import USER, between, body_of, read, sent, why_not

OBJECT = {"type": "object", "properties": {"harbour": {"type": "string"}}}
CLOSED = OBJECT | {"required": ["harbour"], "additionalProperties": False}
CHAT_TOOL = {"type": "function", "function": {"name": "tides", "parameters": OBJECT}}
MESSAGE_TOOL = {"name": "tides", "input_schema": OBJECT}
CALL = {"id": "call_1", "type": "function", "function": {"name": "tides", "arguments": '{"harbour":"Brest"}'}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "tides", "input": {"harbour": "Brest"}}
SYSTEM = {"role": "system", "content": "A"}
TOOL = {"role": "tool", "tool_call_id": "call_1", "content": ""}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1"}
THOUGHT = {"type": "thinking", "thinking": "Fog.", "signature": "c2ln"}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **members: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content} | members


def test_only_chat_between_the_two_is_translated() -> None:
    assert translation("openai", "anthropic", "chat") is not None
    assert translation("anthropic", "openai", "chat") is not None
    for one, other, operation in [
        ("openai", "openai", "chat"), ("openai", "gemini", "chat"), ("gemini", "anthropic", "chat"),
        ("openai", "anthropic", "responses"), ("openai", "anthropic", "embeddings"), ("plain", "openai", "chat"),
    ]:  # fmt: skip
        assert translation(one, other, operation) is None
    assert between("openai") is not between("openai")


def test_headers() -> None:
    to_anthropic, to_openai = between("openai"), between("anthropic")
    assert to_anthropic.headers_added == [(b"anthropic-version", b"2023-06-01")]
    assert to_openai.headers_added == []
    for one in (to_anthropic, to_openai):
        # The caller's credentials are for another provider.
        assert one.headers_dropped >= {b"authorization", b"x-api-key"}
        assert one.content_type == b"application/json"
    assert b"anthropic-version" in to_openai.headers_dropped


@pytest.mark.parametrize(("caller", "path"), [("openai", "/v1/messages"), ("anthropic", "/v1/chat/completions")])
def test_path_and_model(caller: str, path: str) -> None:
    ask, body = read(caller, body_of(caller))
    where, written = between(caller).request(ask, body, model="another-model", output_cap=None)
    assert where == path
    assert json.loads(written)["model"] == "another-model"


# -- members of a request, one at a time: (members of the caller's, members of what is sent)

TO_ANTHROPIC: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"messages": [user([text("Is it foggy?")])], "max_tokens": 16_384, "system": ..., "stream": ...}),
    ({"max_tokens": 9}, {"max_tokens": 9}),
    ({"max_completion_tokens": 9}, {"max_tokens": 9}),
    ({"stop": None}, {"stop_sequences": ...}),
    ({"stop": "END"}, {"stop_sequences": ["END"]}),
    ({"stop": ["A", "B"]}, {"stop_sequences": ["A", "B"]}),
    ({"temperature": 0}, {"temperature": 0}),
    ({"temperature": 1.7}, {"temperature": 1}),
    ({"top_p": 0.5}, {"top_p": 0.5, "temperature": ...}),
    ({"top_p": 0.5, "temperature": 1}, {"top_p": 0.5, "temperature": ...}),
    ({"top_p": 0.5, "temperature": 0.2}, {"top_p": ..., "temperature": 0.2}),
    ({"stream": True}, {"stream": True}),
    ({"stream": True, "stream_options": {"include_usage": True}}, {"stream": True, "stream_options": ...}),
    ({"reasoning_effort": "medium"}, {"output_config": {"effort": "medium"}}),
    ({"reasoning_effort": "utmost"}, {"output_config": ...}),
    ({"reasoning_effort": "xhigh"}, {"output_config": {"effort": "high"}}),
    ({"response_format": {"type": "text"}}, {"output_config": ...}),
    ({"tools": [], "tool_choice": "auto", "parallel_tool_calls": True}, {"tools": ..., "tool_choice": ...}),
    ({"tools": [CHAT_TOOL]}, {"tools": [MESSAGE_TOOL], "tool_choice": ...}),
    ({"tools": [CHAT_TOOL], "tool_choice": "auto"}, {"tool_choice": {"type": "auto"}}),
    ({"tools": [CHAT_TOOL], "tool_choice": "none"}, {"tool_choice": {"type": "none"}}),
    ({"tools": [CHAT_TOOL], "tool_choice": "none", "parallel_tool_calls": False}, {"tool_choice": {"type": "none"}}),
    ({"tools": [CHAT_TOOL], "tool_choice": "required"}, {"tool_choice": {"type": "any"}}),
    (
        {"tools": [CHAT_TOOL], "tool_choice": {"type": "function", "function": {"name": "tides"}}},
        {"tool_choice": {"type": "tool", "name": "tides"}},
    ),
    (
        {"tools": [CHAT_TOOL], "parallel_tool_calls": False},
        {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
    ),
    (
        {"user": "u", "metadata": {"a": "b"}, "seed": 7, "store": True, "service_tier": "flex", "logprobs": False,
         "n": 1, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "audio": None,
         "modalities": ["text"], "verbosity": "low", "prompt_cache_key": "k", "top_logprobs": 0, "functions": None},
        {"metadata": ..., "user": ..., "service_tier": ...},
    ),
    (
        {"messages": [{"role": "system", "content": "A"}, {"role": "developer", "content": [text("B")]}, USER]},
        {"system": [text("A"), text("B")], "messages": [user([text("Is it foggy?")])]},
    ),
    # A later one is hoisted; what stood around it becomes one turn.
    (
        {"messages": [USER, {"role": "system", "content": "A"}, user("Well?")]},
        {"system": [text("A")], "messages": [user([text("Is it foggy?"), text("Well?")])]},
    ),
    # What says nothing is left out.
    (
        {"messages": [user([text(" "), text("Hi")]), assistant(""), assistant(None), user("Well?")]},
        {"messages": [user([text("Hi"), text("Well?")])]},
    ),
    # A history with calls, and no tools: they are defined, and may not be called.
    (
        {"messages": [USER, assistant(None, tool_calls=[CALL]), TOOL]},
        {
            "messages": [
                user([text("Is it foggy?")]),
                assistant([{"type": "tool_use", "id": "call_1", "name": "tides", "input": {"harbour": "Brest"}}]),
                user([{"type": "tool_result", "tool_use_id": "call_1"}]),
            ],
            "tools": [{"name": "tides", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "none"},
        },
    ),
]  # fmt: skip

TO_OPENAI: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"messages": [USER], "max_completion_tokens": 100, "max_tokens": ..., "stream": ..., "stream_options": ...}),
    ({"stop_sequences": ["A"]}, {"stop": ["A"]}),
    ({"temperature": 0.3, "top_p": 0.5, "top_k": 4}, {"temperature": 0.3, "top_p": 0.5, "top_k": ...}),
    ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
    ({"system": "A"}, {"messages": [{"role": "system", "content": "A"}, USER]}),
    ({"system": [text("A")]}, {"messages": [{"role": "system", "content": "A"}, USER]}),
    ({"system": []}, {"messages": [USER]}),
    ({"messages": [USER, SYSTEM]}, {"messages": [USER, SYSTEM]}),
    ({"tools": [], "tool_choice": {"type": "auto"}}, {"tools": ..., "tool_choice": ...}),
    ({"tools": [MESSAGE_TOOL]}, {"tools": [CHAT_TOOL], "tool_choice": ..., "parallel_tool_calls": ...}),
    ({"tools": [MESSAGE_TOOL], "tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
    ({"tools": [MESSAGE_TOOL], "tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
    (
        {"tools": [MESSAGE_TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        {"tool_choice": "auto", "parallel_tool_calls": False},
    ),
    ({"tools": [MESSAGE_TOOL | {"type": "custom", "strict": False}]}, {"tools": [CHAT_TOOL]}),
    (
        {"tools": [MESSAGE_TOOL | {"strict": True, "input_schema": CLOSED}]},
        {"tools": [{"type": "function", "function": {"name": "tides", "parameters": CLOSED, "strict": True}}]},
    ),
    ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, {"thinking": ...}),
    ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"thinking": ...}),
    (
        {"metadata": {"user_id": "u"}, "service_tier": "auto", "speed": "fast", "cache_control": {"type": "ephemeral"},
         "container": None, "mcp_servers": [], "context_management": None},
        {"metadata": ..., "service_tier": ..., "container": ...},
    ),
    # Thinking of a turn that is over is not needed any more.
    (
        {"messages": [USER, assistant([THOUGHT, text("Yes.")]), user("Well?")]},
        {"messages": [USER, assistant("Yes."), user("Well?")]},
    ),
    (
        {"messages": [USER, assistant([USE]), user([RESULT])]},
        {
            "messages": [
                USER,
                assistant(None, tool_calls=[CALL | {"id": "toolu_1"}]),
                TOOL | {"tool_call_id": "toolu_1"},
            ]
        },
    ),
    (
        {"messages": [USER, assistant([USE]), user([RESULT | {"content": "no", "is_error": True}])]},
        {
            "messages": [
                USER,
                assistant(None, tool_calls=[CALL | {"id": "toolu_1"}]),
                {"role": "tool", "tool_call_id": "toolu_1", "content": "Error: no"},
            ]
        },
    ),
]  # fmt: skip


def check_members(caller: str, members: dict[str, Any], expected: dict[str, Any]) -> None:
    made = sent(caller, body_of(caller, **members))
    for name, value in expected.items():
        assert made.get(name, ...) == value, name


@pytest.mark.parametrize(("members", "expected"), TO_ANTHROPIC, ids=str)
def test_chat_completions_as_messages(members: dict[str, Any], expected: dict[str, Any]) -> None:
    check_members("openai", members, expected)


@pytest.mark.parametrize(("members", "expected"), TO_OPENAI, ids=str)
def test_messages_as_chat_completions(members: dict[str, Any], expected: dict[str, Any]) -> None:
    check_members("anthropic", members, expected)


# -- what depends on the model


def test_a_model_that_cannot_be_held_to_a_schema_is_not_asked_to() -> None:
    strict = {"type": "function", "function": {"name": "tides", "parameters": CLOSED, "strict": True}}
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": CLOSED}}
    for members in ({"tools": [strict]}, {"response_format": schema}):
        asked = body_of("openai", **members)
        assert why_not("openai", asked) == ""
        assert why_not("openai", asked, "claude-haiku-4-5-20251001") == ""
        assert "claude-sonnet-4-20250514" in why_not("openai", asked, "claude-sonnet-4-20250514")


def test_sampling_is_left_out_for_models_that_refuse_it() -> None:
    asked = body_of("openai", temperature=0.5, reasoning_effort="low")
    assert "temperature" not in sent("openai", asked, "claude-opus-5-5")
    assert "temperature" not in sent("openai", asked, "a-model-of-the-house")
    assert sent("openai", asked, "claude-sonnet-4-5")["temperature"] == 0.5
    assert "output_config" not in sent("openai", asked, "claude-sonnet-4-5")
    asked = body_of("anthropic", temperature=0.5, output_config={"effort": "max"})
    assert sent("anthropic", asked, "gpt-5.4").get("temperature") is None
    assert sent("anthropic", asked, "gpt-5.4")["reasoning_effort"] == "high"
    assert sent("anthropic", asked, "gpt-5-chat-latest")["temperature"] == 0.5


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("claude-opus-4-7", (4, 7)),
        ("claude-sonnet-4-20250514", (4, 0)),
        ("claude-3-5-haiku-20241022", (3, 5)),
        ("claude-haiku-4-5-20251001", (4, 5)),
        ("us.anthropic.claude-opus-4-6-v1", (4, 6)),
        ("anthropic/claude-fable-5.1", (5, 1)),
        ("claude-mythos-preview", (0, 0)),
        ("gpt-4o", (0, 0)),
    ],
)
def test_versions_of_claude(model: str, version: tuple[int, int]) -> None:
    assert claude_version(model) == version
    assert takes_sampling(model) == ((0, 0) < version < (4, 7))
    assert cap_default(model) == (16_384 if version >= (4, 0) else 4_096)


def test_reasoning_models_of_openai() -> None:
    assert all(is_reasoning(model) for model in ("o1", "o3-mini", "o4-mini", "gpt-5", "gpt-5.4-mini", "gpt-6.1"))
    assert not any(is_reasoning(model) for model in ("gpt-4o", "gpt-4.1", "gpt-5-chat-latest", "gpt-oss-120b", "qwen3"))


@pytest.mark.parametrize(("own", "granted", "asked_for"), [(None, 50, 50), (80, 50, 50), (80, 90, 80), (80, None, 80)])
def test_the_smaller_cap_is_asked_for(own: int | None, granted: int | None, asked_for: int) -> None:
    assert sent("openai", body_of("openai", max_tokens=own), output_cap=granted)["max_tokens"] == asked_for
    if own is not None:
        asked = body_of("anthropic", max_tokens=own)
        assert sent("anthropic", asked, output_cap=granted)["max_completion_tokens"] == asked_for
        # The older name is the one that every other server knows.
        assert sent("anthropic", asked, "qwen3", output_cap=granted)["max_tokens"] == asked_for


# -- ids


@pytest.mark.parametrize("given", ["functions.tides:0", "a" * 41, "", "call 1", "é"])
def test_an_id_that_does_not_fit_is_the_same_one_for_the_call_and_its_result(given: str) -> None:
    history = [USER, assistant(None, tool_calls=[CALL | {"id": given}])]
    history += [{"role": "tool", "tool_call_id": given, "content": "5"}]
    made = sent("openai", body_of("openai", messages=history))["messages"]
    use, result = made[1]["content"][0], made[2]["content"][0]
    assert use["id"] == result["tool_use_id"]
    assert use["id"].startswith("toolu_")
    assert use["id"].removeprefix("toolu_").isalnum()


def test_arguments_keep_what_no_number_of_a_parser_can_hold() -> None:
    written = '{"a": 123456789012345678901234567890, "b": 0.10, "b2": 1e400}'
    history = [USER, assistant(None, tool_calls=[CALL | {"function": {"name": "tides", "arguments": written}}])]
    ask, body = read(
        "openai", body_of("openai", messages=[*history, {"role": "tool", "tool_call_id": "call_1", "content": "5"}])
    )
    _, made = between("openai").request(ask, body, model="claude-sonnet-4-6", output_cap=None)
    assert written.encode() in made


@pytest.mark.parametrize("caller", ["openai", "anthropic"])
def test_a_schema_as_deep_as_a_parser_goes_is_translated_or_refused(caller: str) -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(300):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"], "additionalProperties": False}
    tool = {"name": "tides", "strict": True}
    if caller == "openai":
        asked = body_of("openai", tools=[{"type": "function", "function": tool | {"parameters": deep}}])
    else:
        asked = body_of("anthropic", tools=[tool | {"input_schema": deep}])
    reason = why_not(caller, asked)
    assert reason == "" or "schema" in reason or "nested" in reason
