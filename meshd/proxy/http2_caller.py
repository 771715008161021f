"""The caller on one stream of an HTTP/2 connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.wire.http2 import ErrorCode

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.proxy.exchange import Exchange
    from meshd.proxy.http2_server import Http2Session


class Http2Exchange:
    """The `Caller` of one exchange: one stream of the connection."""

    __slots__ = (
        "_session",
        "exchange",
        "has_body",
        "id",
        "is_paused",
        "is_replied",
        "is_reply_paused",
        "is_request_whole",
        "peer",
        "sent_bytes",
        "unacked",
    )

    def __init__(self, session: Http2Session, id: int) -> None:
        self._session = session
        self.id = id
        self.peer = session.peer
        self.exchange: Exchange | None = None
        self.has_body = True
        self.is_paused = False
        self.is_reply_paused = False
        self.is_replied = False
        self.is_request_whole = False
        self.sent_bytes = 0
        """Of the reply's body so far: what waits for the caller's window is no more than that."""
        self.unacked = 0

    def send_informational(self, status: int, headers: Headers) -> None:
        self._session.send_informational(self.id, status, headers)

    def send_head(self, status: int, headers: Headers, content_length: int | None, *, has_body: bool) -> None:
        fields = [(b":status", b"%d" % status), *headers]
        if content_length is not None and status != 204:
            fields.append((b"content-length", b"%d" % content_length))
        self.has_body = has_body
        if has_body:
            self._session.send_head(self, fields)
        else:
            self.is_replied = True
            self._session.send_head(self, fields, end_stream=True)

    def send_data(self, data: bytes) -> None:
        if self.has_body:
            self._session.send_data(self, data)

    def send_end(self, trailers: Headers) -> None:
        if self.has_body:
            self._session.send_end(self, trailers)
        self.is_replied = True
        self.exchange = None
        if not self.is_request_whole:
            self._session.end_early(self)

    def half_close(self) -> None:
        self._session.send_end(self, [])

    def abort(self) -> None:
        self.exchange = None
        self._session.reset(self.id, ErrorCode.INTERNAL_ERROR)

    def pause_request(self) -> None:
        self.is_paused = True

    def resume_request(self) -> None:
        self.is_paused = False
        if self.unacked:
            unacked, self.unacked = self.unacked, 0
            self._session.acknowledge(self.id, unacked)
