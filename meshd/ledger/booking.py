"""Charging what was spent without a reservation: usage that an agent reports when its work is done.

Nothing could be asked beforehand, since nobody knew how much it would be. It is charged in full all the same, the
account's end or not; what the account could not cover counts as a bound that was passed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from meshd.engines.port import StoreError
from meshd.ledger.entry import Reservation

if TYPE_CHECKING:
    from meshd.ledger.ledger import Ledger

_log = logging.getLogger("meshd.ledger")


def book(ledger: Ledger, account: str, limit: int, tokens: int) -> None:
    """Charge `tokens` to an account whose limit is `limit`. Never raises, and never waits: where the account must be
    read first, or needs another lease, that goes on behind."""
    try:
        entry = ledger.hold(account, limit, tokens)
    except StoreError:
        entry = None
    if entry is not None:
        ledger.pay(entry, tokens, tokens)
        return
    ledger.behind(_book_later(ledger, account, limit, tokens))


async def _book_later(ledger: Ledger, account: str, limit: int, tokens: int) -> None:
    try:
        # As much as there is, so that the lease covers what it can.
        got = await ledger.wait(account, limit, tokens, 1, queue_s=0.0)
    except (StoreError, asyncio.CancelledError) as error:
        _pay_over(ledger, account, tokens, str(error))
        return
    if isinstance(got, Reservation):
        got.settle(tokens)
    else:
        ledger.refused -= 1  # It was none: what is booked was done already.
        _pay_over(ledger, account, tokens, "the account has nothing left")


def _pay_over(ledger: Ledger, account: str, tokens: int, why: str) -> None:
    """Charge what no lease covers, where the account was read at all."""
    entry = ledger.accounts.get(account)
    if entry is None or entry.holder is None:
        _log.error("%d tokens that %s has spent could not be charged: %s", tokens, account, why)
        return
    ledger.pay(entry, 0, tokens)
