"""An answer of OpenAI chat completions, as one of Anthropic messages: plain, or event by event.

What a model thought is left out: a thinking block must be signed, and nobody but Anthropic can.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from meshd.dialects.translation_answers import anthropic_error_event, decode, message_usage, stop_reason, text_of
from meshd.dialects.translation_contract import TranslationError, lost
from meshd.dialects.translation_ids import Ids
from meshd.dialects.translation_shapes import ChatAnswer, ChatCall, ChatChoice, ChatContent
from meshd.wire.sse import data_of

_answer: Final = msgspec.json.Decoder(ChatAnswer)
_object: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_NO_ID: Final = "msg_meshd"
_NONSENSE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def message(body: bytes, model: str, stops: tuple[str, ...]) -> bytes:
    """Return a plain answer. `stops` are the stop sequences of the request. Raises TranslationError."""
    answer: ChatAnswer = decode(body, _answer, "the answer")
    choice = _first(answer)
    said = choice.message if choice is not None else None
    if choice is None or said is None or answer.error is not None:
        lost("the answer has no message")
    identity = _text(answer.id) or _NO_ID
    refusal = text_of(said.refusal)
    blocks: list[dict[str, Any]] = [{"type": "text", "text": text} for text in (text_of(said.content), refusal) if text]
    ids = Ids("toolu_")
    for call in said.tool_calls or ():
        name = _name(call)
        if not name:
            lost("a tool call of the answer has no name")
        if ids.is_full:
            lost("the answer calls too many tools")
        given = ids.next(call.id, identity)
        blocks.append({"type": "tool_use", "id": given, "name": name, "input": _input(call, choice.finish_reason)})
    ending = _ending(choice, stops, refusal, has_calls=bool(said.tool_calls))
    written = _envelope(identity, _text(answer.model) or model, message_usage(answer.usage))
    return msgspec.json.encode(written | {"content": blocks} | ending)


def _first(answer: ChatAnswer) -> ChatChoice | None:
    """Return the one choice that was asked for."""
    for choice in answer.choices or ():
        if choice.index == 0 or type(choice.index) is not int:
            return choice
    return None


def _text(value: Any) -> str:
    return value if type(value) is str else ""


def _name(call: ChatCall) -> str:
    return _text(call.function.name) if call.function is not None else ""


def _arguments(call: ChatCall) -> str:
    """Return the arguments of a call as text; some servers give them as an object."""
    given = call.function.arguments if call.function is not None else None
    if type(given) is not dict:
        return _text(given)
    try:
        return msgspec.json.encode(given).decode()
    except RecursionError:
        lost("the arguments of a tool call are nested too deeply")


def _input(call: ChatCall, finish: Any) -> msgspec.Raw:
    text = _arguments(call)
    if not text.strip():
        return msgspec.Raw(b"{}")
    raw = text.encode("utf-8", "surrogatepass")
    try:
        _object.decode(raw)
    except _NONSENSE as error:
        if finish == "length":
            # Cut off, as `max_tokens` says: what there is of it is no object.
            return msgspec.Raw(b"{}")
        raise TranslationError("the arguments of a tool call are no JSON object") from error
    return msgspec.Raw(raw)


def _ending(choice: ChatChoice, stops: tuple[str, ...], refusal: str, *, has_calls: bool) -> dict[str, Any]:
    """Return the members that say why an answer stopped."""
    reason = stop_reason(choice.finish_reason, has_calls=has_calls, is_refused=bool(refusal))
    met = choice.stop_reason if reason == "end_turn" and choice.stop_reason in stops else None
    ending: dict[str, Any] = {"stop_reason": "stop_sequence" if met is not None else reason, "stop_sequence": met}
    if refusal and reason == "refusal":
        ending["stop_details"] = {"type": "refusal", "category": None, "explanation": refusal}
    return ending


def _envelope(identity: str, model: str, usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": identity,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }


def _event(name: str, members: dict[str, Any]) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + msgspec.json.encode({"type": name} | members) + b"\n\n"


class MessageStream:
    """See `StreamTranslator`: chunks in, message events out. One content block is open at a time."""

    __slots__ = (
        "_answer", "_begun", "_ending", "_given", "_has_begun", "_ids", "_is_failed", "_model", "_open", "_places",
        "_refusals", "_stops", "_usage", "is_whole",
    )  # fmt: skip

    def __init__(self, model: str, stops: tuple[str, ...]) -> None:
        self._model = model
        self._stops = stops
        self._answer = _NO_ID
        self._ids = Ids("toolu_")
        self._has_begun = False
        self._begun = 0
        """Content blocks so far."""
        self._open = ""
        """What is open: a text, the call that was begun last, or nothing."""
        self._given: list[str] = []
        """The id of each call, as the provider says it."""
        self._places: dict[int, int] = {}
        """Which of them was begun last, by the provider's index."""
        self._refusals: list[str] = []
        self._ending: dict[str, Any] | None = None
        self._usage: Any = None
        self._is_failed = False
        self.is_whole = False

    def feed(self, event: bytes) -> bytes:
        """See `StreamTranslator.feed`."""
        data = data_of(event).strip()
        if not data or self._is_failed or self.is_whole:
            return b""
        if data.startswith(b"[DONE]"):
            return self._end()
        answer: ChatAnswer = decode(data, _answer, "an event of the stream")
        if answer.error is not None:
            self._is_failed = True
            return anthropic_error_event(answer.error)
        if answer.usage is not None:
            self._usage = answer.usage
        choice = _first(answer)
        if not self._has_begun:
            self._answer = _text(answer.id) or self._answer
            self._model = _text(answer.model) or self._model
            if choice is None:
                # Azure's first chunk has no choice, and no id: only the next one says who answers.
                return b""
        pieces = [self._start()]
        if choice is not None:
            if choice.delta is not None and self._ending is None:
                self._add(choice.delta, pieces)
            if choice.finish_reason is not None and self._ending is None:
                self._close(pieces)
                refusal = "".join(self._refusals)
                self._ending = _ending(choice, self._stops, refusal, has_calls=bool(self._given))
        return b"".join(pieces)

    def end(self) -> bytes:
        """See `StreamTranslator.end`: some servers send no `[DONE]`."""
        return self._end() if self._ending is not None and not (self.is_whole or self._is_failed) else b""

    def _start(self) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        usage = message_usage(self._usage) | {"output_tokens": 0}
        return _event("message_start", {"message": _envelope(self._answer, self._model, usage)})

    def _add(self, delta: ChatContent, pieces: list[bytes]) -> None:
        refusal = text_of(delta.refusal)
        if refusal:
            self._refusals.append(refusal)
        for text in (text_of(delta.content), refusal):
            if text:
                self._text(text, pieces)
        for call in delta.tool_calls or ():
            self._call(call, pieces)

    def _text(self, text: str, pieces: list[bytes]) -> None:
        if self._open != "text":
            self._begin("text", {"type": "text", "text": ""}, pieces)
        self._delta({"type": "text_delta", "text": text}, pieces)

    def _call(self, call: ChatCall, pieces: list[bytes]) -> None:
        given, name, arguments = _text(call.id), _name(call), _arguments(call)
        known = self._known(call, given, name)
        if known is None:
            if not name:
                lost("a tool call of the stream begins with no name")
            if self._ids.is_full:
                lost("the stream calls too many tools")
            if type(call.index) is int:
                self._places[call.index] = len(self._given)
            self._given.append(given)
            block = {"type": "tool_use", "id": self._ids.next(given, self._answer), "name": name, "input": {}}
            self._begin("call", block, pieces)
        elif known != len(self._given) - 1 or self._open != "call":
            lost("a tool call of the stream goes on after its end")
        if arguments:
            self._delta({"type": "input_json_delta", "partial_json": arguments}, pieces)

    def _known(self, call: ChatCall, given: str, name: str) -> int | None:
        """Return which call a piece goes on with, None where it begins one. Some servers give no index, or the same
        one to each call; some repeat the id and the name in each piece."""
        if type(call.index) is int:
            known = self._places.get(call.index)
        else:
            known = len(self._given) - 1 if self._given and not (name and not given) else None
        if known is not None and name and given and given != self._given[known]:
            return None
        return known

    def _begin(self, kind: str, block: dict[str, Any], pieces: list[bytes]) -> None:
        self._close(pieces)
        self._open = kind
        pieces.append(_event("content_block_start", {"index": self._begun, "content_block": block}))
        self._begun += 1

    def _delta(self, delta: dict[str, Any], pieces: list[bytes]) -> None:
        pieces.append(_event("content_block_delta", {"index": self._begun - 1, "delta": delta}))

    def _close(self, pieces: list[bytes]) -> None:
        if self._open:
            self._open = ""
            pieces.append(_event("content_block_stop", {"index": self._begun - 1}))

    def _end(self) -> bytes:
        if self._ending is None:
            lost("the stream ends, and has not said why")
        self.is_whole = True
        usage = message_usage(self._usage)
        return _event("message_delta", {"delta": self._ending, "usage": usage}) + _event("message_stop", {})
