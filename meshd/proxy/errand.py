"""Calls that meshd itself makes, to an upstream of the policy: judged, sent and counted as every other one.

Some are its own (`ask`, `send`, and `follow` for an answer without an end); others it makes again for a caller that
was told to come back for the answer (`repeat`), or in its place
(`for_caller`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from meshd.call import OURS, OWN_PEER, Direction
from meshd.proxy.answer import content_type_of
from meshd.proxy.attempt import Attempt
from meshd.proxy.crash import ending
from meshd.proxy.exchange import Exchange
from meshd.proxy.grpc_exchange import GrpcExchange
from meshd.proxy.http1_client import Http1Connection
from meshd.proxy.recording import unrecorded
from meshd.refusal import Reason, Refused
from meshd.wire.message import Fields, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.approvals.hands import Hand
    from meshd.call import Call, Headers
    from meshd.proxy.proxy import Proxy
    from meshd_sdk.context import Context

REPLY_BYTES_MAX: Final = 1 << 20
REPEAT_S_MAX: Final = 86_400.0
EVENTS: Final = "events"
"""Errand on which events are handed over."""


class Unheard(Refused):
    """Nothing was heard of a call that had gone out: nobody knows whether it was carried out."""


class Untimely(Refused):
    """What was to be handed over was no longer to be, before a byte of it had gone out."""


async def fetch(proxy: Proxy, target: str, fields: Headers, authority: str, *, timeout_s: float) -> Answered:
    """GET what an agent may GET, with the header fields that tie the call to its workflow, and return what it would be
    answered, whatever the status. `target` and `authority` are as the agent's own request would have them.

    Raises Refused as `ask` does.
    """
    exchange = _exchange(proxy, Direction.OUTBOUND, target, fields, None, method="GET")
    exchange.request.fields.authority = exchange.call.authority = authority
    exchange.call.timeout_s = timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            return await _answer(exchange, None)
    except TimeoutError:
        raise Refused(Reason.UPSTREAM_TIMEOUT, f"There was no answer within {timeout_s:g} s") from None


class Answered:
    """What came back: a status, header fields, and a body, which may be a stream of events."""

    __slots__ = ("body", "headers", "is_stream", "status", "trailers")

    def __init__(
        self, status: int, body: bytes, is_stream: bool, headers: Headers, trailers: Headers | None = None
    ) -> None:
        self.status = status
        self.body = body
        self.is_stream = is_stream
        self.headers = headers
        self.trailers: Headers = trailers or []

    def field(self, name: bytes) -> str:
        """Return the first header field of a name in lower case; empty where there is none, or it is not ASCII."""
        value = next((value for key, value in self.headers if key.lower() == name), b"")
        return value.decode("ascii") if value.isascii() else ""


async def ask(proxy: Proxy, upstream: str, path: str, body: bytes, *, errand: str, timeout_s: float) -> Answered:
    """POST JSON to an upstream by its name and return what it answers, whatever its status.

    Raises Refused where meshd refuses the call, the reply breaks off or is too long, or the time is over. `errand` says
    for what the call is made: its caller is `meshd:` and that word.
    """
    fields = [(b"content-type", b"application/json")]
    return await send(proxy, upstream, "POST", path, fields, body, errand=errand, timeout_s=timeout_s)


async def send(
    proxy: Proxy,
    upstream: str,
    method: str,
    path: str,
    fields: Headers,
    body: bytes | None,
    *,
    errand: str,
    timeout_s: float,
    bytes_max: int = REPLY_BYTES_MAX,
    heard: Callable[[int, bytes], bool] | None = None,
) -> Answered:
    """Send any request to an upstream by its name. Returns and raises as `ask` does; `bytes_max` is how long an answer
    may be. An empty path is the upstream's URL itself.

    `heard(status, piece)` is given each piece of the answer as it comes; where it returns True, what has come is the
    whole answer, and the upstream is let go.
    """
    exchange = _to(proxy, upstream, method, path, fields, body, errand, _Errand(bytes_max, heard))
    exchange.call.timeout_s = timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            return await _answer(exchange, body)
    except TimeoutError:
        raise Refused(Reason.UPSTREAM_TIMEOUT, f"{upstream} did not answer within {timeout_s:g} s") from None


async def follow(
    proxy: Proxy,
    upstream: str,
    method: str,
    path: str,
    fields: Headers,
    body: bytes | None,
    *,
    errand: str,
    heard: Callable[[int, bytes], bool],
) -> Answered:
    """Send a request whose answer has no end, and hear it until it ends all the same, or `heard` returns True.

    Nothing of it is kept. Raises Refused where meshd refuses the call or the answer breaks off.
    """
    exchange = _to(proxy, upstream, method, path, fields, body, errand, _Errand(0, heard))
    return await _answer(exchange, body)


async def repeat(proxy: Proxy, path: str, fields: Headers, body: bytes | None, approval: str) -> Answered:
    """Make a call of an agent's for a task that its caller was given, with the header fields that tie it to its
    workflow: the call that was held, by its approval, which is used up and nobody asked; or, without one, another. One
    without a body is a GET.

    Raises Refused as `ask` does. One that can be tried again says so only where nothing of the call has gone out.
    """
    if proxy.is_draining:
        raise Refused(Reason.DRAINING, "This sidecar is shutting down")
    method = "GET" if body is None else "POST"
    exchange = _exchange(proxy, Direction.OUTBOUND, path, fields, body, method=method)
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


async def for_caller(call: Call, proxy: Proxy, path: str, fields: Headers, body: bytes) -> Answered:
    """Make a call in the place of an agent's `call`: with what ties it to its workflow in `fields` and in `path`.

    Raises Refused as `ask` does. It has no time of its own: the workflow's deadline and the upstream's limits end it.
    """
    if proxy.is_draining:
        raise Refused(Reason.DRAINING, "This sidecar is shutting down")
    exchange = _exchange(proxy, Direction.OUTBOUND, path, fields, body)
    exchange.call.agent = call.agent
    exchange.call.peer = call.peer
    return await _answer(exchange, body)


async def hand(
    proxy: Proxy,
    upstream: str,
    path: str,
    fields: Headers,
    body: bytes,
    *,
    context: Context | None,
    timeout_s: float,
    is_timely: Callable[[], bool],
    in_hand: Hand | None = None,
) -> Answered:
    """POST an event to an agent beside this sidecar: by its name, or, where that is empty, to the app, as another
    sidecar's call would come in.

    `context` is that of whoever published it, for an agent by its name; for the app it is in `fields`. `is_timely` is
    asked right before each time that it goes out; `in_hand` notes what people are asked about that. Returns and raises
    as `ask` does, but that of a long answer the beginning is returned; Unheard where the event may have reached the
    agent, and Untimely where it has not and would have been out of time.
    """
    caller = _Handing(is_timely)
    if upstream:
        exchange = _to(proxy, upstream, "POST", path, fields, body, EVENTS, caller)
        exchange.call.handed = context
    else:
        exchange = _exchange(proxy, Direction.INBOUND, path, fields, body, caller=caller)
    exchange.call.hand = in_hand
    try:
        async with asyncio.timeout(timeout_s):
            return await _answer(exchange, body)
    except TimeoutError:
        refused = Refused(Reason.UPSTREAM_TIMEOUT, f"{upstream or 'the app'} did not answer within {timeout_s:g} s")
    except Refused as why:
        refused = why
    raise Unheard(refused.reason, refused.message) if exchange.call.is_forwarded else refused


def _to(
    proxy: Proxy,
    upstream: str,
    method: str,
    path: str,
    fields: Headers,
    body: bytes | None,
    errand: str,
    caller: _Errand,
) -> Exchange:
    address, is_at_address = f"/{upstream}{path}", not path
    exchange = _exchange(
        proxy, Direction.OUTBOUND, address, fields, body, method=method, caller=caller, is_at_address=is_at_address
    )
    exchange.call.agent = OURS + errand
    return exchange


def _exchange(
    proxy: Proxy,
    direction: Direction,
    path: str,
    fields: Headers,
    body: bytes | None,
    *,
    method: str = "POST",
    caller: _Errand | None = None,
    is_at_address: bool = False,
) -> Exchange:
    request = Request(method, path, Fields(fields))
    if body is not None:
        request.has_body = True
        request.content_length = len(body)
    made: type[Exchange] = GrpcExchange if request.fields.is_grpc else Exchange
    if isinstance(caller, _Handing):
        made = _HandedOver
    elif is_at_address:
        made = _AtItsAddress
    return made(proxy, caller or _Errand(), request, direction)


class _AtItsAddress(Exchange):
    """A call to the upstream's own URL, or to its endpoint where it speaks MCP, without the slash that an agent's path
    would put behind it."""

    __slots__ = ()

    def _arrive(self) -> None:
        super()._arrive()
        upstream = self.call.upstream
        if upstream is not None:
            self.call.path = upstream.endpoint or upstream.base_path or self.call.path


class _HandedOver(Exchange):
    """A call that hands something over which may be another's by the time that there is a connection."""

    __slots__ = ()

    def _new_attempt(self) -> Attempt:
        return _Timely(self)


class _Timely(Attempt):
    __slots__ = ()

    def connected(self, connection: Any) -> None:
        caller = unrecorded(self.exchange.caller)
        if not isinstance(caller, _Handing) or caller.is_timely():
            super().connected(connection)
            return
        if isinstance(connection, Http1Connection):
            self.pool.release(connection)
        self.exchange.refuse(Untimely(Reason.DEADLINE, "Its time was over before it could be handed over"))


async def _answer(exchange: Exchange, body: bytes | None) -> Answered:
    caller = exchange.caller
    assert isinstance(caller, _Errand)
    with ending(exchange):
        exchange.begin()
        if body is not None and not exchange.is_done:
            exchange.request_data(body)
        if body is not None and not exchange.is_done:
            exchange.request_end([])
    try:
        return await caller.answered
    finally:
        if not exchange.is_done:
            with ending(exchange):
                exchange.caller_gone()


class _Errand:
    """The `Caller` of such a call."""

    __slots__ = (
        "_bytes_max", "_headers", "_heard", "_is_cut", "_is_stream", "_pieces", "_size", "_status", "answered", "peer",
    )  # fmt: skip

    def __init__(
        self,
        bytes_max: int = REPLY_BYTES_MAX,
        heard: Callable[[int, bytes], bool] | None = None,
        *,
        is_cut: bool = False,
    ) -> None:
        """`bytes_max` is how much of the answer is kept, 0 for nothing of it; a longer one is refused, or cut."""
        self.peer = OWN_PEER
        self.answered: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._bytes_max = bytes_max
        self._heard = heard
        self._is_cut = is_cut
        self._status = 0
        self._headers: Headers = []
        self._is_stream = False
        self._pieces: list[bytes] = []
        self._size = 0

    def send_informational(self, status: int, headers: Headers) -> None:
        """Says nothing of the answer."""

    def send_head(self, status: int, headers: Headers, content_length: int | None, *, has_body: bool) -> None:
        self._status = status
        self._headers = headers
        self._is_stream = content_type_of(headers).lower().startswith(b"text/event-stream")
        is_long = content_length is not None and content_length > self._bytes_max
        if self._bytes_max and is_long and not self._is_cut:
            self._too_long()

    def send_data(self, data: bytes) -> None:
        self._size += len(data)
        if self._bytes_max:
            if self._size > self._bytes_max:
                # At once: an answer without an end would never be found too long.
                if not self._is_cut:
                    self._too_long()
                return
            self._pieces.append(data)
        if self._heard is not None and not self.answered.done() and self._heard(self._status, data):
            self.send_end([])

    def send_end(self, trailers: Headers) -> None:
        if not self.answered.done():
            body = b"".join(self._pieces)
            self.answered.set_result(Answered(self._status, body, self._is_stream, self._headers, trailers))

    def _too_long(self) -> None:
        self._pieces.clear()
        self.refuse(Refused(Reason.TOO_LARGE, f"The answer is over {self._bytes_max} bytes"))

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


class _Handing(_Errand):
    """The same of an event that is handed over; `is_timely` says whether it may be, at that moment."""

    __slots__ = ("is_timely",)

    def __init__(self, is_timely: Callable[[], bool]) -> None:
        # Its status is what counts: an agent that says much has handled the event all the same.
        super().__init__(is_cut=True)
        self.is_timely = is_timely
