"""Random schedules beside check-then-charge: `make simulate`, `python -m tests.ledger.simulate [HOW_MANY] [SEED]`.

A schedule is sixty steps in `world.World`: calls of three sidecars on one budget and on delegated parts of it,
their settlement, and every fault that the guarantee names: crashes before and after forwarding, with the journal,
without it or with a copy of it; messages lost, repeated, reordered and cut off; two desks at one account; recall,
delegation and its return, a budget that is raised. After each step nothing may be overspent and all books must add up;
in the end, when all has healed, what is left must be there to be spent. The same calls are then judged as most
gateways do: admit while what was *charged* is below the total, charge when the answer has come.
"""

from __future__ import annotations

import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Final, NamedTuple

from tests.ledger.world import BOUND_MAX, TOTAL, OverspentError, World

STEPS: Final = 60
BATCH: Final = 5_000
KINDS: Final = ("admit", "settle", "deliver", "talk", "crash", "cut_off", "delegate", "end_child", "top_up")
WEIGHTS: Final = (20, 8, 24, 4, 1, 0.7, 0.7, 1.2, 0.1)


class Tally(NamedTuple):
    """How both ways of counting did over some schedules."""

    schedules: int = 0
    overspent: int = 0
    """Schedules of ours in which something did not hold."""
    admitted: int = 0
    asked: int = 0
    theirs_overspent: int = 0
    theirs_above: int = 0
    """Tokens that the provider billed above the budget."""
    theirs_admitted: int = 0
    first: str = ""
    """What did not hold, and the seed that shows it."""

    def plus(self, other: Tally) -> Tally:
        """Return the sum of two."""
        return Tally(*(a + b for a, b in zip(self[:-1], other[:-1], strict=True)), self.first or other.first)  # type: ignore[arg-type]


def ours(seed: int) -> tuple[int, int]:
    """Run a schedule under leases; return the calls admitted and asked for. Raises OverspentError."""
    chance = random.Random(seed)
    world = World(chance)
    admitted = asked = 0
    for kind in chance.choices(KINDS, WEIGHTS, k=STEPS):
        if kind == "admit":
            asked += 1
            admitted += world.admit(chance.randint(1, BOUND_MAX))
        else:
            getattr(world, kind)()
        world.check()
    world.ends_well()
    return admitted, asked


def theirs(seed: int) -> tuple[int, int]:
    """Run a schedule under check-then-charge, with a counter that every sidecar shares and no crash ever loses."""
    chance = random.Random(seed)
    charged = billed = admitted = 0
    in_flight: list[int] = []
    for kind in chance.choices(KINDS, WEIGHTS, k=STEPS):
        if kind == "admit" and charged < TOTAL:
            admitted += 1
            actual = chance.randint(0, chance.randint(1, BOUND_MAX))
            billed += actual
            in_flight.append(actual)
        elif kind == "settle" and in_flight:
            charged += in_flight.pop(chance.randrange(len(in_flight)))
    return billed, admitted


def run(first_seed: int, how_many: int) -> Tally:
    """Run schedules of seeds from `first_seed` on."""
    tally = Tally()
    for seed in range(first_seed, first_seed + how_many):
        try:
            admitted, asked = ours(seed)
            one = Tally(1, 0, admitted, asked)
        except OverspentError as error:
            one = Tally(1, 1, first=f"seed {seed}: {error}")
        billed, their_admitted = theirs(seed)
        above = max(0, billed - TOTAL)
        tally = tally.plus(one).plus(Tally(0, 0, 0, 0, int(above > 0), above, their_admitted))
    return tally


def main(how_many: int, seed: int) -> int:
    """Run on all cores and print; return 1 where ours did not hold."""
    began = time.monotonic()
    first = seed * 1_000_000_007
    tally = Tally()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(run, first + at, min(BATCH, how_many - at)) for at in range(0, how_many, BATCH)]
        for job in as_completed(jobs):
            tally = tally.plus(job.result())
            if sys.stderr.isatty():
                print(f"\r{tally.schedules:,} of {how_many:,} schedules", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(f"{tally.schedules:,} schedules of {STEPS} steps, seed {seed}, {time.monotonic() - began:.0f} s")
    print(f"{'':<26}{'overspent':>12}{'tokens above':>16}{'calls admitted':>16}")
    print(f"{'leases and reservations':<26}{tally.overspent:>12,}{0:>16,}{tally.admitted:>16,}")
    print(
        f"{'check, then charge':<26}{tally.theirs_overspent:>12,}{tally.theirs_above:>16,}{tally.theirs_admitted:>16,}"
    )
    print(
        f"Calls asked for: {tally.asked:,}. Books added up at each step, and what was left could be spent in the end."
    )
    if tally.first:
        print(f"NOT HELD: {tally.first}")
    return int(tally.overspent > 0)


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in [*sys.argv[1:], *("1000000", "1")[len(sys.argv) - 1 :]])))
