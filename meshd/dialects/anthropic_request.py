"""What a request for Anthropic messages brings: its content blocks, the models it may go to, its thinking budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.dialects import json_pairs as pairs_of
from meshd.dialects.images import data_bytes, image_tokens_max
from meshd.dialects.json_pairs import Pairs, malformed
from meshd.dialects.windows import window

if TYPE_CHECKING:
    import msgspec

_TEXT_BLOCKS: Final = frozenset(
    {
        "text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "mcp_tool_use", "tool_reference",
        "web_search_tool_result", "tool_search_tool_result", "bash_code_execution_tool_result",
        "code_execution_tool_result", "text_editor_code_execution_tool_result",
    }
)  # fmt: skip
_NESTED_BLOCKS: Final = frozenset({"tool_result", "mcp_tool_result", "search_result"})
"""Blocks whose `content` is text or blocks again."""
_FALLBACKS_DEFAULT: Final = 3
"""Models that the service may take one after the other where the request leaves them to it."""
_ADDITION: Final = "tool_addition"
# A search result inside a tool's result, as the API takes them.
_BLOCKS_DEPTH_MAX: Final = 2
_QUOTE: Final = 0x22
_BRACKETS: Final = b"[{"


class Request:
    """What `rewrite` needs to know of a request that was read, and what reading it has found."""

    __slots__ = (
        "added", "cap", "fallbacks", "image_bytes", "image_tokens", "is_model_placed", "pairs", "readers", "thinking",
        "thinking_budget",
    )  # fmt: skip

    def __init__(self, pairs: Pairs, model: str) -> None:
        self.pairs = pairs
        self.readers = [model]
        """Models of which any may read the input: the one that is asked, and those that may be taken in its turn."""
        self.is_model_placed = False
        """The model stands in the path, and not in the body."""
        self.cap: int | None = None
        """`max_tokens` as the client set it; the Ask's cap is the largest of this and those of the fallbacks."""
        self.fallbacks: list[Pairs] = []
        self.added: list[str] = []
        """Names of tools that a message offers from there on."""
        self.image_tokens = 0
        """Tokens that the request's images cannot exceed."""
        self.image_bytes = 0
        """Bytes of the body that are those images."""
        self.thinking: Pairs | None = None
        self.thinking_budget: int | None = None

    @property
    def window(self) -> int:
        """The largest window of those that may read the input."""
        return max([window(model) for model in self.readers])


def read_fallbacks(request: Request) -> tuple[int, int]:
    """Read the models that the service may take in turn: return how many, and the largest output cap of theirs."""
    raw = pairs_of.member(request.pairs, "fallbacks")
    if raw is None:
        return 0, 0
    if memoryview(raw)[0] == _QUOTE:
        request.readers.append(pairs_of.text(request.pairs, "fallbacks") or "default")
        return _FALLBACKS_DEFAULT, 0
    request.fallbacks = pairs_of.read_objects(raw, "'fallbacks'")
    most = 0
    for index, fallback in enumerate(request.fallbacks):
        model = pairs_of.text(fallback, "model", "'fallbacks'", index)
        request.readers.append(model or malformed(f"'fallbacks'[{index}] names no model"))
        most = max(most, pairs_of.integer(fallback, "max_tokens", least=0) or 0)
    return len(request.fallbacks), most


def lowered_fallbacks(fallbacks: list[Pairs], granted: int) -> bytes:
    """Return the fallbacks with none of their own caps above what was granted."""
    pieces: list[bytes] = []
    for fallback in fallbacks:
        cap = pairs_of.integer(fallback, "max_tokens", least=0)
        is_lower = cap is not None and cap > granted
        pieces.append(pairs_of.write(fallback, {"max_tokens": b"%d" % granted} if is_lower else {}))
    return b"[" + b",".join(pieces) + b"]"


def read_thinking(request: Request) -> None:
    """Read the budget of the model's thinking."""
    raw = pairs_of.member(request.pairs, "thinking")
    if raw is not None:
        request.thinking = pairs_of.read_object(raw, "'thinking'")
        request.thinking_budget = pairs_of.integer(request.thinking, "budget_tokens", least=0)


def is_input_hidden(request: Request, messages: list[Pairs] | None) -> bool:
    """Say whether a block brings input whose tokens nothing here bounds: documents, files, and images for a model that
    no published rule bounds them for. Others are added to `image_tokens`, tools that are offered to `added`."""
    pairs = request.pairs
    is_hidden = False
    raw = pairs_of.member(pairs, "system") if "system" in pairs else None
    if raw is not None and memoryview(raw)[0] != _QUOTE:
        is_hidden = _hides(raw, request, "'system'", -1)
    if messages is None:
        raw = pairs.get("messages")
        if raw is None or pairs_of.is_flat(raw):
            return is_hidden
        messages = pairs_of.read_objects(raw, "'messages'")
    elif pairs_of.are_texts(messages, "content"):
        return is_hidden
    for index, message in enumerate(messages):
        content = message.get("content")
        if content is None or memoryview(content)[0] not in _BRACKETS:
            continue
        if _hides(content, request, "'messages'", index):
            is_hidden = True
    return is_hidden


def _hides(raw: msgspec.Raw, request: Request, where: str, at: int, depth: int = 0) -> bool:
    is_hidden = False
    for block in pairs_of.read_objects(raw, where, at):
        kind = pairs_of.text(block, "type", where, at)
        if kind in _TEXT_BLOCKS:
            continue
        if kind in _NESTED_BLOCKS:
            inner = block.get("content")
            if inner is None or memoryview(inner)[0] not in _BRACKETS:
                continue
            # Each level is read anew, so a body must not choose how many there are.
            is_hidden = is_hidden or depth == _BLOCKS_DEPTH_MAX or _hides(inner, request, where, at, depth + 1)
        elif not _is_bounded(kind, block, request, where, at):
            is_hidden = True
            if kind == _ADDITION:
                request.added.append(_added_name(block, where, at))
    return is_hidden


def _is_bounded(kind: str | None, block: Pairs, request: Request, where: str, at: int) -> bool:
    """Say whether a block is a document of plain text, or an image whose tokens are bounded, which are added."""
    raw = pairs_of.member(block, "source")
    if raw is None:
        return False
    source = pairs_of.read_object(raw, where, at)
    given = pairs_of.text(source, "type", where, at)
    if kind != "image":
        return given == "text"
    most = _image_tokens_max(request.readers)
    if most is None:
        return False
    request.image_tokens += most
    data = pairs_of.member(source, "data") if given == "base64" else None
    if data is not None and memoryview(data)[0] == _QUOTE:
        request.image_bytes += data_bytes(data)
    return True


def _image_tokens_max(models: list[str]) -> int | None:
    """Return the tokens that one image cannot exceed, whichever of the models reads it; None where no rule says so."""
    most = 0
    for model in models:
        one = image_tokens_max(model)
        if one is None:
            return None
        most = max(most, one)
    return most


def _added_name(block: Pairs, where: str, at: int) -> str:
    """Return the name of a tool that a message offers, by its definition or a reference to one."""
    tool = pairs_of.member(block, "tool")
    if tool is None:
        return _ADDITION
    members = pairs_of.read_object(tool, where, at)
    definition = pairs_of.member(members, "definition")
    if definition is not None:
        members = pairs_of.read_object(definition, where, at)
    return pairs_of.text(members, "name", where, at) or pairs_of.text(members, "type", where, at) or _ADDITION
