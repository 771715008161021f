"""What one attempt takes from its purses, one after the other, while each may shorten its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.filters.held import Held, HeldStream, Rest
from meshd.filters.underway import Begun

if TYPE_CHECKING:
    from meshd.call import Ask, Call
    from meshd.filters.bounds import Bounds
    from meshd.filters.purse import Purse, Terms
    from meshd.filters.underway import Underway
    from meshd.ledger import Ledger, Reservation
    from meshd.ledger.cost import Need
    from meshd.prices.price import Quote


class Taken:
    """Reservations so far, and the output cap that all of them cover."""

    __slots__ = ("bound", "cap", "is_lower", "need", "quote", "trials")

    def __init__(self, need: Need, quote: Quote | None) -> None:
        self.need = need
        self.quote = quote
        """None where nothing is counted in money, or the price is not known."""
        self.cap = need.cap
        self.is_lower = False
        """What was held at first is more than is needed by now."""
        self.bound: list[tuple[Purse, Reservation, int]] = []
        """What binds, each with the limit that held."""
        self.trials: tuple[tuple[Purse, Reservation], ...] = ()

    def counts(self, purse: Purse) -> bool:
        """Say whether the attempt costs anything in the purse's unit: a free model holds no dollars."""
        return not purse.is_money or (self.quote is not None and not self.quote.is_free)

    def amount(self, purse: Purse, cap: int) -> int:
        """Return the most that an answer of `cap` tokens can cost, in the purse's unit."""
        need, quote = self.need, self.quote
        made = need.choices * cap
        amount = need.input_bound + made
        if purse.is_money and quote is not None:
            amount = quote.most(need.input_bound, made)
        # Reserving nothing would let a call through an exhausted account.
        return amount if amount > 0 else 1

    def least(self, purse: Purse, amount: int) -> int:
        """Return what the shortest answer that is worth having can cost, where the whole costs `amount`."""
        floor = self.need.floor
        return self.amount(purse, floor) if self.cap > floor else amount

    def add(self, purse: Purse, reservation: Reservation, limit: int, amount: int) -> None:
        """Keep a reservation; where it is less than the `amount` that was asked for, the answer gets shorter."""
        got = reservation.bound
        if got < amount:
            need, quote = self.need, self.quote
            if purse.is_money and quote is not None:
                self.cap = quote.cap(got, need.input_bound, need.choices, self.cap)
            else:
                self.cap = (got - need.input_bound) // need.choices
        self.bound.append((purse, reservation, limit))

    def lower(self, need: Need) -> None:
        """A count has shown that the input needs less than was thought: so it does of every purse."""
        self.need = need
        self.is_lower = True

    def release(self) -> None:
        """Give everything back."""
        for _, one, _ in self.bound:
            one.settle(0)
        for _, one in self.trials:
            one.settle(0)
        self.bound, self.trials, self.cap = [], (), self.need.cap

    def shrink(self) -> None:
        """Hold of each purse just what the answer can cost that the tightest of them allows."""
        if self.is_lower or self.cap < self.need.cap:
            for purse, one, _ in self.bound:
                one.shrink(self.amount(purse, self.cap))
            for purse, one in self.trials:
                one.shrink(self.amount(purse, self.cap))

    def held(
        self, ledger: Ledger, call: Call, ask: Ask, terms: Terms, bounds: Bounds, underway: Underway
    ) -> Held | None:
        """Return the ticket for all of it; None where nothing was taken."""
        need, quote = self.need, self.quote
        if quote is None and not self.trials:
            tokens = tuple([one for _, one, _ in self.bound])
            money: tuple[Reservation, ...] = ()
        else:
            every = (*[(purse, one) for purse, one, _ in self.bound], *self.trials)
            tokens = tuple([one for purse, one in every if not purse.is_money])
            money = tuple([one for purse, one in every if purse.is_money])
        if not tokens and not money:
            return None
        rest = Rest(tokens, money, quote if money else None)
        bound = need.input_bound + need.choices * self.cap
        if bound <= 0:
            bound = 1
        if ask.begins:
            return Begun(underway, call, ask, ledger, None, bound, rest, bounds)
        if ask.is_stream and self.bound:
            return HeldStream(ledger, None, ask, bound, rest, bounds, terms.is_error)
        return Held(ledger, None, ask, bound, rest, bounds)
