"""The two sides of an account, as pure state machines: no clock, no I/O, nothing but messages (guarantees, part 1).

The *owner* keeps an account's books: `available + outstanding + settled == total` after every step. It hands out
*leases*. A *holder* spends from its lease without asking: `spent + reserved + bound <= granted` admits.

Everything that a lease counts only grows: tokens granted, returned and spent are totals since the lease's epoch
began, never differences. So a message that is lost, repeated or overtaken by a later one changes nothing: the larger
figure stands. The serial of a request is chosen by the holder, and a repeated request gets the same grant.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

LEASE_TOKENS_MAX = 4_000_000
"""Most tokens of one grant: what a holder that vanishes can strand, beyond half of what the account has left."""


class Request(NamedTuple):
    """Holder to owner: grant me tokens; and this is what I have spent and given back so far."""

    holder: str
    epoch: int
    serial: int
    slot: int
    """The holder's short number of this account in its own log."""
    total: int
    """What the policy says that the account holds; the owner's total grows to it, and never shrinks."""
    need: int
    """Tokens without which the call that waits cannot go out; 0 for a refill ahead of need."""
    largest: int
    """Largest bound of a single call that the holder has seen on this account."""
    spent: int
    returned: int
    is_volatile: bool
    """Reservations under this lease may be logged without a sync: a crash of the host forgets them."""


class Report(NamedTuple):
    """Holder to owner: what I have spent and given back so far.

    `is_closed`: all the rest comes back too, of every request up to `serial`; one that comes in later is void.
    """

    holder: str
    epoch: int
    serial: int
    spent: int
    returned: int
    is_closed: bool = False


Message = Request | Report


class Answer(NamedTuple):
    """Owner to holder: how the books stand after your message."""

    sequence: int
    """Number of the step in the owner's log; an answer with a smaller one than seen before is old news."""
    epoch: int
    serial: int
    granted: int
    returned: int
    available: int
    """Tokens that nobody has spent or holds."""
    elsewhere: int
    """Tokens of this account that are settled or held apart from the asker's own lease."""
    total: int
    is_stale: bool = False
    """The asker's epoch is over: it must spend nothing more."""


class Stake(msgspec.Struct):
    """One holder's lease as the owner sees it. All four counts only grow within an epoch."""

    epoch: int
    slot: int
    serial: int = 0
    granted: int = 0
    returned: int = 0
    spent: int = 0
    is_volatile: bool = False
    is_open: bool = False
    """The holder may have reservations under it."""

    @property
    def outstanding(self) -> int:
        """Tokens that the holder may still spend; never negative, see `Owner._settle`."""
        return self.granted - self.returned - self.spent


class Owner(msgspec.Struct):
    """The books of one account. `step` is the only way to change them."""

    total: int = 0
    available: int = 0
    settled: int = 0
    sequence: int = 0
    stakes: dict[str, Stake] = {}
    """By holder: the lease of its current epoch. Those of earlier epochs are closed and folded into `settled`."""

    @property
    def outstanding(self) -> int:
        """Tokens under lease, over all holders."""
        return sum(stake.outstanding for stake in self.stakes.values())

    def step(self, message: Message, lease_tokens_max: int = LEASE_TOKENS_MAX) -> Answer:
        """Apply one message and answer it. The caller must have the new state in the owner's log before it replies."""
        self.sequence += 1
        stake = self.stakes.get(message.holder)
        if stake is not None and message.epoch < stake.epoch:
            return self._answer(stake, is_stale=True)
        if isinstance(message, Request):
            return self._request(message, stake, lease_tokens_max)
        if stake is None or message.epoch > stake.epoch:
            # Nothing was ever granted to that epoch, so there is nothing to settle.
            return self._answer(stake or Stake(message.epoch, 0))
        self._settle(stake, message.spent, message.returned)
        if message.is_closed and message.serial >= stake.serial:
            self._settle(stake, stake.spent, stake.returned + stake.outstanding)
            stake.serial = message.serial
            stake.is_open = False
        return self._answer(stake)

    def _request(self, message: Request, stake: Stake | None, lease_tokens_max: int) -> Answer:
        if message.total > self.total:
            self.available += message.total - self.total
            self.total = message.total
        if stake is None or message.epoch > stake.epoch:
            if stake is not None:
                # A new epoch without a last report: what the old lease covered may be spent, and a lease never
                # expires into a refund (rule 5).
                self._settle(stake, stake.granted - stake.returned, stake.returned)
            stake = self.stakes[message.holder] = Stake(message.epoch, message.slot)
        self._settle(stake, message.spent, message.returned)
        if message.serial > stake.serial:
            stake.serial = message.serial
            stake.is_open = True
            stake.is_volatile = stake.is_volatile or message.is_volatile
            amount = self._sized(message, lease_tokens_max)
            stake.granted += amount
            self.available -= amount
        return self._answer(stake)

    def _sized(self, message: Request, lease_tokens_max: int) -> int:
        """Rule 8: leases shrink as the budget drains; near the end there are only exact grants."""
        if self.available <= 0 or message.need > self.available:
            return 0
        holders = sum(1 for stake in self.stakes.values() if stake.is_open)
        share = self.available // (2 * holders)
        if share < message.largest and holders > 1:
            return message.need
        wish = min(max(share, message.largest), max(lease_tokens_max, message.largest))
        return min(max(wish, message.need), self.available)

    def _settle(self, stake: Stake, spent: int, returned: int) -> None:
        before = stake.outstanding
        cost = max(0, spent - stake.spent)
        stake.spent += cost
        stake.returned = max(stake.returned, returned)
        # Usage above its bound can pass the lease: the lease grows to it, out of what is available, even below zero.
        stake.granted = max(stake.granted, stake.spent + stake.returned)
        self.settled += cost
        self.available += before - stake.outstanding - cost

    def _answer(self, stake: Stake, *, is_stale: bool = False) -> Answer:
        elsewhere = self.total - self.available - stake.spent - stake.outstanding
        return Answer(
            self.sequence,
            stake.epoch,
            stake.serial,
            stake.granted,
            stake.returned,
            self.available,
            elsewhere,
            self.total,
            is_stale,
        )


class Holder:
    """One holder's side of one account. The caller logs a reservation before it calls `reserve`."""

    __slots__ = (
        "available",
        "closed",
        "elsewhere",
        "epoch",
        "granted",
        "is_volatile",
        "name",
        "reserved",
        "returned",
        "sequence",
        "serial",
        "slot",
        "spent",
        "total",
    )

    def __init__(self, name: str, epoch: int, slot: int) -> None:
        self.name = name
        self.epoch = epoch
        self.slot = slot
        self.serial = 0
        """Of the last request."""
        self.closed = 0
        """Of the last request when the lease was last given back."""
        self.granted = 0
        self.returned = 0
        self.spent = 0
        self.reserved = 0
        self.is_volatile = False
        self.sequence = 0
        self.available = 0
        self.elsewhere = 0
        self.total = 0

    @property
    def room(self) -> int:
        """Tokens of the lease that are neither spent, reserved nor given back."""
        return self.granted - self.returned - self.spent - self.reserved

    def lacking(self, bound: int) -> int:
        """Tokens to ask for so that the lease covers `bound` beside all that is reserved already."""
        return bound + self.reserved - max(0, self.granted - self.returned - self.spent)

    def reserve(self, bound: int) -> bool:
        """Reserve `bound` tokens if the lease covers them."""
        if bound > self.granted - self.returned - self.spent - self.reserved:
            return False
        self.reserved += bound
        return True

    def settle(self, bound: int, actual: int) -> None:
        """End a reservation. What was used is charged in full, above its bound too."""
        self.reserved -= bound
        self.spent += actual

    def request(self, total: int, need: int, largest: int, *, is_volatile: bool) -> Request:
        """Ask for tokens, with a serial of its own."""
        self.serial += 1
        return Request(
            self.name,
            self.epoch,
            self.serial,
            self.slot,
            total,
            need,
            largest,
            self.spent,
            self.returned,
            is_volatile or self.is_volatile,
        )

    def report(self) -> Report:
        """Say what was spent and given back so far."""
        return Report(self.name, self.epoch, self.serial, self.spent, self.returned)

    def give_back(self) -> Report:
        """Close the lease; what is still reserved counts as spent.

        The holder reduces first, the owner credits second (rule 5): from here on the lease covers nothing more,
        whether or not the report arrives.
        """
        self.returned += max(0, self.room)
        self.closed = self.serial
        return Report(self.name, self.epoch, self.serial, self.spent + self.reserved, self.returned, is_closed=True)

    def hear(self, answer: Answer, *, is_volatile: bool = False) -> None:
        """Take in an answer of the owner. Old news, repeats and answers to another epoch change nothing."""
        if answer.is_stale or answer.epoch != self.epoch:
            return
        gained = max(0, answer.granted - self.granted)
        self.granted += gained
        if answer.serial <= self.closed:
            # Granted to a request that was on its way when the lease was given back: it goes back with it.
            self.returned += gained
        self.returned = max(self.returned, answer.returned)
        self.is_volatile = self.is_volatile or is_volatile
        if answer.sequence > self.sequence:
            self.sequence = answer.sequence
            self.available = answer.available
            self.elsewhere = answer.elsewhere
            self.total = answer.total

    def resume(self, stake: Stake) -> None:
        """Take up a lease of this very epoch again, after this account had left memory."""
        self.serial = stake.serial
        self.granted = stake.granted
        self.returned = stake.returned
        self.spent = stake.spent
        self.is_volatile = stake.is_volatile
