"""Reads the answers of Ollama's own API: usage, tool calls, the end of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.call import Ask, Usage
from meshd.dialects.counting import BYTES_PER_TOKEN, count, respelled, size_of
from meshd.dialects.event import Event
from meshd.dialects.ollama_shapes import Answer, Message, ToolCall
from meshd.wire import ndjson

if TYPE_CHECKING:
    from meshd.dialects.contract import Splitter
    from meshd.refusal import Refused

_answer: Final = msgspec.json.Decoder(Answer)
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NONSENSE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_NO_TIME: Final = "1970-01-01T00:00:00Z"


def _decode_again(data: bytes, error: Exception) -> Answer | None:
    """Return what can be understood of an answer that did not decode; None where it is no JSON object."""
    if not isinstance(error, msgspec.ValidationError):
        data = respelled(data)
    answer = Answer()
    try:
        members = _members.decode(data)
    except _NONSENSE:
        return None
    # One member of an unexpected type must not hide the others, above all not the counts.
    for field in msgspec.structs.fields(Answer):
        raw = members.get(field.name)
        if raw is not None:
            try:
                setattr(answer, field.name, msgspec.json.decode(raw, type=field.type))
            except _NONSENSE:
                continue
    return answer


class OllamaMeter:
    """See `FramedMeter`. Usage that is missing or absurd stays None: it is never zero."""

    __slots__ = (
        "_ask",
        "_content_bytes",
        "_created_at",
        "_event",
        "_is_done",
        "_is_failed",
        "_is_generate",
        "_is_last",
        "error_status",
        "finish_reasons",
        "is_terminal",
        "output_estimate",
        "response_id",
        "response_model",
        "usage",
    )

    def __init__(self, ask: Ask, *, is_generate: bool) -> None:
        self._ask = ask
        self._is_generate = is_generate
        self._event = Event()
        self._content_bytes = 0
        self._created_at = ""
        self._is_done = False
        self._is_last = False
        """The line last read is the last; takes effect with the next, since a cut may stand in its place."""
        self._is_failed = False
        self.usage: Usage | None = None
        self.output_estimate = 0
        self.is_terminal = False
        self.response_id = ""
        self.response_model = ""
        self.finish_reasons: tuple[str, ...] = ()
        self.error_status = 0

    def splitter_for(self, content_type: bytes, event_bytes_max: int) -> Splitter | None:
        """See `FramedMeter.splitter_for`."""
        return ndjson.Splitter(event_bytes_max) if content_type.lower().startswith(b"application/x-ndjson") else None

    def read_message(self, body: bytes) -> Event:
        """See `Meter.read_message`."""
        event = self._event
        event.raw = body
        self._decode(body, event)
        self.is_terminal = True
        return event

    def read_event(self, raw: bytes) -> Event | None:
        """See `Meter.read_event`. Everything is forwarded."""
        event = self._event
        event.raw = raw
        event.has_content = False
        if event.tool_names:
            event.tool_names = ()
        self._is_done = self._is_done or self._is_last
        self._decode(raw, event)
        return event

    def _decode(self, data: bytes, event: Event) -> None:
        try:
            answer: Answer | None = _answer.decode(data)
        except _NONSENSE as error:
            answer = _decode_again(data, error)
        if answer is None:
            return
        if answer.error is not None:
            self._is_failed = True
            self.is_terminal = False
        if type(answer.model) is str:
            self.response_model = answer.model
        if type(answer.created_at) is str:
            self._created_at = answer.created_at
        message = answer.message
        size = size_of(answer.response) + size_of(answer.thinking)
        if message is not None:
            size += size_of(message.content) + size_of(message.thinking)
            if message.tool_calls:
                size += _read_calls(message, event)
        if size:
            event.has_content = True
            self._content_bytes += size
            self.output_estimate = max(self.output_estimate, self._content_bytes // BYTES_PER_TOKEN)
        if answer.done is True:
            self._is_last = True
            self.is_terminal = not self._is_failed
            if type(answer.done_reason) is str and not self.finish_reasons:
                self.finish_reasons = (answer.done_reason,)
        self._read_usage(answer)
        event.output_estimate = self.output_estimate

    def _read_usage(self, answer: Answer) -> None:
        """Keep a sane report. A prompt that the server had in its cache may go unsaid: its bound stands for it."""
        given, made = count(answer.prompt_eval_count), count(answer.eval_count)
        if self._ask.has_output:
            if made is None or (made == 0 and self._content_bytes):
                return
        elif given is None:
            return
        is_guess = given is None or given == 0
        usage = Usage(self._ask.input_bound if is_guess else given or 0, made or 0, is_estimated=is_guess)
        if usage.total and (self.usage is None or usage.total >= self.usage.total):
            self.usage = usage
        if usage.output_tokens > self.output_estimate:
            self.output_estimate = usage.output_tokens

    def cut(self, *, is_event_forwarded: bool = False) -> bytes:
        """See `Meter.cut`: a last line that says `length`."""
        if self._is_done or (is_event_forwarded and self._is_last):
            return b""
        usage = self.usage or Usage(self._ask.input_bound // BYTES_PER_TOKEN, self.output_estimate)
        said: dict[str, Any] = {
            "model": self.response_model or self._ask.model_sent,
            "created_at": self._created_at or _NO_TIME,
            **({"response": ""} if self._is_generate else {"message": {"role": "assistant", "content": ""}}),
            "done": True,
            "done_reason": "length",
            "prompt_eval_count": usage.input_tokens,
            "eval_count": usage.output_tokens,
        }
        return msgspec.json.encode(said) + b"\n"

    def error_event(self, refused: Refused) -> bytes:
        """See `Meter.error_event`. Nothing behind it: a broken answer must not look like a whole one."""
        return msgspec.json.encode({"error": refused.message}) + b"\n"


def _read_calls(message: Message, event: Event) -> int:
    """Add the names of the tools that are called; return the bytes that were generated for the calls."""
    names: list[str] = []
    size = 0
    calls: list[ToolCall] = message.tool_calls or []
    for call in calls:
        function = call.function
        if function is not None:
            size += len(bytes(function.arguments))
            if type(function.name) is str and function.name:
                names.append(function.name)
                size += len(function.name)
    event.tool_names += tuple(names)
    return size
