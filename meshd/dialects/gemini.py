"""Gemini: generateContent, plain and streamed, and its embeddings, at Google's own API and on Vertex AI.

Shapes as published in the Gemini API's reference and as the official SDK sends them. The model stands in the path.
Every member may be spelled in camel or snake case, and where a list is expected one object will do: the API reads
protobuf JSON so. Thinking counts against `maxOutputTokens`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from meshd.call import Ask
from meshd.dialects import json_pairs as pairs_of
from meshd.dialects.bounds import normalised_bytes
from meshd.dialects.gemini_meter import GeminiMeter, error_object
from meshd.dialects.json_pairs import Pairs, RawJson, malformed
from meshd.dialects.placing import model_of, placed, replaced
from meshd.dialects.remembering import remembered
from meshd.dialects.windows import window
from meshd.tokens.encodings import BYTES, WINDOW

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.refusal import Refused

CANDIDATES_MAX: Final = 128

# The tokenizer is not published: beside the bytes after NFKC, one byte in twenty and the frame of the prompt.
_MARGIN_DIVISOR: Final = 20
_FRAME_TOKENS: Final = 32
# Hidden instructions around tools and response formats.
_TOOLS_TOKENS: Final = 700
# Turns that the service may take by itself with tools of its own.
_HOSTED_TURNS: Final = 10
_THINKING_BUDGET_MIN: Final = 128
"""The least that every thinking model takes; 0 switches thinking off where that can be."""

_OPERATIONS: Final = {
    "generateContent": "chat",
    "streamGenerateContent": "chat",
    "embedContent": "embeddings",
    "batchEmbedContents": "embeddings",
}
_STREAMED: Final = "streamGenerateContent"
# Collections that can be listed, read and cleared away for nothing. Making a cache or a tuned model bills tokens.
_FREE_READ: Final = re.compile(
    r"/(?:models|tunedModels|files|cachedContents|operations|batches)(?:/[A-Za-z0-9._-]+)*(?:/|:download)?\Z"
)
_FREE_DELETED: Final = re.compile(r"/(?:tunedModels|files|cachedContents|operations|batches)/[A-Za-z0-9._-]+\Z")
_FREE_DONE: Final = re.compile(
    r"/v1(?:alpha|beta)?/files(?::register)?\Z|/(?:operations|batches)/[A-Za-z0-9._-]+:cancel\Z"
)
"""Uploading files, and ending what spends."""
_TIER_CHARACTERS_MAX: Final = 32
_KEY_PARAMETERS: Final = ("key", "access_token")

_TEXT_PARTS: Final = frozenset(
    {"text", "thought", "thoughtSignature", "functionCall", "executableCode", "codeExecutionResult", "partMetadata"}
)
"""Members of a part whose tokens their bytes bound; `functionResponse` is looked into."""
_FORMATS: Final = frozenset(
    {
        "responseSchema", "response_schema", "responseJsonSchema", "response_json_schema", "responseMimeType",
        "response_mime_type", "_responseJsonSchema", "responseFormat", "response_format",
    }
)  # fmt: skip
_CAMEL: Final = re.compile(r"_([a-z])")
_SNAKE: Final = re.compile(r"(?<=[a-z])([A-Z])")
_TEXT_BEGINS: Final = b'[{"text":"'
_BRACE: Final = 0x7B
_QUOTE: Final = 0x22


class Request:
    """What `rewrite` needs to know of a request that was read."""

    __slots__ = ("cap_name", "config", "config_name", "pairs", "thinking", "thinking_budget")

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.config: Pairs = {}
        self.config_name = "generationConfig"
        self.cap_name = "maxOutputTokens"
        self.thinking: tuple[str, Pairs, str] | None = None
        """The name and members of the thinking configuration, and the name of the budget in it."""
        self.thinking_budget: int | None = None


class Gemini:
    """The dialect `gemini`."""

    name = "gemini"

    def recognise(self, method: str, path: str) -> str | None:
        """See `Dialect.recognise`."""
        place = placed(path) if method == "POST" else None
        return None if place is None else _OPERATIONS.get(place.method)

    def is_free(self, method: str, path: str) -> bool:
        """See `Dialect.is_free`: counting tokens, uploading files, and reading or deleting what is there.

        A path that names a method of a model is no reading, whatever the request's method: the API lets a header
        override that.
        """
        place = placed(path)
        if place is not None:
            return method == "POST" and place.method in ("countTokens", "computeTokens")
        bare = path.partition("?")[0]
        if method in ("GET", "HEAD"):
            return _FREE_READ.search(bare) is not None
        if method == "DELETE":
            return _FREE_DELETED.search(bare) is not None
        return method in ("POST", "PUT") and _FREE_DONE.search(bare) is not None

    def read(self, operation: str, body: bytes, path: str = "", headers: Headers | None = None) -> Ask:
        """See `Dialect.read`."""
        place = placed(path)
        model = model_of(place) if place is not None else ""
        pairs, contents = pairs_of.read_long_body(body, "contents")
        size = normalised_bytes(body)
        bound = size + size // _MARGIN_DIVISOR + _FRAME_TOKENS
        if operation == "embeddings":
            is_hidden = _is_embedding_hidden(pairs)
            bound = window(model) if is_hidden else bound
            ask = Ask("embeddings", model, input_bound=bound, has_output=False, fields=Request(pairs))
            ask.bound_by = WINDOW if is_hidden else BYTES
            return ask
        request = Request(pairs)
        is_hidden = _is_input_hidden(pairs, contents)
        if (name := either(pairs, "cachedContent")) and pairs_of.text(pairs, name):
            is_hidden = True
        tools: tuple[str, ...] = ()
        turns = 1
        if (name := either(pairs, "tools")) and (raw := pairs_of.member(pairs, name)) is not None:
            tools, is_hosted = _offered(bytes(raw))
            turns = _HOSTED_TURNS if is_hosted else 1
            bound += _TOOLS_TOKENS
        cap, choices = _read_config(request)
        if not _FORMATS.isdisjoint(request.config):
            bound += _TOOLS_TOKENS
        is_hidden = is_hidden or turns > 1
        bound = window(model) * turns if is_hidden else bound
        is_stream = place is not None and place.method == _STREAMED
        ask = Ask("chat", model, is_stream, bound, cap, choices, tools=tools, is_usage_asked=True, fields=request)
        ask.bound_by = WINDOW if is_hidden else BYTES
        if name := either(pairs, "serviceTier"):
            ask.tier = (pairs_of.text(pairs, name) or "")[:_TIER_CHARACTERS_MAX]
        return ask

    def rewrite(self, ask: Ask, body: bytes) -> bytes:
        """See `Dialect.rewrite`. A grant lowers the client's cap and never raises it; a thinking budget that would
        use up the whole of a lowered cap is lowered with it. The model is in the path: see `redirect`."""
        request: Request = ask.fields
        granted = ask.output_cap_granted
        if granted is None or not ask.has_output or (ask.output_cap is not None and granted >= ask.output_cap):
            return body
        edits = {request.cap_name: b"%d" % granted}
        budget = request.thinking_budget
        if request.thinking is not None and budget is not None and budget >= granted > _THINKING_BUDGET_MIN:
            name, thinking, member = request.thinking
            lowered = b"%d" % max(_THINKING_BUDGET_MIN, granted // 2)
            edits[name] = pairs_of.write(thinking, {member: lowered})
        return pairs_of.write(request.pairs, {request.config_name: pairs_of.write(request.config, edits)})

    def redirect(self, ask: Ask, path: str) -> str:
        """See `Dialect.redirect`."""
        place = placed(path)
        return path if place is None or ask.model_sent == ask.model else replaced(place, ask.model_sent)

    def meter(self, ask: Ask) -> GeminiMeter:
        """See `Dialect.meter`."""
        return GeminiMeter(ask)

    def refusal_body(self, refused: Refused, *, call_id: str) -> tuple[bytes, bytes]:
        """See `Dialect.refusal_body`. The SDK reads `error.code`, `.message` and `.status`."""
        return b"application/json; charset=UTF-8", msgspec.json.encode({"error": error_object(refused)})


@lru_cache(maxsize=256)
def snake_case(name: str) -> str:
    """Return a member's name in its other spelling."""
    return _SNAKE.sub(r"_\1", name).lower()


def either(pairs: Pairs, name: str) -> str:
    """Return under which spelling a member stands, camel or snake case; empty where under none.

    Raises Refused(MALFORMED) where it stands under both: which one counts differs between parsers.
    """
    snake = snake_case(name)
    if snake == name or snake not in pairs:
        return name if name in pairs else ""
    if name in pairs:
        malformed(f"the request has both {name!r} and {snake!r}; which one counts differs between parsers")
    return snake


def key_in(path: str) -> bytes | None:
    """Return the API key that a path's query carries; None where it carries none."""
    for parameter in path.partition("?")[2].split("&"):
        name, equals, value = parameter.partition("=")
        if equals and name in _KEY_PARAMETERS:
            return value.encode("latin-1", "replace")
    return None


def without_key(path: str) -> str:
    """Return a path whose query carries no API key."""
    bare, mark, query = path.partition("?")
    if not mark:
        return path
    kept = [one for one in query.split("&") if one.partition("=")[0] not in _KEY_PARAMETERS]
    return f"{bare}?{'&'.join(kept)}" if kept else bare


def _list(raw: RawJson, where: str, at: int = -1) -> list[Pairs]:
    """Return the members of each object of a list, or of the one object that stands for it."""
    if memoryview(raw)[0] == _BRACE:
        return [pairs_of.read_object(raw, where, at)]
    return pairs_of.read_objects(raw, where, at)


def _read_config(request: Request) -> tuple[int | None, int]:
    """Return the output cap of each candidate, None where there is none, and the number of candidates."""
    pairs = request.pairs
    if not (name := either(pairs, "generationConfig")):
        return None, 1
    request.config_name = name
    raw = pairs_of.member(pairs, name)
    if raw is None:
        return None, 1
    config = request.config = pairs_of.read_object(raw, f"'{name}'")
    if name := either(config, "maxOutputTokens"):
        request.cap_name = name
    cap = pairs_of.integer(config, request.cap_name, least=1)
    choices = None
    if name := either(config, "candidateCount"):
        choices = pairs_of.integer(config, name, least=1, most=CANDIDATES_MAX)
    if (name := either(config, "thinkingConfig")) and (raw := pairs_of.member(config, name)) is not None:
        thinking = pairs_of.read_object(raw, f"'{name}'")
        if member := either(thinking, "thinkingBudget"):
            # -1: the model thinks as long as it likes, within the cap.
            request.thinking_budget = pairs_of.integer(thinking, member, least=-1)
            request.thinking = name, thinking, member
    return cap, choices or 1


def _read_offered(raw: bytes) -> tuple[tuple[str, ...], bool]:
    """Return the names in `tools`, those of the service in snake case, and whether the service runs one of them."""
    names: list[str] = []
    is_hosted = False
    for index, tool in enumerate(_list(raw, "'tools'")):
        declared = either(tool, "functionDeclarations")
        for name in tool:
            value = pairs_of.member(tool, name)
            if value is None:
                continue
            if name != declared:
                names.append(snake_case(name) or malformed(f"'tools'[{index}] names no tool"))
                # A computer is used by the client, as a function is called.
                is_hosted = is_hosted or names[-1] != "computer_use"
                continue
            for function in _list(value, "'tools'", index):
                called = pairs_of.text(function, "name", "'tools'", index)
                names.append(called or malformed(f"'tools'[{index}] has a function without a name"))
    return tuple(names), is_hosted


_offered = remembered(_read_offered)


def _is_input_hidden(pairs: Pairs, contents: list[Pairs] | None) -> bool:
    """Say whether a part brings input whose tokens its bytes do not bound: images, sound, video, files."""
    is_hidden = False
    if (name := either(pairs, "systemInstruction")) and (raw := pairs_of.member(pairs, name)) is not None:
        # Some clients send bare text, which the API takes too.
        is_hidden = memoryview(raw)[0] != _QUOTE and _hides(_list(raw, f"'{name}'"), f"'{name}'")
    if contents is None:
        raw = pairs_of.member(pairs, "contents") if "contents" in pairs else None
        if raw is None:
            return is_hidden
        contents = _list(raw, "'contents'")
    return _hides(contents, "'contents'") or is_hidden


def _hides(contents: list[Pairs], where: str) -> bool:
    is_hidden = False
    for index, content in enumerate(contents):
        raw = pairs_of.member(content, "parts") if "parts" in content else None
        if raw is not None and not _is_text_alone(bytes(raw)):
            for part in _list(raw, where, index):
                is_hidden = _is_hiding_part(part, where, index) or is_hidden
    return is_hidden


def _is_text_alone(parts: bytes) -> bool:
    """Say whether parts are one text and nothing else, as most contents are: where that is cheap to prove.

    The first quote behind that which opens the text is the last of all, so no other member can stand there.
    """
    return parts[:10] == _TEXT_BEGINS and parts.find(b'"', 10) == len(parts) - 3 and parts[-2:] == b"}]"


def _is_hiding_part(part: Pairs, where: str, at: int) -> bool:
    is_hidden = False
    for name in part:
        camel = _CAMEL.sub(lambda found: found.group(1).upper(), name) if "_" in name else name
        if camel in _TEXT_PARTS or pairs_of.member(part, name) is None:
            continue
        # A function's response may hold parts of its own, with images in them.
        is_text = camel == "functionResponse" and "parts" not in pairs_of.read_object(part[name], where, at)
        is_hidden = is_hidden or not is_text
    return is_hidden


def _is_embedding_hidden(pairs: Pairs) -> bool:
    """Say whether something other than text is to be embedded."""
    is_hidden = False
    requests = [pairs]
    if (raw := pairs_of.member(pairs, "requests") if "requests" in pairs else None) is not None:
        requests = _list(raw, "'requests'")
    for index, request in enumerate(requests):
        content = pairs_of.member(request, "content") if "content" in request else None
        if content is None:
            is_hidden = True
        elif memoryview(content)[0] != _QUOTE:
            is_hidden = _hides(_list(content, "'requests'", index), "'content'") or is_hidden
    return is_hidden
