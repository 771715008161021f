"""The contract of a dialect: what a body means. Pure, no I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from meshd.call import Ask, Headers, Usage
    from meshd.refusal import Refused


class Event:
    """One piece of an answer that the meter understood. One object per meter, valid until the next `read`."""

    __slots__ = ("has_content", "output_estimate", "raw", "tool_names")

    def __init__(self) -> None:
        self.raw = b""
        """The bytes to forward; the meter may have rewritten them, a ticket may too."""
        self.tool_names: tuple[str, ...] = ()
        """Names of the tools that this piece begins to call."""
        self.has_content = False
        """The piece carries output that was generated (not a ping, role or usage alone)."""
        self.output_estimate = 0
        """`Meter.output_estimate` with this piece counted in, for those who see events and not the meter."""


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

    def splitter_for(self, content_type: bytes) -> Splitter | None:
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

    def read(self, operation: str, body: bytes) -> Ask:
        """Read a request. Raises Refused(MALFORMED) on what is not JSON, too deep, or has duplicate keys
        at a level that decides."""
        ...

    def rewrite(self, ask: Ask, body: bytes) -> bytes:
        """Return the body to forward, with what was granted; `body` itself, untouched, where nothing differs."""
        ...

    def meter(self, ask: Ask) -> Meter:
        """Return a fresh meter for one reply to this request."""
        ...

    def refusal_body(self, refused: Refused, *, call_id: str) -> tuple[bytes, bytes]:
        """Return (content type, body) that this dialect's clients turn into their own typed exceptions."""
        ...


class PlacedDialect(Dialect, Protocol):
    """A dialect in which the path says more than the operation: which model is asked, and whether it streams."""

    def read_at(self, operation: str, path: str, body: bytes, credentials: Headers) -> Ask:
        """Read a request as `read` does, its path and the fields that carry the caller's key included."""
        ...

    def path_to_send(self, ask: Ask | None, path: str, *, is_keyed: bool) -> str:
        """Return the path to forward: with the model that was granted, and without the caller's key where meshd
        attaches the upstream's own (`is_keyed`). Raises Refused where the path cannot say the model."""
        ...
