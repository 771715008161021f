"""Embeddings, rerank and moderations: what is read and only scored, so that nothing but the input costs tokens.

Rerank has no definition of OpenAI's; Cohere's is the one that Jina, Voyage, vLLM and the gateways copy. Moderations
are free at OpenAI, but not known to be so elsewhere, and a dialect does not know who serves: their bytes are counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.call import Ask, Usage
from meshd.dialects import json_pairs as pairs_of
from meshd.dialects.bounds import normalised_bytes
from meshd.dialects.counting import count
from meshd.dialects.json_pairs import Pairs, malformed
from meshd.dialects.openai_meter import OpenAIMeter
from meshd.dialects.openai_request import TEMPLATE_TOKENS, Request, bound_of, shown_bytes, written
from meshd.dialects.openai_shapes import RankAnswer
from meshd.dialects.windows import window
from meshd.tokens.encodings import BYTES, WINDOW

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.dialects.event import Event

# Servers cut a long document into pieces and rank each with the query; Cohere's are of 510 tokens and Jina's of 1,024,
# and a token covers at least a byte.
_PIECE_BYTES: Final = 510
_QUOTE, _BRACKET, _BRACE = 0x22, 0x5B, 0x7B


class Embeddings:
    """See `Api`: the operations embeddings, rerank and moderation."""

    def read(self, operation: str, body: bytes, model: str, headers: Headers | None) -> Ask:
        """See `Api.read`."""
        pairs = pairs_of.read_body(body)
        said = pairs_of.text(pairs, "model") or ""
        model = model or said
        request = Request(pairs, said)
        bound, bound_by = bound_of(request, model, shown_bytes(request, body, model)), BYTES
        if operation == "rerank":
            bound += _repeated_tokens(pairs, model)
        elif (hidden := _hidden_inputs(pairs)) > 0:
            bound, bound_by = window(model) * hidden, WINDOW
        ask = Ask(operation, model, input_bound=bound, has_output=False, fields=request)
        ask.bound_by = bound_by
        return ask

    def rewrite(self, ask: Ask, body: bytes) -> bytes:
        """See `Api.rewrite`."""
        return written(ask, body)

    def meter(self, ask: Ask) -> OpenAIMeter:
        """See `Api.meter`."""
        return RankMeter(ask) if ask.operation == "rerank" else OpenAIMeter(ask)


def _hidden_inputs(pairs: Pairs) -> int:
    """Return how many inputs are neither text nor tokens (some servers embed images so): each may fill a window."""
    raw = pairs.get("input")
    if raw is None or "messages" in pairs:
        return 1
    value = memoryview(raw)
    if value[0] == _QUOTE:
        return 0
    if value[0] != _BRACKET:
        malformed(f"'input' must be a string or an array, not {pairs_of.shown(raw)}")
    if b"{" not in bytes(raw):
        return 0
    hidden = 0
    for at, item in enumerate(pairs_of.read_items(raw, "'input'")):
        if memoryview(item)[0] == _BRACE:
            kind = pairs_of.text(pairs_of.read_object(item, "'input'", at), "type", "'input'", at)
            hidden += kind != "text"
    return hidden


def _repeated_tokens(pairs: Pairs, model: str) -> int:
    """Return what a ranking costs beside its body: the query and a template once more for each piece of a document."""
    query, raw = pairs.get("query"), pairs.get("documents")
    if query is None or raw is None:
        return 0
    if memoryview(raw)[0] != _BRACKET:
        malformed(f"'documents' must be an array, not {pairs_of.shown(raw)}")
    documents = pairs_of.read_items(raw, "'documents'")
    query_bytes = memoryview(query).nbytes
    if not bytes(query).isascii() or b"\\u" in bytes(query):
        query_bytes = normalised_bytes(bytes(query))
    pieces = hidden = 0
    for at, document in enumerate(documents):
        value = memoryview(document)
        pieces += 1 + value.nbytes // _PIECE_BYTES
        if value[0] == _BRACE and "text" not in pairs_of.read_object(document, "'documents'", at):
            hidden += 1
    if memoryview(query)[0] != _QUOTE:
        hidden += max(len(documents), 1)
    return pieces * (query_bytes + TEMPLATE_TOKENS) + hidden * window(model)


_ranking: Final = msgspec.json.Decoder(RankAnswer)


class RankMeter(OpenAIMeter):
    """See `Meter`: tokens stand in `usage.total_tokens`, or with Cohere in `meta.tokens` or `meta.billed_units`."""

    def read_message(self, body: bytes) -> Event:
        """See `Meter.read_message`."""
        event = super().read_message(body)
        if self.usage is None:
            try:
                answer = _ranking.decode(body)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return event
            if type(answer.usage) is dict:
                self.usage = _counted(answer.usage, "total_tokens")
            if self.usage is None and type(answer.meta) is dict:
                for name in ("tokens", "billed_units"):
                    said = answer.meta.get(name)
                    if self.usage is None and type(said) is dict:
                        self.usage = _counted(said, "input_tokens")
        return event


def _counted(said: dict[str, Any], name: str) -> Usage | None:
    given, made = count(said.get(name)), count(said.get("output_tokens")) or 0
    return Usage(given, made) if given else None
