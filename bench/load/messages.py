"""gRPC load: `python -m bench.load.messages REQUEST CONNECTIONS STREAMS SECONDS SENT GOT`; prints a Load of messages.

Each stream sends SENT messages, one for each that has come back, and must be answered with GOT messages, status 200 and
the trailer `grpc-status: 0`: 1 and 1 is a unary call, 200 and 200 a stream there and back, 1 and 1000 a flood. What is
sent is the body of REQUEST; every message that comes back must begin and end as it does. When a stream has ended, the
next one begins.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import cast

import ngh2
import uvloop

from bench.load.request import Load, Request

_SETTINGS = {ngh2.Setting.ENABLE_PUSH: 0, ngh2.Setting.INITIAL_WINDOW_SIZE: 1 << 20}
_CONNECTION_WINDOW = 16 << 20


class Sequence:
    """One stream: what it still sends, and what has come."""

    __slots__ = ("bytes_in", "is_good", "to_send")

    def __init__(self, to_send: int) -> None:
        self.to_send = to_send
        self.bytes_in = 0
        self.is_good = True
        """Status, every message so far and, at the end, the trailers are as they should be."""


class MessageCaller(asyncio.Protocol):
    """One connection with a fixed number of streams under way."""

    def __init__(self, request: Request, streams: int, sent: int, got: int, load: Load) -> None:
        self.headers = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":authority", request.host.encode()),
            (b":path", request.path.encode()),
            *((name.encode(), value.encode()) for name, value in request.headers.items()),
        ]
        self.message = request.body
        self.streams_wanted = streams
        self.sent = sent
        self.bytes_wanted = got * len(request.body)
        self.load = load
        self.streams: dict[int, Sequence] = {}
        self.transport: asyncio.Transport
        self.connection = ngh2.Connection(ngh2.Role.CLIENT)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.connection.initiate_connection(_SETTINGS)
        self.connection.set_local_window_size(_CONNECTION_WINDOW)
        for _ in range(self.streams_wanted):
            self._begin()
        self._flush()

    def data_received(self, data: bytes) -> None:
        self.connection.receive_data(data)
        for event in self.connection.events():
            kind = event.__class__
            if kind is ngh2.DataReceived:
                self._on_data(event)
            elif kind is ngh2.ResponseReceived:
                stream = self.streams.get(event.stream_id)
                if stream is not None:
                    stream.is_good = (b":status", b"200") in event.headers and not event.end_stream
            elif kind is ngh2.TrailersReceived:
                stream = self.streams.get(event.stream_id)
                if stream is not None and (b"grpc-status", b"0") not in event.headers:
                    stream.is_good = False
            elif kind is ngh2.StreamClosed:
                self._on_closed(event)
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self.load.errors += self.load.wall_s == 0

    def _begin(self) -> None:
        id = self.connection.send_request(self.headers)
        stream = self.streams[id] = Sequence(self.sent)
        self._send(id, stream)

    def _send(self, id: int, stream: Sequence) -> None:
        stream.to_send -= 1
        self.connection.send_data(id, self.message, end_stream=not stream.to_send)

    def _on_data(self, event: ngh2.DataReceived) -> None:
        id, data = event.stream_id, event.data
        stream = self.streams.get(id)
        if stream is None or not data:
            return
        size = len(self.message)
        before, stream.bytes_in = stream.bytes_in, stream.bytes_in + len(data)
        if not before % size and data[:5] != self.message[: min(5, len(data))]:
            stream.is_good = False
        whole = stream.bytes_in // size - before // size
        if not whole:
            return
        if not stream.bytes_in % size and data[-1] != self.message[-1]:
            stream.is_good = False
        self.load.count += whole
        while whole and stream.to_send:
            whole -= 1
            self._send(id, stream)

    def _on_closed(self, event: ngh2.StreamClosed) -> None:
        stream = self.streams.pop(event.stream_id)
        if event.error_code or not stream.is_good or stream.bytes_in != self.bytes_wanted:
            self.load.errors += 1
        self._begin()

    def _flush(self) -> None:
        data = self.connection.data_to_send()
        if data:
            self.transport.write(data)


async def call(request: Request, connections: int, streams: int, seconds: float, sent: int, got: int) -> Load:
    """Call for `seconds`. Raises OSError where it cannot connect."""
    loop = asyncio.get_running_loop()
    load = Load(0, 0, 0.0, "own gRPC caller")
    began_s = time.perf_counter()
    opened = [
        await loop.create_connection(
            lambda: MessageCaller(request, streams, sent, got, load), "127.0.0.1", request.port
        )
        for _ in range(connections)
    ]
    await asyncio.sleep(seconds)
    load.wall_s = time.perf_counter() - began_s
    for transport, _ in opened:
        transport.abort()
    return load


if __name__ == "__main__":
    file, count, streams_each, lasting_s, sent_each, got_each = sys.argv[1:7]
    numbers = (int(count), int(streams_each), float(lasting_s), int(sent_each), int(got_each))
    print(uvloop.run(call(Request.read(Path(file)), *numbers)).json())
