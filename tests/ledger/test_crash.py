"""kill -9 in the middle of thousands of reservations, again and again on the same books."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from meshd.ledger import Ledger
from tests.ledger.spender import ACCOUNTS

TOTAL = 40_000


def _spend(directory: Path, mode: str, seed: int, kill_after_lines: int | None) -> tuple[dict[str, int], bool]:
    """Run a spender, kill it after so many lines; return what it spent by account, and whether it came to its end."""
    spent = dict.fromkeys(ACCOUNTS, 0)
    lines = 0
    is_done = False
    with subprocess.Popen(
        [sys.executable, "-m", "tests.ledger.spender", str(directory), mode, str(TOTAL), str(seed)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            words = line.split()
            if words == [b"done"]:
                is_done = True
            elif len(words) == 2:
                spent[words[0].decode()] += int(words[1])
            lines += 1
            if lines == kill_after_lines:
                child.kill()
    return spent, is_done


async def _used(directory: Path) -> dict[str, int]:
    ledger = await Ledger.open(directory)
    used = {}
    for account in ACCOUNTS:
        # Nothing fits into a limit of nothing: the refusal says what the books hold.
        short = await ledger.wait(account, 0, 1, 1, queue_s=0)
        assert hasattr(short, "used")
        used[account] = short.used
    assert ledger.state == "ok"
    await ledger.close()
    return used


@pytest.mark.parametrize("mode", ["fast", "durable"])
def test_killed_at_any_time_nothing_is_overspent(mode: str, tmp_path: Path) -> None:
    chance = random.Random(mode)
    provider = dict.fromkeys(ACCOUNTS, 0)
    in_flight_max = 0
    for seed in range(8):
        spent, is_done = _spend(tmp_path, mode, seed, chance.randint(1, 600))
        for account, tokens in spent.items():
            provider[account] += tokens
        assert not is_done, "the kills must come before the end"
        in_flight_max += 8 * 60
        used = asyncio.run(_used(tmp_path))
        for account in ACCOUNTS:
            assert provider[account] <= used[account] <= TOTAL
            # Only what was in flight when the process died is counted above what it spent: no lease is stranded.
            assert used[account] - provider[account] <= in_flight_max
    spent, is_done = _spend(tmp_path, mode, 99, None)
    assert is_done
    used = asyncio.run(_used(tmp_path))
    for account in ACCOUNTS:
        provider[account] += spent[account]
        assert provider[account] <= used[account]
        assert used[account] == TOTAL, "the tail is usable to the last token"
