"""What a bus costs: `python -m tests.engines.bus_measure [ENGINE...]`. Prints latencies and events a second.

`publish` is the time from asking to the acknowledgement; `hand over` from publishing to the event in the hands of a
subscriber that waits; `round` all of one event: publish, take, settle. Payloads are 200 bytes.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from meshd.engines.bus_port import Bus, Event, Verdict
from meshd.engines.bus_table import open_bus

URLS = {"memory": "memory:", "sqlite fast": "sqlite:", "sqlite durable": "sqlite:?mode=durable"}
CALLERS = (1, 64)
SECONDS = 2.0
DATA = b"x" * 200
BATCH = 100


async def timed(ask: Callable[[], Awaitable[object]], callers: int) -> list[float]:
    """Return how long each operation took, in seconds, of `callers` that ask one after the other."""
    took: list[float] = []
    ends_s = time.perf_counter() + SECONDS

    async def call() -> None:
        while (began_s := time.perf_counter()) < ends_s:
            await ask()
            took.append(time.perf_counter() - began_s)

    await asyncio.gather(*(call() for _ in range(callers)))
    return sorted(took)


def show(label: str, operation: str, callers: int, took: list[float], events: int = 1) -> None:
    """Print one row."""
    p50, p99 = took[len(took) // 2] * 1e6, took[len(took) * 99 // 100] * 1e6
    rate = len(took) * events / SECONDS
    print(f"{label:<16}{operation:<16}{callers:>8}{rate:>12,.0f}{p50:>10,.0f}{p99:>10,.0f}", flush=True)


async def measure(label: str, bus: Bus) -> None:
    """Print the rows of one bus."""
    for callers in CALLERS:
        show(label, "publish", callers, await timed(lambda: bus.publish([Event("other", "me", data=DATA)]), callers))
    batch = [Event("other", "me", data=DATA)] * BATCH
    show(label, f"publish {BATCH}", 1, await timed(lambda: bus.publish(batch), 1), BATCH)
    one = await bus.subscribe("task.*", "group")

    async def hand_over() -> None:
        waiting = asyncio.ensure_future(one.next())
        await asyncio.sleep(0)
        await bus.publish([Event("task.done", "me", data=DATA)])
        handed.append(await waiting)

    handed: list[object] = []
    show(label, "hand over", 1, await timed(hand_over, 1))

    async def round_() -> None:
        await bus.publish([Event("task.done", "me", data=DATA)])
        await one.settle(await one.next(), Verdict.SUCCESS)

    for callers in CALLERS:
        show(label, "round", callers, await timed(round_, callers))
    await bus.close()


async def main(arguments: list[str]) -> None:
    print(f"{'bus':<16}{'':<16}{'callers':>8}{'events/s':>12}{'p50 us':>10}{'p99 us':>10}")
    for label, url in URLS.items():
        if not arguments or label.split()[0] in arguments:
            with tempfile.TemporaryDirectory() as name:
                await measure(label, await open_bus(url, Path(name)))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))
