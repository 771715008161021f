"""A provider that does as it is told: `python -m bench.outage.provider PORT`.

POST /control   {"takes": 16, "rate": null, "service_s": 0.05, "status": 200}: how it behaves from now on
GET /counts     {"arrived": ..., "answered": ..., "refused": ..., "failed": ...}
anything else   a chat completion, after `service_s`; 429 above `takes` at once or `rate` a second; or `status`
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any, Final

BURST_S: Final = 0.2
"""What a provider that counts by the second lets through at once, in seconds of its rate."""
_REPLY: Final = json.dumps(
    {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 8, "completion_tokens": 2, "total_tokens": 10},
    }
).encode()
_REASONS: Final = {200: "OK", 429: "Too Many Requests", 503: "Service Unavailable", 529: "Overloaded"}


class Provider:
    """What it takes, and what it has counted."""

    def __init__(self) -> None:
        self.takes: int | None = None
        """Calls at once."""
        self.rate: float | None = None
        """Calls a second."""
        self.service_s = 0.05
        self.status = 200
        self.under_way = 0
        self.counts = {"arrived": 0, "answered": 0, "refused": 0, "failed": 0}
        self._room = 0.0
        self._filled_s = time.monotonic()

    def control(self, said: dict[str, Any]) -> None:
        """Behave otherwise."""
        for key, value in said.items():
            setattr(self, key, value)

    def _is_full(self) -> bool:
        if self.takes is not None and self.under_way >= self.takes:
            return True
        if self.rate is None:
            return False
        now_s = time.monotonic()
        self._room = min(self._room + (now_s - self._filled_s) * self.rate, max(1.0, BURST_S * self.rate))
        self._filled_s = now_s
        if self._room < 1.0:
            return True
        self._room -= 1.0
        return False

    async def answer(self) -> tuple[int, bytes]:
        """Answer one call."""
        counts = self.counts
        counts["arrived"] += 1
        if self.status != 200:
            counts["failed"] += 1
            return self.status, b'{"error":{"message":"out","type":"server_error","param":null,"code":null}}'
        if self._is_full():
            counts["refused"] += 1
            return 429, b'{"error":{"message":"slow down","type":"rate_limit_error","param":null,"code":null}}'
        self.under_way += 1
        try:
            await asyncio.sleep(self.service_s)
        finally:
            self.under_way -= 1
        counts["answered"] += 1
        return 200, _REPLY

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection for as long as it lasts."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.split(b"\r\n"):
                    if line[:15].lower() == b"content-length:":
                        length = int(line[15:])
                body = await reader.readexactly(length)
                status, reply = await self._route(head, body)
                fields = f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}\r\ncontent-type: application/json\r\n"
                writer.write(f"{fields}content-length: {len(reply)}\r\n\r\n".encode() + reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _route(self, head: bytes, body: bytes) -> tuple[int, bytes]:
        path = head.split(b" ", 2)[1]
        if path == b"/control":
            self.control(json.loads(body))
            return 200, b"{}"
        if path == b"/counts":
            return 200, json.dumps(self.counts).encode()
        return await self.answer()


async def main(port: int) -> None:
    """Serve until killed."""
    server = await asyncio.start_server(Provider().serve, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
