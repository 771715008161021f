"""Many calls at once: `python -m bench.load.burst REQUEST CALLS`; prints how many got which status (0: no answer).

Each call has a connection of its own, opened before any is sent, so that all are under way together.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from pathlib import Path

import uvloop

from bench.load.replies import reply_bytes
from bench.load.request import Request

_PATIENCE_S = 60.0


class One(asyncio.Protocol):
    """One connection, one call."""

    def __init__(self, ended: asyncio.Future[int]) -> None:
        self.ended = ended
        self.kept = b""

    def data_received(self, data: bytes) -> None:
        self.kept += data
        try:
            if reply_bytes(self.kept) and not self.ended.done():
                self.ended.set_result(int(self.kept[9:12]))
        except ValueError:
            self.ended.set_result(0)

    def connection_lost(self, error: Exception | None) -> None:
        del error
        if not self.ended.done():
            self.ended.set_result(0)


async def burst(request: Request, calls: int) -> dict[int, int]:
    """Send all at once and return the count of each status; 0 stands for a connection that ended without an answer.

    Raises TimeoutError where one hangs, and OSError where the proxy does not accept that many.
    """
    loop = asyncio.get_running_loop()
    message = request.http1()[0]
    ends = [loop.create_future() for _ in range(calls)]
    opened = [
        await loop.create_connection(lambda end=end: One(end), "127.0.0.1", request.port)  # type: ignore[misc]
        for end in ends
    ]
    for transport, _ in opened:
        transport.write(message)
    async with asyncio.timeout(_PATIENCE_S):
        statuses = Counter(await asyncio.gather(*ends))
    for transport, _ in opened:
        transport.abort()
    return dict(statuses)


if __name__ == "__main__":
    print(json.dumps(uvloop.run(burst(Request.read(Path(sys.argv[1])), int(sys.argv[2])))))
