"""What one run of the benchmark is asked to do: flags, and the environment for `make bench`."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

ROUNDS, SECONDS = 5, 2


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of one run."""

    rounds: int = ROUNDS
    seconds: int = SECONDS
    rows: tuple[str, ...] = ()
    """Names, or globs of names; empty for all."""
    peers: tuple[str, ...] = ()
    """Names beside meshd; empty for all that need not be asked for by name."""
    is_written: bool = False
    json: Path | None = None
    is_profile: bool = False
    keeps_logs: bool = False

    def wants_row(self, name: str) -> bool:
        """Say whether a row is to be measured."""
        return not self.rows or any(fnmatchcase(name, wanted) for wanted in self.rows)


def names(text: str) -> tuple[str, ...]:
    """Split a list of names at commas and blanks."""
    return tuple(part.lower() for part in text.replace(",", " ").split())


def read(arguments: list[str] | None = None) -> Options:
    """Read the command line; the environment (ROUNDS, SECONDS, ROWS, PEERS) gives the defaults. Exits on nonsense."""
    env = os.environ
    parser = argparse.ArgumentParser(prog="python -m bench", description="meshd beside other proxies, in one run")
    parser.add_argument("--rounds", type=int, default=_number(env.get("ROUNDS"), ROUNDS))
    parser.add_argument("--seconds", type=int, default=_number(env.get("SECONDS"), SECONDS))
    parser.add_argument("--rows", default=env.get("ROWS", ""), help="names, or globs such as http*")
    parser.add_argument("--peers", default=env.get("PEERS", ""), help="only these beside meshd; `litellm` adds it")
    parser.add_argument("--quick", action="store_true", help="one round of one second: shows that it works, no more")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/benchmarks.md")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--profile", action="store_true", help="show where the time of an HTTP call goes")
    parser.add_argument("--keep-logs", action="store_true", help="keep the folder of configurations and logs")
    given = parser.parse_args(arguments)
    if given.rounds < 1 or given.seconds < 1:
        parser.error("rounds and seconds are whole numbers from 1")
    return Options(
        rounds=1 if given.quick else given.rounds,
        seconds=1 if given.quick else given.seconds,
        rows=names(given.rows),
        peers=names(given.peers),
        is_written=given.write,
        json=given.json,
        is_profile=given.profile,
        keeps_logs=given.keep_logs,
    )


def _number(text: str | None, otherwise: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else otherwise
