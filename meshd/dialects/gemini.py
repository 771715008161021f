"""Gemini: generateContent, plain and streamed, and its embeddings, at Google's own API and on Vertex AI.

Shapes as published in the Gemini API's reference and as the official SDK sends them. The model stands in the path.
Every member may be spelled in camel or snake case, and where a list is expected one object will do: the API reads
protobuf JSON so. Thinking counts against `maxOutputTokens`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from meshd.call import Ask
from meshd.dialects import json_pairs as pairs_of
from meshd.dialects.bounds import normalised_bytes
from meshd.dialects.gemini_meter import GeminiMeter, error_object
from meshd.dialects.gemini_request import (
    Request,
    either,
    hidden_embeddings,
    is_input_hidden,
    offered,
    read_config,
    tier_of,
    why_unbounded,
)
from meshd.dialects.placing import model_of, placed, replaced
from meshd.dialects.windows import window
from meshd.tokens.encodings import WINDOW

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.dialects.json_pairs import Pairs
    from meshd.refusal import Refused

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
_KEY_PARAMETERS: Final = ("key", "access_token")
_FORMATS: Final = frozenset(
    {
        "responseSchema", "response_schema", "responseJsonSchema", "response_json_schema", "responseMimeType",
        "response_mime_type", "_responseJsonSchema", "responseFormat", "response_format",
    }
)  # fmt: skip


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
        request = Request(pairs, model)
        if operation == "embeddings":
            ask = _read_embeddings(request, body)
        else:
            ask = _read_chat(request, body, contents, is_stream=place is not None and place.method == _STREAMED)
        ask.tier = tier_of(pairs, headers)
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


def _read_chat(request: Request, body: bytes, contents: list[Pairs] | None, *, is_stream: bool) -> Ask:
    pairs, model = request.pairs, request.model
    hidden = _FRAME_TOKENS
    is_hidden = is_input_hidden(request, contents)
    if (name := either(pairs, "cachedContent")) and pairs_of.text(pairs, name):
        is_hidden = True
    tools: tuple[str, ...] = ()
    turns = 1
    if (name := either(pairs, "tools")) and (raw := pairs_of.member(pairs, name)) is not None:
        tools, is_hosted = offered(bytes(raw))
        turns = _HOSTED_TURNS if is_hosted else 1
        hidden += _TOOLS_TOKENS
    cap, choices = read_config(request)
    if not _FORMATS.isdisjoint(request.config):
        hidden += _TOOLS_TOKENS
    is_hidden = is_hidden or turns > 1
    bound = window(model) * turns if is_hidden else _bound_of(request, body, hidden)
    ask = Ask("chat", model, is_stream, bound, cap, choices, tools=tools, is_usage_asked=True, fields=request)
    if is_hidden:
        ask.bound_by = WINDOW
    ask.unbounded = why_unbounded(request)
    return ask


def _read_embeddings(request: Request, body: bytes) -> Ask:
    hidden = hidden_embeddings(request)
    bound = window(request.model) * hidden if hidden else _bound_of(request, body, _FRAME_TOKENS)
    ask = Ask("embeddings", request.model, input_bound=bound, has_output=False, fields=request)
    if hidden:
        ask.bound_by = WINDOW
    return ask


def _bound_of(request: Request, body: bytes, hidden: int) -> int:
    """Return the bound of an input that is shown: bytes, what stands beside them, images at their most."""
    size = normalised_bytes(body) - request.image_bytes
    bound = size + size // _MARGIN_DIVISOR + hidden
    if not request.image_tokens:
        return bound
    # Many images at their most may come to more than the model can read at once.
    return min(bound + request.image_tokens, window(request.model))
