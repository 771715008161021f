"""OpenAI's APIs, as OpenAI and the many servers that copy it speak them: chat completions here, the others beside it.

Shapes as published in OpenAI's API reference and as the official SDK sends them. Cached and reasoning tokens are
subsets of input and output here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from meshd.call import Ask
from meshd.dialects import json_pairs as pairs_of
from meshd.dialects import openai_paths as paths
from meshd.dialects.json_pairs import Pairs, malformed
from meshd.dialects.openai_audio import Audio
from meshd.dialects.openai_completions import Completions
from meshd.dialects.openai_embeddings import Embeddings
from meshd.dialects.openai_images import Images
from meshd.dialects.openai_meter import OpenAIMeter, error_object
from meshd.dialects.openai_paths import route_of
from meshd.dialects.openai_request import (
    CHOICES_MAX,
    HOSTED_TURNS,
    TOOLS_TOKENS,
    Request,
    bound_of,
    is_image_bounded,
    read_stream_options,
    shown_bytes,
    written,
)
from meshd.dialects.openai_responses import Responses
from meshd.dialects.openai_texts import COUNTED, texts_of
from meshd.dialects.openai_usage import TIER_CHARACTERS_MAX
from meshd.dialects.remembering import remembered
from meshd.dialects.windows import is_openai, window
from meshd.tokens.encodings import WINDOW

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.dialects.contract import Api, Meter
    from meshd.refusal import Refused
    from meshd.tokens.counter import Texts

_EMBEDDINGS: Final = Embeddings()
_RESPONSES: Final = Responses()
_IMAGES: Final = Images()
_AUDIO: Final = Audio()
_APIS: Final[dict[str, Api]] = {
    "text_completion": Completions(),
    "responses": _RESPONSES,
    "compaction": _RESPONSES,
    "embeddings": _EMBEDDINGS,
    "rerank": _EMBEDDINGS,
    "moderation": _EMBEDDINGS,
    "image_generation": _IMAGES,
    "image_edit": _IMAGES,
    "image_variation": _IMAGES,
    "speech": _AUDIO,
    "transcription": _AUDIO,
    "translation": _AUDIO,
}
"""By operation; chat, of which there are the most by far, goes its own way."""

_QUOTE: Final = 0x22
_BRACE: Final = 0x7B
_TEXT_PARTS: Final = frozenset({"text", "refusal", "input_text", "output_text"})
_RARE: Final = frozenset(
    {
        "max_completion_tokens", "n", "stream_options", "tools", "functions", "web_search_options", "response_format",
        "service_tier",
    }
)  # fmt: skip
"""Members that decide, besides those that most requests have: `model`, `messages`, `stream` and `max_tokens`."""


class OpenAI:
    """The dialect `openai`."""

    name = "openai"

    def recognise(self, method: str, path: str) -> str | None:
        """See `Dialect.recognise`."""
        return route_of(path).operation if method == "POST" else None

    def is_free(self, method: str, path: str) -> bool:
        """See `Dialect.is_free`: what runs no model (listing models, reading or ending a response)."""
        return paths.is_free(method, path)

    def collects(self, method: str, path: str) -> str:
        """See `DeferringDialect.collects`: reading a response by its id."""
        return paths.response_of(path) if method == "GET" else ""

    def read(self, operation: str, body: bytes, path: str = "", headers: Headers | None = None) -> Ask:
        """See `Dialect.read`. A model that the path names (Azure's deployments) is the one that is judged, and
        `rewrite` writes it over the body's: whichever of the two a server heeds, it is served."""
        named = route_of(path).model if path else ""
        if operation != "chat":
            api = _APIS.get(operation)
            return (api if api is not None else _EMBEDDINGS).read(operation, body, named, headers)
        pairs, messages = pairs_of.read_long_body(body, "messages")
        said = pairs_of.text(pairs, "model") or ""
        model = named or said
        request = Request(pairs, said, messages)
        return self._read_chat(request, model, shown_bytes(request, body, model))

    def _read_chat(self, request: Request, model: str, bound: int) -> Ask:
        pairs = request.pairs
        is_stream = "stream" in pairs and pairs_of.flag(pairs, "stream") is True
        cap: int | None = None
        if "max_tokens" in pairs and (cap := pairs_of.integer(pairs, "max_tokens", least=1)) is not None:
            request.caps.append(("max_tokens", cap))
        if not _RARE.isdisjoint(pairs):
            return self._read_rare(request, model, bound, is_stream, cap)
        request.adds_usage = is_stream
        if _is_input_hidden(request, model):
            ask = Ask("chat", model, is_stream, window(model), cap, fields=request)
            ask.bound_by = WINDOW
            return ask
        return Ask("chat", model, is_stream, bound_of(request, model, bound), cap, fields=request)

    def _read_rare(self, request: Request, model: str, bound: int, is_stream: bool, cap: int | None) -> Ask:
        pairs = request.pairs
        other = pairs_of.integer(pairs, "max_completion_tokens", least=1)
        if other is not None:
            request.caps.append(("max_completion_tokens", other))
            # Which of the two a server heeds is not known: the larger one bounds the output.
            cap = max(cap or 0, other)
        is_usage_asked = read_stream_options(request, pairs, is_stream)
        tools: tuple[str, ...] = ()
        turns = 1
        is_hidden = False
        if "tools" in pairs or "functions" in pairs or "web_search_options" in pairs:
            tools, is_hosted, is_searching = _read_tools(pairs)
            turns = HOSTED_TURNS if is_hosted else 1
            is_hidden = is_hosted or is_searching
            request.hidden_tokens += TOOLS_TOKENS
        if "response_format" in pairs:
            request.hidden_tokens += TOOLS_TOKENS
        choices = pairs_of.integer(pairs, "n", least=1, most=CHOICES_MAX) or 1
        ask = Ask("chat", model, is_stream, 0, cap, choices, tools=tools, is_usage_asked=is_usage_asked, fields=request)
        if is_hidden or _is_input_hidden(request, model):
            ask.input_bound = window(model) * turns
            ask.bound_by = WINDOW
        else:
            ask.input_bound = bound_of(request, model, bound)
        if "service_tier" in pairs:
            ask.tier = (pairs_of.text(pairs, "service_tier") or "")[:TIER_CHARACTERS_MAX]
        return ask

    def texts(self, ask: Ask) -> Texts | None:
        """See `Counted.texts`."""
        if ask.operation not in COUNTED:
            return None
        request: Request = ask.fields
        return texts_of(ask, request.pairs, request.messages, request.hidden_tokens)

    def rewrite(self, ask: Ask, body: bytes) -> bytes:
        """See `Dialect.rewrite`. A grant lowers the client's cap and never raises it."""
        if ask.operation != "chat":
            return _APIS[ask.operation].rewrite(ask, body)
        # The older name is the one that every other server knows, some as the only one; OpenAI's own reasoning models
        # refuse it.
        return written(ask, body, "max_completion_tokens" if is_openai(ask.model_sent) else "max_tokens")

    def redirect(self, ask: Ask, path: str) -> str:
        """See `Dialect.redirect`."""
        return paths.with_model(path, ask.model_sent)

    def meter(self, ask: Ask) -> Meter:
        """See `Dialect.meter`."""
        if ask.operation != "chat":
            return _APIS[ask.operation].meter(ask)
        return OpenAIMeter(ask, drops_usage=ask.fields.adds_usage)

    def refusal_body(self, refused: Refused, *, call_id: str) -> tuple[bytes, bytes]:
        """See `Dialect.refusal_body`. The SDK reads `error.message`, `.type`, `.param` and `.code`."""
        return b"application/json", msgspec.json.encode({"error": error_object(refused)})


def _read_tools(pairs: Pairs) -> tuple[tuple[str, ...], bool, bool]:
    """Return the names of the tools, whether the provider hosts one of them, and whether it searches the web."""
    names: list[str] = []
    is_hosted = False
    raw = pairs_of.member(pairs, "tools")
    if raw is not None:
        offered, is_hosted = _offered(bytes(raw))
        names += offered
    raw = pairs_of.member(pairs, "functions")
    for index, function in enumerate(pairs_of.read_objects(raw, "'functions'") if raw is not None else ()):
        names.append(_name(function, "'functions'", index))
    is_searching = pairs_of.member(pairs, "web_search_options") is not None
    if is_searching:
        names.append("web_search")
    return tuple(names), is_hosted, is_searching


def _read_offered(raw: bytes) -> tuple[tuple[str, ...], bool]:
    """Return the names in `tools`, and whether the provider hosts one of them."""
    names: list[str] = []
    is_hosted = False
    for index, tool in enumerate(pairs_of.read_objects(raw, "'tools'")):
        kind = pairs_of.text(tool, "type", "'tools'", index)
        is_known = False
        for form in ("function", "custom"):
            if (form_raw := pairs_of.member(tool, form)) is not None:
                inner = pairs_of.read_object(form_raw, "'tools'", index)
                names.append(_name(inner, "'tools'", index))
                is_known = True
        if kind not in (None, "function", "custom"):
            names.append(kind)
            is_hosted = True
        elif not is_known:
            malformed(f"'tools'[{index}] names no tool")
    return tuple(names), is_hosted


_offered = remembered(_read_offered)


def _name(pairs: Pairs, where: str, at: int) -> str:
    return pairs_of.text(pairs, "name", where, at) or malformed(f"{where}[{at}] has no name")


def _is_input_hidden(request: Request, model: str) -> bool:
    """Say whether a message brings input whose tokens nothing here bounds: sound, files, references, and images for
    a model that no published rule bounds them for. Others are added to `hidden_tokens`."""
    messages = request.messages
    if messages is None:
        raw = request.pairs.get("messages")
        if raw is None or pairs_of.is_flat(raw):
            return False
        messages = pairs_of.read_objects(raw, "'messages'")
    elif pairs_of.are_texts(messages, "content") and not pairs_of.has_member(messages, "audio"):
        return False
    is_hidden = False
    for index, message in enumerate(messages):
        if "audio" in message and pairs_of.member(message, "audio") is not None:
            is_hidden = True
        content = message.get("content")
        if content is None:
            continue
        first = memoryview(content)[0]
        if first == _QUOTE:
            continue
        if first == 0x5B:
            for part in pairs_of.read_objects(content, "'messages'", index):
                kind = pairs_of.text(part, "type", "'messages'", index)
                if kind not in _TEXT_PARTS and not (
                    kind == "image_url" and is_image_bounded(part, request, model, "'messages'", index)
                ):
                    is_hidden = True
        elif first == _BRACE:
            is_hidden = True
    return is_hidden
