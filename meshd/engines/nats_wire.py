"""One connection to a NATS server: its text protocol, and requests whose answers come to an inbox of our own.

https://docs.nats.io/reference/reference-protocols/nats-protocol. It is small; and what a store needs of it is what
clients made for messaging do otherwise: that a request fails the moment its connection does, that nothing is kept to be
sent over the next one, and that a password is not said in clear where TLS was asked for.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec

from meshd.engines.link import Asked, AtOnce, Look
from meshd.engines.port import StoreError, StoreUnable

if TYPE_CHECKING:
    from collections.abc import Callable

PING_EVERY_S: Final = 5.0
PING_SLACK_S: Final = 1.0
LINE_BYTES_MAX: Final = 1 << 20
"""Of a line of the protocol; the server's INFO, with all the addresses of a cluster, is the longest."""
MESSAGE_BYTES_MAX: Final = 64 << 20
# A subject, a number of ours, where to answer (a server may leave that empty), and how long: of the headers, of all.
_MESSAGE: Final = re.compile(rb"MSG (\S+) (\d+) (?:(\S*) )?(\d+)\r\n")
_WITH_HEADERS: Final = re.compile(rb"HMSG (\S+) (\d+) (?:(\S*) )?(\d+) (\d+)\r\n")
_PLAIN: Final = b"NATS/1.0\r\n"
"""How headers begin that have no status."""


class Message(NamedTuple):
    """What arrived on a subject."""

    subject: str
    reply: str
    status: int
    """Of an answer without content, for example 503 where nobody listens; 0 where there is none."""
    headers: bytes
    data: bytes


class Info(msgspec.Struct):
    """What a server says of itself first."""

    version: str = ""
    headers: bool = False
    jetstream: bool = False
    max_payload: int = 1 << 20
    tls_required: bool = False
    tls_available: bool = False
    auth_required: bool = False
    nonce: str = ""


class Wire(asyncio.Protocol):
    """See the module. `lost` is called once, with this connection, when it is gone."""

    def __init__(self, where: str, timeout_s: float, inbox: str, lost: Callable[[Wire, StoreError], None]) -> None:
        self._where = where
        self._timeout_s = timeout_s
        self._inbox = inbox
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._asked = Asked(self._late)
        self._last_ask = 0
        self._buffer = bytearray()
        self._lines: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._pinging: Look | None = None
        self._is_pong_due = False
        self._why: StoreError | None = None
        self._heard: dict[int, Callable[[Message], None]] = {}
        self._last_sid = 0
        self._is_reading = False
        self._ends: dict[int, Callable[[int], None]] = {}
        self._pong: asyncio.Future[None] | None = None
        self.payload_max = 0
        """Bytes of one message, its headers among them, that the server takes."""
        self.info: asyncio.Future[Info] = self._loop.create_future()

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    # What is said.

    async def sign_in(self, host: str, tls: ssl.SSLContext | None, options: Callable[[Info], dict[str, Any]]) -> Info:
        """Wait for the server's word, go over to TLS where asked for, and sign in. Raises StoreError."""
        info = await self.info
        if tls is not None or info.tls_required:
            if not (info.tls_required or info.tls_available):
                raise StoreUnable(f"{self._where} does not speak TLS; say nats:// only where nobody can listen")
            assert self._transport is not None
            transport = await self._loop.start_tls(
                self._transport, self, tls or ssl.create_default_context(), server_hostname=host
            )
            self._transport = cast("asyncio.Transport", transport)
        if not info.headers:
            raise StoreUnable(f"{self._where} is NATS {info.version or 'of no version'}, which has no headers")
        common: dict[str, Any] = {
            "verbose": False,
            "pedantic": False,
            "headers": True,
            "no_responders": True,
            "protocol": 1,
        }
        common |= {"lang": "python", "name": "meshd", "version": "1", "echo": True}
        self._send(b"CONNECT ", msgspec.json.encode(common | options(info)), b"\r\nPING\r\n")
        self._pong = self._loop.create_future()
        await self._pong
        self.payload_max = info.max_payload
        self.subscribe(f"{self._inbox}.*", self._answered)
        self.keep_alive()
        return info

    def _send(self, *parts: bytes) -> None:
        if self._transport is None:
            raise self._why or StoreError(f"{self._where} is not connected")
        if not self._lines:
            self._loop.call_soon(self.flush)
        self._lines += parts

    def flush(self) -> None:
        """Send now what would leave at the end of this turn."""
        lines, self._lines = self._lines, []
        if self._transport is not None and lines:
            self._transport.write(b"".join(lines))

    def publish(self, subject: str, data: bytes = b"", headers: bytes = b"", reply: str = "") -> None:
        """Send a message; `headers` are whole lines, each with its end."""
        to = f"{subject} {reply}".rstrip().encode()
        if headers:
            head = b"NATS/1.0\r\n" + headers + b"\r\n"
            self._send(b"HPUB %b %d %d\r\n" % (to, len(head), len(head) + len(data)), head, data, b"\r\n")
        else:
            self._send(b"PUB %b %d\r\n" % (to, len(data)), data, b"\r\n")

    def ask(
        self, subject: str, data: bytes = b"", headers: bytes = b"", timeout_s: float | None = None
    ) -> asyncio.Future[Message]:
        """Send a request; the future raises StoreError where the connection is lost before the answer."""
        self._last_ask += 1
        self.publish(subject, data, headers, f"{self._inbox}.{self._last_ask}")
        return self._asked.add(self._last_ask, timeout_s or self._timeout_s)

    def ask_at_once(
        self, subject: str, data: bytes, headers: bytes, tell: Callable[[Message | StoreError], None]
    ) -> None:
        """As `ask`; `tell` is called with the answer, or what a future would raise, in the moment in which it comes.

        Raises StoreError where there is no connection; then nothing was sent.
        """
        self._last_ask += 1
        self.publish(subject, data, headers, f"{self._inbox}.{self._last_ask}")
        self._asked.give(self._last_ask, self._timeout_s, AtOnce(tell))

    def new_inbox(self) -> str:
        """Return a subject of our own, beside those that answers come to."""
        self._last_ask += 1
        return f"{self._inbox}x.{self._last_ask}"

    def subscribe(self, subject: str, heard: Callable[[Message], None]) -> int:
        """Call `heard` with each message of a subject; return what `unsubscribe` takes."""
        self._last_sid += 1
        self._heard[self._last_sid] = heard
        self._send(b"SUB %b %d\r\n" % (subject.encode(), self._last_sid))
        return self._last_sid

    def unsubscribe(self, sid: int) -> None:
        if self._heard.pop(sid, None) is not None and self._transport is not None:
            self._send(b"UNSUB %d\r\n" % sid)

    def keep_alive(self) -> None:
        self._pinging = Look(PING_EVERY_S, PING_SLACK_S, self._ping)

    def _ping(self) -> None:
        if self._is_pong_due:
            self._late(PING_EVERY_S)
        elif self._transport is not None:
            self._is_pong_due = True
            self._send(b"PING\r\n")
            self.keep_alive()

    # What is heard.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # What is written goes out at once: uvloop would put it off to the end of the turn, and all of a turn is one
        # write already.
        self._transport.set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        kept = self._buffer
        if kept:
            kept += data
        all_ = kept or data
        at = 0
        self._is_reading = True
        try:
            while self._transport is not None and (end := self._take_one(all_, at)) > at:
                at = end
        except (ValueError, IndexError, msgspec.MsgspecError):
            self.abort(StoreError(f"{self._where} does not speak NATS's protocol: is that the right port?"))
        if kept:
            del kept[:at]
        elif at < len(data):
            kept += data[at:]
        self._is_reading = False
        ends, self._ends = self._ends, {}
        for key, call in ends.items():
            call(key)

    def at_end(self, key: int, call: Callable[[int], None]) -> None:
        """Call with `key` once all that has come with what is read now was heard, and only once; now, where nothing is
        read."""
        if self._is_reading:
            self._ends[key] = call
        else:
            call(key)

    def _take_one(self, data: bytes | bytearray, at: int) -> int:
        """Read one line, and the message that it begins; return where that ends, or `at` where it is not whole yet."""
        if (found := _WITH_HEADERS.match(data, at) or _MESSAGE.match(data, at)) is not None:
            subject, sid, reply, *sizes = found.groups()
            size = int(sizes[-1])
            head = int(sizes[0]) if len(sizes) == 2 else 0
            if not head <= size <= MESSAGE_BYTES_MAX:
                raise ValueError("no size")
            begin = found.end()
            if len(data) < begin + size + 2:
                return at
            middle, end = begin + head, begin + size
            heard = self._heard.get(int(sid))
            if heard is not None:
                heard(_message(subject, reply, bytes(data[begin:middle]), bytes(data[middle:end])))
            return end + 2
        end = data.find(b"\r\n", at, at + LINE_BYTES_MAX)
        if end < 0:
            is_any = self.info.done() or b"INFO ".startswith(bytes(data[at : at + 5]))
            if len(data) - at >= LINE_BYTES_MAX or not is_any:
                raise ValueError("no line")
            return at
        self._take_line(bytes(data[at:end]))
        return end + 2

    def _take_line(self, line: bytes) -> None:
        if line == b"PING":
            self._send(b"PONG\r\n")
        elif line == b"PONG":
            self._is_pong_due = False
            if self._pong is not None and not self._pong.done():
                self._pong.set_result(None)
        elif line.startswith(b"INFO "):
            info = msgspec.json.decode(line[5:], type=Info)
            if not self.info.done():
                self.info.set_result(info)
        elif line.startswith(b"-ERR"):
            self._refused(line[4:].decode(errors="replace").strip(" '"))
        elif line != b"+OK":
            raise ValueError("no such line")

    def _refused(self, text: str) -> None:
        lower = text.lower()
        if "permissions violation" in lower:
            # The server keeps the connection; what was asked for gets no answer, so it is not waited for.
            self._asked.fail(StoreUnable(f"{self._where} does not let this user do what meshd must: {text[:200]}"))
        elif "authorization" in lower or "authentication" in lower:
            self.abort(StoreUnable(f"{self._where} refuses the user, the password or the key"))
        else:
            self.abort(StoreError(f"{self._where} ended the connection: {text[:200]}"))

    def _answered(self, message: Message) -> None:
        key = message.subject.rpartition(".")[2]
        if key.isdigit():
            self._asked.answer(int(key), message)

    def _late(self, seconds: float) -> None:
        self.abort(StoreError(f"{self._where} did not answer within {seconds:g} s"))

    def connection_lost(self, exc: Exception | None) -> None:
        reason = f": {exc}" if exc is not None and str(exc) else ""
        self.abort(StoreError(f"{self._where} closed the connection{reason}"))

    def abort(self, error: StoreError) -> None:
        """Let go at once; whoever waits is told `error`, and that what was asked may have been done or not."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        self._why = error
        transport.abort()
        if self._pinging is not None:
            self._pinging.cancel()
        for waiting in (self.info, self._pong):
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)
                waiting.exception()
        self._asked.fail(error)
        self._lost(self, error)


def _message(subject: bytes, reply: bytes | None, head: bytes, data: bytes) -> Message:
    status, headers = 0, b""
    if head.startswith(_PLAIN):
        headers = head[len(_PLAIN) :]
    elif head:
        first, _, headers = head.partition(b"\r\n")
        word = first.split(b" ")[1] if b" " in first else b""
        status = int(word) if word.isdigit() else 0
    return Message(subject.decode(), "" if reply is None else reply.decode(), status, headers, data)
