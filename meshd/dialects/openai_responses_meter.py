"""Reads the answers of OpenAI responses: usage, tool calls, the end of a stream.

A stream carries the whole response at its beginning and at its end, and between them its items piece by piece. To end
one well-formed in the middle, what has passed is kept (up to a cap): clients take the output from the last event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.dialects.counting import BYTES_PER_TOKEN, respelled, size_of
from meshd.dialects.event import Event
from meshd.dialects.openai_meter import error_object
from meshd.dialects.openai_responses_shapes import Item, Response, StreamEvent, WholeResponse
from meshd.dialects.openai_usage import served, usage_in
from meshd.dialects.stream_errors import status_of
from meshd.wire.sse import data_of

if TYPE_CHECKING:
    from meshd.call import Ask, Usage
    from meshd.refusal import Refused

_event: Final = msgspec.json.Decoder(StreamEvent)
_item: Final = msgspec.json.Decoder(Item)
_response: Final = msgspec.json.Decoder(Response)
_whole: Final = msgspec.json.Decoder(WholeResponse)
_NONSENSE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_LF: Final = 0x0A
_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})
_BEGINS: Final = frozenset({"response.created", "response.queued", "response.in_progress"})
_TEXTS: Final = {"response.output_text.delta": "output_text", "response.refusal.delta": "refusal"}
_MEMBERS: Final = {"output_text": "text", "refusal": "refusal"}
"""Kinds of content, and where each has its text."""
_GENERATED: Final = frozenset(
    {
        *_TEXTS, "response.function_call_arguments.delta", "response.custom_tool_call_input.delta",
        "response.reasoning_text.delta", "response.mcp_call_arguments.delta",
        "response.code_interpreter_call_code.delta", "response.audio.transcript.delta",
        "response.shell_call_command.delta",
    }
)  # fmt: skip
"""Pieces of what the model wrote. A summary of its reasoning is not among them: the reasoning itself is billed."""
_CALLS: Final = frozenset({"function_call", "custom_tool_call"})
KEPT_BYTES_MAX: Final = 1024 * 1024
"""Output that is kept of a stream; of a longer one a cut shows none."""
_ITEMS_MAX: Final = 1024


class _Open:
    """An item of the output that has begun."""

    __slots__ = ("parts", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.parts: dict[int, tuple[str, list[str]]] = {}
        """By `content_index`: the kind of the part, and the pieces of its text."""


def _decoded(decoder: Any, data: Any) -> Any:
    try:
        return decoder.decode(data)
    except _NONSENSE:
        try:
            return decoder.decode(respelled(bytes(data)))
        except _NONSENSE:
            return None


def _kind_of(value: Any) -> str:
    return value if type(value) is str else ""


class ResponsesMeter:
    """See `Meter`. Usage that is missing or absurd stays None: it is never zero."""

    __slots__ = (
        "_ask",
        "_content_bytes",
        "_done",
        "_event",
        "_first",
        "_is_over",
        "_kept_bytes",
        "_open",
        "_pending",
        "_sequence",
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
        self._first = b""
        """The response as the stream's first event has it."""
        self._open: dict[int, _Open] = {}
        self._done: dict[int, bytes] = {}
        """Items that are whole, by `output_index`."""
        self._kept_bytes = 0
        self._sequence = 0
        """Number of the next event, if nothing more comes from the upstream."""
        self._pending: StreamEvent | None = None
        """The event last read; it takes effect with the next one, since a cut may stand in its place."""
        self._is_over = False
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
        whole = _decoded(_whole, body)
        if whole is None:
            return event
        self._read_response(whole)
        output = whole.output if type(whole.output) is list else ()
        calls = [item.get("name") for item in output if type(item) is dict and _kind_of(item.get("type")) in _CALLS]
        event.tool_names = tuple([name for name in calls if type(name) is str and name])
        return event

    def read_event(self, raw: bytes) -> Event | None:
        """See `Meter.read_event`. Everything is forwarded."""
        event = self._event
        event.raw = raw
        event.has_content = False
        if event.tool_names:
            event.tool_names = ()
        if self._pending is not None:
            self._take_effect(self._pending)
            self._pending = None
        # An `event` line and a `data` line, as the API writes them; anything else goes the longer way.
        at = raw.find(_LF)
        if raw[:6] == b"event:" and raw[at + 1 : at + 8] == b"data: {" and raw.find(_LF, at + 1) == len(raw) - 2:
            data = raw[at + 7 :]
        else:
            data = data_of(raw).strip()
            if data[:1] != b"{":
                return event
        said: StreamEvent | None = _decoded(_event, data)
        if said is None:
            return event
        self._pending = said
        kind = _kind_of(said.type)
        if kind in _GENERATED:
            self._add(said.delta, event)
        elif kind == "response.output_item.added":
            self._read_item(said.item, event)
        elif kind in _ENDS:
            self._read_end(kind, said)
        elif kind == "error":
            # As the API documents it, or as it comes.
            self.error_status = status_of(said.error) or status_of({"code": said.code})
        elif said.response and not self.response_id:
            self._read_response(_decoded(_response, said.response))
        return event

    def _add(self, text: Any, event: Event) -> None:
        size = size_of(text)
        if size:
            event.has_content = True
            self._content_bytes += size
            estimate = self._content_bytes // BYTES_PER_TOKEN
            if estimate > self.output_estimate:
                self.output_estimate = event.output_estimate = estimate

    def _read_item(self, raw: msgspec.Raw, event: Event) -> None:
        item = _decoded(_item, raw)
        if item is not None and _kind_of(item.type) in _CALLS and type(item.name) is str and item.name:
            event.tool_names = (item.name,)
            event.has_content = True

    def _read_end(self, kind: str, said: StreamEvent) -> None:
        response = _decoded(_response, said.response)
        self._read_response(response)
        if kind == "response.failed" and response is not None:
            self.error_status = status_of(response.error)
        # One that failed and says what it used has run to its end; without that, it broke on the way.
        self.is_terminal = kind != "response.failed" or self.usage is not None

    def _read_response(self, response: Response | None) -> None:
        if response is None:
            return
        if type(response.id) is str and response.id:
            self.response_id = response.id
        if type(response.model) is str and response.model:
            self.response_model = response.model
        status, why = response.status, response.incomplete_details
        if status in ("queued", "in_progress"):
            self._event.begun = self.response_id
        elif status in ("completed", "failed", "cancelled"):
            self.finish_reasons = (status,)
        elif status == "incomplete":
            reason = why.get("reason") if type(why) is dict else None
            self.finish_reasons = (reason if type(reason) is str else "incomplete",)
        if self.finish_reasons:
            self._event.ended = self.response_id
        usage = usage_in(response.usage, has_output=self._ask.has_output)
        if usage is None or (usage.output_tokens == 0 and self._content_bytes):
            return
        # Images that a tool has made are another model's work, and counted beside the response's own tokens.
        drawn = response.tool_usage.get("image_gen") if type(response.tool_usage) is dict else None
        images = usage_in(drawn, has_output=True)
        if images is not None:
            usage.input_tokens += images.input_tokens
            usage.output_tokens += images.output_tokens
        self.usage = served(usage, response.service_tier)
        if usage.output_tokens > self.output_estimate and images is None:
            self.output_estimate = self._event.output_estimate = usage.output_tokens

    def _take_effect(self, said: StreamEvent) -> None:
        """Keep of an event what an end of our own would have to repeat."""
        if type(said.sequence_number) is int:
            self._sequence = said.sequence_number + 1
        kind, index = _kind_of(said.type), said.output_index
        if kind in _ENDS or kind == "error" or said.error is not None:
            self._is_over = True
        elif said.response and not self._first and kind in _BEGINS:
            self._first = bytes(said.response)
        elif self._kept_bytes > KEPT_BYTES_MAX or type(index) is not int or len(self._done) > _ITEMS_MAX:
            return
        elif kind == "response.output_item.added":
            if said.item and len(self._open) < _ITEMS_MAX:
                self._open[index] = _Open(self._kept(said.item))
        elif kind == "response.output_item.done":
            self._open.pop(index, None)
            if said.item:
                self._done[index] = self._kept(said.item)
        elif index in self._open and (kind in _TEXTS or kind == "response.content_part.added"):
            self._keep_text(kind, said, self._open[index].parts)

    def _keep_text(self, kind: str, said: StreamEvent, parts: dict[int, tuple[str, list[str]]]) -> None:
        at = said.content_index if type(said.content_index) is int else 0
        if at not in parts and len(parts) < _ITEMS_MAX:
            part = _decoded(_item, said.part) if said.part else None
            form = _TEXTS.get(kind) or (_kind_of(part.type) if part is not None else "")
            if form in _MEMBERS:
                parts[at] = (form, [])
        if at in parts and type(said.delta) is str:
            parts[at][1].append(said.delta)
            self._kept_bytes += len(said.delta)

    def _kept(self, raw: msgspec.Raw) -> bytes:
        item = bytes(raw)
        self._kept_bytes += len(item)
        return item

    def cut(self, *, is_event_forwarded: bool = False) -> bytes:
        """See `Meter.cut`: what is open ends where it stands, and the response is `incomplete` for its length."""
        if self._pending is not None and is_event_forwarded:
            self._take_effect(self._pending)
        elif self._pending is not None and type(self._pending.sequence_number) is int:
            self._sequence = self._pending.sequence_number
        self._pending = None
        if self._is_over:
            return b""
        self._is_over = True
        pieces: list[bytes] = []
        output: dict[int, bytes] = {}
        if self._kept_bytes <= KEPT_BYTES_MAX:
            output |= self._done
            for index in sorted(self._open):
                item = self._closed(index, self._open[index], pieces)
                if item:
                    output[index] = item
        response = self._skeleton()
        response |= {
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": [msgspec.Raw(output[index]) for index in sorted(output)],
        }
        pieces.append(self._written("response.incomplete", {"response": response}))
        return b"".join(pieces)

    def _skeleton(self) -> dict[str, Any]:
        try:
            first = msgspec.json.decode(self._first) if self._first else None
        except _NONSENSE:
            first = None
        if type(first) is dict:
            return first
        return {
            "id": self.response_id or "resp_meshd",
            "object": "response",
            "created_at": 0,
            "model": self.response_model or self._ask.model_sent,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "error": None,
            "usage": None,
        }

    def _closed(self, index: int, opened: _Open, pieces: list[bytes]) -> bytes:
        """Write the end of a message that has text; return it. Calls that have begun are left out: nobody may make
        one of half its arguments."""
        try:
            item = msgspec.json.decode(opened.raw)
        except _NONSENSE:
            return b""
        if type(item) is not dict or item.get("type") != "message":
            return b""
        content = []
        for at in sorted(opened.parts):
            name, texts = opened.parts[at]
            text = "".join(texts)
            part: dict[str, Any] = {"type": name, _MEMBERS[name]: text}
            place = {"item_id": item.get("id"), "output_index": index, "content_index": at}
            if name == "output_text":
                part |= {"annotations": [], "logprobs": []}
                pieces.append(self._written("response.output_text.done", place | {"text": text, "logprobs": []}))
            else:
                pieces.append(self._written("response.refusal.done", place | {"refusal": text}))
            pieces.append(self._written("response.content_part.done", place | {"part": part}))
            content.append(part)
        item |= {"status": "incomplete", "content": content}
        pieces.append(self._written("response.output_item.done", {"output_index": index, "item": item}))
        return msgspec.json.encode(item)

    def _written(self, kind: str, members: dict[str, Any]) -> bytes:
        body = {"type": kind, "sequence_number": self._sequence} | members
        self._sequence += 1
        return b"event: " + kind.encode() + b"\ndata: " + msgspec.json.encode(body) + b"\n\n"

    def error_event(self, refused: Refused) -> bytes:
        """See `Meter.error_event`. As the API has it, and once more under `error`, where the SDK looks for it."""
        if self._pending is not None and type(self._pending.sequence_number) is int:
            self._sequence = self._pending.sequence_number
        error = error_object(refused)
        members = {"code": error["code"], "message": error["message"], "param": None, "error": error}
        return self._written("error", members)
