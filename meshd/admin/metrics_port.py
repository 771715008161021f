"""The metrics port: HTTP/1.1 on the reader that the calls have, with no library.

Every sidecar is probed and scraped, and most hear nothing else that is not a call: a web framework for these four paths
would be a seventh of an idle sidecar's memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from meshd.admin.health import Answer, refusal
from meshd.admin.hosts import judge_origin
from meshd.admin.problem import SEAL, Problem
from meshd.wire.http1 import encode_reply_head
from meshd.wire.http1_request import RequestReader
from meshd.wire.message import Request, WireError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from meshd.admin.hosts import HostRule
    from meshd.call import Headers

IDLE_TIMEOUT_S: Final = 15.0
"""Until a connection's first request is whole, between two of them, and while nothing of an answer is taken."""
LINGER_S: Final = 1.0
"""How long what a peer still sends is read, where the connection ends with an answer."""
SHUTDOWN_TIMEOUT_S: Final = 2.0
BODY_BYTES_MAX: Final = 4096
"""Of a body that nobody asked for, and nobody reads."""
_FIELDS_MAX: Final = 64
_FIELD_BYTES_MAX: Final = 16_384
_URL_BYTES_MAX: Final = 8_190

_log = logging.getLogger("meshd.admin")


class MetricsPort:
    """What the connections of the port have in common."""

    def __init__(self, hosts: HostRule, routes: dict[str, Callable[[str, str], Awaitable[Answer]]]) -> None:
        self._hosts = hosts
        self._routes = routes
        self.sessions: set[Session] = set()

    def session(self) -> asyncio.Protocol:
        """Return the protocol of a new connection."""
        return Session(self)

    async def answer(self, request: Request) -> Answer:
        """Return what a request is answered with."""
        try:
            return await self._answered(request)
        except Problem as problem:
            return refusal(problem)
        except Exception:  # noqa: BLE001 - whatever it is, the peer gets an answer
            _log.exception("a request to the metrics port failed")
            return refusal(Problem(500, "Internal error", "The log says more."))

    async def _answered(self, request: Request) -> Answer:
        target, authority = request.target, None
        if target[:1] != "/":
            # An absolute form, or what has no path at all: `*`, or an authority to connect to.
            scheme, is_absolute, rest = target.partition("://")
            authority, slash, path = (
                rest.partition("/") if is_absolute and scheme.lower() == "http" else (target, "", "")
            )
            target = slash + path
        hosts = _all(request, b"host")
        self._hosts.judge(hosts, authority)
        judge_origin(f"http://{hosts[0]}", _all(request, b"origin"), _all(request, b"sec-fetch-site"))
        path, _, query = target.partition("#")[0].partition("?")
        route = self._routes.get(path)
        if route is None:
            raise Problem(404, "Not Found")
        if request.method not in ("GET", "HEAD"):
            raise Problem(405, "Method Not Allowed", headers={"Allow": "GET,HEAD"})
        return await route(query, ",".join(_all(request, b"accept")))

    async def close(self) -> None:
        """Let what is being answered end, for a moment, and close every connection."""
        for session in tuple(self.sessions):
            session.end()
        answering = [session.answering for session in self.sessions if session.answering is not None]
        if answering:
            await asyncio.wait(answering, timeout=SHUTDOWN_TIMEOUT_S)
        for session in tuple(self.sessions):
            session.abort()


def _all(request: Request, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in request.fields.headers if key == name]


class Session(asyncio.Protocol):
    """One connection."""

    def __init__(self, port: MetricsPort) -> None:
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._reader = RequestReader(
            self, header_count_max=_FIELDS_MAX, header_bytes_max=_FIELD_BYTES_MAX, url_bytes_max=_URL_BYTES_MAX
        )
        self._head: Request | None = None
        self._body_bytes = 0
        self._asked: deque[Request | Answer] = deque()
        """Whole requests that wait for their answer; an answer where what came was no request."""
        self.answering: asyncio.Task[None] | None = None
        self._is_writable = asyncio.Event()
        self._is_writable.set()
        self._is_last = False
        """Nothing more is read: what is asked now is answered, and then the connection ends."""
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        # What is written and not with the system yet would be lost where the connection is cut, so it is waited for.
        self._transport.set_write_buffer_limits(0)
        self._port.sessions.add(self)
        self._await_next()

    def connection_lost(self, error: Exception | None) -> None:
        self._port.sessions.discard(self)
        self._is_writable.set()
        self._asked.clear()
        if self._timer is not None:
            self._timer.cancel()

    def eof_received(self) -> bool:
        """A peer that says that it is done still gets the answers to what it asked."""
        self._is_last = True
        return self.answering is not None

    def pause_writing(self) -> None:
        self._is_writable.clear()

    def resume_writing(self) -> None:
        self._is_writable.set()

    def data_received(self, data: bytes) -> None:
        if self._is_last:
            return
        try:
            self._reader.feed(data)
        except WireError as error:
            # What cannot be read says nothing of who sent it, or where to; so neither does the answer.
            self._asked.append(refusal(Problem(400, "Bad request", error.message)))
            self._is_last = True
        if self._reader.upgraded is not None:
            self._is_last = True
        if self._asked and self.answering is None:
            self._transport.pause_reading()
            self.answering = self._loop.create_task(self._answer())

    # The reader's calls follow.

    def request_head(self, request: Request) -> None:
        self._head, self._body_bytes = request, 0
        if request.expects_continue and request.has_body:
            raise WireError(417, "This port wants no body")

    def request_data(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > BODY_BYTES_MAX:
            raise WireError(413, "This port wants no body")

    def request_end(self, trailers: Headers) -> None:
        if self._head is not None:
            self._asked.append(self._head)

    # ------------------------------------------------------------------ answers

    async def _answer(self) -> None:
        """Answer what is asked, one after the other; then read on, or end."""
        while self._asked:
            asked = self._asked.popleft()
            if isinstance(asked, Request):
                answer = await self._port.answer(asked)
                has_more = asked.is_keep_alive and (bool(self._asked) or not self._is_last)
                self._send(answer, asked.method, asked.has_chunks, has_more=has_more)
                if not asked.is_keep_alive:
                    self._asked.clear()
                    self._is_last = True
            else:
                self._send(asked, "GET", True, has_more=False)
            await self._written()
        self.answering = None
        if self._transport.is_closing():
            return
        if self._is_last:
            self._linger()
        else:
            self._await_next()
            self._transport.resume_reading()

    def _send(self, answer: Answer, method: str, is_1_1: bool, *, has_more: bool) -> None:
        if self._transport.is_closing():
            return
        fields = {
            "Content-Type": answer.content_type,
            "Content-Length": str(len(answer.body)),
            "Date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()),
            **answer.headers,
            **SEAL,
        }
        if not has_more or not is_1_1:
            fields["Connection"] = "keep-alive" if has_more else "close"
        head = encode_reply_head(answer.status, [(name.encode(), value.encode()) for name, value in fields.items()])
        self._transport.write(head if method == "HEAD" else head + answer.body)

    async def _written(self) -> None:
        """Wait until the system has taken all; a peer that reads none of it for a while is cut off."""
        left = -1
        while not self._is_writable.is_set():
            before, left = left, self._transport.get_write_buffer_size()
            if left == before:
                self.abort()
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(IDLE_TIMEOUT_S):
                    await self._is_writable.wait()

    # ------------------------------------------------------------------ the end

    def _await_next(self) -> None:
        """Give the peer its time for the next request."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(IDLE_TIMEOUT_S, self._expire)

    def _expire(self) -> None:
        if self.answering is None:
            self.abort()
        else:
            self._await_next()

    def _linger(self) -> None:
        """Say that nothing more comes, and drop what still does: a plain close could take the answer with it."""
        try:
            self._transport.write_eof()
        except OSError:
            # The peer has reset it: asyncio's own loop raises where the other says nothing.
            self.abort()
            return
        self._transport.resume_reading()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(LINGER_S, self.abort)

    def end(self) -> None:
        """End once what is being answered has been."""
        self._is_last = True
        if self.answering is None:
            self.abort()

    def abort(self) -> None:
        """Close now."""
        self._transport.abort()
