"""One client's talk with one copy of a server: ids rewritten, and each message brought to whom it concerns."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from meshd.bridge import messages
from meshd.bridge.underway import Underway
from meshd.outcome import Fault

if TYPE_CHECKING:
    from meshd.bridge.contract import Channel, Ended
    from meshd.bridge.sessions import Sessions
    from meshd.call import Headers

log = logging.getLogger("meshd.bridge")

REOPENING: Final = 0
"""The number under which a server that was started again is told what the client said at its beginning."""
CANCELLED_S: Final = 5.0
"""How long an answer is waited for that its client has cancelled: most servers then send none."""
ASKED_MAX: Final = 256
"""Requests of a server that wait for its client."""
KEPT_MAX: Final = 64
KEPT_BYTES_MAX: Final = 256 * 1024
"""Messages for a client that does not listen yet."""
WAITING_MAX: Final = 64
"""Messages to a server that is being told its beginning again."""
UNHEARD_BYTES_MAX: Final = 4 * 2**20
"""What a server may say between two sweeps that is for nobody, before it is listened to more slowly."""
_HANDSHAKE: Final = frozenset({messages.INITIALIZE, messages.PING, "server/discover"})


class Session:
    """See the module. `id` is empty for the one that the clients without sessions of one agent share."""

    __slots__ = (
        "_asked", "_channel", "_heard_s", "_is_full", "_is_reopening", "_kept", "_last", "_number", "_opened",
        "_opening", "_sessions", "_started_s", "_strays", "_unheard_bytes", "_waiting", "agent", "id", "is_over",
        "is_retired", "key", "listener", "touched_s", "underway",
    )  # fmt: skip

    def __init__(self, sessions: Sessions, id: str, key: Any, agent: str) -> None:
        self._sessions = sessions
        self.id = id
        self.key = key
        self.agent = agent
        self.underway: dict[int, Underway] = {}
        self.listener: Underway | None = None
        self.touched_s = sessions.host.now_s()
        self.is_over = self.is_retired = False
        self._channel: Channel | None = None
        self._number = REOPENING
        self._asked: dict[bytes, None] = {}
        self._kept: deque[bytes] = deque()
        self._opening = self._opened = b""
        """What the client said at its beginning."""
        self._is_reopening = False
        self._waiting: list[tuple[bytes, Headers, Underway | None]] = []
        self._started_s = self._heard_s = 0.0
        self._strays = self._unheard_bytes = 0
        self._is_full = False
        self._last: Headers = []

    @property
    def is_running(self) -> bool:
        """Whether a copy of the server runs for it."""
        return self._channel is not None

    @property
    def is_idle(self) -> bool:
        """Nobody waits for anything of it."""
        return not self.underway and self.listener is None

    # ------------------------------------------------------------------ from the client

    def request(self, attempt: Any, body: bytes, headers: Headers) -> None:
        """Pass a request on; its answer comes to `attempt`."""
        rpc, host = attempt.call.rpc, self._sessions.host
        self._number += 1
        call = Underway(host, self, attempt, rpc, self._number)
        attempt.stream = call
        self.underway[self._number] = call
        message = messages.numbered(body, self._number, rpc.progress_token)
        if rpc.method == messages.INITIALIZE:
            call.body = messages.numbered(body, REOPENING, rpc.progress_token)
        self._send(message, headers, call)

    def say(self, body: bytes, rpc: Any, headers: Headers) -> None:
        """Pass a notification or a reply on, if there is somebody to take it. The client waits for no answer."""
        if rpc.is_reply:
            id = messages.id_of(body)
            if id not in self._asked or self._channel is None:
                return
            del self._asked[id]
            message = messages.one_line(body)
        elif rpc.method == messages.CANCELLED:
            call = self._named(messages.param(body, "requestId"))
            # The beginning cannot be cancelled; and a client without a session hangs up in place of saying so, since
            # the id that it names may be another one's.
            if call is None or not self.id or call.rpc is None or call.rpc.method == messages.INITIALIZE:
                return
            call.cancelled_s = self._sessions.host.now_s()
            message = messages.cancelled(body, call.number)
        else:
            message = messages.one_line(body)
            if rpc.method == messages.INITIALIZED:
                self._opened = message
        if self._channel is not None:
            self._send(message, headers, None)

    def _named(self, id: bytes) -> Underway | None:
        return next((one for one in self.underway.values() if one.rpc is not None and one.rpc.id == id), None)

    def listen(self, attempt: Any) -> None:
        """Make `attempt` the stream of what the server says by itself, in the place of an earlier one."""
        before = self.listener
        call = self.listener = Underway(self._sessions.host, self, attempt, None, -1)
        attempt.stream = call
        if before is not None:
            before.end()
        call.begin([])
        while self._kept and not call.is_over:
            call.event(self._kept.popleft())

    # ------------------------------------------------------------------ to the server

    def _send(self, message: bytes, headers: Headers, call: Underway | None) -> None:
        sessions = self._sessions
        self.touched_s = sessions.host.now_s()
        if self._channel is None:
            refusal = sessions.why_not_started(self)
            if refusal is not None:
                self._failed(call, *refusal)
                return
            self._start(headers)
        self._last = headers
        if not self._is_reopening:
            self._write(message, headers, call)
        elif len(self._waiting) < WAITING_MAX:
            self._waiting.append((message, headers, call))
        else:
            self._failed(call, Fault.POOL_FULL, f"{sessions.name} is being started again, and too many calls wait")

    def _start(self, headers: Headers) -> None:
        self._channel = self._sessions.channel_for(self)
        self._started_s, self._heard_s = self._sessions.host.now_s(), 0.0
        self._asked.clear()
        self._channel.start(headers)
        if self._opening:
            self._is_reopening = True
            self._write(self._opening, headers, None)

    def _write(self, message: bytes, headers: Headers, call: Underway | None) -> None:
        channel = self._channel
        assert channel is not None

        def failed(fault: Fault, said: str) -> None:
            self._failed(call, fault, said)

        if not channel.send(message, headers, failed):
            self._failed(call, Fault.POOL_FULL, f"{self._sessions.name} does not read what it is sent")

    def _failed(self, call: Underway | None, fault: Fault, message: str) -> None:
        if call is not None and not call.is_over:
            self.underway.pop(call.number, None)
            call.fail(fault, message)
            self._settled(call)

    # ------------------------------------------------------------------ from the server (Listening)

    def received(self, raw: bytes) -> None:
        """See `Listening.received`."""
        self._heard_s = self._sessions.host.now_s()
        try:
            found = messages.read(raw)
        except messages.Nonsense as error:
            if self._channel is not None:
                shown = self._sessions.host.redact(raw[:80].decode("utf-8", "replace"))
                self._channel.fail(Fault.GARBAGE, f"said what is no message of MCP: {error}: {shown!r}")
            return
        for message in found:
            if message.method:
                self._asks_or_tells(message)
            else:
                self._answers(message)

    def _answers(self, message: messages.Message) -> None:
        call = self.underway.pop(message.number, None)
        is_error = "error" in message.pairs
        if call is None:
            if message.number == REOPENING and self._is_reopening:
                self._reopened(is_error=is_error)
            else:
                self._is_unheard(message, "answered what nobody has asked, or not any more")
            return
        assert call.rpc is not None
        method = call.rpc.method
        if method == messages.INITIALIZE and not is_error:
            self._opening = call.body
        elif method not in _HANDSHAKE:
            self._sessions.works()
        call.answer(message.answered(call.rpc.id, method), is_error=is_error)
        self._settled(call)

    def _settled(self, call: Underway) -> None:
        """A call is over: end what is of no more use."""
        is_unopened = call.rpc is not None and call.rpc.method == messages.INITIALIZE and not self._opening
        if is_unopened or (self.is_retired and not self.underway):
            self._sessions.end(self)

    def _reopened(self, *, is_error: bool) -> None:
        waiting, self._waiting = self._waiting, []
        self._is_reopening = False
        if is_error and self._channel is not None:
            self._waiting = waiting
            self._channel.fail(Fault.GARBAGE, "refused, when it was started again, what it had taken before")
            return
        if self._opened:
            self._write(self._opened, self._last, None)
        for message, headers, call in waiting:
            if self._channel is not None and (call is None or not call.is_over):
                self._write(message, headers, call)

    def _asks_or_tells(self, message: messages.Message) -> None:
        number, where = message.concerns()
        raw = b""
        target: Underway | None
        if where:
            target = self.underway.get(number)
            if target is not None and target.rpc is not None:
                value = target.rpc.progress_token if where == "progressToken" else target.rpc.id
                raw = message.restored(where, value)
        else:
            target, raw = self._whom(), message.encoded()
        is_request = bool(message.id)
        if target is not None and not (target.is_paused and not self.id and not is_request):
            if is_request and not self._is_asked(message):
                return
            target.event(raw)
            return
        if is_request:
            self._asks_nobody(message, raw)
        elif not where and self.id and target is None and self._keep(raw):
            return
        else:
            self._is_unheard(message, "")

    def _whom(self) -> Underway | None:
        """Return who is to hear what names no call: the call that is under way, if it is the only one, else who
        listens. Of several agents' calls none could be told apart, so between them nothing is guessed."""
        able = [one for one in self.underway.values() if one.takes_events]
        if len(able) == 1:
            return able[0]
        if self.listener is not None or not self.id:
            return self.listener
        return able[-1] if able else None

    def _is_asked(self, message: messages.Message) -> bool:
        if len(self._asked) >= ASKED_MAX:
            self._reply(messages.error(message.id, f"{ASKED_MAX} requests already wait for the client"))
            return False
        self._asked[message.id] = None
        return True

    def _asks_nobody(self, message: messages.Message, raw: bytes) -> None:
        if message.method == messages.PING:
            self._reply(messages.empty_result(message.id))
        elif self.id and len(self._asked) < ASKED_MAX and self._keep(raw):
            self._asked[message.id] = None
        else:
            self._reply(messages.error(message.id, "No client takes requests here now"))

    def _reply(self, message: bytes) -> None:
        channel = self._channel
        if channel is not None and not channel.send(message, self._last, lambda fault, said: None):
            channel.fail(Fault.GARBAGE, "asks, and does not read what it is answered")

    def _keep(self, raw: bytes) -> bool:
        if len(self._kept) >= KEPT_MAX or sum(map(len, self._kept)) + len(raw) > KEPT_BYTES_MAX:
            return False
        self._kept.append(raw)
        return True

    def _is_unheard(self, message: messages.Message, why: str) -> None:
        if why:
            self._strays += 1
            if self._strays == 1:
                log.warning("%s %s (id %s)", self._sessions.name, why, message.id[:40].decode("utf-8", "replace"))
        self._unheard_bytes += sum(map(len, message.pairs.values())) + 64
        if self._unheard_bytes > UNHEARD_BYTES_MAX and not self._is_full and self._channel is not None:
            self._is_full = True
            self._channel.pause()

    # ------------------------------------------------------------------ pace

    def paused(self) -> None:
        """A caller takes no more. Of clients that share a copy none may hold up the others: it then misses what is
        only told it."""
        if self.id and self._channel is not None:
            self._channel.pause()

    def resumed(self) -> None:
        """It takes more again."""
        others = [*self.underway.values(), *([self.listener] if self.listener is not None else [])]
        if self._channel is not None and not self._is_full and not any(one.is_paused for one in others if self.id):
            self._channel.resume()

    def expire(self, now_s: float) -> None:
        """Called about twice a second."""
        self._unheard_bytes = 0
        if self._is_full:
            self._is_full = False
            self.resumed()
        for call in tuple(self.underway.values()):
            if call.cancelled_s and now_s - call.cancelled_s > CANCELLED_S and call.rpc is not None:
                del self.underway[call.number]
                call.answer(messages.error(call.rpc.id, "Its client has cancelled this request"), is_error=True)
                self._settled(call)
        if self.listener is not None:
            self.listener.sign(now_s, self._sessions.sign_s)
        channel = self._channel
        if channel is None:
            return
        channel.expire()
        start_s = self._sessions.start_timeout_s
        if not self._heard_s and (self.underway or self._is_reopening) and now_s - self._started_s > start_s:
            channel.fail(Fault.FIRST_BYTE_TIMEOUT, f"said nothing within {start_s:g} s of its start")

    # ------------------------------------------------------------------ the end

    def left(self, call: Underway, *, is_too_late: bool) -> None:
        """Nobody waits for a call any more."""
        if call is self.listener:
            self.listener = None
            return
        if self.underway.pop(call.number, None) is None:
            return
        channel, rpc = self._channel, call.rpc
        if channel is not None and rpc is not None and rpc.method != messages.INITIALIZE:
            why = "it took too long" if is_too_late else "its client has gone"
            channel.send(messages.cancel(call.number, why), self._last, lambda fault, said: None)
            if is_too_late and self._heard_s < call.sent_s and not self._sessions.is_draining():
                channel.fail(Fault.FIRST_BYTE_TIMEOUT, "has hung: it said nothing for the whole time of a call")
        self._settled(call)

    def ended(self, ended: Ended) -> None:
        """See `Listening.ended`: fail what waits; another copy is started by the next call, or never."""
        self._channel = None
        self._is_reopening = self._is_full = False
        self._waiting = []
        self._asked.clear()
        message = self._sessions.has_ended(self, ended)
        is_over = bool(self.id) and not (self._opening and self._sessions.is_restarted)
        calls, self.underway = self.underway, {}
        if is_over or self.is_retired:
            self._sessions.end(self)
        for call in calls.values():
            call.fail(ended.fault, message)

    def close(self, *, is_left: bool) -> None:
        """End it: `Sessions.end`. What its client has left by itself says nothing of the server."""
        self.is_over = True
        calls, self.underway = self.underway, {}
        for call in calls.values():
            if is_left and call.rpc is not None:
                call.answer(messages.error(call.rpc.id, "Its client has ended the session"), is_error=True)
            else:
                call.fail(Fault.RESET, f"The session with {self._sessions.name} was ended")
        channel, self._channel = self._channel, None
        listener, self.listener = self.listener, None
        if channel is not None:
            channel.end()
        if listener is not None:
            listener.end()

    def end_listener(self) -> None:
        """The sidecar drains: nobody may listen for ever."""
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.end()
