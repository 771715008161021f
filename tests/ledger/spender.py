"""A process that spends until it is killed: `python -m tests.ledger.spender DIRECTORY MODE TOTAL SEED`.

It prints a line each time that its "provider" bills something, after the reservation and before the settlement,
straight to the descriptor: what was printed was spent, whatever becomes of this process.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from meshd.ledger import Ledger, Reservation, Shortfall

ACCOUNTS = ("workflow/a", "workflow/b", "workflow/c")


async def main(path: str, mode: str, total: int, seed: int) -> None:
    """Spend from each account until its budget refuses the smallest call."""
    chance = random.Random(seed)
    # Small segments, so that a kill also falls between a rotation and its checkpoint.
    ledger = await Ledger.open(Path(path), segment_bytes=1024)
    os.write(1, b"ready\n")
    left = set(ACCOUNTS)

    async def call(account: str) -> None:
        bound = chance.randint(1, 60)
        got: Reservation | Shortfall | None = None
        if mode == "fast":
            got = ledger.reserve(account, total, bound, 1)
        if got is None:
            got = await ledger.wait(account, total, bound, 1, queue_s=30, is_durable=mode == "durable")
        if isinstance(got, Shortfall):
            if not got.is_busy:
                left.discard(account)
            return
        actual = chance.randint(0, got.bound)
        os.write(1, f"{account} {actual}\n".encode())
        if chance.random() < 0.5:
            await asyncio.sleep(0)
        got.settle(actual)

    while left:
        await asyncio.gather(*(call(account) for account in sorted(left) for _ in range(8)))
    await ledger.close()
    os.write(1, b"done\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
