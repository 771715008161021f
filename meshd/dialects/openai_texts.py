"""What a chat or embeddings request gives an OpenAI model to read, for an exact count.

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

_QUOTE: Final = b'"'
_BRACKET: Final = b"["
_READ_APART: Final = frozenset({"messages", "input", "model"})
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

    def _add_content(self, data: bytes, where: str) -> None:
        if data.startswith(_QUOTE):
            self.add(msgspec.json.decode(data), where)
        elif data.startswith(_BRACKET):
            for index, part in enumerate(pairs_of.read_objects(data, "'messages'")):
                self.overhead += _PART_TOKENS
                is_image = pairs_of.text(part, "type") == "image_url"
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
