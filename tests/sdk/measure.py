"""Prints what the SDK costs: `python -m tests.sdk.measure`. The daemon is a process of its own, on this machine."""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshd_sdk import Agent
from tests.end_to_end.sidecar import Sidecar, environ

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROUNDS = 2000
WARM = 200
IMPORTS = 15
IMPORT = (
    "import time; wall, cpu = time.perf_counter(), time.process_time(); {}; "
    "print((time.perf_counter() - wall) * 1000, (time.process_time() - cpu) * 1000)"
)


def imported(statement: str) -> str:
    """Return what an import takes in a fresh interpreter: the least time of several, and the median of CPU."""
    command = [sys.executable, "-c", IMPORT.format(statement)]
    runs = [
        subprocess.run(command, env=environ(), capture_output=True, check=True, text=True).stdout.split()
        for _ in range(IMPORTS)
    ]
    least, cpu = min(float(wall) for wall, _ in runs), statistics.median(float(cpu) for _, cpu in runs)
    return f"{least:6.1f} ms, {cpu:.1f} ms of CPU"


async def timed(name: str, act: Callable[[], Awaitable[Any]]) -> None:
    """Print the latency of one thing done over and over."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        await act()
        times.append(time.perf_counter() - began)
    times = sorted(times[WARM:])
    print(f"{name:38} p50 {statistics.median(times) * 1e3:6.3f} ms   p99 {times[int(len(times) * 0.99)] * 1e3:6.3f} ms")


async def measure(api: str) -> None:
    """Print the rows that need a sidecar."""
    asker, other = Agent("asker", api=api, environ={}), Agent("other", api=api, environ={})

    @other.tool
    async def echo(text: str) -> str:
        return text

    @other.tool
    def plain(text: str) -> str:
        return text

    async with asker, other, asker.workflow() as ctx:
        await timed("publish to acknowledgement", lambda: ctx.publish("nobody.listens", {"n": 1}))
        await timed("call of another agent's tool", lambda: ctx.call("other/echo", {"text": "hello"}))
        await timed("the same, in a thread", lambda: ctx.call("other/plain", {"text": "hello"}))
        began = time.perf_counter()
        await asyncio.gather(*[ctx.publish("nobody.listens", {"n": at}) for at in range(10_000)])
        print(f"{'publications at once':38} {10_000 / (time.perf_counter() - began):6.0f} /s")


def main() -> None:
    """Start a daemon, and print one row for each thing."""
    print(f"{'import meshd_sdk':38} {imported('import meshd_sdk')}")
    print(f"{'from meshd_sdk import Agent':38} {imported('from meshd_sdk import Agent')}")
    with tempfile.TemporaryDirectory() as folder:
        sidecar = Sidecar(Path(folder) / "home")
        try:
            sidecar.start("upstreams: {}\n", MESHD_API="127.0.0.1:0")
            assert sidecar.running is not None
            asyncio.run(measure(str(sidecar.running["api"])))
        finally:
            sidecar.kill()


if __name__ == "__main__":
    main()
