"""Random schedules of whole ledgers on a slow store: `python -m tests.ledger.review_random SEEDS [faults] [children]`."""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from meshd.engines.port import StoreError
from meshd.ledger import Ledger, Reservation, Shortfall, waiting, leases
from meshd.ledger.desk import Desk
from tests.ledger.test_review import Slow, SlowMesh

waiting.POLL_S = 0.004
TOTAL = 5000


class Odd(Slow):
    chance: random.Random

    async def _turn(self) -> None:
        for _ in range(self.chance.randint(0, 4)):
            await asyncio.sleep(0)


class World(SlowMesh):
    async def start(self, number: int, **more: Any) -> Ledger:
        store = self.stores[number] = Odd(self.server)
        store.chance = self.chance
        ledger = self.ledgers[number] = await Ledger.open(self.path / str(number), store=store, open_max=self.open_max)
        return ledger


async def run(seed: int, faults: bool, children: bool, evict: bool) -> str:
    chance = random.Random(seed)
    bad: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: bad.append(repr(context.get("exception") or context)))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        mesh = World(Path(path))
        mesh.chance = chance
        mesh.open_max = 1 if evict else 100
        count = chance.randint(2, 5)
        for number in range(count):
            await mesh.start(number)
        billed = 0
        kids: list[str] = []
        made = 0

        async def call(ledger: Ledger) -> None:
            nonlocal billed
            account = chance.choice(kids) if kids and chance.random() < 0.3 else "a"
            bound = chance.randint(1, 900)
            try:
                got = await ledger.wait(account, TOTAL, bound, chance.choice([bound, 1, bound // 2 + 1]), queue_s=chance.choice([0, 0.01, 0.05]))
            except StoreError:
                return
            if isinstance(got, Shortfall):
                return
            for _ in range(chance.choice([0, 5, 50])):
                await asyncio.sleep(0)
            actual = chance.choice([0, got.bound, chance.randint(0, got.bound)])
            billed += actual
            got.settle(actual)

        async def other(ledger: Ledger) -> None:
            got = await ledger.wait("z" + str(chance.randint(0, 3)), 100, 10, 10, queue_s=0.05)
            if isinstance(got, Reservation):
                got.settle(0)

        async def part(ledger: Ledger) -> None:
            nonlocal made
            made += 1
            child = f"a>{made}"
            try:
                got = await ledger.delegate("a", TOTAL, child, chance.randint(1, 900), 1, queue_s=0.05)
            except StoreError:
                ledger.orders.end("a", child)
                return
            if isinstance(got, Shortfall):
                return
            kids.append(child)
            for _ in range(chance.randint(0, 200)):
                await asyncio.sleep(0)
            kids.remove(child)
            ledger.orders.end("a", child)

        async def agent() -> None:
            for _ in range(12):
                ledger = chance.choice(list(mesh.ledgers.values()))
                luck = chance.random()
                if luck < 0.12 and children:
                    await part(ledger)
                elif luck < 0.25 and evict:
                    await other(ledger)
                elif luck < 0.35:
                    task = asyncio.ensure_future(call(ledger))
                    for _ in range(chance.randint(0, 30)):
                        await asyncio.sleep(0)
                    # A caller that gives up: only while it waits.
                    await asyncio.wait([task])
                else:
                    await call(ledger)

        if faults:
            for store in mesh.stores.values():
                store.fails = lambda changes: chance.choice(["before", "after"]) if chance.random() < 0.04 else None
        await asyncio.gather(*(agent() for _ in range(chance.randint(2, 8))))
        for store in mesh.stores.values():
            store.fails = None
        for ledger in mesh.ledgers.values():
            await ledger.orders.finish()
        if faults:
            mesh.server._watchers.tell_all_missed()
        await asyncio.sleep(0.01)
        for _ in range(200):
            await asyncio.sleep(0)
        for ledger in mesh.ledgers.values():
            await ledger._leases.report()
        for _ in range(200):
            await asyncio.sleep(0)
        if billed > TOTAL:
            bad.append(f"overspent {billed}")
        left = TOTAL - billed
        books = await Desk(mesh.server).owner("a")
        last = chance.choice(list(mesh.ledgers.values()))
        if left > 0 and not (faults and books.children):
            got = await last.wait("a", TOTAL, left, left, queue_s=1.0)
            if isinstance(got, Shortfall):
                books = await Desk(mesh.server).owner("a")
                bad.append(f"{left} left, {got}, {books} " + "; ".join(
                    f"{l._leases._holder[:4]} wanting={e.is_wanting} wanted={e.is_wanted} asking={e.is_asking} room={e.holder and e.holder.room} fresh={e.is_fresh}"
                    for l in mesh.ledgers.values() for e in [l._entries.get('a')] if e) + f" CHILDREN " + "; ".join([
                    f"{c} {await Desk(mesh.server).owner(c)} " + ", ".join(f"{l._leases._holder[:4]} wanting={e.is_wanting} wanted={e.is_wanted} room={e.holder and e.holder.room}" for l in mesh.ledgers.values() for e in [l._entries.get(c)] if e)
                    for c in [*books.children]]))
            else:
                got.settle(0)
        for _ in range(400):
            await asyncio.sleep(0)
        for ledger in mesh.ledgers.values():
            for entry in ledger._entries.values():
                if entry.is_asking:
                    bad.append("asking for ever")
        for ledger in mesh.ledgers.values():
            await ledger.close()
        books = await Desk(mesh.server).owner("a")
        if not faults and not books.children and (books.settled != billed or books.available != TOTAL - billed) and books.total:
            bad.append(f"at the end {books}, billed {billed}")
        if not faults and books.children:
            bad.append(f"children left {books.children}")
    return "; ".join(bad)


FREE = [0]


def trace() -> None:
    from meshd.ledger.account import Owner
    real = Owner.transfer

    def transfer(self: Any, child: str, tokens: int) -> int:
        got = real(self, child, tokens)
        FREE[0] += got == 0
        return got

    Owner.transfer = transfer


def patch() -> None:
    from meshd.ledger.leases import Leases
    from meshd.ledger.orders import Orders
    from meshd.ledger.desk import Desk

    answered = Leases._answered

    def _answered(self: Any, entry: Any, holder: Any, answer: Any, spent: int) -> None:
        answered(self, entry, holder, answer, spent)
        if entry.is_wanting and not entry.is_asking and all(w.future.done() for w in entry.waiting):
            self.tell(entry)

    Leases._answered = _answered
    from meshd.ledger.waiting import Line
    pumped = Line.pump

    def pump(self: Any, entry: Any) -> None:
        pumped(self, entry)
        self._done_wanting(entry)

    Line.pump = pump
    not_answered = Leases._not_answered

    def _not_answered(self: Any, entry: Any, error: Any) -> None:
        entry.is_wanting = False
        not_answered(self, entry, error)

    Leases._not_answered = _not_answered

    async def delegate(self: Any, reservation: Any, child: str) -> int:
        tokens, parent = reservation.bound, reservation.account
        report = reservation.lend()

        def move(owner: Any) -> int:
            owner.step(report)
            return owner.transfer(child, tokens)

        for attempt in range(3):
            try:
                got = await self._desk.order(parent, move)
                break
            except StoreError:
                if attempt == 2:
                    raise
        if not got:
            raise StoreError("gone")
        await self._certainly(child, lambda owner: owner.receive(parent, tokens))
        return tokens

    Orders.delegate = delegate


async def main() -> None:
    n = int(sys.argv[1])
    first = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    flags = sys.argv[3:]
    shown = failed = 0
    trace()
    if 'patched' in flags:
        patch()
    for seed in range(first, first + n):
        try:
            said = await asyncio.wait_for(run(seed, "faults" in flags, "children" in flags, "evict" in flags), 20)
        except TimeoutError:
            said = "hangs"
        except Exception as error:
            said = repr(error)
        if FREE[0]:
            said += f' FREE TOKENS x{FREE[0]}'
            FREE[0] = 0
        if said and not said.startswith(' FREE') or said and 'patched' not in flags:
            failed += 1
            if shown < 4:
                shown += 1
                print(seed, said[:1500])
    print(flags, n, "schedules,", failed, "bad")


import logging
logging.disable(logging.CRITICAL)
asyncio.run(main())
