"""The provider's stand-in: bills a request the moment it is whole, whether or not anybody is left for the answer."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Final

ANSWER_S: Final = (0.005, 0.05)
"""How long an answer takes, at least and at most."""


class Bill:
    """What was billed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.calls = 0
        self.tokens = 0

    def charge(self, body: bytes) -> bytes:
        """Bill a forwarded request, and return the reply: a token for four bytes of text, and a part of its cap."""
        request = json.loads(body)
        cap = request.get("max_completion_tokens") or request.get("max_tokens") or 100_000
        given = sum(len(message["content"]) // 4 for message in request["messages"])
        made = self.chance.randint(1, cap)
        self.calls += 1
        self.tokens += given + made
        usage = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "So it is."}}
        reply = {"id": "c", "object": "chat.completion", "model": request["model"], "choices": [choice], "usage": usage}
        text = json.dumps(reply).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        return head % len(text) + text


class Connection(asyncio.Protocol):
    """One connection of a sidecar: requests with a length, one after the other."""

    def __init__(self, bill: Bill) -> None:
        self._bill = bill
        self._kept = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._kept += data
        while (end := self._end()) is not None:
            request, self._kept = self._kept[:end], self._kept[end:]
            reply = self._bill.charge(request.partition(b"\r\n\r\n")[2])
            delay_s = self._bill.chance.uniform(*ANSWER_S)
            asyncio.get_running_loop().call_later(delay_s, self._transport.write, reply)

    def _end(self) -> int | None:
        head, blank, _ = self._kept.partition(b"\r\n\r\n")
        if not blank:
            return None
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        end = len(head) + 4 + int(lengths[0].partition(b":")[2])
        return end if len(self._kept) >= end else None


async def serve(bill: Bill) -> tuple[asyncio.Server, int]:
    """Serve on a free port of the loopback; return the server and the port."""
    server = await asyncio.get_running_loop().create_server(lambda: Connection(bill), "127.0.0.1", 0, backlog=4096)
    return server, server.sockets[0].getsockname()[1]
