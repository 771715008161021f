"""Accounts that cannot be overspent (guarantees, part 1).

Read in this order:

    account     Owner and Holder: the two pure state machines, and the messages between them
    journal     the holder's log: what is written before a call goes out
    recovery    what a start makes of the log of the run before
    desk        the owner's books in a store, by compare-and-set
    entry       an account in memory: does this call fit, and who waits
    leases      the accounts in memory, and the conversation with their owner
    upkeep      group sync and checkpoints of the journal
    faults      what keeps the books from being kept, said once
    directory   one daemon at a time, and which run of the host this is
    ledger      the facade: reserve, wait, settle
    cost        what an attempt can cost at most, and what it did cost
"""

from meshd.ledger.entry import AccountView, Reservation, Shortfall
from meshd.ledger.ledger import Ledger

__all__ = ["AccountView", "Ledger", "Reservation", "Shortfall"]
