"""Open streams that stay open: `python -m bench.load.held REQUEST STREAMS`; prints how many have begun, then waits."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop

from bench.load.replies import is_good
from bench.load.request import Request


class Held(asyncio.Protocol):
    """One connection whose answer has begun and does not end."""

    def __init__(self, message: bytes, begun: asyncio.Future[bool]) -> None:
        self.message = message
        self.begun = begun
        self.kept = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self.message)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.kept += data
        if b"data: " in self.kept and not self.begun.done():
            self.begun.set_result(is_good(self.kept))

    def connection_lost(self, error: Exception | None) -> None:
        del error
        if not self.begun.done():
            self.begun.set_result(False)


async def hold(request: Request, streams: int) -> None:
    """Open them fifty at a time, print the count of good ones, and hold them until killed."""
    loop = asyncio.get_running_loop()
    message = request.http1()[0]
    good = 0
    for first in range(0, streams, 50):
        begun: list[asyncio.Future[bool]] = []
        for _ in range(first, min(first + 50, streams)):
            future = loop.create_future()
            begun.append(future)
            await loop.create_connection(lambda f=future: Held(message, f), "127.0.0.1", request.port)  # type: ignore[misc]
        good += sum(await asyncio.gather(*begun))
    print(f"OPEN {good}", flush=True)
    await loop.create_future()


if __name__ == "__main__":
    uvloop.run(hold(Request.read(Path(sys.argv[1])), int(sys.argv[2])))
