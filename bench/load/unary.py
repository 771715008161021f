"""HTTP/2 load of our own: `python -m bench.load.unary REQUEST CONNECTIONS STREAMS SECONDS`; prints a Load as JSON."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import ngh2
import uvloop

from bench.load.request import Load, Request


class UnaryCaller(asyncio.Protocol):
    """One connection with a fixed number of streams under way."""

    def __init__(self, request: Request, streams: int, load: Load) -> None:
        self.headers = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":authority", request.host.encode()),
            (b":path", request.path.encode()),
            *((name.encode(), value.encode()) for name, value in request.headers.items()),
        ]
        self.body = request.body
        self.streams = streams
        self.load = load
        self.good: dict[int, bool] = {}
        self.transport: asyncio.Transport
        self.connection = ngh2.Connection(ngh2.Role.CLIENT)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.connection.initiate_connection({ngh2.Setting.ENABLE_PUSH: 0})
        for _ in range(self.streams):
            self._send()
        self._flush()

    def data_received(self, data: bytes) -> None:
        self.connection.receive_data(data)
        for event in self.connection.events():
            if isinstance(event, ngh2.ResponseReceived):
                self.good[event.stream_id] = (b":status", b"200") in event.headers
            elif isinstance(event, ngh2.TrailersReceived):
                self.good[event.stream_id] &= (b"grpc-status", b"0") in event.headers
            elif isinstance(event, ngh2.StreamClosed):
                if self.good.pop(event.stream_id, False) and event.error_code == 0:
                    self.load.count += 1
                else:
                    self.load.errors += 1
                self._send()
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self.load.errors += self.load.wall_s == 0

    def _send(self) -> None:
        stream = self.connection.send_request(self.headers)
        self.connection.send_data(stream, self.body, end_stream=True)

    def _flush(self) -> None:
        data = self.connection.data_to_send()
        if data:
            self.transport.write(data)


async def call(request: Request, connections: int, streams: int, seconds: float) -> Load:
    """Call for `seconds`. Raises OSError where it cannot connect."""
    loop = asyncio.get_running_loop()
    load = Load(0, 0, 0.0, "own HTTP/2 caller")
    began_s = time.perf_counter()
    opened = [
        await loop.create_connection(lambda: UnaryCaller(request, streams, load), "127.0.0.1", request.port)
        for _ in range(connections)
    ]
    await asyncio.sleep(seconds)
    load.wall_s = time.perf_counter() - began_s
    for transport, _ in opened:
        transport.abort()
    return load


if __name__ == "__main__":
    print(
        uvloop.run(call(Request.read(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))).json()
    )
