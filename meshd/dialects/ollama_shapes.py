"""What answers of Ollama's own API may hold; members of other types are kept as they came."""

from __future__ import annotations

from typing import Any

import msgspec


class Function(msgspec.Struct, gc=False):
    name: Any = None
    arguments: msgspec.Raw = msgspec.Raw()


class ToolCall(msgspec.Struct, gc=False):
    function: Function | None = None


class Message(msgspec.Struct, gc=False):
    content: Any = None
    thinking: Any = None
    tool_calls: list[ToolCall] | None = None


class Answer(msgspec.Struct, gc=False):
    """A plain answer, or one line of a stream: they have one shape."""

    model: Any = None
    created_at: Any = None
    message: Message | None = None
    response: Any = None
    thinking: Any = None
    done: Any = None
    done_reason: Any = None
    prompt_eval_count: Any = None
    eval_count: Any = None
    error: Any = None
