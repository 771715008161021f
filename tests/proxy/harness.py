"""A real data plane on loopback between raw clients and upstreams that are scripted byte by byte."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshd.approvals.carrying import Carrying
from meshd.approvals.desk import Desk
from meshd.approvals.held_calls import HeldCalls
from meshd.assembly import build_chain
from meshd.call import Direction, Wait
from meshd.config import Address
from meshd.daemon import app_upstream
from meshd.ledger import Ledger
from meshd.mesh_key import MeshKeys
from meshd.policy.document import load
from meshd.proxy.errand import repeat
from meshd.proxy.listener import Listener
from meshd.proxy.proxy import Proxy
from meshd.telemetry import redact
from meshd.telemetry.telemetry import Telemetry
from meshd.tracing import attach
from tests.proxy.messages import Message, read_reply, read_request

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from meshd.call import Call
    from meshd.engines.port import Store
    from meshd.outcome import Outcome
    from meshd.trace.recorder import Recorder as Trace

READ_LIMIT = 64 * 1024


async def until(is_so: Callable[[], Any]) -> None:
    """Let the loop run until `is_so()`; the suite's timeout guards against never."""
    while not is_so():
        await asyncio.sleep(0)


async def turns(count: int = 20) -> None:
    """Let the loop go round, so that whatever was about to happen has happened."""
    for _ in range(count):
        await asyncio.sleep(0)


class Record:
    """A ticket that remembers how it was settled."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.outcomes: list[Outcome] = []

    def settle(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    @property
    def outcome(self) -> Outcome:
        assert len(self.outcomes) == 1, f"settled {len(self.outcomes)} times"
        return self.outcomes[0]


class Recorder:
    """A filter that hands every call a ticket, and does what a test asks of it besides."""

    name = "recorder"

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self.on_admit: Callable[[Call], Any] | None = None

    def admit(self, call: Call) -> Any:
        decision = self.on_admit(call) if self.on_admit is not None else None
        if decision is not None:
            return decision
        record = Record(call)
        self.records.append(record)
        return record

    def explain(self, call: Call) -> str:
        return "recorded"

    def hold(self, *, is_hold: bool = False, fits: Callable[[Call], bool] = bool) -> asyncio.Future[Any]:
        """Make the next call that fits wait; it goes on with what the returned future is given.

        `is_hold`: as if for a person's decision.
        """
        gate: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def wait(call: Call) -> Wait | None:
            if not fits(call):
                return None
            self.on_admit = None

            async def waiting() -> Any:
                result = await gate
                if result == "ticket":
                    result = Record(call)
                    self.records.append(result)
                return result

            return Wait(waiting(), is_hold=is_hold)

        self.on_admit = wait
        return gate


class Mesh:
    """One sidecar's data plane, its clock in the test's hand."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.calls: list[Record] = []
        self.attempts: list[Record] = []
        self.per_call = Recorder(self.calls)
        self.per_attempt = Recorder(self.attempts)
        self.proxy: Proxy
        self.port = self.inbound_port = 0
        self.ahead_s = 0.0
        self.desk: Desk | None = None
        self.carrying: Carrying | None = None
        self._listeners: list[Listener] = []
        self._clients: list[Client] = []

    def load(self, document: str) -> Any:
        path = self.home / "policy.yaml"
        path.write_text(document)
        return load([path])

    async def start(
        self,
        document: str,
        *,
        app: str = "",
        tls: ssl.SSLContext | None = None,
        store: Store | None = None,
        key_file: Path | None = None,
        trace: Trace | None = None,
    ) -> Mesh:
        """`store` is where approvals are kept: without it nobody can be asked. `trace` is where calls are written."""
        loop = asyncio.get_running_loop()
        policy = self.load(document)
        telemetry = self.telemetry = Telemetry()
        if trace is not None:
            attach(trace, telemetry)
        if store is not None:
            self.desk = Desk(lambda: store, lambda: self.proxy.policy, clean=redact.argument)
            self.carrying = Carrying(HeldCalls(self.desk.shelf), self.desk.clock)
            self.desk._told = self.carrying.closed
        chain = build_chain(
            keys=MeshKeys(key_file or self.home / "mesh.key"),
            ledger=Ledger.in_memory(),
            agent="",
            shadowed=telemetry.shadowed,
            malformed=telemetry.usage_malformed,
            desk=self.desk,
            carrying=self.carrying,
            trace=trace,
        )
        chain.per_call = (*chain.per_call, self.per_call)
        chain.per_attempt = (*chain.per_attempt, self.per_attempt)
        chain.fallback._chance = lambda: 0.0
        self.proxy = Proxy(loop, policy=policy, chain=chain, telemetry=telemetry, app=app_upstream(app))
        if self.carrying is not None:
            self.carrying.send = partial(repeat, self.proxy)
        self.proxy.clock = lambda: loop.time() + self.ahead_s  # type: ignore[method-assign]
        self.port = await self._listen(Direction.OUTBOUND, tls)
        if app:
            self.inbound_port = await self._listen(Direction.INBOUND, tls)
        return self

    async def _listen(self, direction: Direction, tls: ssl.SSLContext | None) -> int:
        listener = Listener(self.proxy, direction)
        self._listeners.append(listener)
        _, port = await listener.start(Address("127.0.0.1", 0), tls)
        return port

    def stop_listening(self) -> None:
        for listener in self._listeners:
            listener.stop()

    def expire(self, ahead_s: float) -> None:
        """Do what the sweep does, `ahead_s` seconds later."""
        self.ahead_s += ahead_s
        proxy = self.proxy
        now_s, wall_s = proxy.clock(), proxy.wall_clock() + self.ahead_s
        proxy.enter()
        for exchange in tuple(proxy.live):
            exchange.expire(now_s, wall_s)
        for session in tuple(proxy.sessions):
            session.expire(now_s)
        proxy.pools.expire(now_s)
        proxy.leave()

    async def connect(self, *, inbound: bool = False, limit: int = READ_LIMIT, **options: Any) -> Client:
        port = self.inbound_port if inbound else self.port
        client = Client(*await asyncio.open_connection("127.0.0.1", port, limit=limit, **options))
        self._clients.append(client)
        return client

    async def fetch(self, request: bytes, *, inbound: bool = False) -> Message:
        """Send `request` on a connection of its own and read the reply."""
        client = await self.connect(inbound=inbound)
        client.send(request)
        reply = await client.reply(request.partition(b" ")[0].decode("latin-1"))
        client.close()
        return reply

    async def idle(self) -> None:
        """Wait until no call is alive."""
        await until(lambda: not self.proxy.live)

    async def close(self) -> None:
        """End, and hold every ticket to its word: settled exactly once."""
        for client in self._clients:
            client.close()
        self.stop_listening()
        if self.carrying is not None:
            await self.carrying.close()
        await self.proxy.drain(0)
        if self.desk is not None:
            await self.desk.close()
        self.proxy.close()
        await turns()
        assert not self.proxy.live
        for record in (*self.calls, *self.attempts):
            assert len(record.outcomes) == 1, f"a ticket was settled {len(record.outcomes)} times: {record.outcomes}"


class Client:
    """A caller: raw bytes out, strictly parsed replies in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self, method: str = "GET") -> Message:
        return await read_reply(self.reader, method)

    async def rest(self) -> bytes:
        """Return what comes until the other side closes, cleanly or not."""
        data = b""
        try:
            while piece := await self.reader.read(65_536):
                data += piece
        except ConnectionError:
            pass
        return data

    async def ask(self, request: bytes) -> Message:
        self.send(request)
        return await self.reply(request.partition(b" ")[0].decode())

    def close(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        self.writer.transport.abort()


class Peer:
    """One connection at an upstream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: bytearray) -> None:
        self.reader = reader
        self.writer = writer
        self.log = log

    async def request(self) -> Message:
        return await read_request(self.reader)

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def reply(self, body: bytes = b"ok", *fields: bytes, status: bytes = b"200 OK") -> None:
        lines = (b"HTTP/1.1 " + status, b"content-length: %d" % len(body), *fields)
        self.writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + body)

    def close(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        self.writer.transport.abort()

    def reset(self) -> None:
        """Close so that the other side sees a reset and no end."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def closed(self) -> bytes:
        """Wait until the other side closes; return what came before."""
        data = b""
        try:
            while piece := await self.reader.read(65_536):
                data += piece
        except ConnectionError:
            pass
        return data


class _Logging(asyncio.StreamReader):
    """Keeps what arrives, so that a test can look at the very bytes."""

    def __init__(self, log: bytearray, limit: int) -> None:
        super().__init__(limit=limit)
        self._log = log

    def feed_data(self, data: Any) -> None:
        if len(self._log) < 1 << 20:
            self._log += data
        super().feed_data(data)


class Upstream:
    """A server whose every connection runs `script(peer)`."""

    def __init__(self, script: Callable[[Peer], Awaitable[None]], *, tls: Any = None, limit: int = READ_LIMIT) -> None:
        self._script = script
        self._tls = tls
        self._limit = limit
        self.port = 0
        self.peers: list[Peer] = []
        self.errors: list[BaseException] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._server: asyncio.Server

    @property
    def received(self) -> bytes:
        """All bytes that ever came, over all connections."""
        return b"".join(bytes(peer.log) for peer in self.peers)

    async def start(self, sock: socket.socket | None = None) -> Upstream:
        loop = asyncio.get_running_loop()
        where: dict[str, Any] = {"sock": sock} if sock is not None else {"host": "127.0.0.1", "port": self.port}
        self._server = await loop.create_server(self._protocol, ssl=self._tls, **where)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def _protocol(self) -> asyncio.Protocol:
        log = bytearray()
        reader = _Logging(log, self._limit)
        return asyncio.StreamReaderProtocol(reader, lambda r, w: self._accepted(r, w, log))

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: bytearray) -> None:
        peer = Peer(reader, writer, log)
        self.peers.append(peer)
        self._tasks.append(asyncio.get_running_loop().create_task(self._run(peer)))

    async def _run(self, peer: Peer) -> None:
        from tests.proxy.messages import Incomplete

        try:
            await self._script(peer)
        except (Incomplete, ConnectionError):
            pass
        except AssertionError as error:
            self.errors.append(error)
            peer.abort()

    async def close(self) -> None:
        self._server.close()
        for peer in self.peers:
            peer.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.errors:
            raise self.errors[0]


async def echo(peer: Peer) -> None:
    """Answer each request with what came of it, as long as the connection lasts."""
    while True:
        request = await peer.request()
        body = b"%b %b\n%b" % (request.method, request.target, request.body)
        peer.reply(b"" if request.method == b"HEAD" else body)


def plain_policy(port: int, extra: str = "", *, kind: str = "tool") -> str:
    """Return a document with one plain upstream `up`."""
    return f'upstreams:\n  up: {{url: "http://127.0.0.1:{port}", kind: {kind}{extra}}}\n'


def llm_policy(port: int, extra: str = "") -> str:
    """Return a document with one OpenAI-speaking upstream `llm`."""
    return f'upstreams:\n  llm: {{url: "http://127.0.0.1:{port}", kind: llm, dialect: openai{extra}}}\n'


def get(path: str = "/up/x", *fields: str, method: str = "GET") -> bytes:
    """Return a request without a body."""
    return "\r\n".join((f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *fields, "", "")).encode("latin-1")


def post(path: str, body: bytes, *fields: str, method: str = "POST") -> bytes:
    """Return a request whose body has a length."""
    return get(path, f"Content-Length: {len(body)}", *fields, method=method) + body


def chunked(path: str, *chunks: bytes, trailers: bytes = b"") -> bytes:
    """Return a request whose body is chunked."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return get(path, "Transfer-Encoding: chunked", method="POST") + body + b"0\r\n" + trailers + b"\r\n"


CHAT = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hi"}],"max_tokens":9}'
CHAT_STREAM = CHAT[:-1] + b',"stream":true,"stream_options":{"include_usage":true}}'
CHAT_REPLY = (
    b'{"id":"c1","object":"chat.completion","model":"gpt-4o-mini","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"hello"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":8,"completion_tokens":2,"total_tokens":10}}'
)


def seeded(seed: int, size: int) -> bytes:
    """Return bytes that look random and are always the same."""
    return random.Random(seed).randbytes(size)


def resident_kb() -> int:
    """Return this process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
