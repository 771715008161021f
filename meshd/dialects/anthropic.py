"""Anthropic messages.

Shapes as published in Anthropic's API reference and as the official SDK sends them. Input, cache writes and cache
reads are disjoint here: the input is their sum. Thinking counts against `max_tokens`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from meshd.call import Ask
from meshd.dialects import json_pairs as pairs_of
from meshd.dialects.anthropic_meter import AnthropicMeter
from meshd.dialects.bounds import normalised_bytes
from meshd.dialects.images import data_bytes, image_tokens_max
from meshd.dialects.json_pairs import Pairs, malformed
from meshd.dialects.remembering import remembered
from meshd.dialects.windows import window
from meshd.tokens.encodings import WINDOW

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.refusal import Refused

# The tokenizers are not published: beside the bytes after NFKC, one byte in twenty and the frame of the prompt.
_MARGIN_DIVISOR: Final = 20
_FRAME_TOKENS: Final = 32
# The hidden system prompt that comes with tools: 159 (Sonnet 3) to 804 tokens (Opus 4.7, where a tool must be used) as
# platform.claude.com/docs/en/agents-and-tools/tool-use/overview has it in November 2026, and room for a model that is
# not in that table. The prompt that comes with a format is not published.
_TOOLS_TOKENS: Final = 1_000
# A tool of Anthropic's design that the client runs has its schema with the model: 245 tokens for bash, 700 for the
# text editor, 735 and a prompt of 466 to 499 for computer use, by the same pages.
_BUILT_IN_TOKENS: Final = 1_300
# Turns that the service takes by itself within one call before it pauses.
_HOSTED_TURNS: Final = 10
_THINKING_BUDGET_MIN: Final = 1_024

_TEXT_BLOCKS: Final = frozenset(
    {
        "text", "thinking", "redacted_thinking", "tool_use", "server_tool_use", "mcp_tool_use", "tool_reference",
        "web_search_tool_result", "tool_search_tool_result", "bash_code_execution_tool_result",
        "code_execution_tool_result", "text_editor_code_execution_tool_result",
    }
)  # fmt: skip
_NESTED_BLOCKS: Final = frozenset({"tool_result", "mcp_tool_result", "search_result"})
"""Blocks whose `content` is text or blocks again."""
_CLIENT_RUN: Final = ("bash_", "text_editor_", "computer_", "memory_")
_HIDING: Final = frozenset({"container", "mcp_servers", "context_management", "compaction"})
"""Members that bring input, or model turns, that the body does not show."""
_FALLBACKS_DEFAULT: Final = 3
"""Models that the service may take one after the other where the request leaves them to it."""
_ADDITION: Final = "tool_addition"

_FREE: Final[dict[str, re.Pattern[str]]] = {
    "GET": re.compile(r"/(?:models|messages/batches|files|skills)(?:/[A-Za-z0-9._:-]+)*/?\Z"),
    "POST": re.compile(
        r"/(?:messages/count_tokens|messages/batches/[^/]+/cancel|v1/files|v1/skills(?:/[^/]+/versions)?)/?\Z"
    ),
    "DELETE": re.compile(r"/(?:messages/batches|files|skills)(?:/[A-Za-z0-9._:-]+)+\Z"),
}

# A search result inside a tool's result, as the API takes them.
_BLOCKS_DEPTH_MAX: Final = 2
_QUOTE: Final = 0x22
_BRACKETS: Final = b"[{"


class Request:
    """What `rewrite` needs to know of a request that was read."""

    __slots__ = (
        "added", "cap", "fallbacks", "image_bytes", "image_tokens", "is_model_placed", "pairs", "thinking",
        "thinking_budget",
    )  # fmt: skip

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.image_tokens = 0
        """Tokens that the request's images cannot exceed."""
        self.image_bytes = 0
        """Bytes of the body that are those images."""
        self.added: list[str] = []
        """Names of tools that a message offers from there on."""
        self.is_model_placed = False
        """The model stands in the path, and not in the body."""
        self.cap: int | None = None
        """`max_tokens` as the client set it; the Ask's cap is the largest of this and those of the fallbacks."""
        self.fallbacks: list[Pairs] = []
        self.thinking: Pairs | None = None
        self.thinking_budget: int | None = None


class Anthropic:
    """The dialect `anthropic`."""

    name = "anthropic"

    def recognise(self, method: str, path: str) -> str | None:
        """See `Dialect.recognise`."""
        if method == "POST" and path.partition("?")[0].removesuffix("/").endswith("/messages"):
            return "chat"
        return None

    def is_free(self, method: str, path: str) -> bool:
        """See `Dialect.is_free`: counting tokens, files and skills, and looking after batches that are there already.
        To begin a batch is to spend where nobody counts."""
        free = _FREE.get("GET" if method == "HEAD" else method)
        return free is not None and free.search(path.partition("?")[0]) is not None

    def read(self, operation: str, body: bytes, path: str = "", headers: Headers | None = None) -> Ask:
        """See `Dialect.read`."""
        return read_messages(body, None)

    def rewrite(self, ask: Ask, body: bytes) -> bytes:
        """See `Dialect.rewrite`. A grant lowers the client's cap and never raises it; a thinking budget, which must
        stay below the cap, is lowered with it as far as the API allows."""
        request: Request = ask.fields
        edits: dict[str, bytes] = {}
        granted = ask.output_cap_granted
        if granted is not None and (ask.output_cap is None or granted < ask.output_cap):
            if request.cap is None or granted < request.cap:
                edits["max_tokens"] = b"%d" % granted
            if request.fallbacks:
                edits["fallbacks"] = _lowered(request.fallbacks, granted)
            budget = request.thinking_budget
            if budget is not None and request.thinking is not None and budget >= granted > _THINKING_BUDGET_MIN:
                lowered = b"%d" % max(_THINKING_BUDGET_MIN, granted // 2)
                edits["thinking"] = pairs_of.write(request.thinking, {"budget_tokens": lowered})
        if ask.model_granted is not None and ask.model_granted != ask.model and not request.is_model_placed:
            edits["model"] = msgspec.json.encode(ask.model_granted)
        return pairs_of.write(request.pairs, edits) if edits else body

    def redirect(self, ask: Ask, path: str) -> str:
        """See `Dialect.redirect`: the model stands in the body."""
        return path

    def meter(self, ask: Ask) -> AnthropicMeter:
        """See `Dialect.meter`."""
        return AnthropicMeter(ask)

    def refusal_body(self, refused: Refused, *, call_id: str) -> tuple[bytes, bytes]:
        """See `Dialect.refusal_body`. The SDK reads `error.type`, `.message` and `.details.error_code`."""
        row = refused.row
        error = {"type": row.anthropic_type, "message": refused.message, "details": {"error_code": row.code}}
        return b"application/json", msgspec.json.encode({"type": "error", "error": error, "request_id": call_id})


def read_messages(body: bytes, placed_model: str | None, *, is_streamed_by_path: bool = False) -> Ask:
    """Read the body of a request for messages; `placed_model` is its model where that stands in the path.

    Raises Refused(MALFORMED) as `Dialect.read` does.
    """
    pairs, messages = pairs_of.read_long_body(body, "messages")
    request = Request(pairs)
    model = placed_model
    if model is None:
        model = pairs_of.text(pairs, "model") or ""
    else:
        request.is_model_placed = True
    size = normalised_bytes(body)
    hidden = _FRAME_TOKENS
    names: list[str] = []
    others: tuple[str, ...] = ()
    turns = 1
    raw = pairs_of.member(pairs, "tools") if "tools" in pairs else None
    if raw is not None:
        offered, is_hosted, overhead, others = _offered(bytes(raw))
        names += offered
        hidden += overhead
        turns = _HOSTED_TURNS if is_hosted else 1
    if "output_config" in pairs or "output_format" in pairs:
        hidden += _TOOLS_TOKENS
    if not _HIDING.isdisjoint(pairs) and any(pairs_of.member(pairs, name) is not None for name in _HIDING):
        turns = _HOSTED_TURNS
    if "mcp_servers" in pairs:
        _read_servers(pairs, names)
    is_hidden = _is_input_hidden(request, messages, model)
    if request.added:
        names += request.added
        turns = _HOSTED_TURNS
    if turns > 1 or is_hidden or ("thread" in pairs and pairs_of.member(pairs, "thread") is not None):
        is_hidden = True
        # A tool that asks another model has that one's window too.
        bound = (window(model) + sum(window(other) for other in others)) * turns
    else:
        size -= request.image_bytes
        bound = size + size // _MARGIN_DIVISOR + hidden
        if request.image_tokens:
            # Many images at their most may come to more than the model can read at once.
            bound = min(bound + request.image_tokens, window(model))
    if "thinking" in pairs:
        _read_thinking(request)
    is_stream = is_streamed_by_path or ("stream" in pairs and pairs_of.flag(pairs, "stream") is True)
    cap = request.cap = pairs_of.integer(pairs, "max_tokens", least=0)
    ask = Ask("chat", model, is_stream, bound, cap, tools=tuple(names), is_usage_asked=True, fields=request)
    ask.other_models = others
    if is_hidden:
        ask.bound_by = WINDOW
    if "speed" in pairs:
        ask.tier = (pairs_of.text(pairs, "speed") or "")[:32]
    if "fallbacks" in pairs:
        _read_fallbacks(request, ask)
    return ask


def _read_fallbacks(request: Request, ask: Ask) -> None:
    """Let the ask cover each model that the service may take in turn: any of them may read and write anew."""
    raw = pairs_of.member(request.pairs, "fallbacks")
    if raw is None:
        return
    if memoryview(raw)[0] == _QUOTE:
        hops = _FALLBACKS_DEFAULT
        ask.other_models += (pairs_of.text(request.pairs, "fallbacks") or "default",)
    else:
        request.fallbacks = pairs_of.read_objects(raw, "'fallbacks'")
        hops = len(request.fallbacks)
    for index, fallback in enumerate(request.fallbacks):
        model = pairs_of.text(fallback, "model", "'fallbacks'", index)
        ask.other_models += (model or malformed(f"'fallbacks'[{index}] names no model"),)
        cap = pairs_of.integer(fallback, "max_tokens", least=0)
        if cap is not None and ask.output_cap is not None:
            ask.output_cap = max(ask.output_cap, cap)
    ask.choices += hops
    ask.input_bound *= ask.choices


def _lowered(fallbacks: list[Pairs], granted: int) -> bytes:
    """Return the fallbacks with none of their own caps above what was granted."""
    pieces: list[bytes] = []
    for fallback in fallbacks:
        cap = pairs_of.integer(fallback, "max_tokens", least=0)
        is_lower = cap is not None and cap > granted
        pieces.append(pairs_of.write(fallback, {"max_tokens": b"%d" % granted} if is_lower else {}))
    return b"[" + b",".join(pieces) + b"]"


def _read_offered(raw: bytes) -> tuple[tuple[str, ...], bool, int, tuple[str, ...]]:
    """Return the names in `tools`, whether the service runs one of them, the hidden tokens they bring, and the models
    that they ask."""
    names: list[str] = []
    models: list[str] = []
    is_hosted = False
    overhead = _TOOLS_TOKENS
    for index, tool in enumerate(pairs_of.read_objects(raw, "'tools'")):
        kind = pairs_of.text(tool, "type", "'tools'", index)
        name = pairs_of.text(tool, "name", "'tools'", index) or kind
        names.append(name or malformed(f"'tools'[{index}] has no name"))
        if kind not in (None, "custom"):
            if kind.startswith(_CLIENT_RUN):
                overhead += _BUILT_IN_TOKENS
            else:
                is_hosted = True
                if "model" in tool:
                    models.append(pairs_of.text(tool, "model", "'tools'", index) or "")
    return tuple(names), is_hosted, overhead, tuple(filter(None, models))


_offered = remembered(_read_offered)


def _read_servers(pairs: Pairs, names: list[str]) -> None:
    """Add the MCP servers that the service may call by itself: an allow-list must name them as it names tools."""
    raw = pairs_of.member(pairs, "mcp_servers")
    for index, server in enumerate(pairs_of.read_objects(raw, "'mcp_servers'") if raw is not None else ()):
        name = pairs_of.text(server, "name", "'mcp_servers'", index)
        names.append(name or malformed(f"'mcp_servers'[{index}] has no name"))


def _read_thinking(request: Request) -> None:
    raw = pairs_of.member(request.pairs, "thinking")
    if raw is not None:
        request.thinking = pairs_of.read_object(raw, "'thinking'")
        request.thinking_budget = pairs_of.integer(request.thinking, "budget_tokens", least=0)


def _is_input_hidden(request: Request, messages: list[Pairs] | None, model: str) -> bool:
    """Say whether a block brings input whose tokens nothing here bounds: documents, files, and images for a model that
    no published rule bounds them for. Others are added to `image_tokens`."""
    pairs = request.pairs
    is_hidden = False
    raw = pairs_of.member(pairs, "system") if "system" in pairs else None
    if raw is not None and memoryview(raw)[0] != _QUOTE:
        is_hidden = _hides(raw, request, model, "'system'", -1)
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
        if _hides(content, request, model, "'messages'", index):
            is_hidden = True
    return is_hidden


def _hides(raw: msgspec.Raw, request: Request, model: str, where: str, at: int, depth: int = 0) -> bool:
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
            is_hidden = is_hidden or depth == _BLOCKS_DEPTH_MAX or _hides(inner, request, model, where, at, depth + 1)
        elif not _is_bounded(kind, block, request, model, where, at):
            is_hidden = True
            if kind == _ADDITION:
                request.added.append(_added_name(block, where, at))
    return is_hidden


def _is_bounded(kind: str | None, block: Pairs, request: Request, model: str, where: str, at: int) -> bool:
    """Say whether a block is a document of plain text, or an image whose tokens are bounded, which are added."""
    raw = pairs_of.member(block, "source")
    if raw is None:
        return False
    source = pairs_of.read_object(raw, where, at)
    given = pairs_of.text(source, "type", where, at)
    if kind != "image":
        return given == "text"
    most = image_tokens_max(model)
    if most is None:
        return False
    request.image_tokens += most
    data = pairs_of.member(source, "data") if given == "base64" else None
    if data is not None and memoryview(data)[0] == _QUOTE:
        request.image_bytes += data_bytes(data)
    return True


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
