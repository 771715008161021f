"""A caller that is held is shown signs of life, for as long as a person or a supervisor is waited for.

A client that streams is given the head of its stream and then, now and again, a comment, which every reader of
server-sent events passes over; an MCP client that asked for progress is told of it. What comes later continues that
stream: the upstream's own, its plain answer as an event, its failure and our refusal as the error event of the dialect.
Callers that do not stream are shown nothing: see `meshd.filters.holding` for how long they wait.

Until the upstream's first byte nothing is decided: an attempt can still be made again. The sweep asks for the signs, so
a held call costs no timer and no task beside the one that waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.dialects.jsonrpc import SIGN_OF_LIFE, error_answer, event
from meshd.proxy.answer import content_type_of
from meshd.refusal import Reason, Refused
from meshd.wire.fields import CALL_ID

if TYPE_CHECKING:
    from meshd.call import Ask, Call, Headers, Rpc
    from meshd.proxy.caller import Caller

FIRST_S: Final = 3.0
"""After which the first sign is shown: most of what is decided at once is decided by then. Clients of A2A give up after
5 s without a byte, if nobody tells them otherwise."""
EVERY_S: Final = 10.0
EVERY_S_A2A: Final = 3.5
FAILURE_BYTES_MAX: Final = 65_536
"""Of an upstream's error, which is told within the stream."""
PROGRESS_STEP: Final = 1e-6
"""Of a progress that must grow and has not begun: the server's own goes on from there."""

_PING: Final = b'event: ping\ndata: {"type": "ping"}\n\n'

_WAITING, _STREAMING, _WRAPPING, _FAILING, _ENDED = range(5)


class HeldCaller:
    """Stands before a caller that has been given the head of a stream, and is a `Caller` to the exchange."""

    __slots__ = ("_body", "_body_bytes", "_call", "_caller", "_next_s", "_shown", "_state", "_status", "peer")

    def __init__(self, call: Call, caller: Caller, now_s: float, *, is_begun: bool = False) -> None:
        """`is_begun`: the caller has been given the head already."""
        self._call = call
        self._caller = caller
        self._state = _WAITING
        self._status = 200
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._shown = 0
        self._next_s = now_s
        self.peer = caller.peer
        if is_begun:
            return
        fields = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (CALL_ID, call.id.encode())]
        caller.send_head(200, fields + call.reply_headers, None, has_body=True)

    def tick(self, now_s: float) -> None:
        """Show a sign of life where it is time for one."""
        if self._state == _WAITING and now_s >= self._next_s:
            rpc = self._call.rpc
            self._next_s = now_s + (EVERY_S_A2A if rpc is not None and rpc.protocol == "a2a" else EVERY_S)
            self._shown += 1
            self._caller.send_data(sign_of(self._call, self._shown))

    # ------------------------------------------------------------------ Caller

    def send_informational(self, status: int, headers: Headers) -> None:
        """The head is out: nothing can come before it."""

    def send_head(self, status: int, headers: Headers, content_length: int | None, *, has_body: bool) -> None:
        """Say how the answer goes on from here: as it is, as an event, or as an error."""
        self._begin(status, headers, has_body=has_body)
        if self._state == _WRAPPING:
            self._caller.send_data(b"event: message\ndata: ")

    def _begin(self, status: int, headers: Headers, *, has_body: bool) -> None:
        self._status = status
        is_readable = not any(name == b"content-encoding" and value.lower() != b"identity" for name, value in headers)
        content_type = content_type_of(headers)[:17].lower()
        if not is_readable or not 200 <= status < 300 or not has_body:
            self._state = _FAILING
        elif content_type == b"text/event-stream":
            self._state = _STREAMING
        elif self._call.rpc is not None and content_type[:16] == b"application/json":
            self._state = _WRAPPING
        else:
            self._state = _FAILING

    def send_data(self, data: bytes) -> None:
        state = self._state
        if state == _STREAMING:
            self._caller.send_data(data)
        elif state == _WRAPPING:
            # Line ends stand between tokens only: within a JSON string there are none.
            if piece := data.replace(b"\r", b"").replace(b"\n", b"\ndata: "):
                self._caller.send_data(piece)
        elif state == _FAILING and self._body_bytes < FAILURE_BYTES_MAX:
            self._collect(data)

    def send_end(self, trailers: Headers) -> None:
        state, self._state = self._state, _ENDED
        if state == _WRAPPING:
            self._caller.send_data(b"\n\n")
        elif state == _FAILING:
            self._caller.send_data(failure_event(self._call, self._status, b"".join(self._body)))
        elif state == _ENDED:
            return
        self._caller.send_end(trailers)

    def refuse(self, refused: Refused) -> None:
        """Take a refusal as it is: it ends the stream with the dialect's error event."""
        self._state = _ENDED
        self._caller.send_data(error_event(self._call, refused))
        self._caller.send_end([])

    # ------------------------------------------------------------------ for what says it otherwise

    @property
    def behind(self) -> Caller:
        """The caller itself."""
        return self._caller

    @property
    def is_streaming(self) -> bool:
        """The answer is a stream of events."""
        return self._state == _STREAMING

    @property
    def is_failing(self) -> bool:
        """The answer is an error, or nothing that could be said in a stream."""
        return self._state == _FAILING

    @property
    def is_over(self) -> bool:
        return self._state == _ENDED

    def _collect(self, data: bytes) -> None:
        self._body.append(data)
        self._body_bytes += len(data)

    def _collected(self) -> bytes:
        return b"".join(self._body)

    def _failure(self) -> str:
        return failure_words(self._call, self._status, self._collected())

    def _close(self, trailers: Headers) -> None:
        self._state = _ENDED
        self._caller.send_end(trailers)

    # ------------------------------------------------------------------ Caller, as above

    def half_close(self) -> None:
        self._caller.half_close()

    def abort(self) -> None:
        """End what is broken: with words, as long as nothing of the answer has been passed on."""
        if self._state in (_WAITING, _FAILING):
            name = self._call.target.name
            self.refuse(Refused(Reason.UPSTREAM_UNREACHABLE, f"The reply of {name} broke off"))
        else:
            self._state = _ENDED
            self._caller.abort()

    def pause_request(self) -> None:
        self._caller.pause_request()

    def resume_request(self) -> None:
        self._caller.resume_request()


def sign_of(call: Call, number: int) -> bytes:
    """Return the `number`-th sign of life, from 1, in the words of the call's dialect."""
    rpc = call.rpc
    if rpc is not None and rpc.progress_token:
        progress = msgspec.json.encode({"progress": number * PROGRESS_STEP, "message": "waiting for approval"})
        params = b'{"progressToken":' + rpc.progress_token + b"," + progress[1:]
        return event(b'{"jsonrpc":"2.0","method":"notifications/progress","params":' + params + b"}")
    return _PING if call.dialect.name == "anthropic" else SIGN_OF_LIFE


def error_event(call: Call, refused: Refused) -> bytes:
    """Return a refusal as the event that ends a stream."""
    rpc: Rpc | None = call.rpc
    if rpc is not None:
        workflow = call.context.workflow if call.context is not None else ""
        message: bytes = call.dialect.error_message(refused, call, workflow)
        return event(message)
    ask: Ask | None = call.ask
    found: bytes = call.dialect.meter(ask).error_event(refused)
    return found


def failure_event(call: Call, status: int, body: bytes) -> bytes:
    """Return an upstream's error, that came when the head was out already, as the event that ends the stream."""
    error = _error_in(body)
    if call.rpc is not None and error is not None and "code" in error:
        return event(b'{"jsonrpc":"2.0","id":' + call.rpc.id + b',"error":' + msgspec.json.encode(error) + b"}")
    refused = Refused(Reason.UPSTREAM_UNREACHABLE, failure_words(call, status, body))
    if call.rpc is not None:
        return event(error_answer(call.rpc.id, refused, {"status": status}))
    return error_event(call, refused)


def failure_words(call: Call, status: int, body: bytes) -> str:
    """Say what an upstream's error said."""
    error = _error_in(body)
    said = error.get("message") if error is not None else None
    words = f": {said[:2000]}" if isinstance(said, str) and said else ""
    what = f"answered {status}" if not 200 <= status < 300 else "answered with something else than a stream of events"
    return f"{call.target.name} {what}{words}"


def _error_in(body: bytes) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    error = found.get("error") if isinstance(found, dict) else None
    return error if isinstance(error, dict) else None
