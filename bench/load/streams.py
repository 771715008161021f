"""SSE load: `python -m bench.load.streams REQUEST STREAMS SECONDS EVENTS`; prints a Load that counts events.

Each connection reads a stream to its end and asks for the next. EVENTS is how many each whole stream must have: a
stream with fewer, or without its last event and last chunk, is an error.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import uvloop

from bench.load.replies import is_good
from bench.load.request import Load, Request

_END = b"0\r\n\r\n"


class StreamCaller(asyncio.Protocol):
    """One connection, one stream at a time. Counts events as they pass, so a stream that is cut short counts too."""

    def __init__(self, message: bytes, events: int, load: Load) -> None:
        self.message = message
        self.events = events
        self.load = load
        self.seen = 0
        self.tail = b""
        self.has_head = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.transport.write(self.message)

    def data_received(self, data: bytes) -> None:
        if not self.has_head:
            self.has_head = True
            if not is_good(data):
                self.load.errors += 1
                self.transport.abort()
                return
        count = data.count(b"\n\n")
        self.seen += count
        self.load.count += count
        self.tail = (self.tail + data)[-40:]
        if self.tail.endswith(_END):
            # A proxy that cuts an event in two hides its end from the count; a whole stream sets it right.
            if b"[DONE]" in self.tail and abs(self.seen - self.events) <= 2:
                self.load.count += self.events - self.seen
            else:
                self.load.errors += 1
            self.seen, self.tail, self.has_head = 0, b"", False
            self.transport.write(self.message)

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self.load.errors += self.load.wall_s == 0


async def read(request: Request, streams: int, seconds: float, events: int) -> Load:
    """Read streams for `seconds`. Raises OSError where it cannot connect."""
    loop = asyncio.get_running_loop()
    load = Load(0, 0, 0.0, "own SSE reader")
    message = request.http1()[0]
    began_s = time.perf_counter()
    opened = [
        await loop.create_connection(lambda: StreamCaller(message, events, load), "127.0.0.1", request.port)
        for _ in range(streams)
    ]
    await asyncio.sleep(seconds)
    load.wall_s = time.perf_counter() - began_s
    for transport, _ in opened:
        transport.abort()
    return load


if __name__ == "__main__":
    file, count, lasting_s, whole = sys.argv[1:5]
    print(uvloop.run(read(Request.read(Path(file)), int(count), float(lasting_s), int(whole))).json())
