"""What answers may hold that are translated; members of other types are kept as they came."""

from __future__ import annotations

from typing import Any

import msgspec


class ChatFunction(msgspec.Struct, gc=False):
    name: Any = None
    arguments: Any = None


class ChatCall(msgspec.Struct, gc=False):
    index: Any = None
    id: Any = None
    function: ChatFunction | None = None


class ChatContent(msgspec.Struct, gc=False):
    """A `delta` of a stream or the `message` of a plain answer."""

    content: Any = None
    refusal: Any = None
    tool_calls: list[ChatCall] | None = None


class ChatChoice(msgspec.Struct, gc=False):
    index: Any = 0
    delta: ChatContent | None = None
    message: ChatContent | None = None
    finish_reason: Any = None
    stop_reason: Any = None
    """The stop sequence that was met, as vLLM and SGLang say it."""


class ChatAnswer(msgspec.Struct, gc=False):
    id: Any = None
    model: Any = None
    choices: list[ChatChoice] | None = None
    usage: Any = None
    error: Any = None


class MessageBlock(msgspec.Struct, gc=False):
    type: Any = None
    id: Any = None
    name: Any = None
    text: Any = None
    thinking: Any = None
    input: msgspec.Raw = msgspec.Raw()


class Message(msgspec.Struct, gc=False):
    type: Any = None
    id: Any = None
    model: Any = None
    content: list[MessageBlock] | None = None
    stop_reason: Any = None
    stop_details: Any = None
    usage: Any = None
    error: Any = None


class MessageDelta(msgspec.Struct, gc=False):
    text: Any = None
    thinking: Any = None
    partial_json: Any = None
    stop_reason: Any = None
    stop_details: Any = None


class MessageEvent(msgspec.Struct, gc=False):
    type: Any = None
    index: Any = None
    delta: MessageDelta | None = None
    content_block: MessageBlock | None = None
    message: Message | None = None
    usage: Any = None
    error: Any = None
