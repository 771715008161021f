"""The two faces of an exchange: the caller that it answers, and the stream to the upstream that serves it.

HTTP/1.1 and HTTP/2 each implement both, so an exchange never knows which wires it joins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from meshd.call import Headers


class Caller(Protocol):
    """The one who made a call, on whichever wire."""

    peer: str
    """Address of the other end, for limits and logs."""

    def send_informational(self, status: int, headers: Headers) -> None: ...

    def send_head(self, status: int, headers: Headers, content_length: int | None, *, has_body: bool) -> None:
        """Begin the reply. `headers` has no framing; the wire adds what it needs."""
        ...

    def send_data(self, data: bytes) -> None: ...

    def send_end(self, trailers: Headers) -> None: ...

    def half_close(self) -> None:
        """End what goes to the caller of a tunnel, and go on with what comes from it."""
        ...

    def abort(self) -> None:
        """End a reply that has begun so that it cannot be taken for a whole one."""
        ...

    def pause_request(self) -> None:
        """Stop taking the request's body from the wire."""
        ...

    def resume_request(self) -> None: ...


class Stream(Protocol):
    """One request on one connection to an upstream."""

    def send_data(self, data: bytes, is_last: bool = False) -> None:
        """Pass a piece of the body on; `is_last` ends it, without trailers."""
        ...

    def send_end(self, trailers: Headers) -> None: ...

    def cancel(self) -> None:
        """Give the request up; the exchange hears no more of it."""
        ...

    def pause_reply(self) -> None:
        """Stop taking the reply from the wire."""
        ...

    def resume_reply(self) -> None: ...
