"""What the APIs of OpenAI have in common in a request: the model, the stream's options, and how both are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from meshd.dialects import json_pairs as pairs_of
from meshd.dialects.bounds import normalised_bytes
from meshd.dialects.windows import is_byte_level

if TYPE_CHECKING:
    from meshd.call import Ask
    from meshd.dialects.json_pairs import Pairs

# What a server's chat template says of its own accord (a default system prompt, today's date), where the model is
# not OpenAI's: there, the JSON around each message covers the template's own tokens.
TEMPLATE_TOKENS: Final = 128
# Hidden instructions around tools and response formats.
TOOLS_TOKENS: Final = 256
# Model turns that a tool hosted by the provider may take within one call, where the body does not limit them.
HOSTED_TURNS: Final = 10
CHOICES_MAX: Final = 128
"""`n` as the API's reference allows it."""
_USAGE_ASKED: Final = b'{"include_usage":true}'


class Request:
    """What `rewrite` and the meter need to know of a request that was read."""

    __slots__ = ("adds_usage", "caps", "echoes", "messages", "model", "pairs", "stream_options")

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
        self.echoes = False
        """The answer repeats the prompt, so its length says nothing of what was generated."""


def bound_of(body: bytes, model: str) -> int:
    """Return how many tokens a body cannot exceed that shows all of its input."""
    return len(body) if is_byte_level(model) else normalised_bytes(body) + TEMPLATE_TOKENS


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
