"""Anthropic messages on Google's Vertex AI: the same bodies, and the model in the path.

Below `.../publishers/anthropic/models/` stand `<model>:rawPredict` (plain), `<model>:streamRawPredict` (server-sent
events) and `count-tokens:rawPredict`, which is free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.dialects.anthropic import Anthropic, read_messages
from meshd.dialects.gemini import without_key
from meshd.dialects.json_pairs import malformed
from meshd.dialects.placing import model_of, placed, replaced

if TYPE_CHECKING:
    from meshd.call import Ask, Headers

_PUBLISHER: Final = "/publishers/anthropic/models/"
_METHODS: Final = frozenset({"rawPredict", "streamRawPredict"})
_STREAMED: Final = "streamRawPredict"
_COUNTING: Final = "count-tokens"


def is_on_vertex(path: str) -> bool:
    """Say whether a path is one of Anthropic's on Vertex AI."""
    return _PUBLISHER in path.partition("?")[0]


class AnthropicOnVertex(Anthropic):
    """The dialect `anthropic`, at Vertex AI's addresses."""

    def recognise(self, method: str, path: str) -> str | None:
        """See `Dialect.recognise`."""
        place = placed(path) if method == "POST" else None
        if place is None or place.method not in _METHODS or place.name == _COUNTING:
            return None
        return "chat"

    def is_free(self, method: str, path: str) -> bool:
        """See `Dialect.is_free`: counting tokens."""
        place = placed(path)
        return method == "POST" and place is not None and place.name == _COUNTING and place.method == "rawPredict"

    def read_at(self, operation: str, path: str, body: bytes, credentials: Headers) -> Ask:
        """See `PlacedDialect.read_at`."""
        place = placed(path)
        if place is None:
            malformed("the path names no model")
        return read_messages(body, model_of(place), is_streamed_by_path=place.method == _STREAMED)

    def path_to_send(self, ask: Ask | None, path: str, *, is_keyed: bool) -> str:
        """See `PlacedDialect.path_to_send`."""
        if ask is not None and ask.model_granted not in (None, ask.model) and (place := placed(path)) is not None:
            path = replaced(place, ask.model_sent)
        return without_key(path) if is_keyed else path
