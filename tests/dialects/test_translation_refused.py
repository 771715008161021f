"""Requests that are not translated: what would be lost silently is a reason, before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.dialects.translation import TranslationError
from tests.dialects.test_translation_requests import (
    CALL,
    CHAT_TOOL,
    CLOSED,
    MESSAGE_TOOL,
    OBJECT,
    RESULT,
    THOUGHT,
    USE,
    assistant,
    user,
)
from tests.dialects.translating import USER, between, body_of, read, why_not


def calling(call: Any) -> dict[str, Any]:
    return {"messages": [USER, assistant(None, tool_calls=[call]), USER]}


def calling_with(arguments: str) -> dict[str, Any]:
    return calling(CALL | {"function": {"name": "f", "arguments": arguments}})


def strict(schema: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "tides", "parameters": schema, "strict": True}}]}


def answering(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}


def showing(image: Any) -> dict[str, Any]:
    return {"messages": [user([{"type": "image_url", "image_url": image}])]}


def saying(block: Any) -> dict[str, Any]:
    return {"messages": [user([block])]}


def having_said(*blocks: Any) -> dict[str, Any]:
    return {"messages": [USER, assistant(list(blocks)), user([RESULT])]}


NOT_TO_ANTHROPIC: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "'n'"),
    ({"logprobs": True}, "'logprobs'"),
    ({"top_logprobs": 2}, "'top_logprobs'"),
    ({"logit_bias": {"1": 5}}, "'logit_bias'"),
    ({"presence_penalty": 0.5}, "'presence_penalty'"),
    ({"modalities": ["text", "audio"]}, "'modalities'"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "'audio'"),
    ({"web_search_options": {"search_context_size": "low"}}, "'web_search_options'"),
    ({"moderation": {"model": "m"}}, "'moderation'"),
    ({"functions": [{"name": "tides"}]}, "'functions'"),
    ({"guided_json": {"type": "object"}}, "'guided_json'"),
    ({"response_format": {"type": "json_object"}}, "json_object"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "schema"),
    ({"stop": ["\n\n"]}, "blanks"),
    ({"stop": 5}, "'stop'"),
    ({"temperature": "hot"}, "'temperature'"),
    ({"tools": [{"type": "web_search"}]}, "web_search"),
    ({"tools": [{"type": "custom", "custom": {"name": "grammar"}}]}, "custom"),
    ({"tools": [{"type": "function", "function": {"name": "a.b"}}]}, "a.b"),
    ({"tools": [{"type": "function", "function": {"name": "a", "cost": 5}}]}, "'cost'"),
    ({"tools": [CHAT_TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice"),
    ({"tools": [CHAT_TOOL], "tool_choice": "perhaps"}, "tool_choice"),
    (strict(CLOSED | {"additionalProperties": True}), "schema"),
    (strict(CLOSED | {"properties": {"harbour": {"type": "string", "maxLength": 9}}}), "schema"),
    (answering(OBJECT), "schema"),
    (answering(CLOSED | {"$defs": {"a": {"type": "array", "items": {"type": "integer", "minimum": 1}}}}), "schema"),
    (answering({"anyOf": [CLOSED, {"type": "array", "minItems": 2}]}), "schema"),
    (answering(CLOSED | {"properties": {"harbour": {"$ref": "#"}}}), "schema"),
    ({"messages": ...}, "no messages"),
    ({"messages": []}, "nobody"),
    ({"messages": [user("")]}, "nobody"),
    ({"messages": [user(5)]}, "neither text nor parts"),
    ({"messages": [{"role": "system", "content": "A"}]}, "nobody"),
    ({"messages": [assistant("Hi"), USER]}, "begin with the user"),
    ({"messages": [USER, assistant("Hi")]}, "ends with the assistant"),
    ({"messages": [{"content": "Hi"}]}, "'role'"),
    ({"messages": [{"role": "function", "name": "tides", "content": "Hi"}]}, "function"),
    ({"messages": [{"role": "critic", "content": "Hi"}]}, "critic"),
    ({"messages": [USER | {"name": "a"}, USER | {"name": "b"}]}, "participants"),
    ({"messages": [USER, assistant(None, function_call={"name": "f", "arguments": "{}"}), USER]}, "'function_call'"),
    ({"messages": [USER, assistant(None, audio={"id": "a"}), USER]}, "'audio'"),
    (calling(CALL | {"id": None}), "'id'"),
    (calling({"id": "a", "type": "custom", "custom": {}}), "function"),
    (calling_with("{"), "arguments"),
    (calling_with("[1]"), "arguments"),
    ({"messages": [USER, {"role": "tool", "content": "5"}]}, "'tool_call_id'"),
    (saying({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}), "input_audio"),
    (saying({"type": "file", "file": {"file_id": "f"}}), "file"),
    (showing({"url": "http://a/b.png"}), "https"),
    (showing({"url": "data:image/svg+xml;base64,AA"}), "svg"),
    (showing({"url": "data:image/png,AA"}), "base64"),
    (showing({"url": "data:" + "a" * 10_000}), "base64"),
    (saying({"type": "image_url"}), "image_url"),
    (showing({"url": "https://a/b", "file_id": "f"}), "'file_id'"),
    (saying({"type": "text"}), "'text'"),
    ({"messages": [USER, {"role": "system", "content": [{"type": "image_url"}]}]}, "image_url"),
]  # fmt: skip

NOT_TO_OPENAI: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"container": "c"}, "'container'"),
    ({"mcp_servers": [{"type": "url", "url": "https://a", "name": "a"}]}, "'mcp_servers'"),
    ({"inference_geo": "us"}, "'inference_geo'"),
    ({"context_management": {"edits": [{}]}}, "'context_management'"),
    ({"fallbacks": [{"model": "claude-haiku-4-5"}]}, "'fallbacks'"),
    ({"stop_sequences": ["1", "2", "3", "4", "5"]}, "stop sequences"),
    ({"output_config": {"format": {"type": "json_schema", "schema": OBJECT}}}, "schema"),
    ({"output_config": {"format": {"type": "grammar", "schema": CLOSED}}}, "format"),
    ({"output_config": {"task_budget": {"total": 5}}}, "'task_budget'"),
    ({"output_format": {"type": "json_schema", "schema": OBJECT}}, "schema"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "bash_20250124"),
    ({"tools": [{"type": "web_search_20260318", "name": "web_search"}]}, "web_search_20260318"),
    ({"tools": [MESSAGE_TOOL | {"defer_loading": True}]}, "'defer_loading'"),
    ({"tools": [MESSAGE_TOOL | {"input_examples": [{"harbour": "Brest"}]}]}, "'input_examples'"),
    ({"tools": [MESSAGE_TOOL | {"allowed_callers": ["code_execution_20250825"]}]}, "code"),
    ({"tools": [MESSAGE_TOOL | {"strict": True}]}, "strict"),
    ({"output_config": {"format": {"type": "json_schema", "schema": {"anyOf": [CLOSED]}}}}, "schema"),
    ({"output_config": {"format": {"type": "json_schema", "schema": CLOSED | {"required": []}}}}, "schema"),
    ({"output_config": {"format": {"type": "json_schema", "schema": CLOSED | {"allOf": [CLOSED]}}}}, "schema"),
    ({"tools": [MESSAGE_TOOL | {"name": "a" * 65}]}, "longer"),
    ({"tools": [MESSAGE_TOOL], "tool_choice": {"type": "perhaps"}}, "perhaps"),
    ({"tools": [MESSAGE_TOOL], "thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
    ({"messages": ...}, "no messages"),
    ({"messages": []}, "nobody"),
    ({"messages": [USER, assistant("The answer is (")]}, "ends with the assistant"),
    ({"messages": [{"role": "critic", "content": "Hi"}]}, "critic"),
    (saying({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A"}}), "document"),
    (saying({"type": "image", "source": {"type": "file", "file_id": "f"}}), "image"),
    (saying({"type": "image", "source": {"type": "base64", "media_type": "image/bmp", "data": "A"}}), "bmp"),
    (saying({"type": "image"}), "image"),
    (saying({"type": "container_upload", "file_id": "f"}), "container_upload"),
    (having_said(USE | {"type": "server_tool_use"}), "server_tool_use"),
    (having_said(USE | {"caller": {"type": "code_execution_20260120", "tool_id": "s"}}), "provider"),
    (having_said(USE | {"toolset_name": "browser"}), "'toolset_name'"),
    (having_said(THOUGHT, USE), "signed thinking"),
    (saying(RESULT | {"content": [{"type": "image", "source": {"type": "url", "url": "https://a/b"}}]}), "image"),
    ({"messages": [USER, {"role": "system", "content": [{"type": "tool_addition"}]}]}, "tool_addition"),
]  # fmt: skip

REFUSED = [("openai", *row) for row in NOT_TO_ANTHROPIC] + [("anthropic", *row) for row in NOT_TO_OPENAI]


@pytest.mark.parametrize(("caller", "members", "word"), REFUSED, ids=str)
def test_what_would_be_lost_is_refused_before_it_is_sent(caller: str, members: dict[str, Any], word: str) -> None:
    ask, body = read(caller, body_of(caller, **members))
    made = between(caller)
    reason = made.why_not(ask)
    assert word in reason
    with pytest.raises(TranslationError, match=r".+"):
        made.request(ask, body, model="", output_cap=None)


@pytest.mark.parametrize("caller", ["openai", "anthropic"])
def test_the_least_request_has_no_reason_against_it(caller: str) -> None:
    assert why_not(caller, body_of(caller)) == ""
