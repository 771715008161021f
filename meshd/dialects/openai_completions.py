"""OpenAI's older completions: a prompt in, its continuation out. Many local servers still speak nothing else.

A request may hold several prompts, each of which is answered `n` times; `best_of` answers are generated (and billed)
for each, of which `n` are shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from meshd.call import Ask
from meshd.dialects import json_pairs as pairs_of
from meshd.dialects.json_pairs import malformed
from meshd.dialects.openai_meter import OpenAIMeter
from meshd.dialects.openai_request import CHOICES_MAX, Request, bound_of, read_stream_options, shown_bytes, written
from meshd.dialects.windows import window
from meshd.tokens.encodings import BYTES, WINDOW

if TYPE_CHECKING:
    import msgspec

    from meshd.call import Headers
    from meshd.dialects.event import Event

_HEADS: Final = b'"[0123456789'
_QUOTE, _BRACKET = 0x22, 0x5B
# Prompts as tensors: how many tokens one stands for, its bytes do not say in any published way.
_HIDDEN: Final = "prompt_embeds"


class Completions:
    """See `Api`: the operation text_completion."""

    def read(self, operation: str, body: bytes, model: str, headers: Headers | None) -> Ask:
        """See `Api.read`."""
        pairs = pairs_of.read_body(body)
        said = pairs_of.text(pairs, "model") or ""
        model = model or said
        request = Request(pairs, said)
        bound, bound_by = bound_of(request, model, shown_bytes(request, body, model)), BYTES
        prompts = _prompts(pairs.get("prompt"))
        if _HIDDEN in pairs and (raw := pairs_of.member(pairs, _HIDDEN)) is not None:
            prompts += len(pairs_of.read_items(raw, f"'{_HIDDEN}'")) if memoryview(raw)[0] == _BRACKET else 1
            bound, bound_by = window(model) * prompts, WINDOW
        is_stream = pairs_of.flag(pairs, "stream") is True
        is_usage_asked = read_stream_options(request, pairs, is_stream)
        cap = pairs_of.integer(pairs, "max_tokens", least=0)
        if cap is not None:
            request.caps.append(("max_tokens", cap))
        shown = pairs_of.integer(pairs, "n", least=1, most=CHOICES_MAX) or 1
        made = pairs_of.integer(pairs, "best_of", least=1, most=CHOICES_MAX) or 1
        request.echoes = pairs_of.flag(pairs, "echo") is True
        choices = max(prompts, 1) * max(shown, made)
        ask = Ask(operation, model, is_stream, bound, cap, choices, is_usage_asked=is_usage_asked, fields=request)
        ask.bound_by = bound_by
        return ask

    def rewrite(self, ask: Ask, body: bytes) -> bytes:
        """See `Api.rewrite`."""
        return written(ask, body, "max_tokens")

    def meter(self, ask: Ask) -> CompletionsMeter:
        """See `Api.meter`."""
        return CompletionsMeter(ask, drops_usage=ask.fields.adds_usage)


def _prompts(raw: msgspec.Raw | None) -> int:
    """Return how many prompts there are: a string and an array of tokens are one, any other array one an item."""
    if raw is None or bytes(raw) == pairs_of.NULL:
        return 0
    head = memoryview(raw)[0]
    if head == _QUOTE:
        return 1
    if head != _BRACKET:
        malformed(f"'prompt' must be a string or an array, not {pairs_of.shown(raw)}")
    items = pairs_of.read_items(raw, "'prompt'")
    for item in items:
        if memoryview(item)[0] not in _HEADS:
            malformed(f"'prompt' must hold strings or tokens, not {pairs_of.shown(item)}")
    if any(memoryview(item)[0] in (_QUOTE, _BRACKET) for item in items):
        return len(items)
    return 1


class CompletionsMeter(OpenAIMeter):
    """See `Meter`: as for chat, but a choice has `text`, and an end is written as one of its own."""

    _object: ClassVar[str] = "text_completion"
    _id_prefix: ClassVar[str] = "cmpl"

    def _generated(self, size: int, event: Event) -> None:
        if self._ask.fields.echoes:
            event.has_content = True
        else:
            super()._generated(size, event)

    def _ending(self, index: int) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": "length"}
