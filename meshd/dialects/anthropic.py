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
from meshd.dialects.anthropic_request import Request, is_input_hidden, lowered_fallbacks, read_fallbacks, read_thinking
from meshd.dialects.bounds import normalised_bytes
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

_CLIENT_RUN: Final = ("bash_", "text_editor_", "computer_", "memory_")
_HIDING: Final = frozenset({"container", "mcp_servers", "context_management", "compaction"})
"""Members that bring input, or model turns, that the body does not show."""
_TIER_CHARACTERS_MAX: Final = 32

_FREE: Final[dict[str, re.Pattern[str]]] = {
    "GET": re.compile(r"/(?:models|messages/batches|files|skills)(?:/[A-Za-z0-9._:-]+)*/?\Z"),
    "POST": re.compile(
        r"/(?:messages/count_tokens|messages/batches/[^/]+/cancel|v1/files|v1/skills(?:/[^/]+/versions)?)/?\Z"
    ),
    "DELETE": re.compile(r"/(?:messages/batches|files|skills)(?:/[A-Za-z0-9._:-]+)+\Z"),
}


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
                edits["fallbacks"] = lowered_fallbacks(request.fallbacks, granted)
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
    model = placed_model if placed_model is not None else pairs_of.text(pairs, "model") or ""
    request = Request(pairs, model)
    request.is_model_placed = placed_model is not None
    hops, cap_besides = read_fallbacks(request) if "fallbacks" in pairs else (0, 0)
    names, advisers, turns, hidden = _read_tools(pairs)
    is_hidden = is_input_hidden(request, messages)
    if request.added:
        names += request.added
        turns = _HOSTED_TURNS
    if turns > 1 or ("thread" in pairs and pairs_of.member(pairs, "thread") is not None):
        is_hidden = True
    if is_hidden:
        # A tool that asks another model has that one's window too.
        bound = (request.window + sum([window(one) for one in advisers])) * turns
    else:
        size = normalised_bytes(body) - request.image_bytes
        bound = size + size // _MARGIN_DIVISOR + hidden
        if request.image_tokens:
            # Many images at their most may come to more than the model can read at once.
            bound = min(bound + request.image_tokens, request.window)
    if "thinking" in pairs:
        read_thinking(request)
    is_stream = is_streamed_by_path or ("stream" in pairs and pairs_of.flag(pairs, "stream") is True)
    cap = request.cap = pairs_of.integer(pairs, "max_tokens", least=0)
    ask = Ask("chat", model, is_stream, bound, cap, tools=tuple(names), is_usage_asked=True, fields=request)
    if is_hidden:
        ask.bound_by = WINDOW
    if "speed" in pairs:
        ask.tier = (pairs_of.text(pairs, "speed") or "")[:_TIER_CHARACTERS_MAX]
    if hops:
        # Each of them may read and write anew.
        ask.choices += hops
        ask.input_bound *= ask.choices
        if cap is not None and cap_besides > cap:
            ask.output_cap = cap_besides
    if hops or advisers:
        ask.other_models = (*advisers, *request.readers[1:])
    return ask


def _read_tools(pairs: Pairs) -> tuple[list[str], tuple[str, ...], int, int]:
    """Return the names of the tools, the models that they ask, the turns that the service may take by itself, and the
    tokens that the body does not show."""
    names: list[str] = []
    advisers: tuple[str, ...] = ()
    turns = 1
    hidden = _FRAME_TOKENS
    raw = pairs_of.member(pairs, "tools") if "tools" in pairs else None
    if raw is not None:
        offered, is_hosted, overhead, advisers = _offered(bytes(raw))
        names += offered
        hidden += overhead
        turns = _HOSTED_TURNS if is_hosted else 1
    if "output_config" in pairs or "output_format" in pairs:
        hidden += _TOOLS_TOKENS
    if not _HIDING.isdisjoint(pairs) and any(pairs_of.member(pairs, name) is not None for name in _HIDING):
        turns = _HOSTED_TURNS
    if "mcp_servers" in pairs:
        _read_servers(pairs, names)
    return names, advisers, turns, hidden


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
