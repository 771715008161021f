"""A tool's result that is longer than a model shall read at once: what is cut of it, and what it says as one text.
Pure.

Sizes are an estimate of tokens, at four bytes of UTF-8 each: nothing is admitted by it. Pictures cost models by their
size in pixels, not in bytes: each counts as much as a large one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshd.dialects.counting import BYTES_PER_TOKEN
from meshd.dialects.json_pairs import member, read_items, read_object, text, write
from meshd.gateway.messages import encode

if TYPE_CHECKING:
    from meshd.dialects.json_pairs import Pairs

IMAGE_TOKENS: Final = 1600
"""About what the largest picture costs that providers do not make smaller first."""
BLOCK_BYTES: Final = 16
"""What each block counts besides what it holds: else a million empty ones would cost nothing."""
NOTES_MAX: Final = 8
"""Blocks in whose place it is said what stood there; of more it is only counted."""
PAST_MAX: Final = 64
"""Blocks that are looked at behind the first for which there was no room. The rest are only counted."""
BLOCKS_MAX: Final = 10_000
"""Blocks of a result that are read as one text: a million of them take ten seconds."""
DEPTH_MAX: Final = 16
"""Of structured content that is cut: each level is read once more."""
_SHOWN_MAX: Final = 64
_map: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items: Final = msgspec.json.Decoder(list[msgspec.Raw])
_text: Final = msgspec.json.Decoder(str)


class Clipped(NamedTuple):
    """What is left of a result."""

    content: list[bytes] | None
    """Its blocks, raw; None where the result has no content."""
    structured: bytes | None
    """None where it has none, or nothing of it could be kept."""
    left_out: int
    """Tokens, of the content or of the structured content, whichever lost more."""
    shown_to: int | None
    """Characters of `text_of` that are shown before the first that are not; None where all of them are."""


def tokens_of(size: int) -> int:
    """Return about how many tokens so many bytes are."""
    return -(-size // BYTES_PER_TOKEN)


def clip(result: Pairs, tokens_max: int) -> Clipped | None:
    """Cut a result down to so many tokens; None where it has no more. Raises Refused where it cannot be read.

    Content and structured content mostly say the same, and a model reads one of them: each is measured by itself.
    """
    room = tokens_max * BYTES_PER_TOKEN
    raw, structured = member(result, "content"), member(result, "structuredContent")
    cutting = _Cutting(room)
    if raw is not None:
        for block in read_items(raw, "the content"):
            cutting.add(block)
    size = 0 if structured is None else len(memoryview(structured))
    kept = None if structured is None else bytes(structured) if size <= room else _shrunk(structured, room)
    if not cutting.left_out and size <= room:
        return None
    lost = max(cutting.left_out, size - len(kept or b"") if size > room else 0)
    shown_to = cutting.shown_to if cutting.blocks or cutting.left_out else 0
    return Clipped(cutting.blocks if raw is not None else None, kept, tokens_of(lost), shown_to)


class _Cutting:
    """Takes one block after another, as long as there is room."""

    def __init__(self, room: int) -> None:
        self.blocks: list[bytes] = []
        self.left_out = 0
        """Bytes."""
        self.offset = 0
        """Characters of `text_of` up to here."""
        self.shown_to: int | None = None
        self._room = room + BLOCK_BYTES
        self._notes = 0
        self._past = 0

    def add(self, raw: msgspec.Raw) -> None:
        if self.left_out:
            self._past += 1
            if self._past > PAST_MAX:
                self.left_out += len(memoryview(raw))
                if self.shown_to is None:
                    self.shown_to = self.offset
                return
        block = read_object(raw, "a block of the content")
        found = _readable(block)
        if found is None:
            self._whole(raw, block)
            return
        said, rewrite = found
        data = said.encode()
        room = max(self._room - BLOCK_BYTES, 0)
        if len(data) <= room and self._room >= BLOCK_BYTES:
            self.blocks.append(bytes(raw))
            self._room = room - len(data)
        else:
            # A character is not torn: what is left of one at the end is dropped.
            kept = data[:room].decode("utf-8", "ignore")
            self.left_out += len(data) - len(kept.encode()) or BLOCK_BYTES
            if self.shown_to is None:
                self.shown_to = self.offset + len(kept)
            if kept:
                self.blocks.append(rewrite(kept))
            self._room = 0
        self.offset += len(said) + 1

    def _whole(self, raw: msgspec.Raw, block: Pairs) -> None:
        """What cannot be cut stays as it is, or a note says what it was."""
        cost = _cost(raw, block) + BLOCK_BYTES
        note = described(raw, block)
        self.offset += len(note) + 1
        if cost <= self._room:
            self.blocks.append(bytes(raw))
            self._room -= cost
            return
        self.left_out += cost
        self._notes += 1
        if self._notes <= NOTES_MAX:
            self.blocks.append(encode({"type": "text", "text": note}))


def _readable(block: Pairs) -> tuple[str, Any] | None:
    """Return the text of a block, and what makes another of it; None for what is no text."""
    kind = text(block, "type", "a block")
    if kind == "text":
        said = text(block, "text", "a block")
        return None if said is None else (said, lambda kept: write(block, {"text": encode(kept)}))
    raw = member(block, "resource") if kind == "resource" else None
    if raw is None:
        return None
    inner = read_object(raw, "a resource")
    said = text(inner, "text", "a resource")
    if said is None:
        return None
    return said, lambda kept: write(block, {"resource": write(inner, {"text": encode(kept)})})


def _cost(raw: msgspec.Raw, block: Pairs) -> int:
    if text(block, "type", "a block") == "image":
        return IMAGE_TOKENS * BYTES_PER_TOKEN
    return len(memoryview(raw))


def described(raw: msgspec.Raw, block: Pairs) -> str:
    """Return what stands in a text for a block that is none. Raises Refused."""
    kind = text(block, "type", "a block") or "block of no type"
    inner = member(block, "resource")
    of = block if inner is None or _head(inner) != b"{" else read_object(inner, "a resource")
    mime = text(of, "mimeType", "a block") or ""
    shown = ", ".join([one[:_SHOWN_MAX] for one in (kind, mime) if one])
    return f"[{shown}, {len(memoryview(raw)):,} bytes]"


def text_of(result: Pairs) -> str:
    """Return a result as one text: its blocks, one behind the other, or its structured content where it has no others.

    Raises Refused.
    """
    raw = member(result, "content")
    blocks = read_items(raw, "the content") if raw is not None else []
    said: list[str] = []
    for block_raw in blocks[:BLOCKS_MAX]:
        block = read_object(block_raw, "a block of the content")
        found = _readable(block)
        said.append(described(block_raw, block) if found is None else found[0])
    if len(blocks) > BLOCKS_MAX:
        said.append(f"[{len(blocks) - BLOCKS_MAX:,} more blocks]")
    if not said:
        structured = member(result, "structuredContent")
        return "" if structured is None else bytes(structured).decode()
    return "\n".join(said)


# ---------------------------------------------------------------------- structured content


def _shrunk(raw: msgspec.Raw, room: int) -> bytes | None:
    """Return structured content with shorter strings and lists, from where the room ends; None where that is not
    enough.

    It keeps its shape: clients check it against the tool's schema, and the official ones raise where there is none.
    Nothing is built of what there is no room for, so that a million lists in one another cost no more than a long text.
    """
    shrinking = _Shrinking(room)
    try:
        return shrinking.value(raw, 0) if shrinking.least(raw, 0) <= room else None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


class _Shrinking:
    def __init__(self, room: int) -> None:
        self._room = room
        self._objects: dict[int, tuple[int, Pairs]] = {}
        """The least bytes and the members of an object, by where it is: it is asked for from within each around it."""

    def least(self, raw: msgspec.Raw, depth: int) -> int:
        """Return the bytes of the least that can stand for a value, or any number for which there is no room.

        Raises ValueError where it is nested too deeply.
        """
        head = _head(raw)
        if head in (b'"', b"["):
            return 2
        if head != b"{":
            return len(memoryview(raw))
        known = self._objects.get(id(raw))
        if known is not None:
            return known[0]
        if depth > DEPTH_MAX:
            raise ValueError("it is nested too deeply")
        pairs = _map.decode(raw)
        size = 2
        for name, one in pairs.items():
            size += len(encode(name)) + 2 + self.least(one, depth + 1)
            if size > self._room:
                return size
        self._objects[id(raw)] = size, pairs
        return size

    def value(self, raw: msgspec.Raw, depth: int) -> bytes:
        """Return as much of a value as there is room for, where there is room for the least, and write it off."""
        size = len(memoryview(raw))
        if size <= self._room:
            self._room -= size
            return bytes(raw)
        head = _head(raw)
        if head == b'"':
            return self._string(raw)
        if head == b"[":
            return self._list(raw, depth)
        # All names, and the least of what stands behind each, before the first value takes what there is.
        self._room -= self.least(raw, depth)
        pieces = []
        for name, one in self._objects[id(raw)][1].items():
            self._room += self.least(one, depth + 1)
            pieces.append(encode(name) + b":" + self.value(one, depth + 1))
        return b"{" + b",".join(pieces) + b"}"

    def _list(self, raw: msgspec.Raw, depth: int) -> bytes:
        if depth > DEPTH_MAX:
            raise ValueError("it is nested too deeply")
        self._room -= 2
        pieces = []
        for one in _items.decode(raw):
            if self._room <= self.least(one, depth + 1):
                break
            self._room -= 1
            pieces.append(self.value(one, depth + 1))
        return b"[" + b",".join(pieces) + b"]"

    def _string(self, raw: msgspec.Raw) -> bytes:
        kept = _text.decode(raw).encode()[: max(self._room - 2, 0)].decode("utf-8", "ignore")
        # What needs escapes is longer in JSON than it is.
        while len(made := encode(kept)) > self._room and kept:
            kept = kept[: len(kept) * 3 // 4]
        self._room -= len(made)
        return made


def _head(raw: msgspec.Raw) -> bytes:
    return bytes(memoryview(raw)[:1])
