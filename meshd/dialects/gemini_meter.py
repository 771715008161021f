"""Reads the answers of Gemini: usage, function calls, the end of a stream, whether events or an array carry it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.call import Ask, Usage
from meshd.dialects.counting import BYTES_PER_TOKEN, COUNT_MAX, count, respelled, size_of
from meshd.dialects.event import Event
from meshd.dialects.gemini_shapes import Answer, Candidate, Content, Feedback, UsageShape
from meshd.dialects.stream_errors import status_of
from meshd.prices.billed import Billed
from meshd.wire import json_array, sse

if TYPE_CHECKING:
    from meshd.dialects.contract import Splitter
    from meshd.refusal import Refused

_answer: Final = msgspec.json.Decoder(Answer)
_members: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raws: Final = msgspec.json.Decoder(list[msgspec.Raw])
_NONSENSE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
# Candidates that a stream is believed to have; an answer must not make its meter grow without end.
_CANDIDATES_MAX: Final = 1024
_BETWEEN: Final = b"[, \t\r\n"
# Names of google.rpc.Code by number, as a refusal's row has them for gRPC.
_STATUSES: Final = {
    3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 5: "NOT_FOUND", 7: "PERMISSION_DENIED", 8: "RESOURCE_EXHAUSTED",
    9: "FAILED_PRECONDITION", 10: "ABORTED", 13: "INTERNAL", 14: "UNAVAILABLE", 16: "UNAUTHENTICATED",
}  # fmt: skip
_TIERS: Final = {
    "standard": "standard", "flex": "flex", "priority": "priority",
    "ON_DEMAND": "standard", "ON_DEMAND_FLEX": "flex", "ON_DEMAND_PRIORITY": "priority",
}  # fmt: skip
"""Others are charged as the request asked."""


def error_object(refused: Refused) -> dict[str, Any]:
    """Return the `error` member of a body or of a stream's last chunk, as google.rpc.Status in JSON."""
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": refused.row.code.upper(),
        "domain": "meshd",
    }
    status = _STATUSES.get(refused.row.grpc, "UNKNOWN")
    return {"code": refused.status, "message": refused.message, "status": status, "details": [info]}


def _decode_again(data: bytes, error: Exception) -> Answer | None:
    """Return what can be understood of an answer that did not decode; None where it is no JSON object."""
    if not isinstance(error, msgspec.ValidationError):
        data = respelled(data)
    # One member of an unexpected type must not hide the others, above all not the usage.
    answer = Answer()
    try:
        members = _members.decode(data)
        for name, member in (("modelVersion", "model_version"), ("responseId", "response_id"), ("error", "error")):
            if name in members:
                setattr(answer, member, msgspec.json.decode(members[name]))
    except _NONSENSE:
        return None
    answer.usage_metadata = _decode_or_none(members.get("usageMetadata"), UsageShape)
    answer.prompt_feedback = _decode_or_none(members.get("promptFeedback"), Feedback)
    try:
        raws = _raws.decode(members.get("candidates", b"[]"))
    except _NONSENSE:
        raws = []
    candidates = [_decode_or_none(raw, Candidate) for raw in raws]
    answer.candidates = [candidate for candidate in candidates if candidate is not None]
    return answer


def _decode_or_none(raw: msgspec.Raw | None, kind: Any) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind) if raw is not None else None
    except _NONSENSE:
        return None


class GeminiMeter:
    """See `FramedMeter`. Usage that is missing or absurd stays None: it is never zero."""

    __slots__ = (
        "_ask",
        "_content_bytes",
        "_elements",
        "_event",
        "_finished",
        "_finishing",
        "_is_array",
        "_is_blocked",
        "_is_closed",
        "_is_failed",
        "_next",
        "_seen",
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
        self._seen = {0} if ask.choices == 1 else set(range(ask.choices))
        self._finished: set[int] = set()
        self._finishing: list[int] = []
        """Candidates that the event last read finishes: a cut in its place must still finish them itself."""
        self._is_array = False
        self._elements = 0
        """Elements of the array before the event last read."""
        self._next = ""
        """What the event last read is to the array: an `element`, or its `end`; takes effect with the next."""
        self._is_closed = False
        self._is_blocked = False
        self._is_failed = False
        self.usage: Usage | None = None
        self.output_estimate = 0
        self.is_terminal = False
        self.response_id = ""
        self.response_model = ""
        self.finish_reasons: tuple[str, ...] = ()
        self.error_status = 0

    def splitter_for(self, content_type: bytes, event_bytes_max: int) -> Splitter | None:
        """See `FramedMeter.splitter_for`: events with `alt=sse`, else an array where the request was to be streamed."""
        kind = content_type.lower()
        if kind.startswith(b"text/event-stream"):
            return sse.Splitter(event_bytes_max)
        self._is_array = self._ask.is_stream and kind.startswith(b"application/json")
        return json_array.Splitter(event_bytes_max) if self._is_array else None

    def read_message(self, body: bytes) -> Event:
        """See `Meter.read_message`."""
        event = self._event
        event.raw = body
        self.is_terminal = True
        self._decode(body, event)
        return event

    def read_event(self, raw: bytes) -> Event | None:
        """See `Meter.read_event`. Everything is forwarded."""
        event = self._event
        event.raw = raw
        event.has_content = False
        if event.tool_names:
            event.tool_names = ()
        self._take_effect()
        if self._is_array:
            data = raw.lstrip(_BETWEEN)
            self._next = "element" if data and data[:1] != b"]" else "end" if data else ""
        else:
            data = sse.data_of(raw).strip()
        if data[:1] == b"{":
            self._decode(data, event)
            is_finished = self._seen.issubset(self._finished.union(self._finishing))
            self.is_terminal = (is_finished or self._is_blocked) and not self._is_failed
        return event

    def _take_effect(self) -> None:
        if self._finishing:
            self._finished.update(self._finishing)
            self._finishing.clear()
        if self._next == "element":
            self._elements += 1
        elif self._next == "end":
            self._is_closed = True
        self._next = ""

    def _decode(self, data: bytes, event: Event) -> None:
        try:
            answer: Answer | None = _answer.decode(data)
        except _NONSENSE as error:
            answer = _decode_again(data, error)
        if answer is not None:
            self._read(answer, event)

    def _read(self, answer: Answer, event: Event) -> None:
        if answer.error is not None:
            self._is_failed = True
            self.error_status = status_of(answer.error)
        if type(answer.response_id) is str and answer.response_id:
            self.response_id = answer.response_id
        if type(answer.model_version) is str and answer.model_version:
            self.response_model = answer.model_version
        if answer.prompt_feedback is not None and type(answer.prompt_feedback.block_reason) is str:
            self._is_blocked = True
            self._add_reason(answer.prompt_feedback.block_reason)
        names: list[str] = []
        for candidate in answer.candidates or ():
            if candidate.content is not None:
                self._read_content(candidate.content, event, names)
            # Protobuf leaves out an index of 0.
            index = candidate.index if type(candidate.index) is int else 0
            if index not in self._seen and len(self._seen) < _CANDIDATES_MAX:
                self._seen.add(index)
            if type(candidate.finish_reason) is str:
                if index in self._seen:
                    self._finishing.append(index)
                self._add_reason(candidate.finish_reason)
        if names:
            event.tool_names += tuple(names)
        if answer.usage_metadata is not None:
            self._read_usage(answer.usage_metadata, event)

    def _add_reason(self, reason: str) -> None:
        if len(self.finish_reasons) < _CANDIDATES_MAX:
            self.finish_reasons += (reason,)

    def _read_content(self, content: Content, event: Event, names: list[str]) -> None:
        size, before = 0, len(names)
        for part in content.parts or ():
            size += size_of(part.text)
            call = part.function_call
            if call is not None:
                size += len(bytes(call.args))
                if type(call.name) is str and call.name:
                    names.append(call.name)
                    size += len(call.name)
            if part.executable_code is not None:
                # The service runs it; whoever judges tools by name must see it as what was offered.
                names.append("code_execution")
                size += size_of(part.executable_code.code)
            if part.inline_data is not None:
                event.has_content = True
        if size or len(names) > before:
            event.has_content = True
            self._content_bytes += size
            self.output_estimate = max(self.output_estimate, self._content_bytes // BYTES_PER_TOKEN)
        event.output_estimate = self.output_estimate

    def _read_usage(self, reported: UsageShape, event: Event) -> None:
        """Keep a sane report. Running reports only grow, so a smaller one does not replace a larger."""
        usage = _usage_of(reported, has_output=self._ask.has_output)
        if usage is None or (usage.output_tokens == 0 and self._content_bytes):
            return
        known = self.usage
        if known is None or usage.total >= known.total:
            self.usage = usage
        if usage.output_tokens > self.output_estimate:
            self.output_estimate = event.output_estimate = usage.output_tokens

    def cut(self, *, is_event_forwarded: bool = False) -> bytes:
        """See `Meter.cut`: a last chunk that finishes the open candidates, and the array's end where it is one."""
        if is_event_forwarded:
            self._take_effect()
        if self._is_closed:
            return b""
        still_open = sorted(self._seen - self._finished) if not self._is_blocked else []
        if not still_open:
            return self._framed(None)
        usage = self.usage or Usage(self._ask.input_bound // BYTES_PER_TOKEN, self.output_estimate)
        counts = {
            "promptTokenCount": usage.input_tokens,
            "candidatesTokenCount": usage.output_tokens - usage.reasoning_tokens,
            "totalTokenCount": usage.total,
        }
        if usage.reasoning_tokens:
            counts["thoughtsTokenCount"] = usage.reasoning_tokens
        content = {"parts": [{"text": ""}], "role": "model"}
        candidates = [{"content": content, "finishReason": "MAX_TOKENS", "index": index} for index in still_open]
        chunk: dict[str, Any] = {"candidates": candidates, "usageMetadata": counts}
        chunk["modelVersion"] = self.response_model or self._ask.model_sent
        if self.response_id:
            chunk["responseId"] = self.response_id
        return self._framed(chunk)

    def error_event(self, refused: Refused) -> bytes:
        """See `Meter.error_event`. It stands in the place of the event last read; an array is closed behind it, or no
        parser would read the error."""
        return self._framed({"error": error_object(refused)})

    def _framed(self, chunk: dict[str, Any] | None) -> bytes:
        """Return a chunk as the stream's last, None for the end alone."""
        data = msgspec.json.encode(chunk) if chunk is not None else b""
        if not self._is_array:
            return b"data: " + data + b"\r\n\r\n" if data else b""
        if not data:
            return b"\n]\n" if self._elements else b"[]\n"
        return (b",\r\n" if self._elements else b"[") + data + b"\n]\n"


def _usage_of(reported: UsageShape, *, has_output: bool) -> Usage | None:
    """Return a report as Usage, None where it is missing or absurd.

    Thoughts stand beside the candidates, what tools brought in stands beside the prompt, and cached tokens are in
    the prompt. Output is what the total leaves beside the input where that is more.
    """
    given, made = count(reported.prompt_token_count), count(reported.candidates_token_count)
    if given is None or (reported.candidates_token_count is not None and made is None):
        return None
    thoughts = count(reported.thoughts_token_count) or 0
    given += count(reported.tool_use_prompt_token_count) or 0
    total = count(reported.total_token_count)
    rest = max(total - given, 0) if total is not None else None
    if made is None and not thoughts and rest is None and has_output:
        return None
    made = max((made or 0) + thoughts, rest or 0)
    if not 0 < given + made <= COUNT_MAX:
        return None
    cached = min(count(reported.cached_content_token_count) or 0, given)
    tier = _tier_of(reported)
    billed = Billed(tier=tier) if tier else None
    return Usage(given, made if has_output else 0, cached, min(thoughts, made), billed=billed)


def _tier_of(reported: UsageShape) -> str:
    """Return the tier that a report names: Google's own API by the request's word, Vertex AI by the traffic's."""
    if type(reported.service_tier) is str:
        return _TIERS.get(reported.service_tier.lower(), "")
    return _TIERS.get(reported.traffic_type, "") if type(reported.traffic_type) is str else ""
