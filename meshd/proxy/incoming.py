"""The request's side of an exchange: its head, its body as it comes, and where that goes.

A body is held whole where a dialect must read it, collected where a filter waits for it, and streams otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.call import NO_FIELDS, OWN_PEER, Call, Direction
from meshd.dialects.a2a import CARD, CARD_METHODS, JWKS_PATH, asked_in
from meshd.dialects.jsonrpc import MESSAGE
from meshd.dialects.mcp_kept import LISTS
from meshd.dialects.scatter import SCATTER
from meshd.outcome import Fault
from meshd.proxy.arrival import arrive, check_plain, read_message, too_large
from meshd.proxy.listed import Listed
from meshd.proxy.quarantine import check_quarantine
from meshd.proxy.withdrawing import CANCELLED, withdraw
from meshd.refusal import Refused
from meshd.wire.fields import forwardable_trailers

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from meshd.call import Headers, Reply
    from meshd.chain import Pending
    from meshd.filters.contract import Ticket
    from meshd.filters.substituting import Next
    from meshd.limits import Limits
    from meshd.proxy.attempt import Attempt
    from meshd.proxy.caller import Caller, Stream
    from meshd.proxy.holding import HeldCaller
    from meshd.proxy.proxy import Proxy
    from meshd.proxy.replaying import Replaying
    from meshd.wire.message import Request, WireError

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_CALLER_GONE: Final = Fault.CALLER_GONE
_INBOUND: Final = Direction.INBOUND

BACKLOG_BYTES_MAX: Final = 65_536
"""Body bytes that wait for a connection before the caller is paused."""
WISH_BYTES_MAX: Final = 2**20
"""Most of a body that is kept for a filter that does as well without."""
WISH_S: Final = 0.03
"""Longest that such a filter waits: what is sent as one comes as one."""


class Incoming:
    """What comes of one call, until its chain has judged it and while its body streams."""

    __slots__ = (
        "_backlog", "_backlog_bytes", "_body_bytes", "_collected", "_following", "_held", "_hold_task",
        "_is_half_closed", "_is_waiting", "_is_wish", "_operation", "_replaying", "_signs_s", "_trailers", "attempt",
        "call", "caller", "failure", "held_caller", "is_answered", "is_caller_gone", "is_detached", "is_done",
        "is_request_whole", "is_tunnel", "is_tunnel_open", "proxy", "request", "tickets",
    )  # fmt: skip

    def __init__(self, proxy: Proxy, caller: Caller, request: Request, direction: Direction) -> None:
        self.proxy = proxy
        self.caller = caller
        self.request = request
        fields = request.fields
        self.call = Call(
            proxy.next_id(),
            direction,
            request.method,
            request.target,
            fields.authority,
            fields.headers,
            proxy.now_s,
            proxy.wall_clock(),
            caller.peer,
            fields.governed,
            fields.credentials,
            fields.keyed,
        )
        self.attempt: Attempt | None = None
        self.tickets: list[Ticket] = []
        self.is_request_whole = not request.has_body
        self.is_answered = False
        """At least one byte of a reply has left for the caller."""
        self.is_caller_gone = False
        self.is_detached = False
        """The caller has hung up, and the call goes on for whoever makes it again: see `recording`."""
        self.is_done = False
        self.is_tunnel = False
        """The caller asks for bytes to be passed on as they are, both ways."""
        self.is_tunnel_open = False
        self._is_half_closed = False
        self._is_waiting = False
        self._hold_task: asyncio.Task[None] | None = None
        """The wait for a person or a supervisor, while there is one."""
        self._signs_s = 0.0
        """Monotonic seconds from which on a caller that is held is shown signs of life; 0 for never."""
        self.held_caller: HeldCaller | None = None
        """What stands in `caller` once it was given the head of a stream, before there is an answer."""
        self._trailers: Headers = NO_FIELDS
        self._held: list[bytes] | None = None
        """Pieces of a body that a dialect must read whole."""
        self._collected: tuple[Callable[[int], None], int] | None = None
        """What goes on when the body is whole, and from which filter on; None where none waits for it."""
        self._is_wish = False
        """Whoever waits for it does as well without."""
        self._operation = ""
        self.failure: Refused | None = None
        """Why the target did not serve the call, once something else is tried in its place."""
        self._following: Next | None = None
        """What is to answer without an upstream."""
        self._replaying: Replaying | None = None
        """What sends a reply that is read while it is sent."""
        self._backlog: list[bytes] = []
        """Pieces of a body that streams, while there is no connection to stream it to."""
        self._backlog_bytes = 0
        self._body_bytes = 0

    # ------------------------------------------------------------------ the request comes in

    def _arrive(self) -> None:
        """Say what the call is for. Raises Refused."""
        self.is_tunnel = arrive(self.proxy, self.call, self.request)

    def _hold(self, operation: str) -> None:
        request = self.request
        bytes_max = self._body_bytes_max
        if request.content_length is not None and request.content_length > bytes_max:
            raise too_large(bytes_max)
        self._operation = operation
        self._held = []
        if request.expects_continue:
            self.caller.send_informational(100, [])
        if not request.has_body:
            self._read(b"")

    def request_data(self, data: bytes) -> None:
        """A piece of the request's body."""
        if self.is_done:
            return
        self._body_bytes += len(data)
        if self.call.heard_by is not None:
            self.call.heard_by.hear(data)
        if self._held is not None:
            self._held.append(data)
            bytes_max = self._body_bytes_max
            if self._body_bytes > bytes_max:
                self.refuse(too_large(bytes_max))
        elif (
            self.attempt is not None and self.attempt.stream is not None and (self.is_tunnel_open or not self.is_tunnel)
        ):
            self.attempt.send_data(data)
        else:
            self._backlog.append(data)
            self._backlog_bytes += len(data)
            if self._collected is not None:
                bytes_max = self._collected_bytes_max
                if self._backlog_bytes <= bytes_max:
                    return
                if self._is_wish:
                    self.wished_enough()
                else:
                    self.refuse(too_large(bytes_max))
            elif self._backlog_bytes > BACKLOG_BYTES_MAX:
                self.caller.pause_request()

    def request_end(self, trailers: Headers) -> None:
        """The request's last byte."""
        self.is_request_whole = True
        if self.is_done:
            return
        if self._held is not None:
            held = self._held
            self._read(held[0] if len(held) == 1 else b"".join(held))
        elif self.request.has_body:
            self._trailers = forwardable_trailers(trailers) if trailers else trailers
            if self._collected is not None:
                self._collect_end(*self._collected)
            elif self.is_tunnel:
                self.half_closed()
            elif self.attempt is not None and self.attempt.stream is not None:
                self.attempt.stream.send_end(self._trailers)

    def collect(self, go_on: Callable[[int], None], resume_at: int, *, is_wish: bool = False) -> None:
        """A filter must have the body: go on at that filter when it is whole. What came is kept, up to the limit.

        `is_wish`: the filter does as well without, where the body is long or not whole soon; some streams never are.
        """
        if self.is_request_whole or self.is_tunnel:
            self._collect_end(go_on, resume_at)
            return
        self._is_wish = is_wish
        length, bytes_max = self.request.content_length, self._collected_bytes_max
        if length is not None and length > bytes_max:
            if is_wish:
                self._collect_enough(go_on, resume_at)
            else:
                self.refuse(too_large(bytes_max))
            return
        self._collected = (go_on, resume_at)
        if is_wish:
            self.proxy.wish(self, WISH_S)
        if self._backlog_bytes > BACKLOG_BYTES_MAX:
            self.caller.resume_request()

    def _collect_end(self, go_on: Callable[[int], None], resume_at: int) -> None:
        self._collected = None
        if self._is_wish:
            self.proxy.wishes.pop(self, None)
        backlog, self._backlog = self._backlog, []
        self._backlog_bytes = 0
        self.call.body = backlog[0] if len(backlog) == 1 else b"".join(backlog)
        go_on(resume_at)

    @property
    def _body_bytes_max(self) -> int:
        limits: Limits = self.call.policy.limits
        return limits.request_body_bytes_max

    @property
    def _collected_bytes_max(self) -> int:
        limit = self._body_bytes_max
        return min(WISH_BYTES_MAX, limit) if self._is_wish else limit

    def wished_enough(self) -> None:
        """Whoever would have liked to see the body has waited for it as long as it may."""
        if self._collected is not None and self._is_wish and not self.is_done:
            self._collect_enough(*self._collected)

    def _collect_enough(self, go_on: Callable[[int], None], resume_at: int) -> None:
        """Go on without the body, which streams from here on."""
        self._collected = None
        self.proxy.wishes.pop(self, None)
        self.call.is_body_late = True
        if self._backlog_bytes > BACKLOG_BYTES_MAX:
            self.caller.pause_request()
        go_on(resume_at)

    def send_backlog(self, stream: Stream) -> None:
        """Give the attempt's stream what has come of the body so far."""
        backlog, self._backlog = self._backlog, []
        was_paused = self._backlog_bytes > BACKLOG_BYTES_MAX
        self._backlog_bytes = 0
        if was_paused:
            self.caller.resume_request()
        # Only now: an upstream that cannot take it all pauses the caller again.
        for data in backlog:
            stream.send_data(data)
        if self._is_half_closed or (self.is_request_whole and not self.is_tunnel):
            stream.send_end(self._trailers)

    def half_closed(self) -> None:
        """The caller of a tunnel will send no more; the other half may go on."""
        self._is_half_closed = True
        if self.is_tunnel_open and self.attempt is not None and self.attempt.stream is not None:
            self.attempt.stream.send_end([])

    def request_broken(self, error: WireError) -> None:
        """The bytes of the request's body are not what its head promised."""
        if self.is_done:
            return
        if self.is_answered and self.attempt is not None:
            self.attempt.give_up()
            self.caller.abort()
        else:
            self.refuse(error, _CALLER_GONE)

    def _read(self, body: bytes) -> None:
        call = self.call
        self._held = None
        if self._operation == MESSAGE:
            self._read_message(body)
            return
        if self._operation == CARD:
            if asked_in(call.path) != JWKS_PATH:
                self.proxy.cards.asked(call, self.request, CARD)
            elif call.direction is _INBOUND:
                self._answer_here(self.proxy.cards.jwks())
                return
            call.body = body or None
            self._admit()
            return
        if self._operation == SCATTER:
            self._scatter(body)
            return
        try:
            check_plain(call.headers)
            ask = call.dialect.read(self._operation, body, call.path, call.headers)
        except Refused as refused:
            self.refuse(refused)
            return
        call.body = body
        call.ask = ask
        call.target = call.target.with_model(ask.model)
        self._admit()

    def _read_message(self, body: bytes) -> None:
        call = self.call
        try:
            read_message(call, body, self.request.fields)
        except Refused as refused:
            self.refuse(refused)
            return
        rpc = call.rpc
        if rpc is not None and rpc.method in CARD_METHODS:
            self.proxy.cards.asked(call, self.request, rpc.binding)
        if call.upstream is not None and call.upstream.is_gateway:
            if call.path.partition("?")[0] == "/messages":
                self._post(body)
                return
            self._resolve()
        else:
            self._judge_message()
        if call.heard_by is not None:
            call.heard_by.hear(body)

    def _judge_message(self) -> None:
        call = self.call
        try:
            if call.rpc is not None and call.rpc.method == CANCELLED:
                withdraw(call, self.proxy.live)
            if self.proxy.quarantine:
                check_quarantine(call, self.proxy.quarantine)
                self._keep_back()
        except Refused as refused:
            self.refuse(refused)
            return
        self._admit()

    def _keep_back(self) -> None:
        """What is in quarantine is not listed at its server's own address either, but for meshd itself, which looks for
        it. A client's stream may bring a list, too, for which it has asked before."""
        call = self.call
        if call.upstream is None or call.upstream.dialect != "mcp" or call.passage is not None or call.peer == OWN_PEER:
            return
        names = self.proxy.quarantine.get(call.upstream.name)
        is_list = call.rpc is not None and call.rpc.method in LISTS
        if names and (is_list or call.method == "GET"):
            call.passage = Listed(names, call, is_list=is_list)

    def _post(self, body: bytes) -> None:
        """Take a message of a client of 2024-11-05, which is judged as a call of its own: see `gateway.legacy`."""
        try:
            reply = self.proxy.gateway.talks.post(self, body)
        except Refused as refused:
            self.refuse(refused)
            return
        self._answer_here(reply)

    def _resolve(self, _: int = 0) -> None:
        """Find out for which MCP server a message to the gateway is, before any rule judges it."""
        try:
            pending = self.proxy.gateway.resolve(self.call)
        except Refused as refused:
            self.refuse(refused)
            return
        if pending is None:
            self._judge_message()
        else:
            # Only what names a tool that nobody has listed yet waits here.
            self._wait(pending, self.tickets, self._resolve)

    # ------------------------------------------------------------------ what the exchange makes of it

    def _admit(self, start: int = 0) -> None:
        raise NotImplementedError

    def _wait(self, pending: Pending, tickets: list[Ticket], go_on: Any) -> None:
        raise NotImplementedError

    def _scatter(self, body: bytes) -> None:
        raise NotImplementedError

    def _later_by(self, delay_s: float, callback: Callable[[], None]) -> None:
        raise NotImplementedError

    def refuse(self, refused: Refused, fault: Fault = Fault.NONE) -> None:
        """Answer with a refusal, or with our own words for an upstream's failure."""
        raise NotImplementedError

    def _answer_here(self, reply: Reply) -> None:
        raise NotImplementedError
