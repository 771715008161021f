"""What a request quotes of earlier answers, so that it can be tied to the call that it goes on with.

A chat resends its history, tools' results name the calls that asked for them, a response names the one before. None of
it is proof of anything: whoever asks for marks may let them restrict a call, and never grant it something. What cannot
be read has no marks. Pure; digests are Python's own (keyed anew in each process), so they mean nothing elsewhere.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.dialects.marks_shapes import Block, ChatCall, ChatMessage, GeminiContent, GeminiPart, InputItem

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Ask

TEXT_CHARACTERS_MIN: Final = 32
"""Shorter answers (`Done.`, `Yes`) are given by every conversation."""
IDS_MAX: Final = 64
"""The newest ids and texts of a request that are looked at."""
TEXTS_MAX: Final = 32

_chat: Final = msgspec.json.Decoder(list[ChatMessage])
_blocks: Final = msgspec.json.Decoder(list[Block])
_items: Final = msgspec.json.Decoder(list[InputItem])
_contents: Final = msgspec.json.Decoder(list[GeminiContent])
_parts: Final = msgspec.json.Decoder(list[GeminiPart])
_text: Final = msgspec.json.Decoder(str)
_calls: Final = msgspec.json.Decoder(list[ChatCall])
_any: Final = msgspec.json.Decoder()
NONSENSE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_QUOTE: Final = 0x22
_BRACKET: Final = 0x5B
_CACHE: Final = b'"cache_control"'
_CACHED: Final = re.compile(rb',?"cache_control":\{[^{}]*\}')
# A content of one text, in either order of its members, is the same as that text alone: clients that mark what is to
# be cached write the last message so, and the next time plainly.
_ONE_TEXT: Final = re.compile(
    rb'\[\{(?:"type":"text","text":("(?:[^"\\]|\\.)*")|"text":("(?:[^"\\]|\\.)*"),"type":"text")\}\]\Z'
)


class Marks:
    """What one request quotes."""

    __slots__ = ("_rolling", "history", "ids", "is_models", "names", "texts", "whole")

    def __init__(self, opening: Any = None) -> None:
        """`opening` is what stands before the messages: instructions, a system prompt."""
        self.ids: list[str] = []
        """Ids that an answer brought: of tool calls, of responses and their items. The newest last."""
        self.names: list[str] = []
        """Ids of whole conversations, which the caller chooses to go on with."""
        self.texts: list[str] = []
        """The model's answers as the request repeats them, those of at least `TEXT_CHARACTERS_MIN`. The newest last."""
        self.history: list[int] = []
        """Digests of messages[0..k], for each k."""
        self.is_models: list[bool] = []
        """Whether messages[k] is the model's."""
        self.whole: list[bytes] = []
        """Texts that are messages of their own and not the model's, as JSON."""
        self._rolling = hash(("opening", opening))

    def add(self, said: tuple[Any, ...], *, is_model: bool) -> None:
        """Add a message by what it says."""
        self._rolling = rolling = hash((self._rolling, said))
        self.history.append(rolling)
        self.is_models.append(is_model)

    def add_text(self, text: str) -> None:
        """Add an answer that is repeated."""
        text = text.strip()
        if len(text) >= TEXT_CHARACTERS_MIN:
            self.texts.append(text)

    def add_arguments(self, raw: Any) -> None:
        """Add what a tool was called with, which tells answers apart where their ids are numbers from 0."""
        text = arguments_of(raw)
        if len(text) >= TEXT_CHARACTERS_MIN:
            self.texts.append(text)

    def add_id(self, id: Any) -> None:
        """Add an id, if it is one."""
        if type(id) is str and id:
            self.ids.append(id)


def arguments_of(raw: Any) -> str:
    """Return what a tool is called with (JSON, as text or bytes) in one spelling; empty for what is no object."""
    data = raw.encode("utf-8", "replace") if type(raw) is str else bytes(raw)
    if data[:1] != b"{":
        return ""
    try:
        return msgspec.json.encode(_any.decode(data)).decode()
    except NONSENSE:
        return ""


def _said(raw: Any) -> bytes:
    """Return a content as what it says, whether or not it is marked to be cached."""
    data = bytes(raw)
    if data[:1] == b"[":
        if _CACHE in data:
            data = _CACHED.sub(b"", data)
        one = _ONE_TEXT.match(data)
        if one is not None:
            return bytes(one[1] or one[2])
    return data


def _text_in(raw: Any) -> str:
    """Return the text of a content: a string, or the texts of its parts together."""
    data = bytes(raw)
    if not data:
        return ""
    if data[0] == _QUOTE:
        return _text.decode(data)
    if data[0] != _BRACKET:
        return ""
    return "".join([part.text for part in _blocks.decode(data) if type(part.text) is str])


def _of_chat(pairs: Any) -> Marks | None:
    raw = pairs.get("messages")
    if raw is None:
        return None
    marks = Marks()
    for message in _chat.decode(raw):
        said = _said(message.content)
        is_model = message.role == "assistant"
        role = message.role if type(message.role) is str else ""
        call_id = message.tool_call_id if type(message.tool_call_id) is str else ""
        marks.add((role, said, bytes(message.tool_calls), call_id), is_model=is_model)
        if is_model:
            # Most are shorter than their JSON: what is too short as that need not be decoded.
            if len(said) > TEXT_CHARACTERS_MIN:
                marks.add_text(_text_in(message.content))
            if bytes(message.tool_calls)[:1] == b"[":
                for call in _calls.decode(message.tool_calls):
                    if call.function is not None and call.function.arguments:
                        marks.add_arguments(call.function.arguments)
        elif call_id:
            marks.add_id(call_id)
        elif said[:1] == b'"':
            marks.whole.append(said)
    return marks


def _of_anthropic(pairs: Any) -> Marks | None:
    raw = pairs.get("messages")
    if raw is None:
        return None
    marks = Marks(_said(pairs.get("system", b"")))
    for message in _chat.decode(raw):
        said = _said(message.content)
        is_model = message.role == "assistant"
        marks.add((is_model, said), is_model=is_model)
        if said[:1] == b"[":
            _add_blocks(marks, said, is_model=is_model)
        elif is_model:
            marks.add_text(_text_in(said))
        else:
            marks.whole.append(said)
    return marks


def _add_blocks(marks: Marks, content: bytes, *, is_model: bool) -> None:
    texts: list[str] = []
    for block in _blocks.decode(content):
        if type(block.tool_use_id) is str:
            marks.add_id(block.tool_use_id)
        elif type(block.text) is str:
            texts.append(block.text)
        elif block.input:
            marks.add_arguments(block.input)
    if is_model:
        marks.add_text("".join(texts))
    else:
        marks.whole += [msgspec.json.encode(text) for text in texts]


_MODELS_TYPES: Final = frozenset({"reasoning", "item_reference", "compaction"})


def _of_response(pairs: Any) -> Marks | None:
    marks = Marks(bytes(pairs.get("instructions", b"")))
    earlier = pairs.get("previous_response_id")
    if earlier is not None:
        marks.add_id(_any.decode(earlier))
    conversation = pairs.get("conversation")
    if conversation is not None:
        value = _any.decode(conversation)
        value = value.get("id") if type(value) is dict else value
        if type(value) is str and value:
            marks.names.append(value)
    raw = pairs.get("input")
    if raw is None:
        return marks
    data = bytes(raw)
    if data[0] == _QUOTE:
        marks.add(("user", data), is_model=False)
        marks.whole.append(data)
    elif data[0] == _BRACKET:
        for item in _items.decode(data):
            _add_item(marks, item)
    return marks


def _add_item(marks: Marks, item: InputItem) -> None:
    kind = item.type if type(item.type) is str else "message"
    said = _said(item.content)
    is_model = item.role == "assistant" or kind in _MODELS_TYPES or kind.endswith("_call")
    role = item.role if type(item.role) is str else kind
    call_id = item.call_id if type(item.call_id) is str else ""
    arguments = item.arguments if type(item.arguments) is str else ""
    marks.add((role, said, call_id, bytes(item.output), arguments), is_model=is_model)
    if is_model:
        marks.add_id(item.id)
        if role == "assistant":
            marks.add_text(_text_in(item.content))
        marks.add_arguments(arguments)
    elif call_id:
        marks.add_id(call_id)
    elif said[:1] == b'"':
        marks.whole.append(said)
    elif said[:1] == b"[":
        marks.whole += [msgspec.json.encode(one.text) for one in _blocks.decode(said) if type(one.text) is str]


def _of_gemini(pairs: Any) -> Marks | None:
    raw = pairs.get("contents")
    if raw is None or bytes(raw)[:1] != b"[":
        return None
    instruction = pairs.get("systemInstruction", pairs.get("system_instruction", b""))
    marks = Marks(bytes(instruction))
    for content in _contents.decode(raw):
        is_model = content.role == "model"
        parts = bytes(content.parts)
        marks.add((is_model, parts), is_model=is_model)
        texts: list[str] = []
        for part in _parts.decode(parts) if parts[:1] == b"[" else ():
            if part.function_response is not None:
                marks.add_id(part.function_response.id)
            elif part.function_call is not None:
                marks.add_arguments(part.function_call.args)
            elif type(part.text) is str and part.thought is not True:
                texts.append(part.text)
        if is_model:
            marks.add_text("".join(texts))
        else:
            marks.whole += [msgspec.json.encode(text) for text in texts]
    return marks


def _of_prompt(pairs: Any) -> Marks | None:
    """A text that is to be gone on with, or to be embedded: no history, but words."""
    marks = Marks()
    for name in ("prompt", "input"):
        raw = pairs.get(name)
        if raw is not None and bytes(raw)[:1] == b'"':
            marks.whole.append(bytes(raw))
    return marks


_READERS: Final[dict[tuple[str, str], Callable[[Any], Marks | None]]] = {
    ("openai", "chat"): _of_chat,
    ("openai", "responses"): _of_response,
    ("anthropic", "chat"): _of_anthropic,
    ("gemini", "chat"): _of_gemini,
    ("ollama", "chat"): _of_chat,
}
"""By dialect and operation. Others have words alone."""


def marks_of(dialect: str, ask: Ask) -> Marks | None:
    """Return what a request quotes that was read by its dialect; None where nothing of it can be read."""
    fields = ask.fields
    pairs = getattr(fields, "pairs", None)
    if pairs is None:
        return None
    reader = _READERS.get((dialect, ask.operation), _of_prompt)
    try:
        marks = reader(pairs)
    except NONSENSE:
        return None
    if marks is not None:
        del marks.ids[:-IDS_MAX]
        del marks.texts[:-TEXTS_MAX]
    return marks
