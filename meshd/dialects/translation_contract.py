"""The contract of a translation: what one dialect says, said in another. Pure, no I/O and no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Protocol

if TYPE_CHECKING:
    from meshd.call import Ask, Headers


class TranslationError(Exception):
    """What was said has no equal in the other dialect, or is no sense in its own; the message says which."""


def lost(reason: str) -> NoReturn:
    """Raise TranslationError, where translating would lose something silently."""
    raise TranslationError(reason)


class StreamTranslator(Protocol):
    """Translates one stream, event by event."""

    is_whole: bool
    """The end of the answer has been said: a stream that ends without it was cut."""

    def feed(self, event: bytes) -> bytes:
        """Return zero or more events of the caller's dialect for one whole event of the upstream's.

        Raises TranslationError where the event is no sense.
        """
        ...

    def end(self) -> bytes:
        """Return what is owed when the upstream's stream ends; nothing where it ends in mid-air."""
        ...


class Translation(Protocol):
    """Translates one attempt. An object of its own each: `request` notes what the reply must know of it."""

    content_type: bytes
    """Of the request, and of a plain reply; a stream stays `text/event-stream`."""
    headers_added: Headers
    """Fields that the upstream needs, where the request does not have them."""
    headers_dropped: frozenset[bytes]
    """Fields of the caller's dialect that mean nothing to the upstream, or the wrong thing. Credentials among them."""

    def why_not(self, ask: Ask, model: str = "") -> str:
        """Return why a request cannot be translated faithfully; empty where it can.

        `model` is the one to be asked for, where it is known: some take less than others.
        """
        ...

    def request(self, ask: Ask, body: bytes, *, model: str, output_cap: int | None) -> tuple[str, bytes]:
        """Return the path below the upstream's base, and the body. The smaller of the caller's cap and `output_cap`
        is asked for. Raises TranslationError where `why_not` would say why."""
        ...

    def reply(self, body: bytes, *, created: int = 0) -> bytes:
        """Return a plain reply in the caller's dialect. `created` is the time in seconds since the epoch, where the
        dialect says one. Raises TranslationError."""
        ...

    def stream(self, *, created: int = 0) -> StreamTranslator:
        """Return what translates the stream of this attempt."""
        ...

    def error(self, status: int, body: bytes) -> tuple[int, bytes]:
        """Return the status and body of an error in the caller's dialect, whatever the body is."""
        ...
