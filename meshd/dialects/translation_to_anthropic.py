"""A request for OpenAI chat completions, as one for Anthropic messages.

Where Anthropic's own layer for OpenAI's SDK has a rule (system prompts are hoisted, a temperature above 1 is 1), it is
the rule here (platform.claude.com/docs/en/cli-sdks-libraries/libraries/openai-sdk). What that layer ignores silently is
a reason not to translate, unless it is harmless.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.dialects import json_pairs as pairs_of
from meshd.dialects import translation_models as models
from meshd.dialects import translation_reading as reading
from meshd.dialects.translation_contract import lost
from meshd.dialects.translation_ids import fitted
from meshd.dialects.translation_schemas import holds_at_anthropic

if TYPE_CHECKING:
    from meshd.call import Ask
    from meshd.dialects.json_pairs import Pairs

_KNOWN: Final = frozenset(
    {
        "model", "messages", "max_tokens", "max_completion_tokens", "n", "stop", "temperature", "top_p", "stream",
        "stream_options", "tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort",
        "modalities",
    }
)  # fmt: skip
_HARMLESS: Final = frozenset(
    {
        "user", "metadata", "seed", "store", "safety_identifier", "service_tier", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "verbosity", "prediction", "top_k", "min_p",
    }
)  # fmt: skip
"""What only keeps accounts, caches, or shades how the answer is sampled or worded."""
_PART: Final = frozenset({"type", "text", "refusal", "image_url"})
_PART_HARMLESS: Final = frozenset({"prompt_cache_breakpoint", "cache_control"})
_IMAGE: Final = frozenset({"url", "detail"})
_MESSAGE: Final = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "refusal"})
_MESSAGE_HARMLESS: Final = frozenset({"annotations", "reasoning_content", "reasoning", "reasoning_details", "id"})
_CALL: Final = frozenset({"id", "type", "function"})
_CALL_HARMLESS: Final = frozenset({"index"})
_FUNCTION: Final = frozenset({"name", "description", "parameters", "strict"})
_NONE: Final[frozenset[str]] = frozenset()
_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_DATA_URL: Final = re.compile(r"data:([a-z/+.-]{1,64});base64,")
_OPEN_SCHEMA: Final = {"type": "object"}
_EMPTY_SCHEMA: Final = {"type": "object", "properties": {}, "additionalProperties": False}
_EFFORTS: Final = {
    "none": "low", "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high",
}  # fmt: skip
"""To the efforts that every model knows that knows any. Another word leaves it to the model, as no word does."""
_TEMPERATURE_MAX: Final = 1.0


class _Turns:
    """The conversation as it grows: turns that alternate, and the system prompt beside them."""

    __slots__ = ("called", "names", "system", "turns")

    def __init__(self) -> None:
        self.system: list[dict[str, Any]] = []
        self.turns: list[dict[str, Any]] = []
        self.called: dict[str, None] = {}
        """Names of the tools that were called."""
        self.names: dict[str, str] = {}
        """Who spoke, by role."""

    def add(self, role: str, blocks: list[dict[str, Any]]) -> None:
        """Add what a role said: to its last turn, where that is the last of all."""
        if not blocks:
            return
        if self.turns and self.turns[-1]["role"] == role:
            self.turns[-1]["content"] += blocks
        else:
            self.turns.append({"role": role, "content": blocks})

    def name(self, role: str, name: str) -> None:
        """Note a participant's name, for which there is no place: one is no loss, two are."""
        if self.names.setdefault(role, name) != name:
            lost(f"several participants are told apart by 'name' in the role {role[:32]!r}")


def body_of(ask: Ask, model: str, output_cap: int | None) -> dict[str, Any]:
    """Return the body of the request. Raises TranslationError, or Refused(MALFORMED) for what no dialect means."""
    pairs: Pairs = ask.fields.pairs
    reading.check(pairs, _KNOWN, _HARMLESS, "the request")
    _check_one_answer(pairs)
    turns = _conversation(reading.messages_of(pairs, ask.fields.messages))
    body: dict[str, Any] = {"model": model, "max_tokens": _cap(ask, model, output_cap)}
    if turns.system:
        body["system"] = turns.system
    body["messages"] = turns.turns
    _add_tools(body, pairs, turns, model)
    _add_sampling(body, pairs, model)
    output = _output_config(pairs, model)
    if output:
        body["output_config"] = output
    if ask.is_stream:
        body["stream"] = True
    return body


def _check_one_answer(pairs: Pairs) -> None:
    raw = pairs_of.member(pairs, "n")
    if raw is not None and bytes(raw) != b"1":
        lost("'n' asks for several answers")
    if any(one != "text" for one in reading.strings(pairs.get("modalities"), "modalities")):
        lost("'modalities' asks for more than text")


def _cap(ask: Ask, model: str, output_cap: int | None) -> int:
    caps = [cap for cap in (ask.output_cap, output_cap) if cap is not None]
    return min(caps) if caps else models.cap_default(model)


def _conversation(messages: list[Pairs]) -> _Turns:
    turns = _Turns()
    for message in messages:
        role = reading.needed(message, "role", "a message")
        reading.check(message, _MESSAGE, _MESSAGE_HARMLESS, f"a message of the role {role[:32]!r}")
        name = pairs_of.text(message, "name", "a message")
        if name and role != "tool":
            turns.name(role, name)
        content = reading.parts(message.get("content"), "a message's content")
        if role in ("system", "developer"):
            turns.system += _blocks(content, is_text_only=True)
        elif role == "user":
            turns.add("user", _blocks(content, is_text_only=False))
        elif role == "assistant":
            turns.add("assistant", _blocks(content, is_text_only=True) + _said_besides(message, turns))
        elif role == "tool":
            turns.add("user", [_result(message, content)])
        else:
            lost(f"the role {role[:32]!r} has no equal")
    if not turns.turns:
        lost("nobody has said anything")
    if turns.turns[0]["role"] != "user":
        lost("the conversation does not begin with the user")
    if turns.turns[-1]["role"] != "user":
        lost("the conversation ends with the assistant, which would be continued and not answered")
    return turns


def _blocks(content: list[Pairs], *, is_text_only: bool) -> list[dict[str, Any]]:
    """Return content blocks. A text of blanks says nothing, and is refused by the API: it is left out."""
    blocks: list[dict[str, Any]] = []
    for part in content:
        kind = reading.needed(part, "type", "a content part")
        reading.check(part, _PART, _PART_HARMLESS, f"a content part of type {kind[:32]!r}")
        if kind in ("text", "refusal"):
            text = reading.needed(part, kind, "a content part")
            if text.strip():
                blocks.append({"type": "text", "text": text})
        elif kind == "image_url" and not is_text_only:
            blocks.append({"type": "image", "source": _image(part)})
        else:
            lost(f"a content part of type {kind[:32]!r} has no equal")
    return blocks


def _image(part: Pairs) -> dict[str, str]:
    image = reading.members(part, "image_url", "an image")
    if image is None:
        lost("an image has no 'image_url'")
    reading.check(image, _IMAGE, _NONE, "an image")
    url = reading.needed(image, "url", "an image")
    if url.startswith("https://"):
        return {"type": "url", "url": url}
    found = _DATA_URL.match(url)
    if found is None:
        lost("an image is given neither by an https URL nor as base64 in a data URL")
    if found[1] not in reading.IMAGE_TYPES:
        lost(f"an image of type {found[1]!r} has no equal")
    return {"type": "base64", "media_type": found[1], "data": url[found.end() :]}


def _said_besides(message: Pairs, turns: _Turns) -> list[dict[str, Any]]:
    """Return the blocks of what an assistant said beside its content: a refusal, the calls of tools."""
    blocks: list[dict[str, Any]] = []
    refusal = pairs_of.text(message, "refusal", "a message")
    if refusal and refusal.strip():
        blocks.append({"type": "text", "text": refusal})
    raw = pairs_of.member(message, "tool_calls")
    for call in pairs_of.read_objects(raw, "'tool_calls'") if raw is not None else ():
        reading.check(call, _CALL, _CALL_HARMLESS, "a tool call")
        function = reading.members(call, "function", "a tool call")
        if function is None:
            lost("a tool call is none of a function")
        name = reading.needed(function, "name", "a tool call")
        turns.called[name] = None
        given = fitted(reading.needed(call, "id", "a tool call"), "toolu_")
        block = {"type": "tool_use", "id": given, "name": name, "input": arguments_object(function)}
        blocks.append(block)
    return blocks


def arguments_object(function: Pairs) -> msgspec.Raw:
    """Return the arguments of a call as the object that their text is."""
    arguments = pairs_of.text(function, "arguments", "a tool call") or ""
    if not arguments.strip():
        return msgspec.Raw(b"{}")
    # Read to its end as pairs, and passed on as it was written: no number changes its precision.
    raw = msgspec.Raw(arguments.encode("utf-8", "surrogatepass"))
    pairs_of.read_object(raw, "the arguments of a tool call")
    return raw


def _result(message: Pairs, content: list[Pairs]) -> dict[str, Any]:
    given = fitted(reading.needed(message, "tool_call_id", "a tool's result"), "toolu_")
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": given}
    blocks = _blocks(content, is_text_only=True)
    if len(blocks) == 1:
        block["content"] = blocks[0]["text"]
    elif blocks:
        block["content"] = blocks
    return block


def _add_tools(body: dict[str, Any], pairs: Pairs, turns: _Turns, model: str) -> None:
    raw = pairs_of.member(pairs, "tools")
    tools = [_tool(tool, model) for tool in pairs_of.read_objects(raw, "'tools'")] if raw is not None else []
    if tools:
        body["tools"] = tools
        choice = _tool_choice(pairs)
        if choice:
            body["tool_choice"] = choice
    elif turns.called:
        # A history with calls in it is refused where no tool is defined; none of them may be called again.
        body["tools"] = [{"name": _tool_name(name), "input_schema": _OPEN_SCHEMA} for name in turns.called]
        body["tool_choice"] = {"type": "none"}


def _tool_name(name: str) -> str:
    if not _TOOL_NAME.fullmatch(name):
        lost(f"the name of the tool {name[:64]!r} is none that Anthropic takes")
    return name


def _tool(tool: Pairs, model: str) -> dict[str, Any]:
    kind = pairs_of.text(tool, "type", "a tool") or "function"
    function = reading.members(tool, "function", "a tool")
    if kind != "function" or function is None:
        lost(f"a tool of type {kind[:32]!r} has no equal")
    reading.check(function, _FUNCTION, _NONE, "a tool")
    made: dict[str, Any] = {"name": _tool_name(reading.needed(function, "name", "a tool"))}
    description = pairs_of.text(function, "description", "a tool")
    if description:
        made["description"] = description
    parameters = pairs_of.member(function, "parameters")
    if parameters is not None and not pairs_of.read_object(parameters, "the parameters of a tool"):
        parameters = None
    made["input_schema"] = _EMPTY_SCHEMA if parameters is None else parameters
    if reading.is_true(function, "strict"):
        _hold_to_schema(model, parameters, f"a call of {made['name']!r}")
        made["strict"] = True
    return made


def _hold_to_schema(model: str, schema: msgspec.Raw | None, what: str) -> None:
    if not models.takes_schemas(model):
        lost(f"{what} is to follow a schema, and {model[:64]!r} cannot be held to one")
    if schema is not None and not holds_at_anthropic(schema):
        lost(f"the schema that {what} is to follow is none that Anthropic can hold a model to")


def _tool_choice(pairs: Pairs) -> dict[str, Any]:
    raw = pairs_of.member(pairs, "tool_choice")
    choice: dict[str, Any] = {}
    if raw is not None:
        choice = _named_choice(raw)
    is_single = "parallel_tool_calls" in pairs and pairs_of.flag(pairs, "parallel_tool_calls") is False
    if is_single and choice.get("type") != "none":
        choice = choice or {"type": "auto"}
        choice["disable_parallel_tool_use"] = True
    return choice


def _named_choice(raw: msgspec.Raw) -> dict[str, Any]:
    words = {b'"auto"': "auto", b'"none"': "none", b'"required"': "any"}
    word = words.get(bytes(raw))
    if word is not None:
        return {"type": word}
    choice = pairs_of.read_object(raw, "'tool_choice'")
    function = reading.members(choice, "function", "'tool_choice'")
    if function is None:
        lost("this 'tool_choice' has no equal")
    return {"type": "tool", "name": reading.needed(function, "name", "'tool_choice'")}


def _add_sampling(body: dict[str, Any], pairs: Pairs, model: str) -> None:
    stops = reading.strings(pairs.get("stop"), "stop")
    if any(not stop.strip() for stop in stops):
        lost("a stop sequence is of blanks only")
    if stops:
        body["stop_sequences"] = stops
    temperature = reading.number(pairs, "temperature")
    top_p = reading.number(pairs, "top_p")
    if not models.takes_sampling(model):
        return
    # Never both: models since 4.1 refuse that.
    if temperature is not None and (temperature != _TEMPERATURE_MAX or top_p is None):
        body["temperature"] = min(temperature, _TEMPERATURE_MAX)
    elif top_p is not None:
        body["top_p"] = top_p


def _output_config(pairs: Pairs, model: str) -> dict[str, Any]:
    config: dict[str, Any] = {}
    effort = pairs_of.text(pairs, "reasoning_effort")
    if effort in _EFFORTS and models.takes_effort(model):
        config["effort"] = _EFFORTS[effort]
    answer = reading.members(pairs, "response_format", "'response_format'")
    if answer is None:
        return config
    kind = pairs_of.text(answer, "type", "'response_format'")
    if kind == "json_schema":
        named = reading.members(answer, "json_schema", "'response_format'")
        schema = pairs_of.member(named, "schema") if named is not None else None
        if schema is None:
            lost("'response_format' has no schema")
        _hold_to_schema(model, schema, "the answer")
        config["format"] = {"type": "json_schema", "schema": schema}
    elif kind != "text":
        lost(f"a 'response_format' of type {str(kind)[:32]!r} has no equal")
    return config
