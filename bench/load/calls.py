"""HTTP/1.1 load of our own: `python -m bench.load.calls REQUEST CONNECTIONS SECONDS`; prints a Load as JSON."""

from __future__ import annotations

import asyncio
import sys
import time
from itertools import cycle
from pathlib import Path

import uvloop

from bench.load.replies import is_good, reply_bytes
from bench.load.request import Load, Request


class Caller(asyncio.Protocol):
    """One connection that sends the next call when the last one is answered."""

    def __init__(self, messages: cycle[bytes], load: Load) -> None:
        self.messages = messages
        self.load = load
        self.transport: asyncio.Transport
        self.kept = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.transport.write(next(self.messages))

    def data_received(self, data: bytes) -> None:
        data = self.kept + data
        try:
            taken = reply_bytes(data)
        except ValueError:
            self.load.errors += 1
            self.transport.close()
            return
        self.kept = data[taken:]
        if taken:
            if is_good(data):
                self.load.count += 1
            else:
                self.load.errors += 1
            self.transport.write(next(self.messages))

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self.load.errors += self.load.wall_s == 0


async def call(request: Request, connections: int, seconds: float) -> Load:
    """Call on `connections` for `seconds`. Raises OSError where it cannot connect."""
    loop = asyncio.get_running_loop()
    load = Load(0, 0, 0.0, "own HTTP/1.1 caller")
    messages = cycle(request.http1())
    began_s = time.perf_counter()
    opened = [
        await loop.create_connection(lambda: Caller(messages, load), "127.0.0.1", request.port)
        for _ in range(connections)
    ]
    await asyncio.sleep(seconds)
    load.wall_s = time.perf_counter() - began_s
    for transport, _ in opened:
        transport.abort()
    return load


if __name__ == "__main__":
    print(uvloop.run(call(Request.read(Path(sys.argv[1])), int(sys.argv[2]), float(sys.argv[3]))).json())
