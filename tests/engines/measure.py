"""What a store costs: `python -m tests.engines.measure [ENGINE...]`. Prints operations a second and latencies.

Every engine is the one that runs on this machine, as its contract suite uses it; what it promises stands in its row,
for a server that does not sync is faster than one that does. With `--synced`, a Redis is started that syncs every
write, as the PostgreSQL and the SQLite do anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import uvloop

from meshd.engines.port import Ability, Change, Store
from meshd.engines.table import open_store
from tests.engines.places import PLACES, place_of
from tests.engines.servers import Server, redis_server, running

CALLERS = (1, 64)
SECONDS = 1.0
VALUE = b"x" * 200
"""About as long as the books of an account."""
SYNCED: dict[str, Callable[[Path], Server]] = {
    "redis": lambda path: redis_server(path, "--appendonly", "yes", "--appendfsync", "always"),
}


async def timed(ask: Callable[[int], Awaitable[object]], callers: int) -> list[float]:
    """Return how long each operation took, in seconds, of `callers` that ask one after the other."""
    took: list[float] = []
    ends_s = time.perf_counter() + SECONDS

    async def call(number: int) -> None:
        while (began_s := time.perf_counter()) < ends_s:
            await ask(number)
            took.append(time.perf_counter() - began_s)

    await asyncio.gather(*(call(number) for number in range(callers)))
    return sorted(took)


async def measure(label: str, store: Store) -> None:
    """Print the rows of one store."""
    names = [f"workflow/run-{number}" for number in range(256)]
    await store.write([Change("account", name, VALUE) for name in names])
    operations: dict[str, Callable[[int], Awaitable[object]]] = {
        "write": lambda number: store.write([Change("account", names[number], VALUE)]),
        "read": lambda number: store.read("account", (names[number],)),
        "take": lambda number: store.take("counter", names[number], 1, 10**15),
    }
    for operation, ask in operations.items():
        for callers in CALLERS:
            took = await timed(ask, callers)
            p50, p99 = took[len(took) // 2] * 1000, took[len(took) * 99 // 100] * 1000
            rate = len(took) / SECONDS
            print(f"{label:<22}{operation:<7}{callers:>8}{rate:>12,.0f}{p50:>10.2f}{p99:>10.2f}", flush=True)
    await store.close()


@contextlib.asynccontextmanager
async def opened(engine: str, path: Path, *, is_synced: bool) -> AsyncIterator[tuple[str, Store]]:
    """Yield a store and what to call it."""
    if is_synced and engine in SYNCED:
        async with running(SYNCED[engine](path / "server")) as server:
            yield f"{engine} (durable)", await open_store(f"{engine}://{server.address}", path)
        return
    async with place_of(engine, path) as place:
        store = await place.open()
        yield f"{engine}{' (durable)' if Ability.DURABLE in store.abilities else ''}", store


async def main(arguments: list[str]) -> None:
    is_synced = "--synced" in arguments
    print(f"{'store':<22}{'':<7}{'callers':>8}{'per second':>12}{'p50 ms':>10}{'p99 ms':>10}")
    for engine in [one for one in arguments if one in PLACES] or PLACES:
        with tempfile.TemporaryDirectory() as name:
            async with opened(engine, Path(name), is_synced=is_synced) as (label, store):
                await measure(label, store)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1:]))
