"""The two sides of an account, as pure state machines: no clock, no I/O, nothing but messages (guarantees, part 1).

The *owner* keeps an account's books: `available + outstanding + settled == total` after every step. It hands out
*leases*. A *holder* spends from its lease without asking: `spent + reserved + bound <= granted` admits.

Everything that a lease counts only grows: tokens granted, returned and spent are totals since the lease's epoch
began, never differences. So a message that is lost, repeated or overtaken by a later one changes nothing: the larger
figure stands. The serial of a request is chosen by the holder, and a repeated request gets the same grant.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

LEASE_TOKENS_MAX: Final = 4_000_000
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
