"""What answers of Anthropic messages may hold; members of other types are kept as they came."""

from __future__ import annotations

from typing import Any

import msgspec


class UsageShape(msgspec.Struct, gc=False):
    input_tokens: Any = None
    cache_creation_input_tokens: Any = None
    cache_read_input_tokens: Any = None
    output_tokens: Any = None
    output_tokens_details: Any = None
    iterations: Any = None
    cache_creation: Any = None


class Delta(msgspec.Struct, gc=False):
    """What a content block grows by, or what a message ends with."""

    text: Any = None
    thinking: Any = None
    partial_json: Any = None
    stop_reason: Any = None


class Block(msgspec.Struct, gc=False):
    type: Any = None
    name: Any = None
    text: Any = None
    thinking: Any = None


class Message(msgspec.Struct, gc=False):
    type: Any = None
    id: Any = None
    model: Any = None
    content: list[Block] | None = None
    stop_reason: Any = None
    usage: UsageShape | None = None


class StreamEvent(msgspec.Struct, gc=False):
    type: Any = None
    index: Any = None
    delta: Delta | None = None
    content_block: Block | None = None
    message: Message | None = None
    usage: UsageShape | None = None
    error: Any = None
