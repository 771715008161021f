"""By what a request can be told to go on with an earlier one, as far as the APIs have it; the rest stays raw or unread.

Members of other types are kept as they came. msgspec knows no Raw that may be None: an absent one is empty, and null
is itself.
"""

from __future__ import annotations

from typing import Any

import msgspec

_ABSENT = msgspec.Raw()


class ChatMessage(msgspec.Struct, gc=False):
    """A message of OpenAI's chat or of Ollama."""

    role: Any = None
    content: msgspec.Raw = _ABSENT
    tool_calls: msgspec.Raw = _ABSENT
    tool_call_id: Any = None


class Block(msgspec.Struct, gc=False):
    """A block of Anthropic's content, or a part of OpenAI's."""

    type: Any = None
    text: Any = None
    id: Any = None
    tool_use_id: Any = None
    input: msgspec.Raw = _ABSENT


class InputItem(msgspec.Struct, gc=False):
    """An item of a response's input or output."""

    type: Any = None
    role: Any = None
    id: Any = None
    call_id: Any = None
    content: msgspec.Raw = _ABSENT
    output: msgspec.Raw = _ABSENT
    arguments: Any = None


class Named(msgspec.Struct, gc=False):
    """A thing with an id, and what a tool is called with."""

    id: Any = None
    name: Any = None
    args: msgspec.Raw = _ABSENT
    arguments: Any = None


class GeminiPart(msgspec.Struct, gc=False, rename="camel"):
    text: Any = None
    thought: Any = None
    function_call: Named | None = None
    function_response: Named | None = None


class GeminiContent(msgspec.Struct, gc=False):
    role: Any = None
    parts: msgspec.Raw = _ABSENT


class ChatCall(msgspec.Struct, gc=False):
    index: Any = None
    id: Any = None
    function: Named | None = None


class ChatPiece(msgspec.Struct, gc=False):
    """What a choice holds, or grows by."""

    content: Any = None
    tool_calls: list[ChatCall] | None = None


class ChatChoice(msgspec.Struct, gc=False):
    index: Any = 0
    delta: ChatPiece | None = None
    message: ChatPiece | None = None
    finish_reason: Any = None


class ChatAnswer(msgspec.Struct, gc=False):
    """A plain answer of OpenAI's chat, or a chunk of one."""

    choices: list[ChatChoice] | None = None


class OllamaMessage(msgspec.Struct, gc=False):
    content: Any = None


class OllamaAnswer(msgspec.Struct, gc=False):
    message: OllamaMessage | None = None
    done: Any = None


class ResponseBody(msgspec.Struct, gc=False):
    id: Any = None
    status: Any = None
    output: list[InputItem] | None = None


class ResponseAnswer(ResponseBody, gc=False):
    """A plain response, or an event of a streamed one."""

    type: Any = None
    output_index: Any = None
    response: ResponseBody | None = None
    item: InputItem | None = None


class AnthropicDelta(msgspec.Struct, gc=False):
    text: Any = None
    partial_json: Any = None


class AnthropicAnswer(msgspec.Struct, gc=False):
    """A plain message, or an event of a streamed one."""

    type: Any = None
    index: Any = None
    content: list[Block] | None = None
    content_block: Block | None = None
    delta: AnthropicDelta | None = None


class GeminiCandidate(msgspec.Struct, gc=False):
    index: Any = 0
    content: GeminiContent | None = None


class GeminiAnswer(msgspec.Struct, gc=False):
    candidates: list[GeminiCandidate] | None = None
