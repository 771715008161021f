"""What answers of OpenAI's APIs may hold; members of other types are kept as they came."""

from __future__ import annotations

from typing import Any

import msgspec


class Function(msgspec.Struct, gc=False):
    name: Any = None
    arguments: Any = None
    input: Any = None


class ToolCall(msgspec.Struct, gc=False):
    function: Function | None = None
    custom: Function | None = None


class Content(msgspec.Struct, gc=False):
    """A `delta` of a stream or the `message` of a plain answer."""

    content: Any = None
    refusal: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[ToolCall] | None = None
    function_call: Function | None = None


class Choice(msgspec.Struct, gc=False):
    index: Any = 0
    delta: Content | None = None
    message: Content | None = None
    text: Any = None
    finish_reason: Any = None


class UsageShape(msgspec.Struct, gc=False):
    prompt_tokens: Any = None
    completion_tokens: Any = None
    total_tokens: Any = None
    prompt_tokens_details: Any = None
    completion_tokens_details: Any = None


class Chunk(msgspec.Struct, gc=False):
    """What each chunk of a stream may say anew."""

    choices: list[Choice] | None = None
    usage: UsageShape | None = None
    error: Any = None


class Answer(Chunk, gc=False):
    """A plain answer, or a chunk that may say who answers."""

    id: Any = None
    model: Any = None
    created: Any = None
    service_tier: Any = None


class RankAnswer(msgspec.Struct, gc=False):
    """What an answer to a ranking may say of tokens."""

    usage: Any = None
    meta: Any = None
