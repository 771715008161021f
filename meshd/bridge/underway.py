"""One call on a session, or the stream on which a client listens: what an attempt has for its `Stream`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.bridge import messages

if TYPE_CHECKING:
    from meshd.bridge.contract import Host
    from meshd.bridge.session import Session
    from meshd.call import Headers, Rpc
    from meshd.outcome import Fault

EVENTS: Final = (b"content-type", b"text/event-stream")
JSON: Final = (b"content-type", b"application/json")
_UNCACHED: Final = (b"cache-control", b"no-store")
SESSION_FIELD: Final = b"mcp-session-id"
SIGN_OF_LIFE: Final = b": \n\n"


class Underway:
    """A request that waits for its answer. `listener` has no request."""

    __slots__ = (
        "attempt", "body", "cancelled_s", "host", "is_begun", "is_over", "is_paused", "number", "rpc", "sent_s",
        "session", "signed_s",
    )  # fmt: skip

    def __init__(self, host: Host, session: Session, attempt: Any, rpc: Rpc | None, number: int) -> None:
        self.host = host
        self.session = session
        self.attempt = attempt
        self.rpc = rpc
        self.number = number
        self.body = b""
        """Of what opens a session, to be said again where its server is started again."""
        self.sent_s = self.signed_s = host.now_s()
        self.cancelled_s = 0.0
        """When its client said that it waits no more; 0 where it did not."""
        self.is_begun = self.is_over = self.is_paused = False

    @property
    def takes_events(self) -> bool:
        """Whether something else may come before its answer."""
        return self.rpc is None or (self.rpc.is_stream and not self.cancelled_s)

    def begin(self, added: Headers) -> None:
        """Send the head of a stream."""
        self.is_begun = True
        self.attempt.reply_head(200, [EVENTS, _UNCACHED, *added], None)

    def event(self, message: bytes) -> None:
        """Send a message that is not its answer."""
        with self.host.ending(self.attempt.exchange):
            if not self.is_begun:
                self.begin(self._added(message))
            self._data(b"event: message\ndata: " + message + b"\n\n")

    def answer(self, message: bytes, *, is_error: bool = False) -> None:
        """Send its answer, which ends it."""
        self.is_over = True
        rpc = self.rpc
        assert rpc is not None
        with self.host.ending(self.attempt.exchange):
            added = [] if is_error else self._added(message)
            if not self.is_begun and rpc.is_json_taken:
                self.attempt.reply_head(200, [JSON, _UNCACHED, *added], len(message))
                self._data(message)
            else:
                if not self.is_begun:
                    self.begin(added)
                self._data(b"event: message\ndata: " + message + b"\n\n")
            self._end()

    def end(self) -> None:
        """End a stream of events."""
        self.is_over = True
        with self.host.ending(self.attempt.exchange):
            self._end()

    def sign(self, now_s: float, every_s: float) -> None:
        """Show a client that listens that somebody is there."""
        if now_s - self.signed_s >= every_s:
            self.signed_s = now_s
            with self.host.ending(self.attempt.exchange):
                self._data(SIGN_OF_LIFE)

    def fail(self, fault: Fault, message: str) -> None:
        """It will have no answer."""
        self.is_over = True
        with self.host.ending(self.attempt.exchange):
            if not self.attempt.is_over:
                self.attempt.reply_failed(fault, message)

    def _added(self, message: bytes) -> Headers:
        # The session's id goes out with the answer that opens it.
        if self.rpc is not None and self.rpc.method == messages.INITIALIZE and self.session.id:
            return [(SESSION_FIELD, self.session.id.encode())]
        return []

    def _data(self, data: bytes) -> None:
        if not self.attempt.is_over:
            self.signed_s = self.host.now_s()
            self.attempt.reply_data(data)

    def _end(self) -> None:
        if not self.attempt.is_over:
            self.attempt.reply_end([])

    # ------------------------------------------------------------------ Stream

    def send_data(self, data: bytes, is_last: bool = False) -> None:
        """A body that nobody reads: MCP's GET has none."""

    def send_end(self, trailers: Headers) -> None:
        """As above."""

    def cancel(self) -> None:
        if not self.is_over:
            self.is_over = True
            self.session.left(self, is_too_late=not self.attempt.exchange.is_caller_gone)

    def pause_reply(self) -> None:
        self.is_paused = True
        self.session.paused()

    def resume_reply(self) -> None:
        self.is_paused = False
        self.session.resumed()
