"""What a reservation costs: `python -m tests.ledger.measure`. Prints microseconds; judges nothing."""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from meshd.call import Ask, Call, Direction, Kind, Target, Usage
from meshd.filters.budget import Budget
from meshd.filters.budget_settings import BudgetSettings
from meshd.filters.held import Held
from meshd.filters.plan import Plan
from meshd.ledger import Ledger, Reservation
from meshd.outcome import Outcome, Verdict
from meshd_sdk.context import Context

if TYPE_CHECKING:
    from collections.abc import Sequence

ROUNDS = 100_000


def line(name: str, took_ns: Sequence[int]) -> str:
    """Return one row of the table: p50, p99 and mean of `took_ns`, in microseconds."""
    ordered = sorted(took_ns)
    p50, p99 = ordered[len(ordered) // 2] / 1000, ordered[len(ordered) * 99 // 100] / 1000
    return f"{name:<46}{p50:>10.2f}{p99:>10.2f}{sum(ordered) / len(ordered) / 1000:>10.2f}"


async def fast(ledger: Ledger, accounts: int) -> list[int]:
    """Reserve and settle in turn over `accounts` accounts that all have a lease."""
    names = [f"workflow/{number}" for number in range(accounts)]
    for name in names:
        first = await ledger.wait(name, 10**12, 5000, 5000, queue_s=5)
        assert isinstance(first, Reservation)
        first.settle(700)
    took: list[int] = []
    clock = time.perf_counter_ns
    for number in range(ROUNDS):
        name = names[number % accounts]
        began = clock()
        one = ledger.reserve(name, 10**12, 5000, 1500)
        if one is None:
            one = await ledger.wait(name, 10**12, 5000, 1500, queue_s=5)
        assert isinstance(one, Reservation)
        one.settle(700)
        took.append(clock() - began)
        if number % 100 == 0:
            await asyncio.sleep(0)
    return took


async def filtered(ledger: Ledger) -> list[int]:
    """Admit and settle through the filter, on one workflow."""
    call = Call(
        id="c",
        direction=Direction.OUTBOUND,
        method="POST",
        path="/v1/chat/completions",
        authority="",
        headers=[],
        now_s=0,
        wall_s=0,
    )
    call.target = Target(Kind.LLM, "openai", "gpt-x")
    call.ask = Ask("chat", "gpt-x", input_bound=1300, output_cap=500, is_stream=True)
    call.context = Context(workflow="w", agent="a", account="workflow/w")
    call.plan = Plan(budgets=(BudgetSettings.model_validate({"tokens": 10**12}),))
    budget = Budget(ledger)
    end = Outcome(Verdict.SUCCESS, 0.0, status=200, is_forwarded=True, usage=Usage(300, 150))
    first = budget.admit(call)
    assert first is not None
    assert not isinstance(first, Held)
    (await first.coroutine).settle(end)
    took: list[int] = []
    clock = time.perf_counter_ns
    for number in range(ROUNDS):
        began = clock()
        ticket = budget.admit(call)
        if not isinstance(ticket, Held):
            assert ticket is not None
            ticket = await ticket.coroutine
        ticket.settle(end)
        took.append(clock() - began)
        if number % 100 == 0:
            await asyncio.sleep(0)
    return took


async def durable(ledger: Ledger, at_once: int) -> list[int]:
    """Reserve durably, `at_once` calls at a time."""
    took: list[int] = []
    clock = time.perf_counter_ns

    async def one() -> None:
        began = clock()
        reservation = await ledger.wait("workflow/durable", 10**12, 5000, 5000, queue_s=5, is_durable=True)
        took.append(clock() - began)
        assert isinstance(reservation, Reservation)
        reservation.settle(700)

    for _ in range(20):
        await asyncio.gather(*(one() for _ in range(at_once)))
    return took


async def main() -> None:
    """Measure in a fresh directory and print the table."""
    print(f"{'microseconds':<46}{'p50':>10}{'p99':>10}{'mean':>10}")
    for accounts in (1, 10_000):
        with tempfile.TemporaryDirectory() as path:
            ledger = await Ledger.open(Path(path))
            gc.freeze()
            print(line(f"reserve + settle, journal, {accounts} accounts", await fast(ledger, accounts)))
            await ledger.close()
    with tempfile.TemporaryDirectory() as path:
        ledger = await Ledger.open(Path(path))
        print(line("the filter: admit + settle, journal", await filtered(ledger)))
        await ledger.close()
    ledger = Ledger.in_memory()
    print(line("reserve + settle, no journal", await fast(ledger, 1)))
    for at_once in (1, 100):
        with tempfile.TemporaryDirectory() as path:
            ledger = await Ledger.open(Path(path))
            print(line(f"durable reserve, {at_once} at once", await durable(ledger, at_once)))
            await ledger.close()


ACCOUNTS = 20_000


def resident_mb() -> float:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


async def live(accounts: int) -> None:
    """Hold a reservation on as many accounts, end as a kill would, and start again; print memory and seconds."""
    with tempfile.TemporaryDirectory() as path:
        ledger = await Ledger.open(Path(path), open_max=accounts)
        before_mb, began = resident_mb(), time.perf_counter()
        for at in range(0, accounts, 500):
            names = [f"workflow/{number}" for number in range(at, at + 500)]
            await asyncio.gather(*(ledger.wait(name, 10**9, 5000, 5000, queue_s=60) for name in names))
        opened_s, grown_mb = time.perf_counter() - began, resident_mb() - before_mb
        assert ledger._journal is not None
        assert ledger._directory is not None
        await ledger._leases.finish()
        ledger._journal.close()
        ledger._directory.close()
        await ledger._desk.store.close()
        began = time.perf_counter()
        again = await Ledger.open(Path(path))
        restart_s = time.perf_counter() - began
        size_mb = sum(file.stat().st_size for file in Path(path).iterdir()) / 1e6
        await again.close()
    print(
        f"{accounts:,} live accounts: {grown_mb:.1f} MB of memory ({grown_mb * 1000 / accounts:.2f} kB each), opened "
        f"in {opened_s:.1f} s; killed with a call in flight on each, started again in {restart_s:.1f} s "
        f"({again.started.recovered:,} leases settled); {size_mb:.0f} MB on disk"
    )


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
        runner.run(live(ACCOUNTS))
    sys.exit(0)
