"""How fast runaways are stopped, and how often honest work is: `make loops`, `python -m tests.loops.measure [WORD]...`
(only the scenarios whose names or files have such a word).

First every scenario against the detector alone, with many seeds; then those that say `real: true` with processes. Exits
with 1 where a goal is missed, with 2 where a data file is malformed.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import TYPE_CHECKING, Final

from tests.loops import detecting, world
from tests.loops.reading import MalformedError, load
from tests.loops.scoring import Score, Total

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.loops.reading import Scenario

SEEDS: Final = 4
"""Workflows of each scenario against the detector alone, unless SEEDS=N says otherwise."""
_REAL_SEED: Final = 1
_REAL_AT_ONCE: Final = 3


def alone(scenarios: list[Scenario], seeds: int) -> Iterator[Score]:
    """Play each scenario with every seed against the detector alone."""
    for one in scenarios:
        score = Score(one)
        for seed in range(seeds):
            score.add(detecting.play(one, seed))
        yield score


def real(scenarios: list[Scenario]) -> Iterator[Score]:
    """Play each scenario that is `real` once, with processes: several at a time, and in their order."""
    with asyncio.Runner() as runner:
        gate = asyncio.Semaphore(_REAL_AT_ONCE)

        async def begun(one: Scenario) -> asyncio.Task[Score]:
            return asyncio.get_running_loop().create_task(_with_processes(one, gate))

        # A task goes on while the loop runs for those before it.
        tasks = [runner.run(begun(one)) for one in scenarios if one.real]
        for task in tasks:
            yield runner.run(_ended(task))


async def _with_processes(scenario: Scenario, gate: asyncio.Semaphore) -> Score:
    score = Score(scenario)
    async with gate:
        score.add(*await world.play(scenario, _REAL_SEED))
    return score


async def _ended(task: asyncio.Task[Score]) -> Score:
    return await task


def _watched(title: str, scores: Iterator[Score], count: int) -> Total:
    total = Total()
    began_s = time.monotonic()
    is_shown = sys.stderr.isatty()
    for score in scores:
        total.scores.append(score)
        if is_shown:
            line = f"{title}: {len(total.scores)} of {count}, {score.scenario.name}"
            print(f"\r\033[K{line[:110]}", end="", file=sys.stderr, flush=True)
    if is_shown:
        print("\r\033[K", end="", file=sys.stderr)
    seconds = time.monotonic() - began_s
    print(f"## {title}: {len(total.scores)} scenarios in {seconds:.0f} s\n\n{total.table()}\n", flush=True)
    return total


def main() -> int:
    """Print the tables; the exit code says whether the goals are met."""
    try:
        every = load()
    except MalformedError as error:
        print(error, file=sys.stderr)
        return 2
    words = sys.argv[1:]
    chosen = [one for one in every if not words or any(word in one.name or word in one.file for word in words)]
    if not chosen:
        print(f"No scenario has {' or '.join(words)} in its name or file.", file=sys.stderr)
        return 2
    seeds = int(os.environ.get("SEEDS", SEEDS))
    misses = _watched(f"The detector alone, {seeds} workflows each", alone(chosen, seeds), len(chosen)).misses()
    if count := sum(one.real for one in chosen):
        misses += _watched("With processes", real(chosen), count).misses()
    if misses:
        print("Missed:", *misses, sep="\n")
        return 1
    print("Every goal is met.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
