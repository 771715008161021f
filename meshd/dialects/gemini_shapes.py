"""What answers of Gemini may hold; members of other types are kept as they came."""

from __future__ import annotations

from typing import Any

import msgspec


class FunctionCall(msgspec.Struct, gc=False, rename="camel"):
    name: Any = None
    args: msgspec.Raw = msgspec.Raw()


class Code(msgspec.Struct, gc=False, rename="camel"):
    code: Any = None


class Part(msgspec.Struct, gc=False, rename="camel"):
    text: Any = None
    function_call: FunctionCall | None = None
    executable_code: Code | None = None
    inline_data: Any = None


class Content(msgspec.Struct, gc=False, rename="camel"):
    parts: list[Part] | None = None


class Candidate(msgspec.Struct, gc=False, rename="camel"):
    index: Any = 0
    content: Content | None = None
    finish_reason: Any = None


class UsageShape(msgspec.Struct, gc=False, rename="camel"):
    prompt_token_count: Any = None
    cached_content_token_count: Any = None
    candidates_token_count: Any = None
    thoughts_token_count: Any = None
    tool_use_prompt_token_count: Any = None
    total_token_count: Any = None
    service_tier: Any = None
    traffic_type: Any = None


class Feedback(msgspec.Struct, gc=False, rename="camel"):
    block_reason: Any = None


class Answer(msgspec.Struct, gc=False, rename="camel"):
    """A plain answer, or one chunk of a stream: they have one shape."""

    candidates: list[Candidate] | None = None
    usage_metadata: UsageShape | None = None
    prompt_feedback: Feedback | None = None
    model_version: Any = None
    response_id: Any = None
    error: Any = None
