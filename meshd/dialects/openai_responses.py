"""OpenAI responses: one request, and as many turns of the model as the tools that the provider runs give cause for.

What stands in the body is bounded by its bytes. What it only names (an earlier response, a conversation, a stored
prompt, an item or a file by id) or what is no text is bounded by the model's window, once for each turn that the model
may take. A `background` response runs on after its request is answered: see `Ask.begins`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Ask
from meshd.dialects import json_pairs as pairs_of
from meshd.dialects.json_pairs import Pairs, malformed
from meshd.dialects.openai_request import (
    HOSTED_TURNS,
    TOOLS_TOKENS,
    Request,
    bound_of,
    edits_of,
    is_image_bounded,
    shown_bytes,
)
from meshd.dialects.openai_responses_meter import ResponsesMeter
from meshd.dialects.openai_usage import TIER_CHARACTERS_MAX
from meshd.dialects.remembering import remembered
from meshd.dialects.windows import window
from meshd.tokens.encodings import WINDOW

if TYPE_CHECKING:
    import msgspec

    from meshd.call import Headers

_QUOTE, _BRACKET = 0x22, 0x5B
_NAMED_INPUT: Final = ("previous_response_id", "conversation", "prompt")
"""Members that bring input which stands elsewhere."""
_TEXT_PARTS: Final = frozenset({"input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"})
_SHOWN: Final = frozenset(
    {
        "message", "function_call", "custom_tool_call", "local_shell_call", "local_shell_call_output", "shell_call",
        "shell_call_output", "apply_patch_call", "apply_patch_call_output", "mcp_approval_response",
    }
)  # fmt: skip
"""Items whose text stands in the body. Others may stand for more than they show: an id is enough for the API."""
_OUTPUTS: Final = frozenset({"function_call_output", "custom_tool_call_output"})
_OFFERING: Final = frozenset({"additional_tools", "tool_search_output"})
"""Items that offer tools as `tools` does."""
_CALLERS_OWN: Final = frozenset({"function", "custom"})
_CLIENT_RUN: Final = frozenset({"apply_patch", "local_shell", "computer", "computer_use_preview"})
"""Tools of OpenAI's design that the client runs: the model takes one turn, with a prompt that is not published."""


class ResponsesRequest(Request):
    """See `Request`."""

    __slots__ = ("tool_calls_max",)

    def __init__(self, pairs: Pairs, model: str) -> None:
        super().__init__(pairs, model)
        self.tool_calls_max = 0
        """Set in the request where it names no maximum of its own and the provider runs one of its tools."""


class _Offered:
    """What a list of tools comes to."""

    __slots__ = ("is_hidden", "is_hosted", "names")

    def __init__(self, names: tuple[str, ...], is_hosted: bool, is_hidden: bool) -> None:
        self.names = names
        self.is_hosted = is_hosted
        """The provider runs one of them, after which the model takes another turn."""
        self.is_hidden = is_hidden
        """One of them brings a prompt that the body does not show."""


class Responses:
    """See `Api`: the operations responses and compaction."""

    def read(self, operation: str, body: bytes, model: str, headers: Headers | None) -> Ask:
        """See `Api.read`."""
        pairs, items = pairs_of.read_long_body(body, "input")
        said = pairs_of.text(pairs, "model") or ""
        model = model or said
        request = ResponsesRequest(pairs, said)
        if operation == "compaction":
            # It has no cap of its output to be set, but what is read and what is written share one window.
            ask = Ask(operation, model, input_bound=window(model), has_output=False, fields=request)
            ask.bound_by = WINDOW
            return ask
        is_stream = pairs_of.flag(pairs, "stream") is True
        cap = pairs_of.integer(pairs, "max_output_tokens", least=1)
        if cap is not None:
            request.caps.append(("max_output_tokens", cap))
        names: list[str] = []
        shown = shown_bytes(request, body, model)
        turns = 1
        is_hidden = any(name in pairs and pairs_of.member(pairs, name) is not None for name in _NAMED_INPUT)
        raw = pairs_of.member(pairs, "tools") if "tools" in pairs else None
        offered = [_offered(bytes(raw))] if raw is not None else []
        is_hidden = _reads_hidden(request, model, items, offered) or is_hidden
        if offered or "text" in pairs:
            request.hidden_tokens += TOOLS_TOKENS
        for each in offered:
            names += each.names
            is_hidden = is_hidden or each.is_hidden
        if any(each.is_hosted for each in offered):
            calls = pairs_of.integer(pairs, "max_tool_calls", least=0)
            if calls is None:
                calls = request.tool_calls_max = HOSTED_TURNS - 1
            turns = calls + 1
        if "context_management" in pairs and pairs_of.member(pairs, "context_management") is not None:
            turns += 1
        if "prompt" in pairs:
            names += _prompt_name(pairs)
        ask = Ask(operation, model, is_stream, 0, cap, tools=tuple(names), is_usage_asked=True, fields=request)
        if is_hidden or turns > 1:
            ask.input_bound = window(model) * turns
            ask.bound_by = WINDOW
        else:
            ask.input_bound = bound_of(request, model, shown)
        if "service_tier" in pairs:
            ask.tier = (pairs_of.text(pairs, "service_tier") or "")[:TIER_CHARACTERS_MAX]
        ask.begins = "background" in pairs and pairs_of.flag(pairs, "background") is True
        return ask

    def rewrite(self, ask: Ask, body: bytes) -> bytes:
        """See `Api.rewrite`. With a cap of the output comes one of the turns, where the request has none."""
        request: ResponsesRequest = ask.fields
        edits = edits_of(ask, request, "max_output_tokens")
        if request.tool_calls_max and ask.output_cap_granted is not None:
            edits["max_tool_calls"] = b"%d" % request.tool_calls_max
        return pairs_of.write(request.pairs, edits) if edits else body

    def meter(self, ask: Ask) -> ResponsesMeter:
        """See `Api.meter`."""
        return ResponsesMeter(ask)


def _prompt_name(pairs: Pairs) -> list[str]:
    """Return a name for the tools that a stored prompt may bring: none sees which, so an allow-list must name it."""
    raw = pairs_of.member(pairs, "prompt")
    if raw is None:
        return []
    prompt = pairs_of.read_object(raw, "'prompt'")
    return ["prompt:" + (pairs_of.text(prompt, "id", "'prompt'") or malformed("'prompt' has no id"))]


def _reads_hidden(request: Request, model: str, items: list[Pairs] | None, offered: list[_Offered]) -> bool:
    """Say whether `input` or `instructions` hold what nothing here bounds; add the tools that they offer, and the
    tokens of images that are bounded."""
    pairs = request.pairs
    is_hidden = False
    raw = pairs_of.member(pairs, "instructions") if "instructions" in pairs else None
    if raw is not None and memoryview(raw)[0] != _QUOTE:
        is_hidden = True
    if items is None:
        raw = pairs_of.member(pairs, "input") if "input" in pairs else None
        if raw is None or memoryview(raw)[0] == _QUOTE:
            return is_hidden
        items = pairs_of.read_objects(raw, "'input'")
    request.messages = items
    for index, item in enumerate(items):
        if _hides(item, index, request, model):
            is_hidden = True
        if "tools" in item and pairs_of.text(item, "type", "'input'", index) in _OFFERING:
            tools = pairs_of.member(item, "tools")
            if tools is not None:
                offered.append(_offered(bytes(tools)))
    return is_hidden


def _hides(item: Pairs, index: int, request: Request, model: str) -> bool:
    kind = pairs_of.text(item, "type", "'input'", index) if "type" in item else None
    if kind is None or kind == "message":
        content = pairs_of.member(item, "content")
        # Without content it is a reference: the API takes `{"id": ...}` for one.
        return content is None or _is_part_hidden(content, index, request, model)
    if kind in _OUTPUTS:
        output = pairs_of.member(item, "output")
        return output is not None and _is_part_hidden(output, index, request, model)
    if kind == "reasoning":
        content = pairs_of.member(item, "content")
        if content is not None:
            return _is_part_hidden(content, index, request, model)
        # Encrypted, it is longer than what it says; without that, its id stands for what the provider has kept.
        return pairs_of.member(item, "encrypted_content") is None
    return kind not in _SHOWN and kind not in _OFFERING


def _is_part_hidden(raw: msgspec.Raw, index: int, request: Request, model: str) -> bool:
    head = memoryview(raw)[0]
    if head == _QUOTE:
        return False
    if head != _BRACKET:
        return True
    is_hidden = False
    for part in pairs_of.read_objects(raw, "'input'", index):
        kind = pairs_of.text(part, "type", "'input'", index)
        if kind in _TEXT_PARTS:
            continue
        if kind != "input_image" or not is_image_bounded(part, request, model, "'input'", index, is_flat=True):
            is_hidden = True
    return is_hidden


def _read_offered(raw: bytes, depth: int = 0) -> _Offered:
    names: list[str] = []
    is_hosted = is_hidden = False
    for index, tool in enumerate(pairs_of.read_objects(raw, "'tools'")):
        kind = pairs_of.text(tool, "type", "'tools'", index)
        if kind in _CALLERS_OWN:
            names.append(_name(tool, index))
        elif kind == "namespace" and depth == 0:
            # Each level is read anew, so a body must not choose how many there are: the API has one.
            inner = pairs_of.member(tool, "tools")
            found = _read_offered(bytes(inner), 1) if inner is not None else _Offered((), False, False)
            names += found.names
            is_hosted, is_hidden = is_hosted or found.is_hosted, is_hidden or found.is_hidden
        else:
            names.append(kind or malformed(f"'tools'[{index}] has no type"))
            is_hidden = True
            is_hosted = is_hosted or kind not in _CLIENT_RUN
            if kind == "mcp":
                names.append(
                    pairs_of.text(tool, "server_label", "'tools'", index)
                    or malformed(f"'tools'[{index}] has no server_label")
                )
    return _Offered(tuple(names), is_hosted, is_hidden)


def _read_tools(raw: bytes) -> _Offered:
    return _read_offered(raw)


_offered = remembered(_read_tools)


def _name(tool: Pairs, index: int) -> str:
    return pairs_of.text(tool, "name", "'tools'", index) or malformed(f"'tools'[{index}] has no name")
