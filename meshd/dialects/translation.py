"""Which dialects can be translated into which, and how: OpenAI chat completions and Anthropic messages, both ways.

A substitute of another dialect answers an agent that knows nothing of it. What cannot be said there is no substitute:
`why_not` says so before anything is sent, and nothing is lost silently. docs/translation.md has the table of what maps
to what.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.dialects import translation_to_anthropic as to_anthropic
from meshd.dialects import translation_to_openai as to_openai
from meshd.dialects.translation_answers import anthropic_error, openai_error
from meshd.dialects.translation_contract import StreamTranslator, Translation, TranslationError
from meshd.dialects.translation_from_anthropic import ChatStream, chat_completion
from meshd.dialects.translation_from_openai import MessageStream, message
from meshd.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Ask, Headers

__all__ = ["StreamTranslator", "Translation", "TranslationError", "translation"]

_CREDENTIALS: Final = frozenset({b"authorization", b"x-api-key", b"api-key"})
# The version that every server of this dialect knows, and the one under which older models still take a temperature.
_VERSION: Final = (b"anthropic-version", b"2023-06-01")


def translation(from_dialect: str, to_dialect: str, operation: str) -> Translation | None:
    """Return what translates one attempt from the caller's dialect to the upstream's; None where nothing does."""
    if operation != "chat":
        return None
    if from_dialect == "openai" and to_dialect == "anthropic":
        return OpenAIToAnthropic()
    if from_dialect == "anthropic" and to_dialect == "openai":
        return AnthropicToOpenAI()
    return None


class _Saying:
    """What both ways have in common: a request is said in the other dialect, or cannot be."""

    __slots__ = ("_body_of",)

    def __init__(self, body_of: Callable[[Ask, str, int | None], dict[str, Any]]) -> None:
        self._body_of = body_of

    def why_not(self, ask: Ask, model: str = "") -> str:
        """See `Translation.why_not`."""
        try:
            self._body(ask, model, None)
        except TranslationError as error:
            return str(error)
        return ""

    def _body(self, ask: Ask, model: str, output_cap: int | None) -> dict[str, Any]:
        try:
            return self._body_of(ask, model, output_cap)
        except Refused as refused:
            raise TranslationError(refused.message) from refused


class OpenAIToAnthropic(_Saying):
    """See `Translation`: the caller speaks OpenAI's chat completions, the upstream Anthropic's messages."""

    __slots__ = ("_is_usage_asked", "_model", "content_type", "headers_added", "headers_dropped")

    def __init__(self) -> None:
        super().__init__(to_anthropic.body_of)
        self._model = ""
        self._is_usage_asked = False
        self.content_type = b"application/json"
        self.headers_added: Headers = [_VERSION]
        self.headers_dropped = _CREDENTIALS | {b"openai-organization", b"openai-project", b"openai-beta"}

    def request(self, ask: Ask, body: bytes, *, model: str, output_cap: int | None) -> tuple[str, bytes]:
        """See `Translation.request`."""
        made = self._body(ask, model, output_cap)
        self._model = model
        self._is_usage_asked = ask.is_usage_asked
        return "/v1/messages", msgspec.json.encode(made)

    def reply(self, body: bytes, *, created: int = 0) -> bytes:
        """See `Translation.reply`."""
        return chat_completion(body, self._model, created)

    def stream(self, *, created: int = 0) -> StreamTranslator:
        """See `Translation.stream`."""
        return ChatStream(self._model, created, is_usage_asked=self._is_usage_asked)

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """See `Translation.error`."""
        return openai_error(status, body)


class AnthropicToOpenAI(_Saying):
    """See `Translation`: the caller speaks Anthropic's messages, the upstream OpenAI's chat completions."""

    __slots__ = ("_model", "_stops", "content_type", "headers_added", "headers_dropped")

    def __init__(self) -> None:
        super().__init__(to_openai.body_of)
        self._model = ""
        self._stops: tuple[str, ...] = ()
        self.content_type = b"application/json"
        self.headers_added: Headers = []
        self.headers_dropped = _CREDENTIALS | {b"anthropic-version", b"anthropic-beta", b"anthropic-workspace-id"}

    def request(self, ask: Ask, body: bytes, *, model: str, output_cap: int | None) -> tuple[str, bytes]:
        """See `Translation.request`."""
        made = self._body(ask, model, output_cap)
        self._model = model
        self._stops = tuple(made.get("stop", ()))
        return "/v1/chat/completions", msgspec.json.encode(made)

    def reply(self, body: bytes, *, created: int = 0) -> bytes:
        """See `Translation.reply`; a message says no time."""
        return message(body, self._model, self._stops)

    def stream(self, *, created: int = 0) -> StreamTranslator:
        """See `Translation.stream`."""
        return MessageStream(self._model, self._stops)

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """See `Translation.error`."""
        return anthropic_error(status, body)
