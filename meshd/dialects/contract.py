"""The contract of a dialect: what a body means. Pure, no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from meshd.call import Ask, Headers, Usage
    from meshd.dialects.event import Event
    from meshd.refusal import Refused
    from meshd.tokens.counter import Texts


class Meter(Protocol):
    """Reads one reply as it passes."""

    usage: Usage | None
    """As reported so far; None until the reply has said it."""
    output_estimate: int
    """Running low guess of output tokens, for cutting a stream that ignores its cap. Never used to admit."""
    is_terminal: bool
    """The stream's terminal event was seen (always True for a plain reply that was read whole)."""
    response_id: str
    response_model: str
    finish_reasons: tuple[str, ...]
    error_status: int
    """The HTTP status that an error within a stream stands for, 429 or 529: its provider is full. Else 0."""

    def read_message(self, body: bytes) -> Event:
        """Read a plain reply's whole body (or as much as was kept of it). Never raises on nonsense."""
        ...

    def read_event(self, raw: bytes) -> Event | None:
        """Read one whole SSE event, terminator included. None means: do not forward it. Never raises on nonsense."""
        ...

    def cut(self, *, is_event_forwarded: bool = False) -> bytes:
        """Return the bytes that end the stream well-formed here, as if the output cap had been reached.

        They stand in the place of the event last read, or follow it where it `is_event_forwarded`.
        """
        ...

    def error_event(self, refused: Refused) -> bytes:
        """Return the bytes that end the stream with the dialect's own error event."""
        ...


class Splitter(Protocol):
    """Cuts the body of a reply into events, each unchanged."""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the events that `data` completes. Raises EventTooLarge, or FrameBroken."""
        ...

    def rest(self) -> bytes:
        """Return what ended no event."""
        ...


class FramedMeter(Meter, Protocol):
    """A meter whose streams are more than server-sent events: it says how a reply is framed."""

    def splitter_for(self, content_type: bytes, event_bytes_max: int) -> Splitter | None:
        """Return what cuts a reply of this type into events; None for a plain one, that is read whole."""
        ...


class Dialect(Protocol):
    """One body language."""

    name: str

    def recognise(self, method: str, path: str) -> str | None:
        """Return the operation (chat, embeddings, ...) whose request body must be read, or None.

        `path` is what follows the upstream's base, with its query.
        """
        ...

    def is_free(self, method: str, path: str) -> bool:
        """Say whether an unrecognised call costs nothing (listing models, say); others are bounded or refused."""
        ...

    def read(self, operation: str, body: bytes, path: str = "", headers: Headers | None = None) -> Ask:
        """Read a request. Raises Refused(MALFORMED) on what is not JSON, too deep, or has duplicate keys
        at a level that decides.

        `path` is what `recognise` was given: it may name the model. `headers` are the request's: they may say how
        its body is to be taken apart.
        """
        ...

    def rewrite(self, ask: Ask, body: bytes) -> bytes:
        """Return the body to forward, with what was granted; `body` itself, untouched, where nothing differs."""
        ...

    def redirect(self, ask: Ask, path: str) -> str:
        """Return the path to forward: where it names the model, with the one that was granted. Asked only where a
        model was. Raises Refused(NOT_ALLOWED) for a name that no path can carry."""
        ...

    def meter(self, ask: Ask) -> Meter:
        """Return a fresh meter for one reply to this request."""
        ...

    def refusal_body(self, refused: Refused, *, call_id: str) -> tuple[bytes, bytes]:
        """Return (content type, body) that this dialect's clients turn into their own typed exceptions."""
        ...


class DeferringDialect(Dialect, Protocol):
    """A dialect in which the reply to a request may come before its work is done: see `Ask.begins`."""

    def collects(self, method: str, path: str) -> str:
        """Return the id of the work whose state a call reads; empty where it reads none."""
        ...


class Api(Protocol):
    """One of the APIs of a dialect that has several: its part of what `Dialect` does."""

    def read(self, operation: str, body: bytes, model: str, headers: Headers | None) -> Ask:
        """See `Dialect.read`. `model` is what the path names, empty where the body does."""
        ...

    def rewrite(self, ask: Ask, body: bytes) -> bytes:
        """See `Dialect.rewrite`."""
        ...

    def meter(self, ask: Ask) -> Meter:
        """See `Dialect.meter`."""
        ...


class Counted(Protocol):
    """What a dialect offers beside, where the tokens of its requests can be counted."""

    def texts(self, ask: Ask) -> Texts | None:
        """Return what a request that was read gives its model to read; None where it cannot be told apart.

        Called in another thread, for asks whose bound is of bytes. The texts' tokens and the overhead together must
        be a bound: what is not known of the model's own form is to be covered by the overhead.
        """
        ...
