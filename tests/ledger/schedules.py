"""Random schedules, ours beside check-then-charge: `python -m tests.ledger.schedules [HOW_MANY] [SEED]`.

A schedule is some 20 calls of one to three sidecars on one budget, in an order drawn at random: admit, forward, bill,
settle, and now and then a crash with or without the journal, a lost answer, a repeated message. The provider bills at
most each call's bound. The same schedule is then judged as most gateways do: admit while what was *charged* is below
the total, charge when the answer has come. Prints how many schedules ended above their total, and how much of the
budget was used where calls were refused.
"""

from __future__ import annotations

import random
import sys
import time

from meshd.ledger.account import Owner, Report, Request
from meshd.ledger.holder import Holder

TOTAL = 1000
CALLS = 20


class Tally:
    """How one way of counting did over all schedules."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.overspent = 0
        self.tokens_above = 0
        self.admitted = 0

    def add(self, billed: int, admitted: int) -> None:
        """Count one schedule."""
        self.admitted += admitted
        if billed > TOTAL:
            self.overspent += 1
            self.tokens_above += billed - TOTAL


def tell(owner: Owner, holder: Holder, message: Request | Report, chance: random.Random) -> None:
    """Take a message to the owner, sometimes twice, and its answer back, sometimes not."""
    answer = owner.step(message, 400)
    if chance.random() < 0.1:
        answer = owner.step(message, 400)
    if chance.random() < 0.9:
        holder.hear(answer)


def ours(steps: list[tuple[int, int, int, int]], chance: random.Random) -> tuple[int, int]:
    """Run a schedule under leases; return the tokens that the provider billed, and the calls admitted."""
    owner = Owner()
    holders = [Holder(f"h{number}", 1, 1) for number in range(3)]
    in_flight: dict[int, tuple[int, int, int]] = {}
    billed = admitted = 0
    for number, (what, at, bound, actual) in enumerate(steps):
        holder = holders[at]
        if what == 0:
            if not holder.reserve(bound):
                tell(owner, holder, holder.request(TOTAL, holder.lacking(bound), bound, is_volatile=False), chance)
                if not holder.reserve(bound):
                    continue
            admitted += 1
            billed += actual
            in_flight[number] = (at, bound, actual)
        elif what == 1 and in_flight:
            at, bound, actual = in_flight.pop(chance.choice(list(in_flight)))
            holders[at].settle(bound, actual)
        elif what == 2:
            in_flight = {key: one for key, one in in_flight.items() if one[0] != at}
            stake = owner.stakes.get(holder.name)
            if stake is not None and stake.epoch == holder.epoch and chance.random() < 0.5:
                # With its journal: open reservations count at their bound. Without: the whole lease does.
                spent = holder.spent + holder.reserved
                owner.step(Report(holder.name, holder.epoch, stake.serial, spent, stake.returned, is_closed=True))
            holders[at] = Holder(holder.name, holder.epoch + 1, 1)
    return billed, admitted


def theirs(steps: list[tuple[int, int, int, int]], chance: random.Random) -> tuple[int, int]:
    """Run a schedule under check-then-charge, with a counter that every sidecar shares and no crash ever loses."""
    charged = billed = admitted = 0
    in_flight: list[int] = []
    for what, _, _, actual in steps:
        if what == 0 and charged < TOTAL:
            admitted += 1
            billed += actual
            in_flight.append(actual)
        elif what == 1 and in_flight:
            charged += in_flight.pop(chance.randrange(len(in_flight)))
    return billed, admitted


def main(how_many: int, seed: int) -> int:
    """Run and print; return 1 where ours overspent."""
    chance = random.Random(seed)
    tallies = Tally("leases and reservations"), Tally("check, then charge")
    began = time.monotonic()
    for _ in range(how_many):
        kinds = chance.choices((0, 1, 2), (10, 8, 1), k=CALLS * 2)
        steps = [
            (what, chance.randrange(3), bound := chance.randint(1, 300), chance.randint(0, bound)) for what in kinds
        ]
        for tally, run in zip(tallies, (ours, theirs), strict=True):
            tally.add(*run(steps, chance))
    print(f"{how_many:,} schedules, seed {seed}, {time.monotonic() - began:.0f} s")
    print(f"{'':<26}{'overspent':>12}{'tokens above':>16}{'calls admitted':>16}")
    for tally in tallies:
        print(f"{tally.name:<26}{tally.overspent:>12,}{tally.tokens_above:>16,}{tally.admitted:>16,}")
    return int(tallies[0].overspent > 0)


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in [*sys.argv[1:], *("100000", "1")[len(sys.argv) - 1 :]])))
