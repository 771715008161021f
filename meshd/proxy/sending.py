"""The request's side of an attempt: what is sent to the upstream, and how fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshd.call import NO_FIELDS
from meshd.proxy.telling import A2A, tell

if TYPE_CHECKING:
    from meshd.call import Call, Headers
    from meshd.filters.contract import Ticket
    from meshd.proxy.answer import Answer
    from meshd.proxy.caller import Stream
    from meshd.proxy.exchange import Exchange
    from meshd.proxy.onward import Onward
    from meshd.wire.message import Request


class Sending:
    """An attempt, as far as the request."""

    __slots__ = (
        "_answer", "_before", "_detached_bytes", "_error", "_fields_added", "_first_byte_s", "_first_token_s", "_head",
        "_heard_s", "_is_final", "_is_paused", "_is_request_paused", "_is_unpaid", "_onward", "_path", "_retry_after_s",
        "_sent_s", "call", "exchange", "has_streamed", "is_late", "is_over", "pool", "request", "status", "stream",
        "tickets",
    )  # fmt: skip

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.call: Call = exchange.call
        substitution = self.call.substitution
        own = substitution.request if substitution is not None else None
        self.request: Request = exchange.request if own is None else own
        self.tickets: list[Ticket] = []
        self.stream: Stream | None = None
        self.pool: Any = None
        self.is_over = False
        self.has_streamed = False
        """Body bytes went out that are not kept: this attempt cannot be made again."""
        self._answer: Answer | None = None
        self._onward: Onward | None = None
        self._error: list[bytes] | None = None
        """Pieces of an error that is held until it is known whether something else may serve the call."""
        self._head: tuple[int, Headers, int | None] | None = None
        """Status, fields and length of a reply that is held until it has been judged, or has brought a token."""
        self._before = b""
        """What has come of such a stream before its first token."""
        self._retry_after_s: float | None = None
        """For how long the upstream asks to be left alone."""
        self.status = 0
        """The upstream's; 0 before its head."""
        self.is_late = False
        """The upstream says that the caller's time was over: the caller chose it, so that is not its failure."""
        self._sent_s = 0.0
        self._heard_s = 0.0
        self._first_byte_s: float | None = None
        self._first_token_s: float | None = None
        """Seconds from sending to the first output of the model in a stream."""
        self._detached_bytes = 0
        self._is_final = False
        """The upstream says that the same request would end the same."""
        self._is_unpaid = False
        """The upstream says that the credential has nothing left."""
        self._is_paused = self._is_request_paused = False
        self._fields_added: Headers = NO_FIELDS
        self._path = ""

    # ------------------------------------------------------------------ the request goes out

    def connected(self, connection: Any) -> None:
        """The pool has a connection: write the request, and whatever body there is."""
        exchange, call, request = self.exchange, self.call, self.request
        self._sent_s = self._heard_s = exchange.proxy.now_s
        body: bytes | None = None
        has_body, length = request.has_body, request.content_length
        if call.ask is not None:
            body = call.dialect.rewrite(call.ask, call.body or b"")
            has_body, length = True, len(body)
        elif call.body is not None and has_body:
            body = call.body
            length = length if self.request.fields.is_grpc else len(body)
        if call.rpc is not None and call.rpc.protocol == A2A:
            told = tell(call, exchange.proxy.cards.declared, self._fields_added, body)
            if told is not body:
                body = told
                length = len(body or b"")
        connection.open(
            self,
            method=call.method,
            path=self._path,
            added=self._fields_added,
            has_body=has_body,
            content_length=length,
            body=body,
            upgrade=request.upgrade if exchange.is_tunnel else b"",
        )
        if body is None and has_body and self.stream is not None:
            self.has_streamed = True
            exchange.send_backlog(self.stream)

    def send_data(self, data: bytes, is_last: bool = False) -> None:
        """Pass a piece of the request's body on, and with the last one its end."""
        self._heard_s = self.exchange.proxy.now_s
        assert self.stream is not None
        self.stream.send_data(data, is_last)

    @property
    def is_request_whole(self) -> bool:
        """The caller has sent its last byte."""
        return self.exchange.is_request_whole

    def pause_request(self) -> None:
        """The upstream cannot take more for now."""
        self._is_request_paused = True
        if not self.exchange.is_request_whole:
            self.exchange.pause_request()

    def resume_request(self) -> None:
        """The upstream can take more again."""
        self._is_request_paused = False
        self._heard_s = self.exchange.proxy.now_s
        self.exchange.resume_request()
