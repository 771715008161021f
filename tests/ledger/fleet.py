"""Random schedules of whole ledgers on a slow store: `python -m tests.ledger.fleet [HOW_MANY] [FIRST_SEED]`.

Where `simulate` plays the pure machines alone, here the real ones talk to one store whose every word takes some turns
of the loop, so that words cross: two to five sidecars, calls, parts delegated and ended, accounts that leave memory,
writes that fail before or after they were made. In the end nothing may be overspent, and what is left must be there.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from meshd.engines.port import StoreError
from meshd.ledger import Ledger, Reservation, Shortfall
from meshd.ledger.desk import Desk
from tests.ledger.test_crossing import Slow, SlowMesh

TOTAL: Final = 5000
ROUNDS: Final = 12


class Uneven(Slow):
    """Takes now more turns, now fewer."""

    chance: random.Random

    async def _turn(self) -> None:
        for _ in range(self.chance.randint(0, 4)):
            await asyncio.sleep(0)


class Fleet(SlowMesh):
    """Sidecars, and what was billed for them."""

    def __init__(self, path: Path, chance: random.Random) -> None:
        super().__init__(path)
        self.chance = chance
        self.has_faults = chance.random() < 0.3
        self.open_max = chance.choice([1, 100])
        self.billed = 0
        self.parts: list[str] = []
        self.made = 0

    async def start(self, number: int, **more: Any) -> Ledger:
        store = self.stores[number] = Uneven(self.server)
        store.chance = self.chance
        ledger = await Ledger.open(self.path / str(number), store=store, open_max=self.open_max, **more)
        self.ledgers[number] = ledger
        return ledger

    def fail(self, is_on: bool) -> None:
        """Let writes fail now and then, some of them after they were made."""

        def fails(_: Any) -> str | None:
            return self.chance.choice(["before", "after"]) if self.chance.random() < 0.04 else None

        for store in self.stores.values():
            store.fails = fails if is_on else None  # type: ignore[attr-defined]

    async def turns(self, most: int) -> None:
        for _ in range(self.chance.randint(0, most)):
            await asyncio.sleep(0)

    async def call(self, ledger: Ledger, account: str) -> None:
        """One call: reserved, under way for a while, billed and settled."""
        bound = self.chance.randint(1, 900)
        least = self.chance.choice([bound, 1, bound // 2 + 1])
        got = await ledger.wait(account, TOTAL, bound, least, queue_s=self.chance.choice([0, 0.01, 0.05]))
        if isinstance(got, Reservation):
            await self.turns(50)
            actual = self.chance.choice([0, got.bound, self.chance.randint(0, got.bound)])
            self.billed += actual
            got.settle(actual)

    async def part(self, ledger: Ledger) -> None:
        """Delegate a part, let others spend from it, and end it."""
        self.made += 1
        child = f"delegated/{self.made}/a"
        try:
            got = await ledger.delegate("a", TOTAL, child, self.chance.randint(1, 900), 1, queue_s=0.05)
        except StoreError:
            ledger.orders.end("a", child)
            return
        if not isinstance(got, Shortfall):
            self.parts.append(child)
            await self.turns(200)
            self.parts.remove(child)
            ledger.orders.end("a", child)

    async def agent(self) -> None:
        """Somebody who calls, over and over, through any sidecar."""
        for _ in range(ROUNDS):
            ledger, luck = self.chance.choice(list(self.ledgers.values())), self.chance.random()
            try:
                if luck < 0.12:
                    await self.part(ledger)
                elif luck < 0.25 and self.open_max == 1:
                    await self.call_elsewhere(ledger)
                elif luck < 0.5 and self.parts:
                    await self.call(ledger, self.chance.choice(self.parts))
                else:
                    await self.call(ledger, "a")
            except StoreError:
                continue

    async def call_elsewhere(self, ledger: Ledger) -> None:
        """Use another account, so that this one leaves memory."""
        got = await ledger.wait(f"z{self.chance.randint(0, 3)}", 100, 10, 10, queue_s=0.05)
        if isinstance(got, Reservation):
            got.settle(0)

    async def heal(self) -> None:
        """Everything works again, and every word that is due is said."""
        self.fail(is_on=False)
        self.server._watchers.tell_all_missed()
        for ledger in self.ledgers.values():
            await ledger.orders.finish()
        for _ in range(3):
            for ledger in self.ledgers.values():
                await ledger._leases.report()
                await ledger._leases.finish()
            for _ in range(100):
                await asyncio.sleep(0)


async def run(seed: int) -> str:
    """Run one schedule; return what did not hold."""
    chance, bad = random.Random(seed), list[str]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bad.append(str(context)))
    with tempfile.TemporaryDirectory() as path:
        fleet = Fleet(Path(path), chance)
        for number in range(chance.randint(2, 5)):
            await fleet.start(number)
        fleet.fail(fleet.has_faults)
        await asyncio.gather(*(fleet.agent() for _ in range(chance.randint(2, 8))))
        await fleet.heal()
        left = TOTAL - fleet.billed
        if left < 0:
            bad.append(f"{-left} overspent")
        elif left:
            got = await chance.choice(list(fleet.ledgers.values())).wait("a", TOTAL, left, left, queue_s=2)
            if isinstance(got, Reservation):
                got.settle(0)
            elif not fleet.has_faults:
                # A fault may leave a reservation whose caller was told nothing: it counts as spent.
                bad.append(f"{left} are left and not to be had: {got}, {await Desk(fleet.server).owner('a')}")
        await fleet.heal()
        if any(entry.is_asking for ledger in fleet.ledgers.values() for entry in ledger._entries.values()):
            bad.append("an owner is asked for ever")
        for ledger in fleet.ledgers.values():
            await ledger.close()
        books = await Desk(fleet.server).owner("a")
        if not fleet.has_faults and books.total and (books.settled, books.children) != (fleet.billed, {}):
            bad.append(f"{fleet.billed} were billed, and the books say {books}")
    return "; ".join(bad)


def main(how_many: int, first: int) -> int:
    """Run and print; return 1 where something did not hold."""
    logging.disable(logging.CRITICAL)
    found = {seed: said for seed in range(first, first + how_many) if (said := asyncio.run(run(seed)))}
    for seed, said in list(found.items())[:5]:
        print(f"seed {seed}: {said[:1500]}")
    print(f"{how_many:,} schedules of whole ledgers from seed {first}, {len(found)} did not hold")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in [*sys.argv[1:], *("500", "1")[len(sys.argv) - 1 :]])))
