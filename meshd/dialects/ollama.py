"""Ollama's own API: chat, generate and embeddings. What it serves under `/v1` is another dialect: see `table`.

Shapes as published in Ollama's API reference and as the official client sends them. Answers stream unless the request
says otherwise, one JSON value a line. The server is written in Go, whose JSON decoder takes a member's name in any
case: a second spelling of one that decides is refused as a duplicate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from meshd.call import Ask
from meshd.dialects import json_pairs as pairs_of
from meshd.dialects.bounds import normalised_bytes
from meshd.dialects.json_pairs import Pairs, malformed
from meshd.dialects.ollama_meter import OllamaMeter
from meshd.dialects.remembering import remembered
from meshd.dialects.windows import window
from meshd.tokens.encodings import BYTES, WINDOW

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.refusal import Refused

# What a model's template says of its own accord: a default system prompt, today's date.
_TEMPLATE_TOKENS: Final = 128
# Hidden instructions around tools and formats.
_TOOLS_TOKENS: Final = 256

_OPERATIONS: Final = {
    "/api/chat": "chat",
    "/api/generate": "chat",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
}
_FREE: Final = frozenset(
    {
        ("GET", "/api/tags"), ("GET", "/api/ps"), ("GET", "/api/version"), ("POST", "/api/show"), ("POST", "/api/pull"),
        ("POST", "/api/push"), ("POST", "/api/create"), ("POST", "/api/copy"), ("DELETE", "/api/delete"),
    }
)  # fmt: skip
"""What runs no model. It may take long and much of the disk: `deny` names it by method and path."""
_BLOBS: Final = "/api/blobs/"
_DECIDING: Final = frozenset(
    {"model", "messages", "prompt", "suffix", "system", "template", "images", "tools", "stream", "options", "input"}
)
_DECIDING_IN_MESSAGES: Final = frozenset({"content", "images", "role"})
_CLOUD: Final = "cloud"
_INTEGER_LEAST: Final = -(2**31)


class Request:
    """What `rewrite` needs to know of a request that was read."""

    __slots__ = ("is_generate", "options", "pairs")

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        self.options: Pairs = {}
        self.is_generate = False
        """Its answer is a text, and no message."""


class Ollama:
    """The dialect `ollama`."""

    name = "ollama"

    def recognise(self, method: str, path: str) -> str | None:
        """See `Dialect.recognise`."""
        return _OPERATIONS.get(_end_of(path)) if method == "POST" else None

    def is_free(self, method: str, path: str) -> bool:
        """See `Dialect.is_free`: everything about models but running them."""
        end = _end_of(path)
        if method == "HEAD":
            method = "GET"
        if method in ("GET", "POST") and end.startswith(_BLOBS):
            return True
        # The root answers whether the server is there.
        return (method, end) in _FREE or (method == "GET" and end in ("", "/"))

    def read(self, operation: str, body: bytes, path: str = "", headers: Headers | None = None) -> Ask:
        """See `Dialect.read`."""
        pairs, messages = pairs_of.read_long_body(body, "messages")
        _check_spelling(pairs, _DECIDING, "the request body")
        model = pairs_of.text(pairs, "model") or ""
        request = Request(pairs)
        if "options" in pairs and (raw := pairs_of.member(pairs, "options")) is not None:
            request.options = pairs_of.read_object(raw, "'options'")
        bound = normalised_bytes(body) + _TEMPLATE_TOKENS
        if operation == "embeddings":
            return Ask("embeddings", model, input_bound=bound, has_output=False, fields=request)
        request.is_generate = "messages" not in pairs
        is_hidden = pairs_of.member(pairs, "images") is not None
        tools: tuple[str, ...] = ()
        if "tools" in pairs and (raw := pairs_of.member(pairs, "tools")) is not None:
            tools = _offered(bytes(raw))
            bound += _TOOLS_TOKENS
        if "format" in pairs:
            bound += _TOOLS_TOKENS
        is_hidden = _has_images(pairs, messages) or is_hidden
        if is_hidden:
            bound = _window_of(model, request.options)
        is_stream = "stream" not in pairs or pairs_of.flag(pairs, "stream") is not False
        # Below 1 it means: without an end, or as far as the window goes.
        cap = pairs_of.integer(request.options, "num_predict", least=_INTEGER_LEAST)
        cap = cap if cap is not None and cap > 0 else None
        ask = Ask("chat", model, is_stream, bound, cap, tools=tools, is_usage_asked=True, fields=request)
        ask.bound_by = WINDOW if is_hidden else BYTES
        return ask

    def rewrite(self, ask: Ask, body: bytes) -> bytes:
        """See `Dialect.rewrite`. A grant lowers the client's cap and never raises it."""
        request: Request = ask.fields
        edits: dict[str, bytes] = {}
        granted = ask.output_cap_granted
        if granted is not None and ask.has_output and (ask.output_cap is None or granted < ask.output_cap):
            edits["options"] = pairs_of.write(request.options, {"num_predict": b"%d" % granted})
        if ask.model_granted is not None and ask.model_granted != ask.model:
            edits["model"] = msgspec.json.encode(ask.model_granted)
        return pairs_of.write(request.pairs, edits) if edits else body

    def redirect(self, ask: Ask, path: str) -> str:
        """See `Dialect.redirect`: the model stands in the body."""
        return path

    def meter(self, ask: Ask) -> OllamaMeter:
        """See `Dialect.meter`."""
        request: Request = ask.fields
        return OllamaMeter(ask, is_generate=request.is_generate)

    def refusal_body(self, refused: Refused, *, call_id: str) -> tuple[bytes, bytes]:
        """See `Dialect.refusal_body`. The client reads `error`, which is the message."""
        return b"application/json; charset=utf-8", msgspec.json.encode({"error": refused.message})


def _end_of(path: str) -> str:
    """Return a path from `/api/` on, without its query; all of it where it has no such part."""
    bare = path.partition("?")[0]
    at = bare.find("/api/")
    return bare[at:].removesuffix("/") if at != -1 else bare


def _check_spelling(pairs: Pairs, deciding: frozenset[str], where: str) -> None:
    """Refuse members that Go's decoder would take for one that decides, though they are spelled otherwise."""
    for name in pairs:
        if name not in deciding and name.casefold() in deciding:
            malformed(f"{where} has {name[:64]!r}, which the server reads as {name.casefold()!r}: spell it so")


def _window_of(model: str, options: Pairs) -> int:
    """Return the most tokens that a model can have read: what it was told to hold, where it runs on that machine."""
    held = pairs_of.integer(options, "num_ctx", least=_INTEGER_LEAST)
    return held if held is not None and held > 0 and _CLOUD not in model else window(model)


def _read_offered(raw: bytes) -> tuple[str, ...]:
    """Return the names in `tools`; all of them run at the client."""
    names: list[str] = []
    for index, tool in enumerate(pairs_of.read_objects(raw, "'tools'")):
        _check_spelling(tool, frozenset({"function"}), f"'tools'[{index}]")
        inner = pairs_of.member(tool, "function")
        if inner is None:
            malformed(f"'tools'[{index}] names no tool")
        function = pairs_of.read_object(inner, "'tools'", index)
        _check_spelling(function, frozenset({"name"}), f"'tools'[{index}]")
        name = pairs_of.text(function, "name", "'tools'", index)
        names.append(name or malformed(f"'tools'[{index}] has no name"))
    return tuple(names)


_offered = remembered(_read_offered)


def _has_images(pairs: Pairs, messages: list[Pairs] | None) -> bool:
    """Say whether a message brings images, whose tokens its bytes do not bound."""
    if messages is None:
        raw = pairs_of.member(pairs, "messages")
        if raw is None:
            return False
        messages = pairs_of.read_objects(raw, "'messages'")
    has_images = False
    for index, message in enumerate(messages):
        _check_spelling(message, _DECIDING_IN_MESSAGES, f"'messages'[{index}]")
        if "images" in message and pairs_of.member(message, "images") is not None:
            has_images = True
    return has_images
