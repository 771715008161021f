"""What a reader of a wire said, as plain values that two runs can be compared by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd.wire import http1_request
from meshd.wire.http1_reply import ReplyReader
from meshd.wire.http1_request import RequestReader
from meshd.wire.message import WireError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.call import Headers
    from meshd.wire.message import Request

LIMITS: dict[str, int] = {"header_count_max": 30, "header_bytes_max": 4096, "url_bytes_max": 1024}


def forget() -> None:
    """Let no head be known from an earlier run."""
    http1_request._known.clear()


class Requests:
    """Gathers what a `RequestReader` says. Bodies are joined, since pieces may differ."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.reader = RequestReader(self, **LIMITS)

    def request_head(self, request: Request) -> None:
        fields = request.fields
        self.said.append(
            [
                request.method,
                request.target,
                # The length is the wire's to read; where the head was known, it does not stand among the fields.
                tuple(field for field in fields.headers if field[0] != b"content-length"),
                tuple(fields.forward),
                tuple(fields.governed),
                tuple(fields.credentials),
                fields.authority,
                request.content_length,
                request.has_body,
                request.is_keep_alive,
                request.expects_continue,
                request.upgrade,
                b"",
            ]
        )

    def request_data(self, data: bytes) -> None:
        assert data
        self.said[-1][-1] += data

    def request_end(self, trailers: Headers) -> None:
        self.said.append(("end", tuple(trailers)))

    def feed(self, pieces: Iterable[bytes]) -> list[Any]:
        """Return what was said; it ends in the status where the bytes were refused."""
        try:
            for piece in pieces:
                if self.reader.upgraded is not None:
                    self.reader.upgraded += piece
                else:
                    self.reader.feed(piece)
        except WireError as error:
            self.said.append(("refused", error.status))
        if self.reader.upgraded is not None:
            self.said.append(("tunnel", self.reader.upgraded))
        return self.said


class Replies:
    """Gathers what a `ReplyReader` says of the reply to one request."""

    def __init__(self, *, is_head_request: bool = False, is_upgrade: bool = False) -> None:
        self.said: list[Any] = []
        self.reader = ReplyReader(header_count_max=30, header_bytes_max=4096)
        self.reader.expect(self, is_head_request=is_head_request, is_upgrade=is_upgrade)

    def reply_informational(self, status: int, headers: Headers) -> None:
        self.said.append((status, tuple(headers)))

    def reply_head(self, status: int, headers: Headers, content_length: int | None) -> None:
        self.said.append([status, tuple(headers), content_length, b""])

    def reply_data(self, data: bytes) -> None:
        self.said[-1][-1] += data

    def reply_end(self, trailers: Headers) -> None:
        self.said.append(("end", tuple(trailers)))

    def feed(self, pieces: Iterable[bytes]) -> list[Any]:
        """Return what was said; it ends in "refused" where the bytes were."""
        try:
            for piece in pieces:
                if self.reader.upgraded is not None:
                    self.reader.upgraded += piece
                elif piece:
                    self.reader.feed(piece)
        except WireError:
            self.said.append("refused")
        if self.reader.upgraded is not None:
            self.said.append(("tunnel", self.reader.upgraded))
        return self.said
