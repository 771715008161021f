"""Measure, and print a table. Exits 1 where a goal is missed."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bench.discovery.data import Data
from bench.discovery.retrieval import captured, latency, live, toole
from bench.discovery.routing import banking, clinc, validation
from bench.discovery.rows import Model
from bench.discovery.saving import saving

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.discovery.rows import Row

    Measure = Callable[[Data, Model | None], list[Row]]

MEASURES: Final[dict[str, Measure]] = {
    "live": live,
    "toole": toole,
    "banking": banking,
    "clinc": clinc,
    "captured": captured,
    "latency": latency,
    "saving": saving,
    "validation": validation,
}
_WHERE_NAMED: Final = frozenset({"validation"})
"""Measured only by name: settings are chosen by it, and nothing is shown by it."""
_WIDTH: Final = 40


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(MEASURES)))
@click.option("--data", "folder", type=click.Path(path_type=Path, exists=True), help="The files, instead of fetching.")
@click.option("--embedder", type=click.Choice(["minilm"]), help="Find by meaning too, by this model.")
@click.option("--python", default=sys.executable, help="An interpreter with the extra `embeddings`, for the model.")
def main(names: tuple[str, ...], folder: Path | None, embedder: str | None, python: str) -> None:
    """Measure how well tools are found and intents told apart: all but "validation", or those named."""
    data = Data(folder)
    model = Model(embedder, python) if embedder else None
    is_missed = False
    began_s = time.monotonic()
    for name in names or [one for one in MEASURES if one not in _WHERE_NAMED]:
        print(f"[{time.monotonic() - began_s:5.1f} s] {name} ...", file=sys.stderr, flush=True)
        for row in MEASURES[name](data, model):
            verdict = "" if row.is_met is None else "met" if row.is_met else "MISSED"
            print(f"{row.what:<{_WIDTH}}  {row.figure}  {row.goal}  {verdict}".rstrip(), flush=True)
            is_missed |= row.is_met is False
    sys.exit(is_missed)


if __name__ == "__main__":
    main()
