"""What the APIs of OpenAI have in common in a request: the model, the stream's options, and how both are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from meshd.dialects import json_pairs as pairs_of
from meshd.dialects.bounds import normalised_bytes
from meshd.dialects.images import data_bytes, image_tokens_max
from meshd.dialects.windows import is_byte_level, window

if TYPE_CHECKING:
    from meshd.call import Ask
    from meshd.dialects.json_pairs import Pairs

# What a server's chat template says of its own accord (a default system prompt, today's date), where OpenAI does not
# serve the model; beside it, the JSON around each message covers the template's own tokens. The longest that is
# published for no tools, gpt-oss's (its identity, cutoff, date, effort and channels), has about 70 tokens.
TEMPLATE_TOKENS: Final = 128
# Hidden instructions around tools and response formats. OpenAI publishes none; its cookbook's count of tools adds 12
# tokens for all and 7 to 10 for each, which the JSON around them covers. The rest is margin.
TOOLS_TOKENS: Final = 256
# Model turns that a tool hosted by the provider may take within one call, where the body does not limit them.
HOSTED_TURNS: Final = 10
_QUOTE, _BRACE = 0x22, 0x7B
CHOICES_MAX: Final = 128
"""`n` as the API's reference allows it."""
_USAGE_ASKED: Final = b'{"include_usage":true}'


class Request:
    """What `rewrite` and the meter need to know of a request that was read."""

    __slots__ = (
        "adds_usage", "caps", "echoes", "hidden_tokens", "image_bytes", "messages", "model", "pairs", "stream_options",
    )  # fmt: skip

    def __init__(self, pairs: Pairs, model: str, messages: list[Pairs] | None = None) -> None:
        self.pairs = pairs
        self.model = model
        """As the body says it. Where the path names another, that one is served: it is written over this."""
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
        self.echoes = False
        """The answer repeats the prompt, so its length says nothing of what was generated."""


def shown_bytes(request: Request, body: bytes, model: str) -> int:
    """Return how many tokens the texts of a body cannot exceed; the template's are added to `hidden_tokens`."""
    if is_byte_level(model):
        return len(body)
    request.hidden_tokens += TEMPLATE_TOKENS
    return normalised_bytes(body)


def bound_of(request: Request, model: str, shown: int) -> int:
    """Return the bound of an input that is shown: bytes, what stands beside them, images at their most."""
    if not request.image_bytes:
        return shown + request.hidden_tokens
    # Many images at their most may come to more than the model can read at once.
    return min(shown + request.hidden_tokens - request.image_bytes, window(model))


def is_image_bounded(part: Pairs, request: Request, model: str, where: str, at: int, *, is_flat: bool = False) -> bool:
    """Say whether the tokens of an image are bounded, and add them. What it is given as costs none itself.

    A chat has the image's detail within `image_url`; a response, whose parts are flat, beside it.
    """
    raw = pairs_of.member(part, "image_url")
    if raw is None:
        return False
    is_low = False
    if is_flat:
        is_low = pairs_of.text(part, "detail", where, at) == "low"
    elif memoryview(raw)[0] == _BRACE:
        image = pairs_of.read_object(raw, where, at)
        is_low = pairs_of.text(image, "detail", where, at) == "low"
        raw = pairs_of.member(image, "url")
    most = image_tokens_max(model, is_low=is_low)
    if most is None or raw is None or memoryview(raw)[0] != _QUOTE:
        return False
    request.hidden_tokens += most
    request.image_bytes += data_bytes(raw)
    return True


def edits_of(ask: Ask, request: Request, cap_name: str) -> dict[str, bytes]:
    """Return what must be written anew of a body: its caps, a new one as `cap_name` where it has none, and the model.

    A grant lowers the client's cap and never raises it.
    """
    edits: dict[str, bytes] = {}
    granted = ask.output_cap_granted
    if granted is not None and ask.has_output:
        if not request.caps:
            edits[cap_name] = b"%d" % granted
        for name, cap in request.caps:
            if cap > granted:
                edits[name] = b"%d" % granted
    model = ask.model_sent
    if model != request.model:
        edits["model"] = msgspec.json.encode(model)
    if request.adds_usage:
        edits["stream_options"] = request.stream_options
    return edits


def written(ask: Ask, body: bytes, cap_name: str = "") -> bytes:
    """Return the body to forward, `body` itself where nothing of it changes."""
    request: Request = ask.fields
    edits = edits_of(ask, request, cap_name)
    return pairs_of.write(request.pairs, edits) if edits else body


def read_stream_options(request: Request, pairs: Pairs, is_stream: bool) -> bool:
    """Return whether the client asked for usage; where it did not say, prepare to ask for it in its place."""
    raw = pairs_of.member(pairs, "stream_options") if "stream_options" in pairs else None
    options = pairs_of.read_object(raw, "'stream_options'") if raw is not None else None
    asked = pairs_of.flag(options, "include_usage") if options is not None else None
    if is_stream and asked is None:
        request.adds_usage = True
        if options:
            request.stream_options = pairs_of.write(options, {"include_usage": b"true"})
    return is_stream and asked is True
