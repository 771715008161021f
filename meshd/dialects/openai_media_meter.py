"""Reads the answers about images and audio: where they report tokens, and where a stream of them ends.

Most are no text at all, so nothing is counted of them here: a report is all that there is, and where none comes the
call is charged at its bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from meshd.dialects.event import Event
from meshd.dialects.openai_meter import error_object
from meshd.dialects.openai_responses_shapes import Response, StreamEvent
from meshd.dialects.openai_usage import usage_in
from meshd.dialects.stream_errors import status_of
from meshd.refusal import Reason, Refused
from meshd.wire.sse import data_of

if TYPE_CHECKING:
    from typing import Any

    from meshd.call import Ask, Usage

_event: Final = msgspec.json.Decoder(StreamEvent)
_whole: Final = msgspec.json.Decoder(Response)
_NONSENSE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_ENDS: Final = frozenset(
    {"image_generation.completed", "image_edit.completed", "transcript.text.done", "speech.audio.done"}
)
_PARTS: Final = frozenset({"image_generation.partial_image", "image_edit.partial_image"})
_ENDED: Final = "The answer was ended here: it ran past what was granted."


class MediaMeter:
    """See `Meter`. `output_estimate` stays 0: no stream is cut for bytes that are no text."""

    __slots__ = (
        "_ask",
        "_ends",
        "_event",
        "_is_failed",
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
        self._ends = 0
        self._is_failed = False
        self.usage: Usage | None = None
        self.output_estimate = 0
        self.is_terminal = False
        self.response_id = ""
        self.response_model = ""
        self.finish_reasons: tuple[str, ...] = ()
        self.error_status = 0

    def read_message(self, body: bytes) -> Event:
        """See `Meter.read_message`. Sound, and a transcript as plain text, say nothing of tokens."""
        event = self._event
        event.raw = body
        self.is_terminal = True
        if body[:1] == b"{":
            try:
                self.usage = usage_in(_whole.decode(body).usage, has_output=True)
            except _NONSENSE:
                self.usage = None
        return event

    def read_event(self, raw: bytes) -> Event | None:
        """See `Meter.read_event`. Everything is forwarded."""
        event = self._event
        event.raw = raw
        event.has_content = False
        data = data_of(raw).strip()
        if data[:1] != b"{":
            return event
        try:
            said = _event.decode(data)
        except _NONSENSE:
            return event
        kind = said.type if type(said.type) is str else ""
        if said.error is not None or kind == "error":
            self._is_failed = True
            self.error_status = status_of(said.error)
        elif kind in _ENDS:
            event.has_content = True
            self._read_end(usage_in(said.usage, has_output=True))
        elif said.delta is not None or kind in _PARTS:
            event.has_content = True
        return event

    def _read_end(self, usage: Usage | None) -> None:
        """One image of several, or the whole answer: each image reports its own tokens."""
        self._ends += 1
        known = self.usage
        if usage is not None:
            if known is not None:
                usage.input_tokens += known.input_tokens
                usage.output_tokens += known.output_tokens
            self.usage = usage
        self.is_terminal = self._ends >= self._ask.choices and not self._is_failed

    def cut(self, *, is_event_forwarded: bool = False) -> bytes:
        """See `Meter.cut`. There is no shape in which these end early and whole, so it is an error."""
        return b"" if self.is_terminal else self.error_event(Refused(Reason.NOT_ALLOWED, _ENDED))

    def error_event(self, refused: Refused) -> bytes:
        """See `Meter.error_event`."""
        error: dict[str, Any] = {"type": "error", "error": error_object(refused)}
        return b"event: error\ndata: " + msgspec.json.encode(error) + b"\n\n"
