"""The sessions with one upstream: whose a call is, how many there may be, and when a server may be started again."""

from __future__ import annotations

import logging
import secrets
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

from meshd.bridge import messages
from meshd.bridge.session import Session
from meshd.bridge.underway import JSON, SESSION_FIELD
from meshd.outcome import Fault

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.bridge.contract import Channel, Ended, Host
    from meshd.call import Headers
    from meshd.upstream import Upstream

log = logging.getLogger("meshd.bridge")

IDLE_S: Final = 1800.0
SPARED_S: Final = 60.0
"""A session that was used so lately is not ended to make room for another."""
STOPPED_PER_RUNNING: Final = 4
"""Sessions without a running copy that are remembered beside those with one."""
DELAY_S: Final = 0.5
DELAY_S_MAX: Final = 60.0
SIGN_S: Final = 30.0
SHOWN_CHARACTERS: Final = 600
NO_SESSION: Final = -32600
INVALID_PARAMS: Final = -32602
OPENING_BYTES_MAX: Final = 65_536
"""Of what is said again to a copy that is started later: it is kept as long as its session."""
_KEPT: Final = frozenset({messages.INITIALIZE, messages.INITIALIZED})


class Backoff:
    """How long a server that fails is left alone. Pure: the time is handed in."""

    __slots__ = ("failures", "until_s")

    def __init__(self) -> None:
        self.failures = 0
        """One after the other, since it last answered a call."""
        self.until_s = 0.0

    def failed(self, now_s: float) -> None:
        """It has failed: after the first time it may be started at once, then later and later."""
        self.failures += 1
        if self.failures > 1:
            self.until_s = now_s + min(DELAY_S * 2.0 ** min(self.failures - 2, 16), DELAY_S_MAX)

    def works(self) -> None:
        """It has answered a call."""
        self.failures = 0
        self.until_s = 0.0


class Sessions:
    """See the module."""

    def __init__(
        self,
        host: Host,
        upstream: Upstream,
        made: Callable[[Session], Channel],
        *,
        is_draining: Callable[[], bool],
    ) -> None:
        self.host = host
        self.name = upstream.name
        self.channel_for = made
        self.is_draining = is_draining
        process = upstream.process
        self._running_max = upstream.connections_max if process is None else process.children_max
        self._idle_s = IDLE_S if process is None else process.idle_timeout_s
        self._underway_max = max(upstream.pending_max, 1)
        self.start_timeout_s = upstream.connect_timeout_s if process is None else process.start_timeout_s
        self.is_restarted = process is None or process.is_restarted
        self.sign_s = min(SIGN_S, upstream.gap_timeout_s / 3)
        self._is_process = process is not None
        self._by_id: dict[str, Session] = {}
        self._shared: dict[Any, Session] = {}
        self._backoff = Backoff()
        self._last_words = ""

    @property
    def all(self) -> list[Session]:
        """Every session."""
        return [*self._by_id.values(), *self._shared.values()]

    @property
    def running(self) -> int:
        """Copies of the server that run."""
        return sum(1 for one in self.all if one.is_running)

    # ------------------------------------------------------------------ a call arrives

    def open(self, attempt: Any, method: str, body: bytes | None, headers: Headers) -> None:
        """Begin a call, whatever it is: its answer comes to `attempt`, at once or later."""
        call = attempt.call
        ids = [value for name, value in call.headers if name == SESSION_FIELD]
        session = None
        if ids:
            session = self._by_id.get(ids[0].decode("latin-1")) if len(ids) == 1 else None
            # An id that another agent has learned opens nothing: what is not there and what is not its own look alike.
            if session is not None and session.agent != call.agent:
                session = None
        if method == "POST" and body is not None and call.rpc is not None:
            self._posted(attempt, body, headers, session, has_id=bool(ids))
        elif method == "GET" and ids:
            accepts = b",".join([value for name, value in call.headers if name == b"accept"])
            if session is None:
                _answer(attempt, 404, messages.error(b"", "There is no such session", NO_SESSION))
            elif b"text/event-stream" not in accepts and b"*/*" not in accepts:
                _answer(attempt, 406, messages.error(b"", "A stream of events is all that there is here", NO_SESSION))
            else:
                session.listen(attempt)
        elif method == "DELETE" and ids:
            if session is not None:
                self.end(session, is_left=True)
            _answer(attempt, 404 if session is None else 204, b"")
        else:
            _answer(attempt, 405, messages.error(b"", "Send each message by a POST", NO_SESSION))

    def _posted(self, attempt: Any, body: bytes, headers: Headers, session: Session | None, *, has_id: bool) -> None:
        call = attempt.call
        rpc = call.rpc
        if rpc.method in _KEPT and len(body) > OPENING_BYTES_MAX:
            text = f"What a client says at its beginning is at most {OPENING_BYTES_MAX} bytes"
            _answer(attempt, 200, messages.error(rpc.id, text, INVALID_PARAMS) if rpc.id else b"")
            return
        if rpc.method == messages.INITIALIZE and rpc.id:
            session = self._new(call.agent)
        elif has_id and session is None:
            text = "There is no such session, or not any more: begin another with initialize"
            _answer(attempt, 404, messages.error(rpc.id, text, NO_SESSION))
            return
        elif session is None:
            key = (call.agent, b"" if self._is_process else _digest(call.credentials))
            session = self._shared.get(key)
            if session is None and rpc.id:
                session = self._shared[key] = Session(self, "", key, call.agent)
                self._forget_stopped(session)
        if not rpc.id:
            if session is not None:
                session.say(body, rpc, headers)
            _answer(attempt, 202, b"")
        elif session is not None and len(session.underway) < self._underway_max:
            session.request(attempt, body, headers)
        else:
            attempt.reply_failed(Fault.POOL_FULL, f"Too many calls to {self.name} are under way already")

    def _new(self, agent: str) -> Session:
        session = Session(self, secrets.token_urlsafe(24), None, agent)
        self._by_id[session.id] = session
        self._forget_stopped(session)
        return session

    def _forget_stopped(self, made: Session) -> None:
        stopped = [one for one in self.all if not one.is_running and one.is_idle and one is not made]
        if len(stopped) > STOPPED_PER_RUNNING * self._running_max:
            self.end(stopped[0])

    # ------------------------------------------------------------------ what sessions ask

    def why_not_started(self, session: Session) -> tuple[Fault, str] | None:
        """Say why another copy of the server cannot be started now; None where it can."""
        now_s, backoff = self.host.now_s(), self._backoff
        if now_s < backoff.until_s:
            left_s = backoff.until_s - now_s
            return Fault.CONNECT, (
                f"{self.name} has failed {backoff.failures} times in a row and is left alone for {left_s:.1f} s more. "
                f"{self._last_words}"
            )
        if self.running < self._running_max:
            return None
        idle = [one for one in self.all if one.is_running and one.is_idle and now_s - one.touched_s > SPARED_S]
        if idle:
            self.end(min(idle, key=lambda one: one.touched_s))
            return None
        what = "copies" if self._is_process else "streams"
        return Fault.POOL_FULL, f"{self.running} {what} of {self.name} run already, and each is in use"

    def works(self) -> None:
        """A call was answered."""
        if self._backoff.failures:
            self._backoff.works()

    def has_ended(self, session: Session, ended: Ended) -> str:
        """A copy has ended by itself: return what its calls are told."""
        message = self.host.redact(f"{self.name} {ended.message}")[:SHOWN_CHARACTERS]
        if ended.is_failure:
            self._backoff.failed(self.host.now_s())
            self._last_words = message
            log.warning("%s (failure %d in a row)", message, self._backoff.failures)
        else:
            log.info("%s", message)
        return message

    def end(self, session: Session, *, is_left: bool = False) -> None:
        """End a session, and the copy that runs for it; `is_left` where its client says that it is over."""
        if session.id:
            self._by_id.pop(session.id, None)
        elif self._shared.get(session.key) is session:
            del self._shared[session.key]
        if not session.is_over:
            session.close(is_left=is_left)

    # ------------------------------------------------------------------ time and the end

    def expire(self, now_s: float) -> None:
        """Called about twice a second."""
        for session in self.all:
            session.expire(now_s)
            if session.is_idle and now_s - session.touched_s > self._idle_s:
                self.end(session)
            elif self.is_draining():
                session.end_listener()

    def retire(self) -> None:
        """Serve what runs and take nothing new."""
        for session in self.all:
            session.is_retired = True
            session.end_listener()
            if session.is_idle:
                self.end(session)

    def close(self) -> None:
        """End them all."""
        for session in self.all:
            self.end(session)


def _digest(credentials: Headers) -> bytes:
    """Return what tells apart whose credentials a stream was opened with."""
    return sha256(b"\0".join([b"%b:%b" % field for field in credentials])).digest() if credentials else b""


def _answer(attempt: Any, status: int, body: bytes) -> None:
    fields = [JSON] if body else []
    if status == 405:
        fields.append((b"allow", b"POST, GET, DELETE"))
    attempt.reply_head(status, fields, None if status == 204 else len(body))
    if not attempt.is_over:
        if body:
            attempt.reply_data(body)
        attempt.reply_end([])
