"""Measure, and print a table. Exits 1 where a goal is missed."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from bench.outage.failover import failover
from bench.outage.goodput import SCENES, goodput
from bench.outage.stage import Row, Stage
from bench.outage.traffic import dead, traffic
from bench.processes import end_all_on_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Measure = Callable[[Stage], Coroutine[Any, Any, list[Row]]]

MEASURES: Final[dict[str, Measure]] = {
    "traffic": traffic,
    "dead": dead,
    "failover": failover,
    **{f"goodput-{name}": lambda stage, name=name: goodput(stage, (name,)) for name in SCENES},
}
"""Each takes the stage and returns rows."""


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(MEASURES)))
@click.option("--seconds", default=6.0, show_default=True, help="Of each run.")
def main(names: tuple[str, ...], seconds: float) -> None:
    """Measure what becomes of calls while their provider is out or full: all, or those named."""
    end_all_on_signals()
    rows: list[Row] = []
    began_s = time.monotonic()
    stage = Stage(seconds)
    try:
        for name in names or MEASURES:
            print(f"[{time.monotonic() - began_s:5.1f} s] {name} ...", file=sys.stderr, flush=True)
            rows += asyncio.run(MEASURES[name](stage))
    finally:
        stage.close()
    width = max(len(row.what) for row in rows)
    for row in rows:
        verdict = "" if row.is_met is None else "met" if row.is_met else "MISSED"
        print(f"{row.what:<{width}}  {row.figure:<62}  {row.goal:<12}  {verdict}".rstrip())
    sys.exit(any(row.is_met is False for row in rows))


if __name__ == "__main__":
    main()
