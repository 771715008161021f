"""A request for Anthropic messages, as one for OpenAI chat completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.dialects import json_pairs as pairs_of
from meshd.dialects import translation_models as models
from meshd.dialects import translation_reading as reading
from meshd.dialects.translation_contract import lost
from meshd.dialects.translation_ids import fitted
from meshd.dialects.translation_schemas import holds_at_openai
from meshd.dialects.windows import is_openai

if TYPE_CHECKING:
    from meshd.call import Ask
    from meshd.dialects.json_pairs import Pairs

_KNOWN: Final = frozenset(
    {
        "model", "messages", "max_tokens", "system", "stop_sequences", "temperature", "top_p", "tools", "tool_choice",
        "stream", "thinking", "output_config", "output_format",
    }
)  # fmt: skip
_HARMLESS: Final = frozenset({"metadata", "service_tier", "speed", "cache_control", "diagnostics", "top_k"})
_MESSAGE: Final = frozenset({"role", "content"})
_TEXT: Final = frozenset({"type", "text"})
_TEXT_HARMLESS: Final = frozenset({"cache_control", "citations"})
_IMAGE: Final = frozenset({"type", "source"})
_CACHED: Final = frozenset({"cache_control"})
_USE: Final = frozenset({"type", "id", "name", "input", "caller"})
_RESULT: Final = frozenset({"type", "tool_use_id", "content", "is_error"})
_TOOL: Final = frozenset({"name", "description", "input_schema", "type", "strict", "allowed_callers"})
_TOOL_HARMLESS: Final = frozenset({"cache_control", "eager_input_streaming"})
_OUTPUT: Final = frozenset({"effort", "format"})
_NONE: Final[frozenset[str]] = frozenset()
_STOPS_MAX: Final = 4
"""As OpenAI's reference allows them."""
_TOOL_NAME_CHARACTERS_MAX: Final = 64
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
_EFFORTS: Final = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_ERROR_MARK: Final = "Error: "


def body_of(ask: Ask, model: str, output_cap: int | None) -> dict[str, Any]:
    """Return the body of the request. Raises TranslationError, or Refused(MALFORMED) for what no dialect means."""
    pairs: Pairs = ask.fields.pairs
    reading.check(pairs, _KNOWN, _HARMLESS, "the request")
    body: dict[str, Any] = {"model": model}
    body["messages"] = _system(pairs) + _conversation(reading.messages_of(pairs))
    cap = ask.fields.cap
    if cap == 0:
        lost("'max_tokens' of 0 asks for no answer, only that the prompt be cached")
    caps = [one for one in (cap, output_cap) if one is not None]
    if caps:
        body["max_completion_tokens" if is_openai(model) else "max_tokens"] = min(caps)
    has_tools = _add_tools(body, pairs)
    _check_thinking(pairs, has_tools)
    _add_sampling(body, pairs, model)
    _add_output(body, pairs, model)
    if ask.is_stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    return body


def _system(pairs: Pairs) -> list[dict[str, Any]]:
    texts = _texts(reading.parts(pairs.get("system"), "'system'"), "'system'")
    return [{"role": "system", "content": _content(texts)}] if texts else []


def _texts(blocks: list[Pairs], where: str) -> list[dict[str, Any]]:
    """Return parts of text; any other block is a reason not to translate."""
    made: list[dict[str, Any]] = []
    for block in blocks:
        kind = reading.needed(block, "type", where)
        if kind != "text":
            lost(f"a block of type {kind[:32]!r} in {where} has no equal")
        reading.check(block, _TEXT, _TEXT_HARMLESS, "a text")
        made.append({"type": "text", "text": reading.needed(block, "text", "a text")})
    return made


def _content(parts: list[dict[str, Any]]) -> Any:
    """Return parts as the simplest content that says them: one text is a string, which every server takes."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts


def _conversation(messages: list[Pairs]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    is_thinking_open = False
    last = ""
    for message in messages:
        last = role = reading.needed(message, "role", "a message")
        reading.check(message, _MESSAGE, _NONE, "a message")
        blocks = reading.parts(message.get("content"), "a message's content")
        if role == "assistant":
            said, has_thought = _assistant(blocks)
            is_thinking_open = is_thinking_open or has_thought
            made += said
        elif role == "user":
            results, content = _user(blocks)
            made += results
            if content:
                # Whoever is asked anew no longer needs what was thought on the way to the last answer.
                is_thinking_open = False
                made.append({"role": "user", "content": _content(content)})
        elif role == "system":
            texts = _texts(blocks, "a system message")
            if texts:
                made.append({"role": "system", "content": _content(texts)})
        else:
            lost(f"the role {role[:32]!r} has no equal")
    if not made:
        lost("nobody has said anything")
    if last == "assistant":
        lost("the conversation ends with the assistant, which would be answered and not continued")
    if is_thinking_open:
        lost("the model's signed thinking belongs to a turn that is not over")
    return made


def _assistant(blocks: list[Pairs]) -> tuple[list[dict[str, Any]], bool]:
    """Return the message of an assistant's turn, and whether it has thought."""
    texts: list[Pairs] = []
    calls: list[dict[str, Any]] = []
    has_thought = False
    for block in blocks:
        kind = reading.needed(block, "type", "a block")
        if kind in ("thinking", "redacted_thinking"):
            has_thought = True
        elif kind == "tool_use":
            calls.append(_call(block))
        else:
            texts.append(block)
    content = _texts(texts, "an assistant's message")
    message: dict[str, Any] = {"role": "assistant", "content": _content(content) if content else None}
    if calls:
        message["tool_calls"] = calls
    return ([message] if content or calls else []), has_thought


def _call(block: Pairs) -> dict[str, Any]:
    reading.check(block, _USE, _CACHED, "a tool call")
    _check_direct(block)
    raw = pairs_of.member(block, "input")
    if raw is not None:
        pairs_of.read_object(raw, "the input of a tool call")
    arguments = reading.compact(raw) if raw is not None else "{}"
    name = reading.needed(block, "name", "a tool call")
    given = fitted(reading.needed(block, "id", "a tool call"), "call_")
    return {"id": given, "type": "function", "function": {"name": name, "arguments": arguments}}


def _check_direct(block: Pairs) -> None:
    caller = reading.members(block, "caller", "a tool call")
    if caller is not None and pairs_of.text(caller, "type", "a tool call") != "direct":
        lost("a tool is called by code that runs at the provider")


def _user(blocks: list[Pairs]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the messages with tools' results of a user's turn, and the parts of what the user said besides."""
    results: list[dict[str, Any]] = []
    content: list[dict[str, Any]] = []
    for block in blocks:
        kind = reading.needed(block, "type", "a block")
        if kind == "tool_result":
            results.append(_result(block))
        elif kind == "image":
            content.append({"type": "image_url", "image_url": {"url": _image_url(block)}})
        else:
            content += _texts([block], "a user's message")
    return results, content


def _result(block: Pairs) -> dict[str, Any]:
    reading.check(block, _RESULT, _CACHED, "a tool's result")
    texts = _texts(reading.parts(block.get("content"), "a tool's result"), "a tool's result")
    if reading.is_true(block, "is_error"):
        # There is no member for it: the model is told in words.
        first = texts[0]["text"] if texts else ""
        texts = [{"type": "text", "text": _ERROR_MARK + first}, *texts[1:]]
    given = fitted(reading.needed(block, "tool_use_id", "a tool's result"), "call_")
    return {"role": "tool", "tool_call_id": given, "content": _content(texts) if texts else ""}


def _image_url(block: Pairs) -> str:
    reading.check(block, _IMAGE, _CACHED, "an image")
    source = reading.members(block, "source", "an image")
    kind = pairs_of.text(source, "type", "an image") if source is not None else None
    if source is not None and kind == "url":
        return reading.needed(source, "url", "an image")
    if source is None or kind != "base64":
        lost("an image is given neither by its URL nor by its data")
    media = reading.needed(source, "media_type", "an image")
    if media not in reading.IMAGE_TYPES:
        lost(f"an image of type {media[:32]!r} has no equal")
    return f"data:{media};base64,{reading.needed(source, 'data', 'an image')}"


def _add_tools(body: dict[str, Any], pairs: Pairs) -> bool:
    """Add the tools and which of them may be called; return whether there are any."""
    raw = pairs_of.member(pairs, "tools")
    tools = [_tool(tool) for tool in pairs_of.read_objects(raw, "'tools'")] if raw is not None else []
    if not tools:
        return False
    body["tools"] = tools
    choice = reading.members(pairs, "tool_choice", "'tool_choice'")
    if choice is None:
        return True
    kind = reading.needed(choice, "type", "'tool_choice'")
    if kind == "tool":
        name = reading.needed(choice, "name", "'tool_choice'")
        body["tool_choice"] = {"type": "function", "function": {"name": name}}
    else:
        body["tool_choice"] = _CHOICES.get(kind) or lost(f"the tool choice {kind[:32]!r} has no equal")
    if reading.is_true(choice, "disable_parallel_tool_use"):
        body["parallel_tool_calls"] = False
    return True


def _tool(tool: Pairs) -> dict[str, Any]:
    kind = pairs_of.text(tool, "type", "a tool")
    name = reading.needed(tool, "name", "a tool") if kind in (None, "custom") else ""
    if not name:
        lost(f"a tool of type {str(kind)[:32]!r} has no equal")
    if len(name) > _TOOL_NAME_CHARACTERS_MAX:
        lost(f"the name of the tool {name[:64]!r} is longer than OpenAI takes")
    reading.check(tool, _TOOL, _TOOL_HARMLESS, "a tool")
    if any(one != "direct" for one in reading.strings(tool.get("allowed_callers"), "allowed_callers")):
        lost("a tool may be called by code that runs at the provider")
    function: dict[str, Any] = {"name": name}
    description = pairs_of.text(tool, "description", "a tool")
    if description:
        function["description"] = description
    schema = pairs_of.member(tool, "input_schema")
    if schema is not None:
        pairs_of.read_object(schema, "the schema of a tool")
        function["parameters"] = schema
    if reading.is_true(tool, "strict"):
        if schema is None or not holds_at_openai(schema):
            lost(f"the schema of the strict tool {name!r} is none that OpenAI's strict mode takes")
        function["strict"] = True
    return {"type": "function", "function": function}


def _check_thinking(pairs: Pairs, has_tools: bool) -> None:
    thinking = reading.members(pairs, "thinking", "'thinking'")
    if thinking is not None and has_tools and pairs_of.text(thinking, "type", "'thinking'") == "enabled":
        # With a budget for it set by hand, a turn that calls a tool is taken back only with its signed thinking.
        lost("calls of tools must come with signed thinking, by 'thinking' of type 'enabled'")


def _add_sampling(body: dict[str, Any], pairs: Pairs, model: str) -> None:
    stops = reading.strings(pairs.get("stop_sequences"), "stop_sequences")
    if len(stops) > _STOPS_MAX:
        lost(f"there are more than {_STOPS_MAX} stop sequences")
    if stops:
        body["stop"] = stops
    for name in ("temperature", "top_p"):
        value = reading.number(pairs, name)
        if value is not None and not models.is_reasoning(model):
            body[name] = value


def _add_output(body: dict[str, Any], pairs: Pairs, model: str) -> None:
    config = reading.members(pairs, "output_config", "'output_config'") or {}
    reading.check(config, _OUTPUT, _NONE, "'output_config'")
    effort = pairs_of.text(config, "effort", "'output_config'")
    if effort in _EFFORTS and models.is_reasoning(model):
        body["reasoning_effort"] = _EFFORTS[effort]
    answer = reading.members(config, "format", "'output_config'")
    if answer is None:
        answer = reading.members(pairs, "output_format", "'output_format'")
    if answer is None:
        return
    schema = pairs_of.member(answer, "schema")
    if pairs_of.text(answer, "type", "the output's format") != "json_schema" or schema is None:
        lost("the output's format has no equal")
    if not holds_at_openai(schema):
        lost("the schema of the answer is none that OpenAI's strict mode takes")
    named = {"name": "answer", "strict": True, "schema": schema}
    body["response_format"] = {"type": "json_schema", "json_schema": named}
