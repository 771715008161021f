"""A replay of LLM requests on one budget, in virtual time: `make replay`, `python -m bench.replay [--trace FILE]`.

How loose are the bounds, how many calls are refused that need not be, and how much of the budget can be used? The
requests are drawn here, from what was published of a large provider's traffic: sizes lognormal, with the medians and
spreads that the Azure LLM inference trace of 2023 shows for conversations (1,020 tokens in, 129 out) and for code
(1,469 in, 13 out, in bursts). A trace of your own, or that one itself, goes in by `--trace`: a CSV file with the
columns TIMESTAMP, ContextTokens and GeneratedTokens.

Nothing here waits: an event loop whose clock jumps to the next event runs the real ledger.
"""

from __future__ import annotations

import asyncio
import csv
import math
import random
import selectors
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from meshd.call import Ask
from meshd.engines.memory import MemoryStore
from meshd.filters.purse import CEILING, FLOOR, OUTPUT_DEFAULT, QUEUE_S
from meshd.filters.taking import Taken
from meshd.ledger import Ledger, Reservation, Shortfall
from meshd.ledger.cost import need_of
from meshd.ledger.desk import Desk

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

SHARE: Final = 0.6
"""Of all tokens that the trace would take: what the budget has, so that it ends before the trace does."""
BYTES_PER_TOKEN: Final = 4.4
"""Of English text in a large vocabulary; the byte bound is loose by so much."""
OVERHEAD: Final = 120
"""Bytes of JSON around the text."""
FIRST_TOKEN_S: Final = 0.4
TOKEN_S: Final = 0.02
EARLY: Final = 0.9
"""While less than this is spent, a refusal of a call that would have fitted is a false one."""


class Request(NamedTuple):
    """One request of a trace."""

    at_s: float
    given: int
    made: int


class Shape(NamedTuple):
    """What is drawn from: medians and spreads (of the logarithm) of tokens, seconds between calls, and their spread."""

    given: int
    given_spread: float
    given_max: int
    made: int
    made_spread: float
    made_max: int
    gap_s: float
    gap_spread: float
    """Standard deviation over the mean: 1 for calls that know nothing of each other, above for bursts."""


SHAPES: Final = {
    "conversation": Shape(1020, 0.99, 14_050, 129, 0.86, 1000, 0.18, 1.1),
    "code": Shape(1469, 1.36, 7437, 13, 0.85, 1899, 0.39, 13.0),
}


def drawn(shape: Shape, count: int, seed: int) -> list[Request]:
    """Draw a trace."""
    chance = random.Random(seed)
    at_s, made = 0.0, []
    regularity = 1 / shape.gap_spread**2
    for _ in range(count):
        at_s += chance.gammavariate(regularity, shape.gap_s / regularity)
        given = min(shape.given_max, max(1, round(chance.lognormvariate(math.log(shape.given), shape.given_spread))))
        output = min(shape.made_max, max(1, round(chance.lognormvariate(math.log(shape.made), shape.made_spread))))
        made.append(Request(at_s, given, output))
    return made


def read(path: Path, count: int) -> list[Request]:
    """Read a trace. Raises ClickException naming the line that is none."""
    found: list[Request] = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            try:
                at_s = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
                one = Request(at_s, int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            except (KeyError, ValueError, TypeError) as error:
                raise click.ClickException(f"{path}, line {len(found) + 2}: {error}") from None
            found.append(one)
            if len(found) == count:
                break
    return found


class _Jumping(selectors.DefaultSelector):
    """Waits for nothing: what a loop would have waited is told to its clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now_s += timeout or 0.0
        return super().select(0)


def run_in_virtual_time(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on a loop whose clock jumps to the next timer."""
    selector = _Jumping()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s  # type: ignore[method-assign]
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


class Result:
    """What came of a replay."""

    def __init__(self) -> None:
        self.spent = 0
        self.bound = 0
        """Tokens reserved for calls that were admitted, as first asked for."""
        self.cost = 0
        """Tokens that they cost."""
        self.admitted = self.clamped = self.shortened = 0
        self.early = self.false_busy = self.false_exhausted = 0


async def replay(trace: Sequence[Request], budget: int, sidecars: int, cap: int | None, *, is_exact: bool) -> Result:
    """Play a trace on one account; `cap` is what clients set, `is_exact` counts in place of bounding by bytes."""
    store = MemoryStore()
    ledgers = [Ledger(Desk(store), 1, holder=f"sidecar-{number}") for number in range(sidecars)]
    result = Result()

    async def one(number: int, request: Request) -> None:
        ledger = ledgers[number % sidecars]
        bound = request.given + 10 if is_exact else round(request.given * BYTES_PER_TOKEN) + OVERHEAD
        need = need_of(Ask("chat", "gpt-4o", input_bound=bound, output_cap=cap), OUTPUT_DEFAULT, FLOOR)
        taken = Taken(need, None)
        whole = taken.amount(CEILING, need.cap)
        least = taken.least(CEILING, whole)
        is_early = result.spent < EARLY * budget
        result.early += is_early
        got = ledger.reserve("a", budget, whole, least)
        if got is None:
            got = await ledger.wait("a", budget, whole, least, queue_s=QUEUE_S)
        if isinstance(got, Shortfall):
            if is_early and request.given + request.made <= budget - result.spent:
                result.false_busy += got.is_busy
                result.false_exhausted += not got.is_busy
            return
        assert isinstance(got, Reservation)
        granted = got.bound - bound
        made = min(request.made, granted)
        result.admitted += 1
        result.clamped += got.bound < whole
        result.shortened += made < request.made
        await asyncio.sleep(FIRST_TOKEN_S + TOKEN_S * made)
        got.settle(request.given + made)
        result.spent += request.given + made
        result.bound += whole
        result.cost += request.given + made

    began_s = trace[0].at_s
    loop = asyncio.get_running_loop()
    tasks = []
    for number, request in enumerate(trace):
        await asyncio.sleep(max(0.0, request.at_s - began_s - loop.time()))
        tasks.append(loop.create_task(one(number, request)))
    await asyncio.gather(*tasks)
    return result


def show(name: str, trace: Sequence[Request]) -> bool:
    """Replay a trace in every way and print a table; True where nothing was overspent."""
    total = sum(request.given + request.made for request in trace)
    budget = round(SHARE * total)
    print(f"{name}: {len(trace):,} requests, {total:,} tokens, budget {budget:,}")
    print(
        f"  {'bound':<7}{'cap':>6}{'sidecars':>9}{'bound/actual':>13}{'usable':>8}{'overspent':>10}"
        f"{'false: busy':>12}{'exhausted':>10}{'of calls':>9}{'shortened':>10}"
    )
    holds = True
    for is_exact in (False, True):
        for cap in (1000, None):
            for sidecars in (1, 16):
                got = run_in_virtual_time(replay(trace, budget, sidecars, cap, is_exact=is_exact))
                over = max(0, got.spent - budget)
                holds &= not over
                false = (got.false_busy + got.false_exhausted) / max(1, got.early)
                print(
                    f"  {'exact' if is_exact else 'bytes':<7}{cap or 'none':>6}{sidecars:>9}"
                    f"{got.bound / max(1, got.cost):>13.2f}{got.spent / budget:>8.1%}{over:>10,}"
                    f"{got.false_busy:>12,}{got.false_exhausted:>10,}{false:>9.2%}{got.shortened:>10,}"
                )
    return holds


@click.command()
@click.option("--trace", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A CSV file to replay.")
@click.option("--requests", default=5000, show_default=True, help="How many, at most.")
@click.option("--seed", default=1, show_default=True)
def main(trace: Path | None, requests: int, seed: int) -> None:
    """Replay LLM requests on one budget, and print false refusals and how loose the bounds are."""
    if trace is not None:
        found = read(trace, requests)
        if not found:
            raise click.ClickException(f"{trace} has no requests")
        sys.exit(not show(trace.name, found))
    shown = [show(name, drawn(shape, requests, seed)) for name, shape in SHAPES.items()]
    sys.exit(not all(shown))


if __name__ == "__main__":
    main()
