"""HTTP/2 peers on the `h2` package, which shares no code with meshd: a caller, and a server that is scripted."""

# ruff: noqa: E501 - bytes are easier to compare on one line

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from h2 import events
from h2.config import H2Configuration
from h2.connection import ConnectionInputs, ConnectionState, H2Connection
from h2.settings import SettingCodes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Fields = list[tuple[str, str]]


@dataclass
class Half:
    """What came on one stream."""

    id: int
    fields: dict[str, str] = field(default_factory=dict)
    informational: list[dict[str, str]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    size: int = 0
    trailers: dict[str, str] | None = None
    is_ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        return int(self.fields[":status"])


class _Wire:
    """A connection whose received streams are gathered in `streams`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: H2Connection) -> None:
        self.reader = reader
        self.writer = writer
        self.h2 = connection
        self.streams: dict[int, Half] = {}
        self.goaway: Any = None
        self.is_closed = False
        self.acknowledges = True
        self.keeps_bodies = True
        self._changed = asyncio.Event()
        # By itself `h2` reads nothing more after a GOAWAY; but the streams that it names are still to be served.
        machine = connection.state_machine
        machine._transitions = dict(machine._transitions)
        for state in (ConnectionState.CLIENT_OPEN, ConnectionState.SERVER_OPEN):
            machine._transitions[(state, ConnectionInputs.RECV_GOAWAY)] = (None, state)
        self._pump: asyncio.Task[None]

    def start(self) -> None:
        self._pump = asyncio.get_running_loop().create_task(self._run())

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data and not self.writer.is_closing():
            self.writer.write(data)

    async def _run(self) -> None:
        try:
            while data := await self.reader.read(65_536):
                for event in self.h2.receive_data(data):
                    self._take(event)
                self.flush()
                self._changed.set()
        except ConnectionError:
            pass
        finally:
            self.is_closed = True
            self._changed.set()

    def _take(self, event: Any) -> None:
        if isinstance(event, events.ConnectionTerminated):
            self.goaway = event
            return
        id = getattr(event, "stream_id", None)
        if not id:
            return
        half = self.streams.setdefault(id, Half(id))
        if isinstance(event, events.RequestReceived | events.ResponseReceived):
            half.fields = {_text(name): _text(value) for name, value in event.headers}
        elif isinstance(event, events.InformationalResponseReceived):
            half.informational.append({_text(name): _text(value) for name, value in event.headers})
        elif isinstance(event, events.TrailersReceived):
            half.trailers = {_text(name): _text(value) for name, value in event.headers}
        elif isinstance(event, events.DataReceived):
            half.size += len(event.data)
            if self.keeps_bodies:
                half.body += event.data
            if self.acknowledges and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, id)
        elif isinstance(event, events.StreamEnded):
            half.is_ended = True
        elif isinstance(event, events.StreamReset):
            half.reset = event.error_code

    async def until(self, is_so: Callable[[], Any]) -> None:
        """Wait until what has come makes `is_so` true. Raises ConnectionError where the other side closes before."""
        while not is_so():
            if self.is_closed:
                raise ConnectionResetError("the other side closed")
            self._changed.clear()
            await self._changed.wait()

    async def ended(self, id: int) -> Half:
        """Wait for the end of a stream, well or not."""
        half = self.streams.setdefault(id, Half(id))
        await self.until(lambda: half.is_ended or half.reset is not None)
        return half

    async def closed(self) -> None:
        while not self.is_closed:
            self._changed.clear()
            await self._changed.wait()

    def send(self, id: int, data: bytes, *, end: bool = False) -> None:
        self.h2.send_data(id, data, end_stream=end)
        self.flush()

    async def send_all(self, id: int, data: bytes, *, end: bool = True) -> None:
        """Send a body of any size, as windows allow."""
        view = memoryview(data)
        while view:
            await self.until(lambda: self.h2.local_flow_control_window(id) > 0)
            room = min(self.h2.local_flow_control_window(id), self.h2.max_outbound_frame_size, len(view))
            self.h2.send_data(id, bytes(view[:room]))
            view = view[room:]
            self.flush()
            await self.writer.drain()
        if end:
            self.h2.end_stream(id)
            self.flush()

    def close(self) -> None:
        self._pump.cancel()
        self.writer.close()


def _text(raw: bytes | str) -> str:
    return raw.decode("latin-1") if isinstance(raw, bytes) else raw


class H2Client(_Wire):
    """A caller."""

    @classmethod
    async def connect(cls, port: int, *, window: int | None = None, is_strict: bool = True, **options: Any) -> H2Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, **options)
        config = H2Configuration(
            client_side=True, validate_outbound_headers=is_strict, normalize_outbound_headers=is_strict
        )
        client = cls(reader, writer, H2Connection(config))
        if window is not None:
            client.h2.local_settings.initial_window_size = window
        client.h2.initiate_connection()
        client.flush()
        client.start()
        return client

    def request(self, path: str, *extra: tuple[str, str], method: str = "GET", end: bool = True, **pseudo: str) -> int:
        """Send a request's head; return its stream."""
        id = self.h2.get_next_available_stream_id()
        fields = {":method": method, ":scheme": "http", ":authority": "127.0.0.1", ":path": path}
        fields.update({f":{name}": value for name, value in pseudo.items()})
        self.h2.send_headers(id, [*fields.items(), *extra], end_stream=end)
        self.flush()
        return id

    async def ask(self, path: str, *extra: tuple[str, str], method: str = "GET", body: bytes | None = None) -> Half:
        id = self.request(path, *extra, method=method, end=body is None)
        if body is not None:
            await self.send_all(id, body)
        return await self.ended(id)


class H2Server(_Wire):
    """One connection at an upstream."""

    def head(self, id: int, *extra: tuple[str, str], status: str = "200", end: bool = False) -> None:
        self.h2.send_headers(id, [(":status", status), *extra], end_stream=end)
        self.flush()

    def reply(self, id: int, body: bytes = b"ok", *extra: tuple[str, str], status: str = "200") -> None:
        self.head(id, *extra, status=status, end=not body)
        if body:
            self.send(id, body, end=True)

    async def request(self, number: int = 0) -> Half:
        """Wait for the head of the request of that number."""
        await self.until(lambda: len([half for half in self.streams.values() if half.fields]) > number)
        return list(self.streams.values())[number]


class H2Upstream:
    """A server whose every connection runs `script(server)`."""

    def __init__(
        self, script: Callable[[H2Server], Awaitable[None]], *, tls: Any = None, streams_max: int = 100, window: int = 65_535
    ) -> None:  # fmt: skip
        self._script = script
        self._tls = tls
        self._streams_max = streams_max
        self._window = window
        self.servers: list[H2Server] = []
        self.errors: list[BaseException] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> H2Upstream:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = H2Server(reader, writer, H2Connection(H2Configuration(client_side=False)))
        self.servers.append(server)
        server.h2.local_settings = type(server.h2.local_settings)(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: self._streams_max,
                SettingCodes.INITIAL_WINDOW_SIZE: self._window,
            },
        )
        server.h2.initiate_connection()
        server.flush()
        server.start()
        self._tasks.append(asyncio.get_running_loop().create_task(self._run(server)))

    async def _run(self, server: H2Server) -> None:
        try:
            await self._script(server)
        except ConnectionError:
            pass
        except AssertionError as error:
            self.errors.append(error)
            server.close()

    async def close(self) -> None:
        self._server.close()
        for server in self.servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.errors:
            raise self.errors[0]


async def echo_h2(server: H2Server) -> None:
    """Answer each request with what came of it."""
    served: set[int] = set()
    while True:
        await server.until(lambda: any(half.is_ended and half.id not in served for half in server.streams.values()))
        for half in tuple(server.streams.values()):
            if half.is_ended and half.id not in served:
                served.add(half.id)
                start = f"{half.fields[':method']} {half.fields[':path']}\n".encode()
                server.head(half.id)
                await server.send_all(half.id, start + bytes(half.body))
