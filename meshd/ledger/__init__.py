"""Accounts that cannot be overspent (guarantees, part 1).

Read in this order:

    account     the owner's books as a pure state machine, and the messages between it and the holders
    holder      the holder's side of them: all that an admission looks at
    journal     the holder's log: what is written before a call goes out
    recovery    what a start makes of the log of the run before
    desk        the owner's books in a store, by compare-and-set
    entry       an account in memory: does this call fit, and who waits
    waiting     the line of calls that wait on an account
    leases      the accounts in memory, and the conversation with their owner and with other holders
    orders      what operators ask of accounts, and callers that delegate a part of what they have
    witness     is this the store that we knew, and who are we to it
    upkeep      group sync and checkpoints of the journal
    faults      what keeps the books from being kept, said once
    directory   one daemon at a time, and which run of the host this is
    ledger      the facade: reserve, wait, settle
    cost        what an attempt can cost at most, and what it did cost
"""

from meshd.ledger.entry import AccountView, Reservation, Shortfall
from meshd.ledger.ledger import Ledger

__all__ = ["AccountView", "Ledger", "Reservation", "Shortfall"]
