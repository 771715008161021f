"""Calls that meshd itself makes, to an upstream of the policy: judged, sent and counted as every other one.

Some are its own (`ask`); others it makes again for a caller that was told to come back for the answer (`repeat`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from meshd.call import OURS, Direction
from meshd.proxy.answer import content_type_of
from meshd.proxy.crash import ending
from meshd.proxy.exchange import Exchange
from meshd.refusal import Reason, Refused
from meshd.wire.message import Fields, Request

if TYPE_CHECKING:
    from meshd.call import Headers
    from meshd.proxy.proxy import Proxy

REPLY_BYTES_MAX: Final = 1 << 20
REPEAT_S_MAX: Final = 86_400.0


class Answered:
    """What came back: a status and a body, which may be a stream of events."""

    __slots__ = ("body", "is_stream", "status")

    def __init__(self, status: int, body: bytes, is_stream: bool) -> None:
        self.status = status
        self.body = body
        self.is_stream = is_stream


async def ask(proxy: Proxy, upstream: str, path: str, body: bytes, *, errand: str, timeout_s: float) -> Answered:
    """POST JSON to an upstream by its name and return what it answers, whatever its status.

    Raises Refused where meshd refuses the call, the reply breaks off or is too long, or the time is over. `errand` says
    for what the call is made: its caller is `meshd:` and that word.
    """
    fields = [(b"content-type", b"application/json")]
    exchange = _exchange(proxy, Direction.OUTBOUND, f"/{upstream}{path}", fields, body)
    exchange.call.agent = OURS + errand
    exchange.call.timeout_s = timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            return await _answer(exchange, body)
    except TimeoutError:
        raise Refused(Reason.UPSTREAM_TIMEOUT, f"{upstream} did not answer within {timeout_s:g} s") from None


async def repeat(proxy: Proxy, path: str, fields: Headers, body: bytes, approval: str) -> Answered:
    """Make a call of an agent's for a task that its caller was given, with the header fields that tie it to its
    workflow: the call that was held, by its approval, which is used up and nobody asked; or, without one, another.

    Raises Refused as `ask` does. One that can be tried again says so only where nothing of the call has gone out.
    """
    if proxy.is_draining:
        raise Refused(Reason.DRAINING, "This sidecar is shutting down")
    exchange = _exchange(proxy, Direction.OUTBOUND, path, fields, body)
    exchange.call.resumes = approval
    try:
        async with asyncio.timeout(REPEAT_S_MAX):
            return await _answer(exchange, body)
    except TimeoutError:
        raise Refused(Reason.UPSTREAM_TIMEOUT, f"There was no answer within {REPEAT_S_MAX:g} s") from None
    except Refused as refused:
        if exchange.call.is_forwarded and (refused.is_retryable or refused.reason is Reason.DRAINING):
            words = f"{refused.message}. The call had gone out: nobody knows whether it was carried out"
            raise Refused(Reason.UPSTREAM_UNREACHABLE, words) from refused
        raise


def _exchange(proxy: Proxy, direction: Direction, path: str, fields: Headers, body: bytes) -> Exchange:
    request = Request("POST", path, Fields(fields))
    request.has_body = True
    request.content_length = len(body)
    return Exchange(proxy, _Errand(), request, direction)


async def _answer(exchange: Exchange, body: bytes) -> Answered:
    caller = exchange.caller
    assert isinstance(caller, _Errand)
    with ending(exchange):
        exchange.begin()
        if not exchange.is_done:
            exchange.request_data(body)
        if not exchange.is_done:
            exchange.request_end([])
    try:
        return await caller.answered
    finally:
        if not exchange.is_done:
            with ending(exchange):
                exchange.caller_gone()


class _Errand:
    """The `Caller` of such a call."""

    __slots__ = ("_is_stream", "_pieces", "_size", "_status", "answered", "peer")

    def __init__(self) -> None:
        self.peer = "meshd"
        self.answered: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._status = 0
        self._is_stream = False
        self._pieces: list[bytes] = []
        self._size = 0

    def send_informational(self, status: int, headers: Headers) -> None:
        """Says nothing of the answer."""

    def send_head(self, status: int, headers: Headers, content_length: int | None, *, has_body: bool) -> None:
        self._status = status
        self._is_stream = content_type_of(headers).lower().startswith(b"text/event-stream")

    def send_data(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= REPLY_BYTES_MAX:
            self._pieces.append(data)

    def send_end(self, trailers: Headers) -> None:
        if self._size > REPLY_BYTES_MAX:
            self.refuse(Refused(Reason.TOO_LARGE, f"The answer is over {REPLY_BYTES_MAX} bytes"))
        elif not self.answered.done():
            self.answered.set_result(Answered(self._status, b"".join(self._pieces), self._is_stream))

    def half_close(self) -> None:
        """It is no tunnel."""

    def abort(self) -> None:
        self.refuse(Refused(Reason.UPSTREAM_UNREACHABLE, "The answer broke off"))

    def refuse(self, refused: Refused) -> None:
        """Take a refusal as it is: see `meshd.proxy.refusing.is_told`."""
        if not self.answered.done():
            self.answered.set_exception(refused)

    def pause_request(self) -> None:
        """The body is here whole."""

    def resume_request(self) -> None:
        """As above."""
