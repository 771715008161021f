"""Random schedules of calls that are made again, crashes and a store that loses answers, beside doing nothing of it.

`python -m tests.claims.simulate [HOW_MANY [SEED]]` prints what came of them; it exits with 1 where one call was carried
out twice, a replay was not what was answered, or a key had no definite answer in the end.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import Counter
from typing import Any

from tests.claims.clock import TimelessLoop
from tests.claims.world import World

HOW_MANY = 100_000


class Total:
    """What came of many schedules."""

    def __init__(self) -> None:
        self.schedules = self.calls = self.crashes = self.runs = self.without = 0
        self.results: Counter[str] = Counter()
        self.problems: list[str] = []

    def add(self, seed: int, world: World) -> None:
        self.schedules += 1
        self.calls += world.calls
        self.crashes += world.crashes
        self.runs += sum(world.provider.runs.values())
        self.without += world.calls > len(world.provider.runs)
        self.results += world.results
        self.problems += [f"seed {seed}: {problem}" for problem in world.problems]


def play(seeds: range, told: Any = None) -> Total:
    """Run one schedule for each seed."""
    total = Total()
    with asyncio.Runner(loop_factory=TimelessLoop) as runner:
        for seed in seeds:
            total.add(seed, runner.run(_one(seed)))
            if told is not None:
                told(total)
    return total


async def _one(seed: int) -> World:
    world = await World(seed).run()
    # What still sleeps is of this schedule alone.
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    return world


def main(how_many: int = HOW_MANY, seed: int = 0) -> int:
    """Print the figures; return the exit code."""
    logging.disable(logging.CRITICAL)
    began_s = time.monotonic()

    def told(total: Total) -> None:
        if total.schedules % 5000 == 0:
            print(f"  {total.schedules:,} ...", file=sys.stderr, flush=True)

    total = play(range(seed, seed + how_many), told)
    took_s = time.monotonic() - began_s
    print(f"schedules                 {total.schedules:>10,}   ({took_s:.0f} s)")
    print(f"calls, duplicates of them {total.calls:>10,}")
    print(f"crashes of sidecars       {total.crashes:>10,}")
    print(f"carried out               {total.runs:>10,}")
    for result, count in total.results.most_common():
        print(f"  {result:<24}{count:>10,}")
    twice = sum("times" in problem for problem in total.problems)
    print(f"carried out twice         {twice:>10,}   (without claims: in {total.without:,} schedules)")
    print(f"other problems            {len(total.problems) - twice:>10,}")
    for problem in total.problems[:20]:
        print(f"  {problem}")
    return 1 if total.problems else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
