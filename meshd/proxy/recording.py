"""A caller whose answer is kept as it leaves, and which may hang up without the call ending.

It stands between an exchange and its caller for claimed calls only, so that no other call pays for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd.proxy.patience import DETACHED_BYTES_MAX

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.claims.tape import Tape
    from meshd.proxy.caller import Caller


class Recording:
    """See `Caller`."""

    __slots__ = ("_beyond_bytes", "_exchange", "_tape", "caller", "peer")

    def __init__(self, exchange: Any, caller: Caller, tape: Tape) -> None:
        self._exchange = exchange
        self._tape = tape
        self.caller: Caller | None = caller
        """None once it has hung up."""
        self.peer = caller.peer
        self._beyond_bytes = 0
        """Bytes for nobody: no caller has them, and they are not kept."""

    def leave(self) -> None:
        """The caller has hung up; the answer is still kept."""
        self.caller = None

    def send_informational(self, status: int, headers: Headers) -> None:
        if self.caller is not None:
            self.caller.send_informational(status, headers)

    def send_head(self, status: int, headers: Headers, content_length: int | None, *, has_body: bool) -> None:
        self._tape.head(status, headers)
        if self.caller is not None:
            self.caller.send_head(status, headers, content_length, has_body=has_body)

    def send_data(self, data: bytes) -> None:
        tape = self._tape
        tape.data(data)
        if self.caller is not None:
            self.caller.send_data(data)
        elif tape.is_too_long:
            self._beyond_bytes += len(data)
            if self._beyond_bytes > DETACHED_BYTES_MAX and self._exchange.attempt is not None:
                self._exchange.attempt.give_up()

    def send_end(self, trailers: Headers) -> None:
        self._tape.end(trailers)
        if self.caller is not None:
            self.caller.send_end(trailers)

    def half_close(self) -> None:
        if self.caller is not None:
            self.caller.half_close()

    def abort(self) -> None:
        if self.caller is not None:
            self.caller.abort()

    def pause_request(self) -> None:
        if self.caller is not None:
            self.caller.pause_request()

    def resume_request(self) -> None:
        if self.caller is not None:
            self.caller.resume_request()


class Nobody:
    """In place of a caller that has hung up."""

    __slots__ = ("peer",)

    def __init__(self, peer: str) -> None:
        self.peer = peer

    def send_informational(self, status: int, headers: Headers) -> None:
        """See `Caller`."""

    def send_head(self, status: int, headers: Headers, content_length: int | None, *, has_body: bool) -> None:
        """See `Caller`."""

    def send_data(self, data: bytes) -> None:
        """See `Caller`."""

    def send_end(self, trailers: Headers) -> None:
        """See `Caller`."""

    def half_close(self) -> None:
        """See `Caller`."""

    def abort(self) -> None:
        """See `Caller`."""

    def pause_request(self) -> None:
        """See `Caller`."""

    def resume_request(self) -> None:
        """See `Caller`."""


def unrecorded(caller: Caller) -> Caller:
    """Return who hears a refusal: it is no answer to be given again."""
    if isinstance(caller, Recording):
        return caller.caller if caller.caller is not None else Nobody(caller.peer)
    return caller
