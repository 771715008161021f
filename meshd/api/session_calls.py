"""Calls that an agent makes in its session: each is judged as every intercepted one is, without a socket in between."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from meshd.api import session_frames as frames
from meshd.call import Direction
from meshd.policy.addressing import INTENT as INTENT_NAME
from meshd.policy.addressing import MESH_SCHEME
from meshd.proxy.crash import ending
from meshd.proxy.exchange import Exchange
from meshd.refusal import Reason, Refused
from meshd.wire.fields import retry_after_s
from meshd.wire.message import Fields, Request
from meshd_sdk import context as codec
from meshd_sdk.v1 import session_pb2 as pb
from meshd_sdk.v1.status_pb2 import Status

if TYPE_CHECKING:
    from meshd.api.session import Session
    from meshd.call import Headers

_PATH: Final = re.compile(r"[!-~]*\Z")
INTENT: Final = f"{MESH_SCHEME}://{INTENT_NAME}/"
"""Begins a target that says what is wanted, in place of the name of who is called."""
DELEGATE_TOKENS_MAX: Final = 10**15 - 1
_OUTBOUND: Final = Direction.OUTBOUND
_INTENT_TARGET: Final = b"x-meshd-intent-target"


def begin(session: Session, call: pb.Call) -> None:
    """Make a Call's exchange; its reply goes back into the session, whatever becomes of it."""
    caller = session.calls[call.id] = SessionCaller(session, call.id, call.target)
    proxy = session.mesh.proxy
    try:
        if proxy.is_draining:
            raise Refused(Reason.DRAINING, "This sidecar is shutting down: connect again and call then.")
        if call.token:
            session.mesh.read(call.token, session.name)
        request = _request_of(call, proxy.policy.limits.url_bytes_max)
    except Refused as refused:
        caller.refuse(refused)
        return
    exchange = caller.exchange = Exchange(proxy, caller, request, _OUTBOUND)
    caller.call_id = exchange.call.id
    exchange.call.agent = session.name
    with ending(exchange):
        exchange.begin()
        if call.payload and not exchange.is_done:
            exchange.request_data(call.payload)
        if not exchange.is_done:
            exchange.request_end([])


def _request_of(call: pb.Call, url_bytes_max: int) -> Request:
    """Return the request that says the same. Raises Refused for what could not stand in one, naming the field."""
    is_intent = call.target.startswith(INTENT)
    if not is_intent and not frames.is_name(call.target):
        raise Refused(Reason.UNKNOWN_TARGET, f"call.target: {call.target[:64]!r} is no name of an agent or upstream")
    path = call.operation.removeprefix("/")
    if not _PATH.match(path) or len(path) > url_bytes_max:
        raise Refused(
            Reason.MALFORMED,
            f"call.operation: the name of a tool or a path, of at most {url_bytes_max} visible ASCII characters",
        )
    for field, value in (("content_type", call.content_type), ("idempotency_key", call.idempotency_key)):
        if not frames.is_visible(value):
            raise Refused(Reason.MALFORMED, f"call.{field}: at most 256 visible ASCII characters")
    headers: Headers = [(b"content-type", (call.content_type or frames.CONTENT_TYPE).encode())]
    if call.token:
        headers.append((codec.HEADER_CONTEXT, call.token.encode()))
    if call.HasField("timeout"):
        timeout_s = frames.seconds(call.timeout, "call.timeout")
        headers.append((codec.HEADER_DEADLINE, b"%.3f" % timeout_s))
    if call.delegate_tokens:
        if not 0 < call.delegate_tokens <= DELEGATE_TOKENS_MAX:
            raise Refused(Reason.MALFORMED, f"call.delegate_tokens: from 1 to {DELEGATE_TOKENS_MAX} tokens, or 0")
        headers.append((codec.HEADER_DELEGATE, b"%d" % call.delegate_tokens))
    if call.idempotency_key:
        headers.append((b"idempotency-key", call.idempotency_key.encode()))
    # Words may be written with percent signs or as they are; in an address there is but one way.
    place = INTENT + quote(unquote(call.target[len(INTENT) :]), safe="") if is_intent else f"/{call.target}"
    request = Request("POST", f"{place}/{path}", Fields(headers))
    request.has_body = True
    request.content_length = len(call.payload)
    return request


class SessionCaller:
    """The `Caller` of one exchange: a Call that waits for its CallReply."""

    __slots__ = (
        "_content_type", "_held", "_http_status", "_is_begun", "_is_paused", "_left", "_retry_after_s", "_served_by",
        "_target", "call_id", "exchange", "id", "peer", "said", "session",
    )  # fmt: skip

    def __init__(self, session: Session, id: int, target: str) -> None:
        self.session = session
        self.id = id
        self.peer = session.peer
        self.exchange: Exchange | None = None
        self.call_id = ""
        self.said: Status | None = None
        """How an agent that answered in a session of its own says that it ended: passed on as it is."""
        self._target = target
        self._http_status = 0
        self._content_type = ""
        self._retry_after_s: float | None = None
        self._served_by = ""
        """Whom the words of the target led to; empty where it was a name."""
        self._left = -1
        """Bytes of the reply that have yet to come; below 0 where its length is not known."""
        self._held = b""
        """The last piece, which goes out with the status."""
        self._is_begun = False
        self._is_paused = False

    def send_informational(self, status: int, headers: Headers) -> None:
        """Frames have none."""

    def send_head(self, status: int, headers: Headers, content_length: int | None, *, has_body: bool) -> None:
        self._http_status = status
        self._retry_after_s = retry_after_s(headers, time.time())
        self._left = -1 if content_length is None else content_length
        for name, value in headers:
            if name == b"content-type":
                self._content_type = value.decode("latin-1")
            elif name == _INTENT_TARGET:
                self._served_by = value.decode("latin-1")

    def send_data(self, data: bytes) -> None:
        if self._left >= 0:
            self._left -= len(data)
        for at in range(0, len(data), frames.PIECE_BYTES_MAX):
            piece = data[at : at + frames.PIECE_BYTES_MAX]
            if self._held:
                self._put(pb.CallReply(payload=self._held, has_more=True))
                self._held = b""
            if self._left == 0 and at + len(piece) == len(data):
                self._held = piece
            else:
                self._put(pb.CallReply(payload=piece, has_more=True))
        if self.session.is_crowded and self.exchange is not None and not self._is_paused:
            self._is_paused = True
            self.exchange.pause_reply()

    def send_end(self, trailers: Headers) -> None:
        status = self.said
        if status is None:
            status = frames.status_of_http(self._http_status, self._target, self._retry_after_s)
        else:
            status.metadata["http_status"] = str(self._http_status)
        if self._served_by:
            status.metadata["intent_target"] = self._served_by
        self._end(status)

    def half_close(self) -> None:
        """There are no tunnels in a session."""

    def abort(self) -> None:
        said = self.said
        if said is None:
            said = Status(code=frames.UNAVAILABLE, message=f"The reply of {self._target} broke off")
        self._held = b""
        self._end(said)

    def refuse(self, refused: Refused) -> None:
        """Take a refusal as it is: see `meshd.proxy.refusing.is_told`."""
        self._held = b""
        self._end(frames.status_of(refused, self.call_id))

    def pause_request(self) -> None:
        """The payload is here whole."""

    def resume_request(self) -> None:
        """As above."""

    def resume(self) -> None:
        """The agent has caught up."""
        if self._is_paused and self.exchange is not None:
            self._is_paused = False
            with ending(self.exchange):
                self.exchange.resume_reply()

    def cancel(self) -> None:
        """The agent waits no more; it is told that this is so, which ends the call on both sides."""
        exchange = self.exchange
        self._held = b""
        self._end(Status(code=frames.CANCELLED, message="The call was cancelled"))
        if exchange is not None:
            with ending(exchange):
                exchange.caller_gone()

    def _put(self, reply: pb.CallReply) -> None:
        reply.id = self.id
        if not self._is_begun:
            self._is_begun = True
            reply.content_type = self._content_type
            reply.call_id = self.call_id
        self.session.put(pb.ConnectResponse(reply=reply))

    def _end(self, status: Status) -> None:
        session, self.exchange = self.session, None
        if session.calls.get(self.id) is not self:
            return
        del session.calls[self.id]
        reply = pb.CallReply(payload=self._held, status=status)
        self._put(reply)
        session.done()
