"""The owner's side of an account, as a pure state machine: no clock, no I/O, nothing but messages (guarantees, part 1).

The *owner* keeps an account's books: `available + outstanding + settled + delegated == total` after every step. It
hands out *leases*. A *holder* spends from its lease without asking: `spent + reserved + bound <= granted` admits.

Everything that a lease counts only grows: tokens granted, returned and spent are totals since the lease's epoch
began, never differences. So a message that is lost, repeated or overtaken by a later one changes nothing: the larger
figure stands. The serial of a request is chosen by the holder, and a repeated request gets the same grant.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

CHILDREN: Final = "delegated/"
"""How the names of child accounts begin: what no parent has given has nothing, whatever a policy says."""
LEASE_TOKENS_MAX: Final = 4_000_000
"""Most tokens of one grant: what a holder that vanishes can strand, beyond half of what the account has left."""
WANT_STEPS: Final = 256
"""Steps of the owner after which a want that was not renewed is forgotten: its holder may be gone."""
ORDERS_MAX: Final = 16
"""Top-ups that are remembered."""
STAKES_MAX: Final = 64
"""Stakes kept; beyond, those that are closed leave."""


class Request(NamedTuple):
    """Holder to owner: grant me tokens; and this is what I have spent and given back so far."""

    holder: str
    epoch: int
    serial: int
    slot: int
    """The holder's short number of this account in its own log."""
    total: int
    """What the policy says that the account holds; the owner's total grows to it, and never shrinks. Nothing is
    granted beyond it, whatever others say that the account holds."""
    need: int
    """Tokens without which the call that waits cannot go out; 0 for a refill ahead of need."""
    largest: int
    """Largest bound of a single call that the holder has seen on this account."""
    spent: int
    returned: int
    is_volatile: bool
    """Reservations under this lease may be logged without a sync: a crash of the host forgets them."""
    seen: int = 0
    """Largest sequence of the owner that the holder has heard of."""
    granted: int = 0
    """Tokens that the holder was granted, as far as it has heard: books that know of fewer have lost some."""


class Report(NamedTuple):
    """Holder to owner: what I have spent and given back so far, and that I wait for nothing.

    `is_closed`: all the rest comes back too, of every request up to `serial`; one that comes in later is void.
    """

    holder: str
    epoch: int
    serial: int
    spent: int
    returned: int
    is_closed: bool = False
    seen: int = 0
    granted: int = 0


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
    lent: int = 0
    """Of `elsewhere`, what may come back: granted to others, or given to child accounts, and not known to be spent."""
    wanted: int = 0
    """Tokens that other holders wait for: what lies idle is asked back."""
    extra: int = 0
    """Tokens that an operator has added to whatever the policy says."""
    is_stale: bool = False
    """The asker's epoch is over: it must spend nothing more."""
    is_closed: bool = False
    is_child: bool = False
    """`total` is all that there is, whatever a policy says: it was given by a parent."""
    slot: int = 0
    """Of the asker's lease, as the books have it."""
    frozen: str = ""
    """Why nothing is granted any more, until an operator has looked; empty where something is."""


class Stake(msgspec.Struct, omit_defaults=True):
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


class Want(NamedTuple):
    """What a holder waits for, and at which step it said so."""

    need: int
    sequence: int


class Owner(msgspec.Struct, omit_defaults=True):
    """The books of one account. Its methods are the only way to change them."""

    total: int = 0
    available: int = 0
    settled: int = 0
    sequence: int = 0
    stakes: dict[str, Stake] = {}
    """By holder: the lease of its current epoch. Those of earlier epochs are closed and folded into `settled`."""
    wants: dict[str, Want] = {}
    """By holder: what could not be granted because others hold it."""
    children: dict[str, int] = {}
    """By account: tokens transferred to it that have not come back (rule 9)."""
    parent: str = ""
    """The account that this one was given its tokens by; its total is what it was given, whatever a policy says."""
    extra: int = 0
    is_closed: bool = False
    """Nothing is granted any more, and what comes back stays."""
    frozen: str = ""
    is_swept: bool = False
    """Closed stakes were left out: a holder that has none here may have had one."""
    orders: list[str] = []
    """Ids of the last top-ups: one that is told again is not made again."""

    @property
    def outstanding(self) -> int:
        """Tokens under lease, over all holders."""
        return sum(stake.outstanding for stake in self.stakes.values())

    @property
    def delegated(self) -> int:
        """Tokens that child accounts have."""
        return sum(self.children.values())

    @property
    def is_balanced(self) -> bool:
        """The books add up."""
        return self.available + self.outstanding + self.settled + self.delegated == self.total

    def step(self, message: Message, lease_tokens_max: int = LEASE_TOKENS_MAX) -> Answer:
        """Apply one message and answer it. The caller must have the new state in the owner's log before it replies."""
        if message.seen > self.sequence:
            self.freeze(message.seen)
        self.sequence += 1
        stake = self.stakes.get(message.holder)
        if stake is not None and message.epoch < stake.epoch:
            return self._answer(message.holder, stake, is_stale=True)
        if message.granted and (stake is None or stake.epoch == message.epoch):
            stake = self._known(message, stake)
        if isinstance(message, Request):
            return self._request(message, stake, lease_tokens_max)
        self.wants.pop(message.holder, None)
        if stake is None or message.epoch > stake.epoch:
            # Nothing was ever granted to that epoch, so there is nothing to settle.
            return self._answer(message.holder, stake or Stake(message.epoch, 0))
        self._settle(stake, message.spent, message.returned)
        if message.is_closed and message.serial >= stake.serial:
            self._settle(stake, stake.spent, stake.returned + stake.outstanding)
            stake.serial = message.serial
            stake.is_open = False
        return self._answer(message.holder, stake)

    def _known(self, message: Message, stake: Stake | None) -> Stake | None:
        """Hold what a holder was granted against the books, and take up again a stake that was left out."""
        if stake is None and self.is_swept:
            # Only closed ones are left out, and these were settled: nothing of it is to be charged again.
            granted = message.spent + message.returned
            slot = message.slot if isinstance(message, Request) else 0
            stake = Stake(message.epoch, slot, 0, granted, message.returned, message.spent)
            self.stakes[message.holder] = stake
        elif stake is None or message.granted > stake.granted:
            self.freeze(self.sequence)
        return stake

    def freeze(self, seen: int) -> None:
        """Stop granting: a step that was acknowledged is gone from the log, and with it grants that were made."""
        self.frozen = self.frozen or (
            f"the store has lost writes that it had acknowledged: what was seen of step {seen} of this account is not "
            f"in its books, which are at step {self.sequence}"
        )
        self.sequence = max(self.sequence, seen)

    def _request(self, message: Request, stake: Stake | None, lease_tokens_max: int) -> Answer:
        if not self.parent and message.total + self.extra > self.total:
            self.available += message.total + self.extra - self.total
            self.total = message.total + self.extra
        if stake is None or message.epoch > stake.epoch:
            if stake is not None:
                # A new epoch without a last report: what the old lease covered may be spent, and a lease never
                # expires into a refund (rule 5).
                self._settle(stake, stake.granted - stake.returned, stake.returned)
            self._make_room()
            stake = self.stakes[message.holder] = Stake(message.epoch, message.slot)
        self._settle(stake, message.spent, message.returned)
        if message.serial > stake.serial:
            stake.serial = message.serial
            stake.is_open = True
            stake.is_volatile = stake.is_volatile or message.is_volatile
            amount = self._sized(message, lease_tokens_max)
            stake.granted += amount
            self.available -= amount
            self.wants.pop(message.holder, None)
            if amount < message.need and self._elsewhere(stake):
                self.wants[message.holder] = Want(message.need, self.sequence)
        return self._answer(message.holder, stake)

    def _sized(self, message: Request, lease_tokens_max: int) -> int:
        """Rule 8: leases shrink as the budget drains; near the end there are only exact grants."""
        room = self.available
        if not self.parent:
            room = min(room, message.total + self.extra - (self.total - self.available))
        if room <= 0 or message.need > room or self.is_closed or self.frozen:
            return 0
        holders = sum(1 for stake in self.stakes.values() if stake.is_open)
        share = room // (2 * holders)
        if (share < message.largest and holders > 1) or self._wanted_by_others(message.holder):
            return message.need
        wish = min(max(share, message.largest), max(lease_tokens_max, message.largest))
        return min(max(wish, message.need), room)

    def _settle(self, stake: Stake, spent: int, returned: int) -> None:
        before = stake.outstanding
        cost = max(0, spent - stake.spent)
        stake.spent += cost
        stake.returned = max(stake.returned, returned)
        # Usage above its bound can pass the lease: the lease grows to it, out of what is available, even below zero.
        stake.granted = max(stake.granted, stake.spent + stake.returned)
        self.settled += cost
        self.available += before - stake.outstanding - cost

    def _elsewhere(self, stake: Stake) -> int:
        return self.outstanding + self.delegated - stake.outstanding

    def _make_room(self) -> None:
        # What a closed stake was good for is to void a request that comes in late; by now none will.
        if len(self.stakes) >= STAKES_MAX:
            self.is_swept = True
            self.stakes = {name: stake for name, stake in self.stakes.items() if stake.is_open}

    @property
    def is_ended(self) -> bool:
        """It is a child that is closed, and nobody has anything of it any more: its rest is due to its parent."""
        return bool(self.parent) and self.is_closed and not self.outstanding and not self.children

    def next_to_tell(self) -> str:
        """Return the holder that waits for longest and can be served now; "*" where some holder waits in vain."""
        might = self.available + self.outstanding + self.delegated
        served = ""
        oldest = 0
        for name, want in self.wants.items():
            if want.need > might:
                return "*"
            if want.need <= self.available and (not served or want.sequence < oldest):
                served, oldest = name, want.sequence
        return served

    def _wanted_by_others(self, holder: str) -> int:
        wanted = 0
        for name, want in tuple(self.wants.items()):
            if self.sequence - want.sequence > WANT_STEPS:
                del self.wants[name]
            elif name != holder:
                wanted += want.need
        return wanted

    # Operators, and the accounts above and below.

    def top_up(self, tokens: int, order: str = "") -> None:
        """Add tokens to what the policy gives; twice under one `order` is as once."""
        if order and order in self.orders:
            return
        if order:
            self.orders = [*self.orders[1 - ORDERS_MAX :], order]
        self.sequence += 1
        self.total += tokens
        self.available += tokens
        self.extra += tokens

    def close(self) -> None:
        """Grant nothing more, and ask everything back."""
        self.sequence += 1
        self.is_closed = True

    def write_off(self, holder: str) -> int:
        """Count all that a holder has on lease as spent, on an operator's word that it is gone; return how much."""
        stake = self.stakes.get(holder)
        if stake is None or not stake.is_open:
            return 0
        self.sequence += 1
        lost = stake.outstanding
        self._settle(stake, stake.granted - stake.returned, stake.returned)
        stake.is_open = False
        return lost

    def reopen(self, *, is_child: bool = False) -> None:
        """Grant again, on an operator's word that the books are right. What a child has left is its parent's."""
        self.sequence += 1
        self.frozen = ""
        if not is_child and not self.parent:
            self.is_closed = False

    def transfer(self, child: str, tokens: int) -> int:
        """Set tokens aside for a child account; return how many it has, 0 where there are too few. Twice is as once."""
        if child in self.children:
            return self.children[child]
        if tokens > self.available or self.is_closed or self.frozen:
            return 0
        self.sequence += 1
        self.available -= tokens
        self.children[child] = tokens
        return tokens

    def receive(self, parent: str, tokens: int) -> None:
        """Take the tokens that a parent has set aside for this account. Twice is as once."""
        if not self.parent:
            if not self.sequence:
                self.is_closed = False  # as long as nobody has closed it, it was so for want of a parent alone
            self.sequence += 1
            self.parent = parent
            self.total = self.available = tokens

    def take_back(self, child: str, left: int) -> None:
        """Take in what a child that is closed, and of which nobody holds a lease, has left. Twice is as once."""
        given = self.children.pop(child, None)
        if given is not None:
            self.sequence += 1
            # A child that overshot its bounds hands its debt on.
            self.available += left
            self.settled += given - left

    def _answer(self, holder: str, stake: Stake, *, is_stale: bool = False) -> Answer:
        return Answer(
            self.sequence,
            stake.epoch,
            stake.serial,
            stake.granted,
            stake.returned,
            self.available,
            self.total - self.available - stake.spent - stake.outstanding,
            self.total,
            self._elsewhere(stake),
            self._wanted_by_others(holder),
            self.extra,
            is_stale,
            self.is_closed,
            bool(self.parent),
            stake.slot,
            self.frozen,
        )
