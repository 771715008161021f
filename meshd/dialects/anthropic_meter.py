"""Reads the answers of Anthropic messages: usage, tool calls, the end of a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.call import Ask, Usage
from meshd.dialects.anthropic_shapes import Block, Delta, Message, StreamEvent, UsageShape
from meshd.dialects.counting import BYTES_PER_TOKEN, COUNT_MAX, count, respelled, size_of
from meshd.dialects.event import Event
from meshd.dialects.stream_errors import status_of
from meshd.prices.billed import Billed
from meshd.wire.sse import data_of

if TYPE_CHECKING:
    from meshd.refusal import Refused

_stream_event: Final = msgspec.json.Decoder(StreamEvent)
_message: Final = msgspec.json.Decoder(Message)
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LF: Final = 0x0A
_COUNTED: Final = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
_NONSENSE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def _decode_again(data: bytes, kind: Any, error: Exception) -> Any:
    """Return what can be understood of an object that did not decode, an empty one where nothing can."""
    if not isinstance(error, msgspec.ValidationError):
        data = respelled(data)
    # One member of an unexpected type must not hide the others, above all not the usage.
    found = kind()
    try:
        members = _members.decode(data)
    except _NONSENSE:
        return found
    for field in msgspec.structs.fields(kind):
        if field.name in members:
            try:
                value = msgspec.json.decode(members[field.name], type=field.type)
            except msgspec.ValidationError as inner:
                # A message inside an event is taken apart once more, so that its usage survives nonsense beside it.
                is_message = field.type == (Message | None)
                value = _decode_again(bytes(members[field.name]), Message, inner) if is_message else None
            except _NONSENSE:
                continue
            setattr(found, field.name, value)
    return found


class AnthropicMeter:
    """See `Meter`.

    `usage` stays None until the answer has said its output: the count in `message_start` is only where it begins.
    """

    __slots__ = (
        "_ask",
        "_content_bytes",
        "_counts",
        "_event",
        "_is_failed",
        "_is_started",
        "_is_stopped",
        "_next",
        "_open",
        "_stop_reason",
        "_written_long",
        "error_status",
        "finish_reasons",
        "is_terminal",
        "output_estimate",
        "response_id",
        "response_model",
        "usage",
    )

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._event = Event()
        self._content_bytes = 0
        self._counts = [0, 0, 0, 0]
        """Largest reports so far: input, cache writes, cache reads, output. Cumulative, so never summed."""
        self._open: list[int] = []
        self._is_started = False
        self._is_stopped = False
        self._stop_reason = ""
        self._next: tuple[str, int] = ("", 0)
        """What the event last read opens or closes; takes effect with the next, since a cut may stand in its place."""
        self._is_failed = False
        self._written_long = -1
        """Tokens put into the cache for an hour; -1 where no report has said."""
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
            message = _message.decode(body)
        except _NONSENSE as error:
            message = _decode_again(body, Message, error)
        if message.type == "error":
            return event
        self._read_identity(message)
        names: list[str] = []
        for block in message.content or ():
            self._read_block(block, names, event)
        if names:
            event.tool_names = tuple(names)
        if message.usage is not None:
            self._read_usage(message.usage, event, is_final=True)
        return event

    def read_event(self, raw: bytes) -> Event | None:
        """See `Meter.read_event`. Everything is forwarded."""
        event = self._event
        event.raw = raw
        event.has_content = False
        event.text = ""
        if event.tool_names:
            event.tool_names = ()
        if self._next[0]:
            self._take_effect()
        # An `event` line and a `data` line, as the API writes them; anything else goes the longer way.
        at = raw.find(_LF)
        if raw[:6] == b"event:" and raw[at + 1 : at + 8] == b"data: {" and raw.find(_LF, at + 1) == len(raw) - 2:
            data = raw[at + 7 :]
        else:
            data = data_of(raw).strip()
            if data[:1] != b"{":
                return event
        try:
            said = _stream_event.decode(data)
        except _NONSENSE as error:
            said = _decode_again(data, StreamEvent, error)
        kind = said.type
        if kind == "content_block_delta":
            if said.delta is not None:
                self._add(said.delta, event)
        elif kind != "ping":
            self._read_rare(kind, said, event)
        return event

    def _read_rare(self, kind: Any, said: StreamEvent, event: Event) -> None:
        index = said.index if type(said.index) is int else 0
        if kind == "content_block_start":
            self._next = (kind, index)
            if said.content_block is not None:
                names: list[str] = []
                self._read_block(said.content_block, names, event)
                event.tool_names = tuple(names)
        elif kind == "content_block_stop":
            self._next = (kind, index)
        elif kind == "message_start":
            self._next = (kind, 0)
            if said.message is not None:
                self._read_identity(said.message)
                if said.message.usage is not None:
                    self._read_usage(said.message.usage, event, is_final=False)
        elif kind == "message_delta":
            self._next = (kind, 0)
            if said.delta is not None and isinstance(said.delta.stop_reason, str):
                self.finish_reasons = (said.delta.stop_reason,)
            if said.usage is not None:
                self._read_usage(said.usage, event, is_final=True)
        elif kind == "message_stop":
            self._next = (kind, 0)
            self.is_terminal = not self._is_failed
        elif kind == "error":
            self._is_failed = True
            self.error_status = status_of(said.error)

    def _take_effect(self) -> None:
        kind, index = self._next
        self._next = ("", 0)
        if kind == "content_block_start":
            if len(self._open) < 1024:
                self._open.append(index)
        elif kind == "content_block_stop":
            self._open = [block for block in self._open if block != index]
        elif kind == "message_start":
            self._is_started = True
        elif kind == "message_delta":
            self._stop_reason = self.finish_reasons[0] if self.finish_reasons else ""
        elif kind == "message_stop":
            self._is_stopped = True

    def _read_identity(self, message: Message) -> None:
        if type(message.id) is str:
            self.response_id = message.id
        if type(message.model) is str:
            self.response_model = message.model
        if type(message.stop_reason) is str:
            self.finish_reasons = (message.stop_reason,)

    def _read_block(self, block: Block, names: list[str], event: Event) -> None:
        # tool_use, server_tool_use, mcp_tool_use: whoever runs it, the answer calls it by its name.
        if type(block.name) is str and type(block.type) is str and block.type.endswith("tool_use"):
            names.append(block.name)
            event.has_content = True
        text, thinking = block.text, block.thinking
        size = size_of(text) if text is not None else 0
        self._count(size + size_of(thinking) if thinking is not None else size, event)

    def _add(self, delta: Delta, event: Event) -> None:
        text = delta.text
        if type(text) is str:
            self._count(len(text) if text.isascii() else len(text.encode()), event)
            if delta.partial_json is None:
                event.text = text
        else:
            self._count(size_of(delta.partial_json) + size_of(delta.thinking), event)

    def _count(self, size: int, event: Event) -> None:
        if size:
            event.has_content = True
            self._content_bytes += size
            estimate = self._content_bytes // BYTES_PER_TOKEN
            if estimate > self.output_estimate:
                self.output_estimate = event.output_estimate = estimate
            event.output_estimate = self.output_estimate

    def _read_usage(self, reported: UsageShape, event: Event, *, is_final: bool) -> None:
        """Keep the largest of each field: reports are cumulative, and some gateways send zeros first."""
        counts = self._counts
        made: Any = reported.output_tokens
        if type(reported.input_tokens) is int:
            counts[0] = _larger(counts[0], reported.input_tokens)
        if type(reported.cache_creation_input_tokens) is int:
            counts[1] = _larger(counts[1], reported.cache_creation_input_tokens)
        if type(reported.cache_read_input_tokens) is int:
            counts[2] = _larger(counts[2], reported.cache_read_input_tokens)
        if type(made) is int:
            counts[3] = _larger(counts[3], made)
        self._written_long = max(self._written_long, _written_long(reported.cache_creation))
        if reported.iterations is not None:
            self._read_iterations(reported.iterations)
        if not is_final or type(made) is not int or not 0 <= made <= COUNT_MAX:
            return
        given, made = counts[0] + counts[1] + counts[2], counts[3]
        if given == 0 or (made == 0 and self._content_bytes):
            return
        details = reported.output_tokens_details
        thinking = (count(details.get("thinking_tokens")) or 0) if type(details) is dict else 0
        billed = Billed(counts[1], self._written_long) if counts[1] else None
        self.usage = Usage(given, made, counts[2], min(thinking, made), billed=billed)
        if made > self.output_estimate:
            self.output_estimate = event.output_estimate = made

    def _read_iterations(self, iterations: Any) -> None:
        """Take the sum where that is more: the totals leave out what compacting cost, and models that a tool asked."""
        if type(iterations) is not list:
            return
        for at, name in enumerate(_COUNTED):
            each = [count(one.get(name)) or 0 for one in iterations if type(one) is dict]
            self._counts[at] = _larger(self._counts[at], sum(each))
        long = [_written_long(one.get("cache_creation")) for one in iterations if type(one) is dict]
        said = [one for one in long if one >= 0]
        if said:
            self._written_long = max(self._written_long, sum(said))

    def cut(self, *, is_event_forwarded: bool = False) -> bytes:
        """See `Meter.cut`: closes what is open, then says `max_tokens` and stops."""
        if is_event_forwarded and self._next[0]:
            self._take_effect()
        if self._is_stopped:
            return b""
        pieces = [] if self._is_started else [self._start()]
        pieces += [_event("content_block_stop", {"index": index}) for index in self._open]
        if not self._stop_reason:
            delta = {"stop_reason": "max_tokens", "stop_sequence": None}
            usage = {"output_tokens": max(self.output_estimate, self._counts[3])}
            pieces.append(_event("message_delta", {"delta": delta, "usage": usage}))
        pieces.append(_event("message_stop", {}))
        return b"".join(pieces)

    def _start(self) -> bytes:
        usage = {"input_tokens": sum(self._counts[:3]), "output_tokens": 0}
        message: dict[str, Any] = {
            "id": self.response_id or "msg_meshd",
            "type": "message",
            "role": "assistant",
            "model": self.response_model or self._ask.model_sent,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        return _event("message_start", {"message": message})

    def error_event(self, refused: Refused) -> bytes:
        """See `Meter.error_event`. Nothing behind it: a broken answer must not look like a whole one."""
        row = refused.row
        error = {"type": row.anthropic_type, "message": refused.message, "details": {"error_code": row.code}}
        return _event("error", {"error": error})


def _written_long(reported: Any) -> int:
    """Return the tokens that were put into the cache to be kept for an hour; -1 where that is not said."""
    written = count(reported.get("ephemeral_1h_input_tokens")) if type(reported) is dict else None
    return -1 if written is None else written


def _larger(known: int, reported: int) -> int:
    """Return the larger of two counts; an absurd report is none."""
    return reported if known < reported <= COUNT_MAX else known


def _event(name: str, members: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode({"type": name} | members) + b"\n\n"
