"""Reads the answers of OpenAI chat completions and embeddings: usage, tool calls, the end of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec
from msgspec.structs import astuple

from meshd.call import Ask, Usage
from meshd.dialects.counting import BYTES_PER_TOKEN, respelled, size_of
from meshd.dialects.event import Event
from meshd.dialects.openai_shapes import Answer, Choice, Chunk, Content, UsageShape
from meshd.dialects.openai_usage import TIER_CHARACTERS_MAX, served, usage_of
from meshd.dialects.repeating import Repeating
from meshd.dialects.stream_errors import status_of
from meshd.wire.sse import data_of

if TYPE_CHECKING:
    from meshd.refusal import Refused

_answer: Final = msgspec.json.Decoder(Answer)
_chunk: Final = msgspec.json.Decoder(Chunk)
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raws: Final = msgspec.json.Decoder(list[msgspec.Raw])
_NONSENSE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
# Choices that a stream is believed to have; an answer must not make its meter grow without end.
_CHOICES_MAX: Final = 1024
_ONE: Final = frozenset({0})
_NONE: Final[frozenset[int]] = frozenset()
_DONE: Final = b"data: [DONE]\n\n"
# By number: a byte is found three times as fast as a string of one.
_LF: Final = 0x0A
_CR: Final = 0x0D


def _decode_again(data: bytes, error: Exception) -> Answer | None:
    """Return what can be understood of a chunk or answer that did not decode; None where it is no JSON object."""
    if not isinstance(error, msgspec.ValidationError):
        data = respelled(data)
    # One member of an unexpected type must not hide the others, above all not the usage.
    answer = Answer()
    try:
        members = _members.decode(data)
        for name in ("id", "model", "created", "error", "service_tier"):
            if name in members:
                setattr(answer, name, msgspec.json.decode(members[name]))
    except _NONSENSE:
        return None
    answer.usage = _decode_or_none(members.get("usage"), UsageShape)
    try:
        raws = _raws.decode(members.get("choices", b"[]"))
    except _NONSENSE:
        raws = []
    choices = [_decode_or_none(raw, Choice) for raw in raws]
    answer.choices = [choice for choice in choices if choice is not None]
    return answer


def _decode_or_none(raw: msgspec.Raw | None, kind: Any) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind) if raw is not None else None
    except _NONSENSE:
        return None


def _is_text(raw: bytes, text: str) -> bool:
    """Say whether a chunk is the first choice's text alone, of a stream that has said before who answers."""
    try:
        return _chunk.decode(data_of(raw)) == Chunk(choices=[Choice(delta=Content(content=text))])
    except _NONSENSE:
        return False


class OpenAIMeter:
    """See `Meter`. Usage that is missing or absurd stays None: it is never zero."""

    _object: ClassVar[str] = "chat.completion.chunk"
    _id_prefix: ClassVar[str] = "chatcmpl"

    __slots__ = (
        "_ask",
        "_content_bytes",
        "_created",
        "_drops_usage",
        "_event",
        "_finished",
        "_finishing",
        "_is_done",
        "_is_failed",
        "_repeating",
        "_seen",
        "_tier",
        "error_status",
        "finish_reasons",
        "is_terminal",
        "output_estimate",
        "response_id",
        "response_model",
        "usage",
    )

    def __init__(self, ask: Ask, *, drops_usage: bool = False) -> None:
        self._ask = ask
        self._drops_usage = drops_usage
        self._event = Event()
        self._content_bytes = 0
        self._created: int | None = None
        self._seen = _ONE if ask.choices == 1 else frozenset(range(min(ask.choices, _CHOICES_MAX)))
        self._finished: frozenset[int] = _NONE
        self._finishing: frozenset[int] = _NONE
        """Choices that the event last read finishes: a cut in its place must still finish them itself."""
        self._is_done = False
        self._is_failed = False
        self._repeating = Repeating(b'"content":"') if ask.is_stream else None
        self._tier = ""
        self.usage: Usage | None = None
        self.output_estimate = 0
        self.is_terminal = False
        self.response_id = ""
        self.response_model = ""
        self.finish_reasons: tuple[str, ...] = ()
        self.error_status = 0

    def read_message(self, body: bytes) -> Event:
        """See `Meter.read_message`."""
        event = self._event
        event.raw = body
        self.is_terminal = True
        try:
            answer: Answer | None = _answer.decode(body)
        except _NONSENSE as error:
            answer = _decode_again(body, error)
        if answer is not None:
            members = astuple(answer)
            self._read_identity(members)
            self._read(members, event)
        return event

    def read_event(self, raw: bytes) -> Event | None:
        """See `Meter.read_event`. None for the usage chunk that only meshd asked for."""
        event = self._event
        event.raw = raw
        event.has_content = False
        event.text = ""
        if event.tool_names:
            event.tool_names = ()
        if self._finishing:
            self._finished = self._finished.union(self._finishing)
            self._finishing = _NONE
        repeating = self._repeating
        if repeating is not None:
            text = repeating.text_of(raw)
            if text is not None:
                event.text, event.choice = text, 0
                if repeating.size:
                    self._generated(repeating.size, event)
                return event
        # One `data` line, as every server writes them; anything else goes the longer way.
        if raw[:7] == b"data: {" and raw.find(_LF) == len(raw) - 2 and _CR not in raw:
            data = raw[6:]
        else:
            data = data_of(raw).strip()
            if data[:1] != b"{":
                if data.startswith(b"[DONE]"):
                    self._is_done = True
                    self.is_terminal = not self._is_failed
                return event
        chunk: Chunk | Answer | None
        try:
            chunk = _chunk.decode(data) if self._created is not None else _answer.decode(data)
        except _NONSENSE as error:
            chunk = _decode_again(data, error)
            if chunk is None:
                return event
        members = astuple(chunk)
        if self._created is None and isinstance(chunk, Answer):
            self._read_identity(members)
        self._read(members, event)
        if repeating is not None and event.text and event.choice == 0:
            repeating.learn(raw, _is_text)
        if self._drops_usage and chunk.usage is not None and not chunk.choices and chunk.error is None:
            return None
        return event

    # Compiled, each field of a struct is a search by its name; all of them as a tuple, in their order, are one call.

    def _read(self, members: tuple[Any, ...], event: Event) -> None:
        choices, usage, error = members[0] or (), members[1], members[2]
        if error is not None:
            self._is_failed = True
            self.error_status = status_of(error)
        names: list[str] = []
        for choice in choices:
            index, delta, message, text, reason = astuple(choice)
            content = delta or message
            if content is not None:
                self._read_content(content, event, names)
            elif text is not None and (size := size_of(text)):
                self._generated(size, event)
            if index != 0 and type(index) is int and index not in self._seen and len(self._seen) < _CHOICES_MAX:
                self._seen = self._seen.union((index,))
            event.choice = index if type(index) is int else 0
            if reason is not None:
                event.text = ""
                self._read_finish(index, reason)
        if names:
            event.tool_names += tuple(names)
        if event.text and len(choices) > 1:
            event.text = ""
        if usage is not None:
            self._read_usage(usage, event)

    def _read_finish(self, index: Any, reason: Any) -> None:
        if type(index) is not int:
            index = 0
        if index in self._seen and index not in self._finishing:
            self._finishing = self._finishing.union((index,))
        if type(reason) is str and len(self.finish_reasons) < _CHOICES_MAX:
            self.finish_reasons += (reason,)

    def _read_identity(self, members: tuple[Any, ...]) -> None:
        _, _, _, id, model, created, tier = members
        if type(id) is str and id:
            self.response_id = id
        if type(model) is str and model:
            self.response_model = model
        if type(tier) is str:
            self._tier = tier[:TIER_CHARACTERS_MAX]
        # Azure's first chunk has neither: only the next one says who answers.
        if self.response_id:
            self._created = created if type(created) is int else 0

    def _read_content(self, content: Content, event: Event, names: list[str]) -> None:
        text, refusal, reasoned, reasoning, tool_calls, function_call = astuple(content)
        if type(text) is str:
            size = len(text) if text.isascii() else len(text.encode())
            event.text = text
        else:
            size = size_of(text) if text is not None else 0
        if reasoned is not None or reasoning is not None or refusal is not None:
            size += max(size_of(reasoned), size_of(reasoning)) + size_of(refusal)
        if tool_calls is not None or function_call is not None:
            size += _read_calls(content, names)
            event.text = ""
        if size:
            self._generated(size, event)

    def _generated(self, size: int, event: Event) -> None:
        event.has_content = True
        self._content_bytes = generated = self._content_bytes + size
        estimate = generated // BYTES_PER_TOKEN
        if estimate > self.output_estimate:
            self.output_estimate = event.output_estimate = estimate

    def _read_usage(self, reported: UsageShape, event: Event) -> None:
        """Keep a sane report. Running reports only grow, so a smaller one does not replace a larger."""
        given, made, total, given_details, made_details = astuple(reported)
        usage = usage_of(given, made, total, given_details, made_details, self._ask.has_output)
        if usage is None or (usage.output_tokens == 0 and self._content_bytes):
            return
        if self._tier:
            served(usage, self._tier)
        known = self.usage
        if known is None or usage.total >= known.total:
            self.usage = usage
        if usage.output_tokens > self.output_estimate:
            self.output_estimate = event.output_estimate = usage.output_tokens

    def cut(self, *, is_event_forwarded: bool = False) -> bytes:
        """See `Meter.cut`: a last chunk for each open choice, the usage if the client asked, `[DONE]`."""
        if self._is_done:
            return b""
        finished = self._finished.union(self._finishing) if is_event_forwarded else self._finished
        pieces = [self._chunk([self._ending(index)], None) for index in sorted(self._seen - finished)]
        if self._ask.is_usage_asked:
            usage = self.usage or Usage(self._ask.input_bound // BYTES_PER_TOKEN, self.output_estimate)
            counts = {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens}
            pieces.append(self._chunk([], counts | {"total_tokens": usage.total}))
        pieces.append(_DONE)
        return b"".join(pieces)

    def _ending(self, index: int) -> dict[str, Any]:
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": "length"}

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> bytes:
        chunk: dict[str, Any] = {
            "id": self.response_id or f"{self._id_prefix}-meshd",
            "object": self._object,
            "created": self._created or 0,
            "model": self.response_model or self._ask.model_sent,
            "choices": choices,
        }
        if usage is not None:
            chunk["usage"] = usage
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def error_event(self, refused: Refused) -> bytes:
        """See `Meter.error_event`. No `[DONE]` behind it: a broken answer must not look like a whole one."""
        return b"data: " + msgspec.json.encode({"error": error_object(refused)}) + b"\n\n"


def error_object(refused: Refused) -> dict[str, str | None]:
    """Return the `error` member of a body or stream event."""
    row = refused.row
    return {"message": refused.message, "type": row.openai_type, "param": None, "code": row.code}


def _read_calls(content: Content, names: list[str]) -> int:
    """Add the names of the tools that are called; return the bytes that were generated for the calls."""
    calls = [content.function_call]
    for call in content.tool_calls or ():
        calls += (call.function, call.custom)
    size = 0
    for function in calls:
        if function is not None:
            size += size_of(function.arguments) + size_of(function.input)
            if isinstance(function.name, str) and function.name:
                names.append(function.name)
                size += len(function.name)
    return size
