"""The holder's side of an account: pure, and all that an admission looks at."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from meshd.ledger.account import Report, Request

if TYPE_CHECKING:
    from meshd.ledger.account import Answer, Stake


class Holder:
    """One holder's side of one account. The caller logs a reservation before it calls `reserve`."""

    __slots__ = (
        "available",
        "cap",
        "closed",
        "elsewhere",
        "epoch",
        "extra",
        "frozen",
        "granted",
        "is_closed",
        "is_volatile",
        "lent",
        "name",
        "reserved",
        "returned",
        "sequence",
        "serial",
        "slot",
        "spent",
        "total",
        "wanted",
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
        self.lent = 0
        """Of `elsewhere`, what may still come back from other holders."""
        self.wanted = 0
        """Tokens that other holders wait for."""
        self.extra = 0
        """Tokens beyond any limit of the policy, by an operator's word."""
        self.cap = sys.maxsize
        """Tokens that the account has, where that does not follow the policy."""
        self.is_closed = False
        self.frozen = ""

    @property
    def room(self) -> int:
        """Tokens of the lease that are neither spent, reserved nor given back."""
        return self.granted - self.returned - self.spent - self.reserved

    def whole(self, limit: int) -> int:
        """Return what the account may spend in all where a policy says `limit`: operators add, a parent's gift caps."""
        whole, cap = limit + self.extra, self.cap
        return whole if whole < cap else cap  # every call comes here, and `min` would box both

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
            self.sequence,
            self.granted,
        )

    def report(self) -> Report:
        """Say what was spent and given back so far."""
        return Report(
            self.name, self.epoch, self.serial, self.spent, self.returned, seen=self.sequence, granted=self.granted
        )

    def give_back_idle(self) -> Report:
        """Give back what is neither spent nor reserved, and keep the lease. Reduce first: see `give_back`."""
        self.returned += max(0, self.room)
        return self.report()

    def lending(self, tokens: int) -> Report:
        """Say what `lend` will have done: until the owner has it, the tokens stay reserved here."""
        return self.report()._replace(returned=self.returned + tokens)

    def lend(self, tokens: int) -> None:
        """Give back tokens that are reserved: what they were reserved for is another account now."""
        self.reserved -= tokens
        self.returned += tokens

    def give_back(self) -> Report:
        """Close the lease; what is still reserved counts as spent.

        The holder reduces first, the owner credits second (rule 5): from here on the lease covers nothing more,
        whether or not the report arrives.
        """
        self.returned += max(0, self.room)
        self.closed = self.serial
        return Report(
            self.name,
            self.epoch,
            self.serial,
            self.spent + self.reserved,
            self.returned,
            is_closed=True,
            seen=self.sequence,
            granted=self.granted,
        )

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
            self.lent = answer.lent
            self.wanted = answer.wanted
            self.extra = answer.extra
            self.is_closed = answer.is_closed
            if not self.spent and not self.reserved:
                self.slot = answer.slot or self.slot  # a grant that came late may have another than was asked for
            if answer.is_child:
                self.cap = answer.total
            self.frozen = answer.frozen

    def resume(self, stake: Stake) -> None:
        """Take up a lease of this very epoch again, after this account had left memory."""
        self.serial = stake.serial
        self.granted = stake.granted
        self.returned = stake.returned
        self.spent = stake.spent
        self.is_volatile = stake.is_volatile
