"""Charging what was spent without being asked for: the whole of it, whatever the account has left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.engines.port import StoreError
from meshd.ledger.entry import Reservation

if TYPE_CHECKING:
    from meshd.ledger.ledger import Ledger


async def hold_whole(ledger: Ledger, account: str, limit: int, tokens: int) -> Reservation:
    """Reserve all of `tokens`, in the journal as any reservation, though the account may then have less than nothing.

    What is reserved beyond the lease is taken out of the account when its owner hears of it, as usage above its bound
    is (guarantees, part 1, rule 10). Raises StoreError, and then nothing is reserved.
    """
    got = await ledger.wait(account, limit, tokens, tokens, queue_s=0.0)
    if isinstance(got, Reservation):
        return got
    ledger.refused -= 1  # nobody was refused anything
    entry = ledger.accounts.get(account)
    if entry is None or entry.holder is None:
        raise StoreError(f"too many calls wait for account {account} to be read")
    # The owner was asked, so it knows of a lease to charge this to.
    return ledger.taken(entry, entry.holder, tokens)
