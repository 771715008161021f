"""Anthropic messages on Google's Vertex AI: the same bodies, and the model in the path.

Below `.../publishers/anthropic/models/` stand `<model>:rawPredict` (plain), `<model>:streamRawPredict` (server-sent
events) and `count-tokens:rawPredict`, which is free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.dialects.anthropic import Anthropic, read_messages
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

    def read(self, operation: str, body: bytes, path: str = "", headers: Headers | None = None) -> Ask:
        """See `Dialect.read`."""
        place = placed(path)
        if place is None:
            return read_messages(body, "")
        return read_messages(body, model_of(place), is_streamed_by_path=place.method == _STREAMED)

    def redirect(self, ask: Ask, path: str) -> str:
        """See `Dialect.redirect`."""
        place = placed(path)
        return path if place is None or ask.model_sent == ask.model else replaced(place, ask.model_sent)
