"""An answer of Anthropic messages, as one of OpenAI chat completions: plain, or event by event."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from meshd.dialects.translation_answers import (
    chat_usage,
    decode,
    finish_reason,
    merged_usage,
    openai_error_event,
    text_of,
)
from meshd.dialects.translation_contract import lost
from meshd.dialects.translation_ids import Ids
from meshd.dialects.translation_reading import compact
from meshd.dialects.translation_shapes import Message, MessageBlock, MessageDelta, MessageEvent
from meshd.wire.sse import data_of

_message: Final = msgspec.json.Decoder(Message)
_event: Final = msgspec.json.Decoder(MessageEvent)
_DONE: Final = b"data: [DONE]\n\n"
_NO_ID: Final = "chatcmpl-meshd"


def chat_completion(body: bytes, model: str, created: int) -> bytes:
    """Return a plain answer. Raises TranslationError."""
    message: Message = decode(body, _message, "the answer")
    if message.content is None or message.error is not None:
        lost("the answer is no message")
    answer = _text(message.id) or _NO_ID
    ids = Ids("call_")
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in message.content:
        if block.type == "text":
            texts.append(text_of(block.text))
        elif block.type == "thinking":
            thoughts.append(text_of(block.thinking))
        elif block.type == "tool_use":
            calls.append(_call(block, ids, answer) | {"function": {"name": _name(block), "arguments": _input(block)}})
    said: dict[str, Any] = {"role": "assistant", "content": "".join(texts) if texts else None}
    said["refusal"] = _explanation(message.stop_reason, message.stop_details)
    if any(thoughts):
        said["reasoning_content"] = "".join(thoughts)
    if calls:
        said["tool_calls"] = calls
    finish = finish_reason(message.stop_reason, has_calls=bool(calls))
    completion: dict[str, Any] = {
        "id": answer,
        "object": "chat.completion",
        "created": created,
        "model": _text(message.model) or model,
        "choices": [{"index": 0, "message": said, "logprobs": None, "finish_reason": finish}],
    }
    usage = chat_usage(message.usage)
    if usage is not None:
        completion["usage"] = usage
    return msgspec.json.encode(completion)


def _text(value: Any) -> str:
    return value if type(value) is str else ""


def _name(block: MessageBlock) -> str:
    if type(block.name) is not str or not block.name:
        lost("a tool call of the answer has no name")
    return block.name


def _input(block: MessageBlock) -> str:
    """Return the input of a call as text; an empty object where there is none."""
    return "{}" if bytes(block.input) in (b"", b"null") else compact(block.input)


def _call(block: MessageBlock, ids: Ids, answer: str) -> dict[str, Any]:
    if ids.is_full:
        lost("the answer calls too many tools")
    return {"id": ids.next(block.id, answer), "type": "function"}


def _explanation(stop_reason: Any, details: Any) -> str | None:
    """Return what an answer says of its refusal, None where it is none or says nothing."""
    if stop_reason != "refusal" or type(details) is not dict:
        return None
    return _text(details.get("explanation")) or None


class ChatStream:
    """See `StreamTranslator`: message events in, chunks out."""

    __slots__ = (
        "_answer", "_block", "_calls", "_created", "_has_arguments", "_ids", "_is_begun", "_is_failed",
        "_is_finished", "_is_usage_asked", "_model", "_usage", "is_whole",
    )  # fmt: skip

    def __init__(self, model: str, created: int, *, is_usage_asked: bool) -> None:
        self._model = model
        self._created = created
        self._is_usage_asked = is_usage_asked
        self._answer = _NO_ID
        self._ids = Ids("call_")
        self._calls: dict[int, int] = {}
        """Which call a block is, by the block's index."""
        self._block: int | None = None
        """The block of the call that was begun last, and is not over."""
        self._has_arguments = False
        self._usage: dict[str, Any] = {}
        self._is_begun = False
        self._is_failed = False
        self._is_finished = False
        self.is_whole = False

    def feed(self, event: bytes) -> bytes:
        """See `StreamTranslator.feed`."""
        data = data_of(event).strip()
        if not data or self._is_failed or self.is_whole:
            return b""
        said: MessageEvent = decode(data, _event, "an event of the stream")
        if said.error is not None or said.type == "error":
            self._is_failed = True
            return openai_error_event(said.error)
        match said.type:
            case "message_start":
                return self._begin(said.message)
            case "content_block_start":
                return self._open(said.index, said.content_block)
            case "content_block_delta":
                return self._grow(said.index, said.delta)
            case "content_block_stop":
                return self._close(said.index)
            case "message_delta":
                return self._finish(said.delta, said.usage)
            case "message_stop":
                return self._end()
        # A ping, or an event that is newer than this: the API's reference asks that it be passed over.
        return b""

    def end(self) -> bytes:
        """See `StreamTranslator.end`: why it stopped was said, so nothing but the mark of the end was lost."""
        return self._end() if self._is_finished and not (self.is_whole or self._is_failed) else b""

    def _begin(self, message: Message | None) -> bytes:
        if message is not None:
            self._answer = _text(message.id) or self._answer
            self._model = _text(message.model) or self._model
            self._usage = merged_usage(self._usage, message.usage)
        return self._begun()

    def _begun(self) -> bytes:
        if self._is_begun:
            return b""
        self._is_begun = True
        return self._delta({"role": "assistant", "content": "", "refusal": None})

    def _open(self, index: Any, block: MessageBlock | None) -> bytes:
        if block is None:
            return b""
        begun = self._begun()
        if block.type == "text" and block.text:
            return begun + self._delta({"content": text_of(block.text)})
        if block.type == "thinking" and block.thinking:
            return begun + self._delta({"reasoning_content": text_of(block.thinking)})
        if block.type != "tool_use":
            return begun
        name = _name(block)
        if type(index) is not int or index in self._calls:
            lost("a tool call of the stream has no place of its own")
        call = {"index": len(self._calls)} | _call(block, self._ids, self._answer)
        self._calls[index] = len(self._calls)
        # Some servers give all of the input with the beginning, and no delta.
        given = _input(block)
        arguments = "" if given == "{}" else given
        self._block = index
        self._has_arguments = bool(arguments)
        return begun + self._delta({"tool_calls": [call | {"function": {"name": name, "arguments": arguments}}]})

    def _grow(self, index: Any, delta: MessageDelta | None) -> bytes:
        if delta is None:
            return b""
        if type(delta.text) is str and delta.text:
            return self._begun() + self._delta({"content": delta.text})
        if type(delta.thinking) is str and delta.thinking:
            return self._begun() + self._delta({"reasoning_content": delta.thinking})
        call = self._calls.get(index) if type(index) is int else None
        if call is None or type(delta.partial_json) is not str or not delta.partial_json:
            return b""
        if index == self._block:
            self._has_arguments = True
        return self._arguments(call, delta.partial_json)

    def _arguments(self, call: int, piece: str) -> bytes:
        return self._delta({"tool_calls": [{"index": call, "function": {"arguments": piece}}]})

    def _close(self, index: Any) -> bytes:
        if self._block is None or index != self._block:
            return b""
        self._block = None
        # A tool without parameters is called with no delta at all; OpenAI's clients read the arguments as JSON.
        return b"" if self._has_arguments else self._arguments(self._calls[index], "{}")

    def _finish(self, delta: MessageDelta | None, usage: Any) -> bytes:
        self._usage = merged_usage(self._usage, usage)
        if delta is None or delta.stop_reason is None or self._is_finished:
            return b""
        self._is_finished = True
        explanation = _explanation(delta.stop_reason, delta.stop_details)
        said = self._begun()
        if explanation:
            said += self._delta({"refusal": explanation})
        return said + self._delta({}, finish_reason(delta.stop_reason, has_calls=bool(self._calls)))

    def _end(self) -> bytes:
        if not self._is_finished:
            lost("the stream ends, and has not said why")
        self.is_whole = True
        usage = chat_usage(self._usage) if self._is_usage_asked else None
        return (self._chunk([], usage) if usage is not None else b"") + _DONE

    def _delta(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        return self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}], None)

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None) -> bytes:
        chunk: dict[str, Any] = {
            "id": self._answer,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        if self._is_usage_asked:
            chunk["usage"] = usage
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
