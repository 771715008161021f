"""Reads what Amazon Bedrock streams of Anthropic's models: their events, in base64, in frames of Amazon's."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.call import Usage
from meshd.dialects.anthropic_meter import AnthropicMeter
from meshd.dialects.counting import count
from meshd.dialects.stream_errors import status_of_word
from meshd.prices.billed import Billed
from meshd.wire import event_stream, sse

if TYPE_CHECKING:
    from meshd.dialects.contract import Splitter
    from meshd.dialects.event import Event
    from meshd.refusal import Refused

_CONTENT_TYPE: Final = b"application/vnd.amazon.eventstream"
_METRICS: Final = b'"amazon-bedrock-invocationMetrics"'
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_any: Final = msgspec.json.Decoder()
_NONSENSE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, binascii.Error, ValueError)
_NO_METRICS: Final = (*_NONSENSE, LookupError, TypeError, AttributeError)
_JSON: Final = "application/json"
# Names of the API's own exceptions by status; what it has no name for is a refusal of access.
_ERRORS: Final = {
    400: "ValidationException", 404: "ResourceNotFoundException", 413: "ValidationException",
    429: "ThrottlingException", 500: "InternalServerException", 502: "InternalServerException",
    503: "ServiceUnavailableException", 504: "ModelTimeoutException",
}  # fmt: skip
_EVENT_ERRORS: Final = {"ThrottlingException", "ValidationException", "ServiceUnavailableException"}


def error_name(refused: Refused) -> str:
    """Return the API's own name for a refusal."""
    return _ERRORS.get(refused.status, "AccessDeniedException")


class BedrockMeter(AnthropicMeter):
    """See `FramedMeter`. What the frames carry is read as what it is: see `AnthropicMeter`."""

    def splitter_for(self, content_type: bytes, event_bytes_max: int) -> Splitter | None:
        """See `FramedMeter.splitter_for`."""
        return event_stream.Splitter(event_bytes_max) if content_type.lower().startswith(_CONTENT_TYPE) else None

    def read_event(self, raw: bytes) -> Event | None:
        """See `Meter.read_event`. Everything is forwarded."""
        frame = event_stream.decode(raw)
        data = b""
        if frame is not None:
            if frame.headers.get(":message-type", "event") == "event":
                # A line feed in JSON is a blank, and would end a line of what the messages are read from.
                data = _carried(frame.payload).replace(b"\n", b" ").strip()
            else:
                self._is_failed = True
                self.error_status = status_of_word(frame.headers.get(":exception-type"))
        event = super().read_event(b"data: " + data + b"\n\n")
        if event is not None:
            event.raw = raw
        if _METRICS in data and self.usage is None:
            self.usage = _metrics_of(data)
        return event

    def cut(self, *, is_event_forwarded: bool = False) -> bytes:
        """See `Meter.cut`: the end that the messages have, in frames."""
        events = sse.Splitter().feed(super().cut(is_event_forwarded=is_event_forwarded))
        return b"".join([_framed(sse.data_of(event)) for event in events])

    def error_event(self, refused: Refused) -> bytes:
        """See `Meter.error_event`: an exception's frame. Nothing behind it."""
        name = error_name(refused)
        name = name if name in _EVENT_ERRORS else "ValidationException"
        headers = {
            ":exception-type": name[:1].lower() + name[1:],
            ":content-type": _JSON,
            ":message-type": "exception",
        }
        return event_stream.encode(headers, msgspec.json.encode({"message": refused.message}))


def _metrics_of(data: bytes) -> Usage | None:
    """Return Bedrock's own counts, for answers whose events said none; None where they are absent or absurd."""
    try:
        metrics: Any = _any.decode(data)["amazon-bedrock-invocationMetrics"]
        given, made = count(metrics["inputTokenCount"]), count(metrics["outputTokenCount"])
        cached = count(metrics.get("cacheReadInputTokenCount")) or 0
        written = count(metrics.get("cacheWriteInputTokenCount")) or 0
    except _NO_METRICS:
        return None
    if given is None or made is None or given + cached + written == 0:
        return None
    billed = Billed(written) if written else None
    return Usage(given + cached + written, made, cached, billed=billed)


def _carried(payload: bytes) -> bytes:
    """Return the event that a chunk's payload carries; empty where it carries none."""
    try:
        raw = _members.decode(payload).get("bytes")
        return base64.b64decode(msgspec.json.decode(raw, type=str), validate=True) if raw is not None else b""
    except _NONSENSE:
        return b""


def _framed(data: bytes) -> bytes:
    headers = {":event-type": "chunk", ":content-type": _JSON, ":message-type": "event"}
    return event_stream.encode(headers, msgspec.json.encode({"bytes": base64.b64encode(data).decode()}))
