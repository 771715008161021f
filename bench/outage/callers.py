"""Callers as the official SDKs are: one call is up to three tries, with their pauses between them.

openai 1.x and anthropic 0.x alike: `x-should-retry` decides where it is there; else 408, 409, 429 and every status from
500 are tried again, after `retry-after` where that is at most a minute, else after half a second, doubled, at most
eight, less up to a quarter by chance.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

TRIES: Final = 3
_BODY: Final = b'{"model":"m","max_tokens":16,"messages":[{"role":"user","content":"say something short"}]}'


class Caller:
    """One connection, one call after another."""

    def __init__(self, port: int, upstream: str = "llm") -> None:
        self._port = port
        self._request = (
            f"POST /{upstream}/v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
            f"content-type: application/json\r\nauthorization: Bearer sk-bench\r\ncontent-length: {len(_BODY)}\r\n\r\n"
        ).encode() + _BODY
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def once(self) -> tuple[int, dict[str, str], float]:
        """Try once: status (0 for no answer), fields, seconds that it took."""
        began_s = time.perf_counter()
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(self._request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = head.split("\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            await reader.readexactly(int(fields.get("content-length", "0")))
            return int(lines[0].split()[1]), fields, time.perf_counter() - began_s
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return 0, {}, time.perf_counter() - began_s

    async def call(self, seen: Counter[str]) -> int:
        """Make one call as an SDK does; return its last status. `seen` counts calls by how they ended, and tries."""
        for number in range(TRIES):
            status, fields, _ = await self.once()
            seen["tries"] += 1
            seen[f"{status} {fields.get('x-meshd-reason', '')}".strip()] += 1
            if status == 200 or number == TRIES - 1 or not _is_tried_again(status, fields):
                break
            await asyncio.sleep(_pause_s(number, fields))
        seen["done" if status == 200 else "failed"] += 1
        return status

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def _is_tried_again(status: int, fields: dict[str, str]) -> bool:
    said = fields.get("x-should-retry")
    return said == "true" if said is not None else status in (0, 408, 409, 429) or status >= 500


def _pause_s(number: int, fields: dict[str, str]) -> float:
    said = fields.get("retry-after", "")
    if said.isdigit() and 0 < int(said) <= 60:
        return float(said)
    return min(0.5 * 2.0**number, 8.0) * (1 - 0.25 * random.random())


async def crowd(
    port: int, size: int, seconds: float, between: Callable[[], Awaitable[None]] | None = None
) -> Counter[str]:
    """Let `size` callers call for so long; `between` runs beside them, and is cancelled at the end."""
    seen: Counter[str] = Counter()
    ends_s = time.monotonic() + seconds

    async def work() -> None:
        one = Caller(port)
        try:
            while time.monotonic() < ends_s:
                await one.call(seen)
        finally:
            one.close()

    beside = asyncio.ensure_future(between()) if between is not None else None
    workers = [asyncio.ensure_future(work()) for _ in range(size)]
    await asyncio.wait(workers, timeout=seconds + 0.2)
    for each in (*workers, *([beside] if beside is not None else [])):
        each.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    return seen
