"""What a request gives an OpenAI model to read, for an exact count: of a chat, a response, a completion, embeddings.

After OpenAI's cookbook ("How to count tokens with tiktoken", "How to format inputs to ChatGPT models"): a message costs
its texts and three tokens (four in the first models), a name one more, the answer's priming three. How tools, formats
and calls are written out for the model is not published: their JSON is counted as it stands, which is longer than
any form that is known, with a margin for each tool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from meshd.dialects import json_pairs as pairs_of
from meshd.refusal import Refused
from meshd.tokens.counter import Texts

if TYPE_CHECKING:
    from meshd.call import Ask
    from meshd.dialects.json_pairs import Pairs, RawJson

_MESSAGE_TOKENS: Final = 4
_NAME_TOKENS: Final = 1
_ANSWER_TOKENS: Final = 3
_TOOL_TOKENS: Final = 16
_PART_TOKENS: Final = 2

_IMAGES: Final = frozenset({"image_url", "input_image"})
_QUOTE: Final = b'"'
_BRACKET: Final = b"["
_READ_APART: Final = frozenset({"messages", "input", "prompt", "instructions", "model"})
COUNTED: Final = frozenset({"chat", "responses", "text_completion", "embeddings"})
"""Operations whose texts can be told apart."""
_ROLES: Final = frozenset({b'"system"', b'"developer"', b'"user"', b'"assistant"', b'"tool"', b'"function"'})
"""Each is one token, and is counted with its message's marks."""
_NONSENSE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, Refused)


def texts_of(ask: Ask, pairs: Pairs, messages: list[Pairs] | None, hidden_tokens: int) -> Texts | None:
    """Return the texts of a request that was read, None where they cannot be told apart.

    `hidden_tokens` is what its dialect knows beside them. Pure, so that another thread may do it.
    """
    collected = _Collected(hidden_tokens)
    try:
        if ask.operation == "embeddings":
            collected.add_input(pairs.get("input"))
        elif ask.operation == "text_completion":
            collected.add_input(pairs.get("prompt"))
        elif ask.operation == "responses":
            if pairs_of.has_member(messages or [], "encrypted_content"):
                return None  # Its bytes bound what it says; what its spelling counts as does not.
            collected.add_response(pairs, messages)
        else:
            collected.add_messages(pairs, messages)
        collected.add_rest(pairs)
    except _NONSENSE:
        return None
    return Texts(tuple(collected.parts), tuple(collected.labels), collected.overhead)


class _Collected:
    """The texts so far."""

    __slots__ = ("labels", "overhead", "parts")

    def __init__(self, overhead: int) -> None:
        self.parts: list[str] = []
        self.labels: list[str] = []
        self.overhead = overhead

    def add(self, text: str, label: str) -> None:
        """Add one text."""
        if text:
            self.parts.append(text)
            self.labels.append(label)

    def add_raw(self, raw: RawJson, label: str) -> None:
        """Add a value as it is spelled."""
        self.add(bytes(raw).decode(), label)

    def add_messages(self, pairs: Pairs, messages: list[Pairs] | None) -> None:
        """Add a chat."""
        self.overhead += _ANSWER_TOKENS
        if messages is None:
            raw = pairs_of.member(pairs, "messages")
            messages = pairs_of.read_objects(raw, "'messages'") if raw is not None else []
        for index, message in enumerate(messages):
            where = f"messages[{index}]"
            self.overhead += _MESSAGE_TOKENS
            for name, raw in message.items():
                data = bytes(raw)
                if name == "content":
                    self._add_content(data, f"{where}.content")
                elif name == "role" and data in _ROLES:
                    self.overhead += 1
                elif data.startswith(_QUOTE):
                    self.overhead += _NAME_TOKENS
                    self.add(msgspec.json.decode(data), f"{where}.{name}")
                elif data != pairs_of.NULL:
                    self.add_raw(data, f"{where}.{name}")

    def add_response(self, pairs: Pairs, items: list[Pairs] | None) -> None:
        """Add the instructions and the input of a response: a text, or items, each counted like a message."""
        for name in ("instructions", "input"):
            raw = pairs_of.member(pairs, name)
            if raw is not None and bytes(raw)[:1] == _QUOTE:
                self.overhead += _MESSAGE_TOKENS
                self.add(msgspec.json.decode(raw), name)
        self.add_messages(pairs, items or [])

    def _add_content(self, data: bytes, where: str) -> None:
        if data.startswith(_QUOTE):
            self.add(msgspec.json.decode(data), where)
        elif data.startswith(_BRACKET):
            for index, part in enumerate(pairs_of.read_objects(data, "'messages'")):
                self.overhead += _PART_TOKENS
                is_image = pairs_of.text(part, "type") in _IMAGES
                for name, raw in part.items():
                    # An image stands in the overhead already.
                    if name != "type" and not (is_image and name == "image_url"):
                        value = bytes(raw)
                        text = msgspec.json.decode(value) if value.startswith(_QUOTE) else value.decode()
                        self.add(text, f"{where}[{index}].{name}")
        elif data != pairs_of.NULL:
            self.add_raw(data, where)

    def add_input(self, raw: RawJson | None) -> None:
        """Add what is to be embedded: a text, several, or tokens, each of which is one."""
        value = msgspec.json.decode(raw) if raw is not None else None
        items = value if isinstance(value, list) else [value]
        for index, item in enumerate(items):
            if isinstance(item, str):
                self.add(item, f"input[{index}]")
            elif isinstance(item, list):
                self.overhead += len(item)
                for text in item:
                    self.add(text if isinstance(text, str) else "", f"input[{index}]")
            else:
                self.overhead += 1

    def add_rest(self, pairs: Pairs) -> None:
        """Add every other member that may hold text: which of them a server reads to its model is not known."""
        for name, raw in pairs.items():
            if name in _READ_APART or bytes(raw)[:1] not in b'"{[':
                continue
            if name in ("tools", "functions"):
                self.overhead += _TOOL_TOKENS * len(pairs_of.read_items(raw, name))
            self.add_raw(raw, name)
