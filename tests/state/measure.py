"""How long a commit to shared state takes on each engine: `python -m tests.state.measure [ENGINE]...`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.engines.places import PLACES, place_of
from tests.state.world import World

COMMITS = 300
WRITERS = 8


async def one_after_the_other(world: World, key: str, size: int) -> list[float]:
    """Return the seconds of each commit."""
    took, value = [], b"x" * size
    for number in range(COMMITS):
        began_s = time.perf_counter()
        await world.made(key, value, number)
        took.append(time.perf_counter() - began_s)
    return sorted(took)


async def at_once(world: World) -> float:
    """Return commits a second of writers that each have an object of their own."""

    async def write(key: str) -> None:
        for number in range(COMMITS):
            await world.made(key, b"x" * 200, number)

    began_s = time.perf_counter()
    await asyncio.gather(*(write(f"mesh/own/{number}") for number in range(WRITERS)))
    return WRITERS * COMMITS / (time.perf_counter() - began_s)


async def main(engines: list[str]) -> None:
    print(f"{'engine':10} {'200 B: p50':>12} {'p99':>9} {'100 kB: p50':>13} {'p99':>9} {f'{WRITERS} writers':>14}")
    for engine in engines:
        with tempfile.TemporaryDirectory() as path:
            async with place_of(engine, Path(path)) as place:
                store = await place.open()
                world = World(store)
                short = await one_after_the_other(world, "mesh/short", 200)
                long = await one_after_the_other(world, "mesh/long", 100_000)
                rate = await at_once(world)
                await store.close()
        shown = [1e3 * times[int(part * COMMITS)] for times in (short, long) for part in (0.5, 0.99)]
        print(
            f"{engine:10} {shown[0]:9.2f} ms {shown[1]:6.2f} ms {shown[2]:10.2f} ms {shown[3]:6.2f} ms {rate:12,.0f}/s"
        )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or [name for name in PLACES if name != "dynamodb"]))
