"""What an answer brings by which a later request can be told to go on with it: ids, and the text of the answer.

Read beside the meter, from the bytes that are forwarded, and only for calls for which somebody asked. Nonsense brings
nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.dialects.marks import NONSENSE, arguments_of
from meshd.dialects.marks_shapes import (
    AnthropicAnswer,
    ChatAnswer,
    GeminiAnswer,
    GeminiPart,
    InputItem,
    OllamaAnswer,
    ResponseAnswer,
)
from meshd.wire.sse import data_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.dialects.event import Event

TEXT_CHARACTERS_MAX: Final = 65_536
"""Of one answer; a longer one is not remembered by its text."""
CHOICES_MAX: Final = 8
IDS_MAX: Final = 128
"""Of one answer."""

_chat: Final = msgspec.json.Decoder(ChatAnswer)
_ollama: Final = msgspec.json.Decoder(OllamaAnswer)
_response: Final = msgspec.json.Decoder(ResponseAnswer)
_anthropic: Final = msgspec.json.Decoder(AnthropicAnswer)
_gemini: Final = msgspec.json.Decoder(GeminiAnswer)
_parts: Final = msgspec.json.Decoder(list[GeminiPart])
_FRAME: Final = b"[, \t\r\n"


class AnswerMarks:
    """What has been seen of one answer."""

    __slots__ = ("_arguments", "_id_count", "_read", "_size", "_texts", "ids", "is_whole")

    def __init__(self, read: Callable[[AnswerMarks, bytes], None]) -> None:
        self._read = read
        self._texts: dict[int, list[str]] = {}
        self._size = 0
        self._id_count = 0
        self.ids: list[str] = []
        """Those that came since they were last taken."""
        self._arguments: dict[tuple[int, int], list[str]] = {}
        """Pieces of what tools are called with, by choice and place."""
        self.is_whole = False
        """The answer says that its text is at its end, though more may follow."""

    def take(self, event: Event) -> None:
        """Read an event as the meter understood it."""
        if event.text:
            self.add_text(event.text, event.choice)
        elif event.raw:
            self.read(event.raw)

    def read(self, raw: bytes) -> None:
        """Read an event of a stream, or a plain answer."""
        data = raw if raw[:1] == b"{" else data_of(raw).strip()
        if data[:1] != b"{":
            if data[:6] == b"[DONE]":
                self.is_whole = True
                return
            data = raw.lstrip(_FRAME)
            if data[:1] != b"{":
                return
        try:
            self._read(self, data)
        except NONSENSE:
            return

    def texts(self) -> list[str]:
        """Return the text of each choice, without blanks around it."""
        if self._size > TEXT_CHARACTERS_MAX:
            return []
        return ["".join(pieces).strip() for pieces in self._texts.values()]

    def add_text(self, text: Any, choice: Any = 0) -> None:
        """Add a piece of a choice's text."""
        if type(text) is not str or not text:
            return
        self._size += len(text)
        index = choice if type(choice) is int else 0
        if self._size <= TEXT_CHARACTERS_MAX and (index in self._texts or len(self._texts) < CHOICES_MAX):
            self._texts.setdefault(index, []).append(text)

    def add_id(self, id: Any) -> None:
        """Add an id, if it is one."""
        if type(id) is str and id and self._id_count < IDS_MAX:
            self._id_count += 1
            self.ids.append(id)

    def add_arguments(self, text: Any, choice: Any = 0, place: Any = 0) -> None:
        """Add a piece of what a tool is called with: of the choice's `place`-th call."""
        if type(text) is str and text and self._size <= TEXT_CHARACTERS_MAX:
            self._size += len(text)
            at = (choice if type(choice) is int else 0, place if type(place) is int else 0)
            if at in self._arguments or len(self._arguments) < IDS_MAX:
                self._arguments.setdefault(at, []).append(text)

    def next_place(self) -> int:
        """Return a place for a call that says none of its own, and comes whole."""
        return len(self._arguments)

    def arguments(self) -> list[str]:
        """Return what each tool is called with, spelled as `arguments_of` does."""
        if self._size > TEXT_CHARACTERS_MAX:
            return []
        return [text for pieces in self._arguments.values() if (text := arguments_of("".join(pieces)))]


def _read_chat(marks: AnswerMarks, data: bytes) -> None:
    for choice in _chat.decode(data).choices or ():
        piece = choice.delta or choice.message
        if piece is not None:
            if piece.content is not None:
                marks.add_text(piece.content, choice.index)
            for place, call in enumerate(piece.tool_calls or ()):
                marks.add_id(call.id)
                if call.function is not None:
                    at = place if call.index is None else call.index
                    marks.add_arguments(call.function.arguments, choice.index, at)
        if choice.finish_reason is not None and choice.index == 0:
            marks.is_whole = True


def _read_ollama(marks: AnswerMarks, data: bytes) -> None:
    answer = _ollama.decode(data)
    if answer.message is not None:
        marks.add_text(answer.message.content)
    marks.is_whole = answer.done is True


def _read_response(marks: AnswerMarks, data: bytes) -> None:
    answer = _response.decode(data)
    kind = answer.type if type(answer.type) is str else ""
    if not kind.startswith("response."):
        _add_body(marks, answer.id, answer.output)
    elif answer.response is not None and kind == "response.created":
        marks.add_id(answer.response.id)
    elif answer.item is not None and kind == "response.output_item.done":
        _add_output(marks, answer.item, answer.output_index)
    elif kind in ("response.completed", "response.incomplete"):
        marks.is_whole = True


def _add_body(marks: AnswerMarks, id: Any, output: list[InputItem] | None) -> None:
    marks.add_id(id)
    for place, item in enumerate(output or ()):
        _add_output(marks, item, place)
    marks.is_whole = True


def _add_output(marks: AnswerMarks, item: InputItem, place: Any) -> None:
    marks.add_id(item.id)
    marks.add_id(item.call_id)
    marks.add_arguments(item.arguments, 0, place)
    content = bytes(item.content)
    if item.type == "message" and content[:1] == b"[":
        for part in msgspec.json.decode(content):
            marks.add_text(part.get("text") if type(part) is dict else None)


def _read_anthropic(marks: AnswerMarks, data: bytes) -> None:
    answer = _anthropic.decode(data)
    blocks = answer.content or []
    if answer.content_block is not None:
        blocks = [answer.content_block]
    for place, block in enumerate(blocks):
        at = place if answer.index is None else answer.index
        if type(block.type) is str and block.type.endswith("tool_use"):
            marks.add_id(block.id)
            if len(block_input := bytes(block.input)) > 2:
                marks.add_arguments(block_input.decode(), 0, at)
        else:
            marks.add_text(block.text)
    if answer.delta is not None:
        marks.add_text(answer.delta.text)
        marks.add_arguments(answer.delta.partial_json, 0, answer.index)
    marks.is_whole = answer.type in ("message", "message_stop", "message_delta")


def _read_gemini(marks: AnswerMarks, data: bytes) -> None:
    for candidate in _gemini.decode(data).candidates or ():
        content = candidate.content
        if content is None or bytes(content.parts)[:1] != b"[":
            continue
        for part in _parts.decode(content.parts):
            if part.function_call is not None:
                marks.add_id(part.function_call.id)
                marks.add_arguments(bytes(part.function_call.args).decode(), candidate.index, marks.next_place())
            elif part.thought is not True:
                marks.add_text(part.text, candidate.index)


_READERS: Final[dict[tuple[str, str], Callable[[AnswerMarks, bytes], None]]] = {
    ("openai", "chat"): _read_chat,
    ("openai", "responses"): _read_response,
    ("anthropic", "chat"): _read_anthropic,
    ("gemini", "chat"): _read_gemini,
    ("ollama", "chat"): _read_ollama,
}


def answer_marks(dialect: str, operation: str) -> AnswerMarks | None:
    """Return what reads one answer; None where answers of this kind bring nothing."""
    read = _READERS.get((dialect, operation))
    return AnswerMarks(read) if read is not None else None
