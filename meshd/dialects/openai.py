"""OpenAI chat completions and embeddings, as OpenAI and the many servers that copy it speak them.

Shapes as published in OpenAI's API reference and as the official SDK sends them. Cached and reasoning tokens are
subsets of input and output here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from meshd.call import Ask
from meshd.dialects import json_pairs as pairs_of
from meshd.dialects.bounds import normalised_bytes
from meshd.dialects.images import data_bytes, image_tokens_max
from meshd.dialects.json_pairs import Pairs, malformed
from meshd.dialects.openai_meter import TIER_CHARACTERS_MAX, OpenAIMeter
from meshd.dialects.openai_texts import texts_of
from meshd.dialects.remembering import remembered
from meshd.dialects.windows import is_byte_level, is_openai, window
from meshd.tokens.encodings import WINDOW

if TYPE_CHECKING:
    from meshd.refusal import Refused
    from meshd.tokens.counter import Texts

CHOICES_MAX: Final = 128
"""`n` as the API's reference allows it."""

# What a server's chat template says of its own accord (a default system prompt, today's date), where OpenAI does not
# serve the model; beside it, the JSON around each message covers the template's own tokens. The longest that is
# published for no tools, gpt-oss's (its identity, cutoff, date, effort and channels), has about 70 tokens.
_TEMPLATE_TOKENS: Final = 128
# Hidden instructions around tools and response formats. OpenAI publishes none; its cookbook's count of tools adds 12
# tokens for all and 7 to 10 for each, which the JSON around them covers. The rest is margin.
_TOOLS_TOKENS: Final = 256
# Model turns that a tool hosted by the provider may take within one call, where the body does not limit them.
_HOSTED_TURNS: Final = 10

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
_USAGE_ASKED: Final = b'{"include_usage":true}'


class Request:
    """What `rewrite` and the meter need to know of a request that was read."""

    __slots__ = ("adds_usage", "caps", "hidden_tokens", "image_bytes", "messages", "pairs", "stream_options")

    def __init__(self, pairs: Pairs, messages: list[Pairs] | None) -> None:
        self.pairs = pairs
        self.messages = messages
        """The members of each message, where they were read with the body."""
        self.caps: list[tuple[str, int]] = []
        """The cap fields that the client used, with their values."""
        self.adds_usage = False
        """meshd asks for usage in the stream, and the client did not: its chunk is not forwarded."""
        self.stream_options: bytes = _USAGE_ASKED
        self.hidden_tokens = 0
        """Tokens beside those of the body's texts: templates, hidden instructions, images."""
        self.image_bytes = 0
        """Bytes of the body that are images: those in `hidden_tokens` stand for them."""


class OpenAI:
    """The dialect `openai`."""

    name = "openai"

    def recognise(self, method: str, path: str) -> str | None:
        """See `Dialect.recognise`. A path that names its own model (Azure's deployments) is not read here: the body's
        model would be judged and the path's served."""
        if method != "POST":
            return None
        path = path.partition("?")[0].removesuffix("/")
        if path.endswith("/chat/completions"):
            operation = "chat"
        elif path.endswith("/embeddings"):
            operation = "embeddings"
        else:
            return None
        return None if "/deployments/" in path or "/engines/" in path else operation

    def is_free(self, method: str, path: str) -> bool:
        """See `Dialect.is_free`: listing models and reading about one."""
        return method in ("GET", "HEAD") and "/models/" in path.partition("?")[0] + "/"

    def read(self, operation: str, body: bytes) -> Ask:
        """See `Dialect.read`."""
        pairs, messages = pairs_of.read_long_body(body, "messages")
        model = pairs_of.text(pairs, "model") or ""
        request = Request(pairs, messages)
        if is_byte_level(model):
            bound = len(body)
        else:
            request.hidden_tokens = _TEMPLATE_TOKENS
            bound = normalised_bytes(body)
        if operation == "embeddings":
            is_hidden = _is_embedding_input_hidden(pairs)
            bound = window(model) if is_hidden else bound + request.hidden_tokens
            ask = Ask("embeddings", model, input_bound=bound, has_output=False, fields=request)
            if is_hidden:
                ask.bound_by = WINDOW
            return ask
        return self._read_chat(request, model, bound)

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
        return Ask("chat", model, is_stream, _bound_of(request, model, bound), cap, fields=request)

    def _read_rare(self, request: Request, model: str, bound: int, is_stream: bool, cap: int | None) -> Ask:
        pairs = request.pairs
        other = pairs_of.integer(pairs, "max_completion_tokens", least=1)
        if other is not None:
            request.caps.append(("max_completion_tokens", other))
            # Which of the two a server heeds is not known: the larger one bounds the output.
            cap = max(cap or 0, other)
        is_usage_asked = _read_stream_options(request, pairs, is_stream)
        tools: tuple[str, ...] = ()
        turns = 1
        is_hidden = False
        if "tools" in pairs or "functions" in pairs or "web_search_options" in pairs:
            tools, is_hosted, is_searching = _read_tools(pairs)
            turns = _HOSTED_TURNS if is_hosted else 1
            is_hidden = is_hosted or is_searching
            request.hidden_tokens += _TOOLS_TOKENS
        if "response_format" in pairs:
            request.hidden_tokens += _TOOLS_TOKENS
        choices = pairs_of.integer(pairs, "n", least=1, most=CHOICES_MAX) or 1
        ask = Ask("chat", model, is_stream, 0, cap, choices, tools=tools, is_usage_asked=is_usage_asked, fields=request)
        if is_hidden or _is_input_hidden(request, model):
            ask.input_bound = window(model) * turns
            ask.bound_by = WINDOW
        else:
            ask.input_bound = _bound_of(request, model, bound)
        if "service_tier" in pairs:
            ask.tier = (pairs_of.text(pairs, "service_tier") or "")[:TIER_CHARACTERS_MAX]
        return ask

    def texts(self, ask: Ask) -> Texts | None:
        """See `Counted.texts`."""
        request: Request = ask.fields
        return texts_of(ask, request.pairs, request.messages, request.hidden_tokens)

    def rewrite(self, ask: Ask, body: bytes) -> bytes:
        """See `Dialect.rewrite`. A grant lowers the client's cap and never raises it."""
        request: Request = ask.fields
        edits: dict[str, bytes] = {}
        granted = ask.output_cap_granted
        if granted is not None and ask.has_output:
            if not request.caps:
                # The older name is the one that every other server knows, some as the only one; OpenAI's own
                # reasoning models refuse it.
                name = "max_completion_tokens" if is_openai(ask.model_sent) else "max_tokens"
                edits[name] = b"%d" % granted
            for name, cap in request.caps:
                if cap > granted:
                    edits[name] = b"%d" % granted
        if ask.model_granted is not None and ask.model_granted != ask.model:
            edits["model"] = msgspec.json.encode(ask.model_granted)
        if request.adds_usage:
            edits["stream_options"] = request.stream_options
        return pairs_of.write(request.pairs, edits) if edits else body

    def meter(self, ask: Ask) -> OpenAIMeter:
        """See `Dialect.meter`."""
        return OpenAIMeter(ask, drops_usage=ask.fields.adds_usage)

    def refusal_body(self, refused: Refused, *, call_id: str) -> tuple[bytes, bytes]:
        """See `Dialect.refusal_body`. The SDK reads `error.message`, `.type`, `.param` and `.code`."""
        return b"application/json", msgspec.json.encode({"error": error_object(refused)})


def error_object(refused: Refused) -> dict[str, str | None]:
    """Return the `error` member of a body or stream event."""
    row = refused.row
    return {"message": refused.message, "type": row.openai_type, "param": None, "code": row.code}


def _read_stream_options(request: Request, pairs: Pairs, is_stream: bool) -> bool:
    """Return whether the client asked for usage; where it did not say, prepare to ask for it in its place."""
    raw = pairs_of.member(pairs, "stream_options") if "stream_options" in pairs else None
    options = pairs_of.read_object(raw, "'stream_options'") if raw is not None else None
    asked = pairs_of.flag(options, "include_usage") if options is not None else None
    if is_stream and asked is None:
        request.adds_usage = True
        if options:
            request.stream_options = pairs_of.write(options, {"include_usage": b"true"})
    return is_stream and asked is True


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


def _bound_of(request: Request, model: str, bound: int) -> int:
    """Return the bound of an input that is shown: bytes, what stands beside them, images at their most."""
    if not request.image_bytes:
        return bound + request.hidden_tokens
    # Many images at their most may come to more than the model can read at once.
    return min(bound + request.hidden_tokens - request.image_bytes, window(model))


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
                if kind not in _TEXT_PARTS and not (kind == "image_url" and _is_bounded(part, request, model, index)):
                    is_hidden = True
        elif first == _BRACE:
            is_hidden = True
    return is_hidden


def _is_bounded(part: Pairs, request: Request, model: str, at: int) -> bool:
    """Say whether the tokens of an image are bounded, and add them. What it is given as costs none itself."""
    raw = pairs_of.member(part, "image_url")
    if raw is None:
        return False
    is_low = False
    if memoryview(raw)[0] == _BRACE:
        image = pairs_of.read_object(raw, "'messages'", at)
        is_low = pairs_of.text(image, "detail", "'messages'", at) == "low"
        raw = pairs_of.member(image, "url")
    most = image_tokens_max(model, is_low=is_low)
    if most is None or raw is None or memoryview(raw)[0] != _QUOTE:
        return False
    request.hidden_tokens += most
    request.image_bytes += data_bytes(raw)
    return True


def _is_embedding_input_hidden(pairs: Pairs) -> bool:
    """Say whether something other than text or tokens is to be embedded (some servers take images so)."""
    raw = pairs.get("input")
    if raw is None or "messages" in pairs:
        return True
    value = memoryview(raw)
    if value[0] == 0x22:
        return False
    if value[0] != 0x5B:
        malformed(f"'input' must be a string or an array, not {pairs_of.shown(raw)}")
    if b"{" not in bytes(raw):
        return False
    return any(memoryview(item)[0] == 0x7B for item in pairs_of.read_items(raw, "'input'"))
