"""Calls that the gateway makes itself, to one of the servers: judged, sent and counted as every other one.

They are made in the name of the agent for whose client they are: what it may not do is not done for it, and a session
that is bound to who opened it is its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from meshd.call import OWN_PEER, Direction, Target
from meshd.dialects.table import DIALECTS
from meshd.gateway.messages import Said, as_event, read
from meshd.proxy.answer import content_type_of
from meshd.proxy.crash import ending
from meshd.proxy.exchange import Exchange
from meshd.refusal import Reason, Refused
from meshd.wire.message import Fields, Request
from meshd.wire.sse import EventTooLarge, Splitter, data_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Headers
    from meshd.proxy.proxy import Proxy
    from meshd.upstream import Upstream

REPLY_BYTES_MAX: Final = 10 * 2**20
_JSON: Final = (b"content-type", b"application/json")
_ACCEPT: Final = (b"accept", b"application/json, text/event-stream")


class OwnCall(Exchange):
    """A call whose upstream is known before it begins: no address is read."""

    __slots__ = ()

    def _arrive(self) -> None:
        self.call.dialect = DIALECTS["mcp"]


class Heard:
    """What came back."""

    __slots__ = ("body", "headers", "said", "status")

    def __init__(self, status: int, headers: Headers, body: bytes, said: Said | None) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.said = said
        """The answer to the message; None where there was none."""

    def header(self, name: bytes) -> bytes:
        """Return a field of the reply; empty where it has none of that name."""
        return next((value for field, value in self.headers if field == name), b"")


async def ask(
    proxy: Proxy,
    upstream: Upstream,
    headers: Headers,
    body: bytes,
    *,
    agent: str,
    timeout_s: float,
    method: str = "POST",
) -> Heard:
    """Send a message and return the answer to it, whatever its status.

    Raises Refused where meshd refuses the call, the answer breaks off or is too long, or the time is over.
    """
    caller = _Asking()
    exchange = _begin(proxy, upstream, headers, body, caller, method, agent)
    try:
        async with asyncio.timeout(timeout_s):
            return await caller.answered
    except TimeoutError:
        raise Refused(Reason.UPSTREAM_TIMEOUT, f"{upstream.name} did not answer within {timeout_s:g} s") from None
    finally:
        _end(proxy, exchange)


def listen(
    proxy: Proxy,
    upstream: Upstream,
    headers: Headers,
    body: bytes,
    *,
    agent: str,
    method: str,
    heard: Callable[[bytes], None],
    ended: Callable[[bool], None],
) -> Callable[[], None]:
    """Open a stream and hand each of its events on; `ended` is told whether there was a stream at all.

    Returns what ends it.
    """
    caller = _Listening(heard, ended)
    exchange = _begin(proxy, upstream, headers, body, caller, method, agent)
    return lambda: _end(proxy, exchange)


def _begin(
    proxy: Proxy, upstream: Upstream, headers: Headers, body: bytes, caller: Any, method: str, agent: str
) -> Exchange:
    given = [_ACCEPT, *headers] if method != "POST" else [_JSON, _ACCEPT, *headers]
    request = Request(method, upstream.endpoint, Fields(given))
    request.has_body = method == "POST"
    request.content_length = len(body) if request.has_body else None
    exchange = OwnCall(proxy, caller, request, Direction.OUTBOUND)
    call = exchange.call
    call.agent, call.upstream, call.path = agent, upstream, upstream.endpoint
    call.target = Target(upstream.kind, upstream.name)

    def begin() -> None:
        exchange.begin()
        if request.has_body and not exchange.is_done:
            exchange.request_data(body)
            if not exchange.is_done:
                exchange.request_end([])

    proxy.run(begin, exchange)
    return exchange


def _end(proxy: Proxy, exchange: Exchange) -> None:
    if not exchange.is_done:
        with ending(exchange):
            proxy.run(exchange.caller_gone, exchange)


class _Hearing:
    """The `Caller` of such a call, as far as its answer is a stream of events."""

    __slots__ = ("_headers", "_size", "_splitter", "_status", "peer")

    def __init__(self) -> None:
        self.peer = OWN_PEER
        self._status = 0
        self._headers: Headers = []
        self._size = 0
        self._splitter: Splitter | None = None

    def send_informational(self, status: int, headers: Headers) -> None:
        """Says nothing of the answer."""

    def send_head(self, status: int, headers: Headers, content_length: int | None, *, has_body: bool) -> None:
        self._status, self._headers = status, headers
        if content_type_of(headers).lower().startswith(b"text/event-stream"):
            self._splitter = Splitter(REPLY_BYTES_MAX)

    def half_close(self) -> None:
        """It is no tunnel."""

    def pause_request(self) -> None:
        """The body is here whole."""

    def resume_request(self) -> None:
        """As above."""


class _Asking(_Hearing):
    """Waits for one answer."""

    __slots__ = ("_pieces", "answered")

    def __init__(self) -> None:
        super().__init__()
        self.answered: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()
        self._pieces: list[bytes] = []

    def send_data(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > REPLY_BYTES_MAX:
            self.refuse(Refused(Reason.TOO_LARGE, f"Its answer is over {REPLY_BYTES_MAX} bytes"))
        elif self._splitter is None:
            self._pieces.append(data)
        elif not self.answered.done():
            self._hear(self._splitter, data)

    def _hear(self, splitter: Splitter, data: bytes) -> None:
        try:
            events = splitter.feed(data)
        except EventTooLarge as error:
            self.refuse(Refused(Reason.TOO_LARGE, str(error)))
            return
        for event in events:
            body = data_of(event)
            said = read(body) if body else None
            # What a server says or asks besides is for nobody here.
            if said is not None and not said.method and not self.answered.done():
                self.answered.set_result(Heard(self._status, self._headers, body, said))

    def send_end(self, trailers: Headers) -> None:
        if not self.answered.done():
            body = b"".join(self._pieces)
            self.answered.set_result(Heard(self._status, self._headers, body, read(body) if body else None))

    def abort(self) -> None:
        self.refuse(Refused(Reason.UPSTREAM_UNREACHABLE, "Its answer broke off"))

    def refuse(self, refused: Refused) -> None:
        """Take a refusal as it is: see `meshd.proxy.refusing.is_told`."""
        if not self.answered.done():
            self.answered.set_exception(refused)
            self.answered.exception()  # Whoever asked may have gone.


class _Listening(_Hearing):
    """Hands events on as they come, and lines of JSON from a server that sends such."""

    __slots__ = ("_ended", "_heard", "_is_over", "_line")

    def __init__(self, heard: Callable[[bytes], None], ended: Callable[[bool], None]) -> None:
        super().__init__()
        self._heard = heard
        self._ended = ended
        self._is_over = False
        self._line = b""

    def send_data(self, data: bytes) -> None:
        if self._is_over:
            return
        if self._splitter is None:
            if self._status == 200 and content_type_of(self._headers).startswith(b"application/json"):
                self._read_lines(data)
            return
        try:
            events = self._splitter.feed(data)
        except EventTooLarge:
            self._splitter = None
            return
        for event in events:
            self._heard(event)

    def _read_lines(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > REPLY_BYTES_MAX:
            self._status = 0
        for line in lines:
            if line.strip():
                self._heard(as_event(line.strip()))

    def send_end(self, trailers: Headers) -> None:
        self._over()

    def abort(self) -> None:
        self._over()

    def refuse(self, refused: Refused) -> None:
        """A stream that cannot be had is none."""
        self._over()

    def _over(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._ended(self._splitter is not None and 200 <= self._status < 300)
