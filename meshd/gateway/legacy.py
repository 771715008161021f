"""Clients of 2024-11-05, which open a stream of events and send each message by a POST to the address that it names.

    GET  /mcp/sse                        the stream; its first event, `endpoint`, says where messages go
    POST /mcp/messages?session_id=ID     one message: 202, and what is answered comes on the stream

Each message is made into a call of the gateway's own address, which is judged as that of any other client; only its
answer goes another way. A session lives as long as its stream.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from meshd.call import Direction, Reply
from meshd.dialects.mcp import METHOD_FIELD, NAME_FIELD, SESSION_FIELD, VERSION_FIELD
from meshd.gateway.client import Client
from meshd.gateway.messages import LAST_EVENT_FIELD, as_event, error, read
from meshd.gateway.resolving import session_unknown
from meshd.proxy.answer import content_type_of
from meshd.proxy.crash import ending
from meshd.proxy.exchange import Exchange
from meshd.wire.message import Fields, Request
from meshd.wire.sse import EventTooLarge, Splitter, data_of

if TYPE_CHECKING:
    from meshd.call import Call, Headers
    from meshd.gateway.gateway import Gateway
    from meshd.gateway.streams import Stream
    from meshd.proxy.incoming import Incoming

LEGACY: Final = "2024-11-05"
STREAM_PATH: Final = "/sse"
MESSAGES_PATH: Final = "/messages"
SIGN_S: Final = 15.0
"""So often a stream on which nothing is said shows that it lives: a client that has gone is found by that."""
SILENT_S: Final = 60.0
"""A client that takes nothing for so long, though something is there for it, has gone without saying so."""
RUNNING_MAX: Final = 128
"""Messages of one client that are not answered yet: its answers wait for nobody else."""
_ACCEPT: Final = (b"accept", b"application/json, text/event-stream")
_NOT_PASSED: Final = frozenset(
    {
        b"accept", b"content-length", b"transfer-encoding", b"connection", b"expect", b"te", b"trailer", b"upgrade",
        b"keep-alive", SESSION_FIELD, VERSION_FIELD, METHOD_FIELD, NAME_FIELD, LAST_EVENT_FIELD,
    }
)  # fmt: skip
_INTERNAL: Final = -32603
_BUSY: Final = -32600


class Talk:
    """One such client: its stream, and what it has asked."""

    __slots__ = ("client", "is_ending", "running", "seen_s", "stream")

    def __init__(self, client: Client, now_s: float) -> None:
        self.client = client
        self.stream: Stream | None = None
        self.running: set[Posted] = set()
        self.seen_s = now_s
        """When its stream last took something."""
        self.is_ending = False
        """It is ended once all that it has asked is answered."""

    def send(self, event: bytes, now_s: float) -> None:
        """Put an event on its stream."""
        if self.stream is not None:
            if not self.stream.is_paused:
                self.seen_s = now_s
            self.stream.send(event)

    def hang_up(self) -> None:
        """Nobody waits for the answers any more."""
        for one in tuple(self.running):
            one.hang_up()
        self.running.clear()

    def finished(self, one: Posted) -> None:
        """A message is answered."""
        self.running.discard(one)
        if self.is_ending and not self.running and self.stream is not None:
            self.stream.end()


class Talks:
    """All of them."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._talks: dict[str, Talk] = {}

    def open(self, call: Call, target: str) -> tuple[Client, bytes]:
        """Begin a session, as the stream `target` was asked for; return it, and the first event."""
        gateway = self._gateway
        client = Client(secrets.token_urlsafe(24), call.agent, call.peer, LEGACY, b"", is_shared=False)
        client.talk = self._talks[client.id] = Talk(client, gateway.proxy.now_s)
        gateway.admit(client)
        base = target.partition("?")[0].rpartition("/")[0]
        # Clients take it from the address of the stream; of one that stands whole in the request, no path is known.
        address = f"{base}{MESSAGES_PATH}" if target.startswith("/") else MESSAGES_PATH[1:]
        return client, f"event: endpoint\ndata: {address}?session_id={client.id}\n\n".encode()

    def post(self, outer: Incoming, body: bytes) -> Reply:
        """Take a message; its answer goes to the stream. Raises Refused where the session is none of the caller's."""
        call, gateway = outer.call, self._gateway
        path, _, query = outer.request.target.partition("?")
        named = parse_qs(query, max_num_fields=16).get("session_id", [""]) if len(query) < 1024 else [""]
        client = gateway.client(named[0].encode("latin-1", "replace"), call)
        talk: Talk | None = client.talk
        if talk is None or talk.stream is None or len(named) > 1 or not path.endswith(MESSAGES_PATH):
            raise session_unknown()
        if len(talk.running) >= RUNNING_MAX:
            if call.rpc is not None and call.rpc.id:
                busy = f"{RUNNING_MAX} messages of this client have no answer yet"
                talk.send(as_event(error(call.rpc.id, _BUSY, busy)), gateway.proxy.now_s)
            return Reply(202, [])
        kept = [field for field in outer.request.fields.headers if field[0] not in _NOT_PASSED]
        fields = Fields([*kept, _ACCEPT, (SESSION_FIELD, client.id.encode())])
        fields.authority = outer.request.fields.authority
        made = Request("POST", path.removesuffix(MESSAGES_PATH) or "/", fields)
        made.has_body, made.content_length = True, len(body)
        posted = Posted(gateway, talk, call)
        exchange = posted.exchange = Exchange(gateway.proxy, posted, made, Direction.OUTBOUND)
        talk.running.add(posted)

        def begin() -> None:
            with ending(exchange):
                exchange.begin()
                if not exchange.is_done:
                    exchange.request_data(body)
                if not exchange.is_done:
                    exchange.request_end([])

        # Once its caller was told that it is taken.
        gateway.proxy.later(0.0, begin, exchange)
        return Reply(202, [])

    def attach(self, client: Client, stream: Stream) -> None:
        """Its stream is there."""
        client.talk.stream = stream

    def end(self, client: Client) -> None:
        """Its session has ended, or its stream has."""
        talk = self._talks.pop(client.id, None)
        if talk is not None:
            talk.stream = None
            talk.hang_up()

    def expire(self, now_s: float) -> None:
        """Called about twice a second: show clients that their streams live, and end those that nobody reads."""
        for talk in tuple(self._talks.values()):
            stream = talk.stream
            if stream is None or now_s - talk.seen_s < SIGN_S:
                continue
            if not stream.is_paused:
                talk.send(b": here\n\n", now_s)
            elif now_s - talk.seen_s > SILENT_S:
                self._gateway.dismiss(talk.client)

    def drain(self, client: Client) -> bool:
        """Say whether a client's stream ends by itself: once all that it has asked is answered."""
        talk: Talk | None = client.talk
        if talk is None or not talk.running:
            return False
        talk.is_ending = True
        return True


class Posted:
    """The `Caller` of one message, whose answer goes to the stream of its client."""

    __slots__ = (
        "_bytes_max", "_gateway", "_id", "_is_answered", "_is_mine", "_pieces", "_size", "_splitter", "_talk",
        "exchange", "peer",
    )  # fmt: skip

    def __init__(self, gateway: Gateway, talk: Talk, call: Call) -> None:
        self.peer = call.peer
        self.exchange: Exchange | None = None
        self._gateway = gateway
        self._talk = talk
        rpc = call.rpc
        self._id = b"" if rpc is None or rpc.is_reply else rpc.id
        """Of what waits for an answer, raw; empty where nothing does."""
        self._bytes_max: int = call.policy.limits.reply_body_bytes_max
        self._is_answered = False
        self._is_mine = True
        self._splitter: Splitter | None = None
        self._pieces: list[bytes] = []
        self._size = 0

    def send_informational(self, status: int, headers: Headers) -> None:
        """Says nothing of the answer."""

    def send_head(self, status: int, headers: Headers, content_length: int | None, *, has_body: bool) -> None:
        """Begin the answer. What another agent has sent with this client's session is not told to this one."""
        agent = "" if self.exchange is None else self.exchange.call.agent
        self._is_mine = agent in ("", self._talk.client.agent)
        if content_type_of(headers).lower().startswith(b"text/event-stream"):
            self._splitter = Splitter(self._bytes_max)

    def send_data(self, data: bytes) -> None:
        if self._splitter is None:
            self._size += len(data)
            if self._size <= self._bytes_max:
                self._pieces.append(data)
            return
        try:
            for event in self._splitter.feed(data):
                self._tell(data_of(event))
        except EventTooLarge:
            self._splitter = Splitter(self._bytes_max)

    def send_end(self, trailers: Headers) -> None:
        body = data_of(self._splitter.rest()) if self._splitter is not None else b"".join(self._pieces)
        if self._size <= self._bytes_max:
            self._tell(body)
        self._over("it was not answered")

    def _tell(self, message: bytes) -> None:
        said = read(message) if message.strip() else None
        if said is None or not self._is_mine:
            return
        if not said.method:
            self._is_answered = True
        # A line of it would end its event.
        self._talk.send(as_event(b" ".join(message.splitlines())), self._gateway.proxy.now_s)

    def abort(self) -> None:
        """The answer broke off."""
        self._over("its answer broke off")

    def _over(self, why: str) -> None:
        if self._id and not self._is_answered and self._is_mine:
            self._talk.send(
                as_event(error(self._id, _INTERNAL, f"There is no answer: {why}")), self._gateway.proxy.now_s
            )
        self._talk.finished(self)

    def hang_up(self) -> None:
        """Its client has gone."""
        exchange: Any = self.exchange
        if exchange is not None and not exchange.is_done:
            self._is_mine = False
            self._gateway.proxy.run(exchange.caller_gone, exchange)

    def half_close(self) -> None:
        """It is no tunnel."""

    def pause_request(self) -> None:
        """The body is here whole."""

    def resume_request(self) -> None:
        """As above."""
