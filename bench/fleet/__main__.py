"""Run the proof: see the package. Exits 1 where a token was overspent, or less than 95 % of the budget was usable."""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bench.fleet.engines import ENGINES, AbsentError, Engine
from bench.fleet.provider import Bill, serve
from bench.fleet.sidecars import MODEL, Sidecar, workflow_token
from bench.processes import Cores, end_all_on_signals

if TYPE_CHECKING:
    from collections.abc import Sequence

USABLE_MIN: Final = 0.95
FALSE_MAX: Final = 0.01
KILLS: Final = 3
CALLERS: Final = 64
PATIENCE_S: Final = 60.0
CONTEXT: Final = "x-meshd-context"
_BODY: Final = b'{"model":"%b","max_tokens":200,"messages":[{"role":"user","content":"%b"}]}' % (
    MODEL.encode(),
    b"word " * 100,
)


class Seen:
    """What callers were answered, and what was left of the budget when they were."""

    def __init__(self, bill: Bill, budget: int) -> None:
        self._bill = bill
        self._budget = budget
        self.all: Counter[int] = Counter()
        self.early: Counter[int] = Counter()
        """While at least a tenth of the budget was left."""

    @property
    def is_half_spent(self) -> bool:
        return self._bill.tokens >= self._budget / 2

    def note(self, status: int) -> None:
        self.all[status] += 1
        if self._bill.tokens <= 0.9 * self._budget:
            self.early[status] += 1


async def call(port: int, token: str) -> int:
    """Make one call on a connection of its own; 0 where there is no answer."""
    head = (
        f"POST /llm/v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"{CONTEXT}: {token}\r\nconnection: close\r\ncontent-length: {len(_BODY)}\r\n\r\n"
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(head.encode() + _BODY)
                answer = await reader.read()
            finally:
                writer.close()
        return int(answer[9:12])
    except (OSError, ValueError, TimeoutError):
        return 0


class Fleet:
    """One engine, its sidecars, one workflow."""

    def __init__(self, engine: Engine, sidecars: Sequence[Sidecar], token: str, seen: Seen, chance: random.Random):
        self._engine = engine
        self._sidecars = sidecars
        self._token = token
        self._seen = seen
        self._chance = chance

    async def storm(self, calls: int) -> None:
        """All calls at once; meanwhile sidecars and the engine are killed, and started again."""
        killing = asyncio.create_task(self._kill())
        await asyncio.gather(*(self._one(self._sidecars[number % len(self._sidecars)]) for number in range(calls)))
        await killing

    async def _one(self, sidecar: Sidecar) -> None:
        self._seen.note(await call(sidecar.port, self._token))

    async def _kill(self) -> None:
        for sidecar in self._chance.sample(list(self._sidecars), KILLS):
            await asyncio.sleep(0.2)
            sidecar.kill()
            sidecar.start()
        await asyncio.to_thread(self._engine.kill)
        await asyncio.sleep(0.5)
        await asyncio.to_thread(self._engine.start)
        for sidecar in self._sidecars:
            await asyncio.to_thread(sidecar.wait)

    async def exhaust(self) -> float:
        """Callers that go on until there is nothing left; return the engine's requests a call while half was left."""
        before = await self._engine.requests()
        steady: list[float] = []

        async def measure() -> None:
            answered = sum(self._seen.all.values())
            steady.append((await self._engine.requests() - before) / max(1, answered))

        measuring: list[asyncio.Task[None]] = []

        async def caller(number: int) -> None:
            refused = 0
            while refused < 3:
                status = await call(self._sidecars[(number + refused) % len(self._sidecars)].port, self._token)
                self._seen.note(status)
                if status not in (200, 402, 429, 503):
                    raise click.ClickException(f"a sidecar answered {status or 'nothing'}")
                refused = refused + 1 if status == 402 else 0
                if not measuring and self._seen.is_half_spent:
                    measuring.append(asyncio.create_task(measure()))

        await asyncio.gather(*(caller(number) for number in range(CALLERS)))
        await asyncio.gather(*measuring)
        return steady[0]


async def prove(name: str, *, sidecars: int, calls: int, budget: int, seed: int) -> bool:
    """Run the proof on one engine and print it; True where all that it must show holds."""
    folder = Path(tempfile.mkdtemp(prefix="meshd-fleet-"))
    cores = Cores.of_this_machine()
    bill, chance = Bill(seed), random.Random(seed)
    server, port = await serve(bill)
    began_s = time.monotonic()
    engine: Engine = ENGINES[name](folder, cores.upstream)
    fleet: list[Sidecar] = []
    try:
        engine.start()
        for number in range(sidecars):
            one = Sidecar(number, folder, (cores.proxy, cores.load)[number % 2], engine.url, port, budget)
            fleet.append(one)
            one.start()
            if number == 0:
                await asyncio.to_thread(one.wait)  # it makes the key that all share
        for one in fleet:
            await asyncio.to_thread(one.wait)
        _say(began_s, f"{sidecars} sidecars on {name}")
        seen = Seen(bill, budget)
        run = Fleet(engine, fleet, workflow_token(folder), seen, chance)
        await run.storm(calls)
        _say(began_s, f"{calls:,} calls at once, {KILLS} sidecars and the engine killed: {_words(seen.all)}")
        after_storm = bill.tokens
        calm = Seen(bill, budget)
        run._seen = calm
        requests = await run.exhaust()
        _say(began_s, f"{CALLERS} callers until nothing was left: {_words(calm.all)}")
        return _report(name, bill, budget, after_storm, seen, calm, requests)
    finally:
        for one in fleet:
            one.kill()
        engine.kill()
        server.close()
        shutil.rmtree(folder, ignore_errors=True)


def _report(name: str, bill: Bill, budget: int, after_storm: int, seen: Seen, calm: Seen, requests: float) -> bool:
    false = sum(calm.early[status] for status in (402, 429)) / max(1, sum(calm.early.values()))
    usable = bill.tokens / budget
    holds = bill.tokens <= budget and usable >= USABLE_MIN and false <= FALSE_MAX
    rows = (
        ("tokens billed by the provider", f"{bill.tokens:,} of {budget:,}", "<= budget"),
        ("overspent", f"{max(0, bill.tokens - budget):,}", "0"),
        ("usable at exhaustion", f"{usable:.1%}", ">= 95 %"),
        ("billed in the storm", f"{after_storm:,}", "-"),
        ("false refusals in the calm, 10 % left", f"{false:.2%} of {sum(calm.early.values()):,} calls", "<= 1 %"),
        ("engine requests a call, half left", f"{requests:.3f}", "<= 0.05"),
    )
    print(f"{name}: {'holds' if holds else 'DOES NOT HOLD'}")
    for label, value, goal in rows:
        print(f"  {label:<40}{value:>28}   {goal}")
    print(f"  answers in the storm: {_words(seen.all)}; in the calm: {_words(calm.all)}")
    return holds


def _words(statuses: Counter[int]) -> str:
    return ", ".join(f"{count:,} x {status or 'no answer'}" for status, count in sorted(statuses.items()))


def _say(began_s: float, text: str) -> None:
    print(f"[{time.monotonic() - began_s:5.1f} s] {text}", file=sys.stderr, flush=True)


@click.command()
@click.option("--store", "stores", multiple=True, type=click.Choice(sorted(ENGINES)), help="Engine; repeatable.")
@click.option("--sidecars", default=16, show_default=True)
@click.option("--calls", default=2000, show_default=True, help="Calls at once.")
@click.option("--budget", default=3_000_000, show_default=True, help="Tokens of the one workflow.")
@click.option("--seed", default=1, show_default=True)
def main(stores: tuple[str, ...], sidecars: int, calls: int, budget: int, seed: int) -> None:
    """Many sidecars on one budget, on each engine in turn."""
    end_all_on_signals()
    all_hold = True
    for name in stores or sorted(ENGINES):
        try:
            all_hold &= asyncio.run(prove(name, sidecars=sidecars, calls=calls, budget=budget, seed=seed))
        except AbsentError as error:
            print(f"{name}: absent: {error}")
    sys.exit(not all_hold)


if __name__ == "__main__":
    main()
