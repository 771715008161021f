"""An account as the ledger keeps it in memory, and the question that it is asked: does this call fit?"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.prices import MONEY

if TYPE_CHECKING:
    import asyncio

    from meshd.ledger.account import Report
    from meshd.ledger.holder import Holder
    from meshd.ledger.ledger import Ledger

WAIT: Final = 0
"""`fit`: it does not fit now, but might when calls in flight have settled."""
NEVER: Final = -1
"""`fit`: it would not fit if nothing were in flight."""


class Shortfall(NamedTuple):
    """Why a reservation was not made."""

    account: str
    limit: int
    used: int
    """Tokens spent, over all holders, as far as they have reported."""
    reserved: int
    """Tokens held by calls in flight, here; and elsewhere, what lies under lease."""
    bound: int
    """Tokens that the call asked for."""
    least: int
    """Tokens that it could have done with."""
    is_busy: bool
    """Only calls in flight stood in the way: worth trying again soon."""
    is_closed: bool = False
    """An operator, or the caller that gave these tokens, has closed the account."""


class AccountView(NamedTuple):
    """One account, for people: tokens."""

    id: str
    total: int
    spent: int
    reserved: int


class Reservation:
    """Tokens held for one attempt. Settle it exactly once."""

    __slots__ = ("_entry", "_ledger", "account", "bound", "charged", "limit")

    def __init__(self, ledger: Ledger, entry: Entry, bound: int) -> None:
        self._ledger = ledger
        self._entry: Entry | None = entry
        self.account = entry.id
        """Whose tokens are held."""
        self.limit = entry.whole
        """What the account might spend in all when this was reserved."""
        self.bound = bound
        self.charged = 0

    @property
    def entry(self) -> Entry | None:
        """The account; None once it is settled."""
        return self._entry

    def settle(self, tokens: int) -> None:
        """Charge `tokens`, all of them, and give the rest of the bound back. Never raises; twice is as once."""
        entry, self._entry = self._entry, None
        if entry is not None:
            self.charged = tokens
            self._ledger.pay(entry, self.bound, tokens)

    def lending(self) -> Report:
        """Say what the owner is told once another account has these tokens."""
        assert self._entry is not None
        assert self._entry.holder is not None
        return self._entry.holder.lending(self.bound)

    def lend(self) -> None:
        """End the reservation without a charge, since the tokens are no longer this holder's."""
        entry, self._entry = self._entry, None
        if entry is not None:
            self._ledger.lend(entry, self.bound)

    def shrink(self, bound: int) -> None:
        """Hold fewer tokens than before."""
        if self._entry is not None and bound < self.bound:
            self._ledger.loosen(self._entry, self.bound - bound)
            self.bound = bound


class Waiter:
    """A call that waits for room, for a lease, or for the account to be read."""

    __slots__ = ("asks", "bound", "future", "is_extended", "is_volatile", "least", "limit", "timer")

    def __init__(
        self, limit: int, bound: int, least: int, future: asyncio.Future[Reservation | Shortfall], *, is_volatile: bool
    ) -> None:
        self.limit = limit
        self.bound = bound
        self.least = least
        self.future = future
        """Ends in a reservation or a Shortfall; or in a StoreError."""
        self.is_volatile = is_volatile
        self.asks = 0
        """How often the owner was asked for what this call needs."""
        self.is_extended = False
        self.timer: asyncio.TimerHandle | None = None


class Entry:
    """One account in memory."""

    __slots__ = (
        "frees",
        "given_back",
        "holder",
        "id",
        "is_asking",
        "is_fresh",
        "is_money",
        "is_wanted",
        "is_wanting",
        "largest",
        "limit",
        "poll",
        "recalls",
        "refill_below",
        "reported",
        "waiting",
    )

    def __init__(self, id: str) -> None:
        self.id = id
        self.is_money = id.endswith(MONEY)
        self.holder: Holder | None = None
        """None until the owner has been asked for the first time."""
        self.waiting: deque[Waiter] = deque()
        """First come, first served: what fits must not overtake, or a large call would starve."""
        self.is_asking = False
        """A message to the owner is under way; there is never more than one, so none overtakes another."""
        self.is_fresh = False
        """Nothing is known to have come back since the owner last answered: a "no" can be said without asking."""
        self.is_wanted = False
        """Other holders wait for what lies idle here."""
        self.is_wanting = False
        """The owner knows that a call here waits for what others hold."""
        self.poll: asyncio.TimerHandle | None = None
        """Asks the owner again, should the word that something came back be lost."""
        self.limit = 0
        """As the last call gave it, for display."""
        self.largest = 0
        self.refill_below = -1
        """Ask for more when the lease has less room than this; -1 where the owner has nothing more to give."""
        self.reported = 0
        """What the owner knows to be spent."""
        self.given_back = 0
        """What the owner knows to have been given back."""
        self.recalls = 0
        self.frees = 0
        """Notices heard: an answer to what was asked before the last of them does not know of it."""

    @property
    def whole(self) -> int:
        """Tokens that it may spend in all, by the last call's limit and what operators added."""
        return self.holder.whole(self.limit) if self.holder is not None else self.limit

    @property
    def is_idle(self) -> bool:
        """Nothing is reserved, nobody waits, no message is under way."""
        holder = self.holder
        return holder is not None and not holder.reserved and not self.waiting and not self.is_asking

    @property
    def is_told(self) -> bool:
        """The owner knows all that was spent and given back here."""
        holder = self.holder
        return holder is None or (holder.spent <= self.reported and holder.returned <= self.given_back)

    @property
    def is_store_awaited(self) -> bool:
        """It is the store that the first in the queue waits for, not calls in flight."""
        if not self.is_asking or not self.waiting:
            return False
        first, holder = self.waiting[0], self.holder
        return holder is None or fit(holder, first.limit, first.bound, first.least) != WAIT

    def shortfall(self, waiter: Waiter, *, is_busy: bool) -> Shortfall:
        """Say why `waiter` goes without."""
        holder = self.holder
        used = holder.elsewhere - holder.lent + holder.spent if holder is not None else 0
        reserved = holder.reserved + holder.lent if holder is not None else 0
        is_closed = holder is not None and holder.is_closed
        limit = holder.whole(waiter.limit) if holder is not None else waiter.limit
        return Shortfall(self.id, limit, used, reserved, waiter.bound, waiter.least, is_busy, is_closed)


def fit(holder: Holder, limit: int, bound: int, least: int) -> int:
    """Return how many tokens a call may reserve, from `least` to `bound`; or WAIT, or NEVER.

    Less than the bound is given only where the bound would not fit even with nothing in flight, here and with other
    holders: a call that only has to wait a moment is not worth a shorter answer.
    """
    left_idle = holder.whole(limit) - holder.elsewhere - holder.spent
    left = left_idle - holder.reserved
    if bound <= left:
        return bound
    left_idle += holder.lent
    if bound > left_idle and least <= left:
        return left
    return WAIT if least <= left_idle else NEVER


def wish(holder: Holder, limit: int, bound: int, least: int) -> int:
    """Return how many tokens a call would reserve if all came back that is in flight or held elsewhere."""
    return max(least, min(bound, holder.whole(limit) - holder.elsewhere - holder.spent + holder.lent))
