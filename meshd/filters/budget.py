"""Budget: no attempt goes out unless the most that it can cost fits into what its account has left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Kind, Wait
from meshd.engines.port import StoreError
from meshd.filters.bounds import Bounds
from meshd.filters.held import Held, HeldStream
from meshd.filters.purse import UNATTRIBUTED, account_of, terms_of
from meshd.filters.shortage import exhausted, unavailable, unread
from meshd.filters.underway import Begun, Underway
from meshd.ledger.cost import bound_of, need_of
from meshd.ledger.entry import Reservation, Shortfall
from meshd.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.call import Ask, Call
    from meshd.filters.purse import Purse, Terms
    from meshd.filters.underway import Reading
    from meshd.ledger import Ledger
    from meshd.ledger.cost import Need

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_LLM: Final = Kind.LLM

CLAMPED: Final = b"x-meshd-budget-clamped"
"""Reply header: the output cap, in tokens, that was all that the budget had left."""


class Budget:
    """Reserves before, settles after. The same instance serves every policy: it reads its settings from the plan."""

    name = "budget"
    __slots__ = ("_bounds", "_ledger", "_shadowed", "_underway")

    def __init__(
        self,
        ledger: Ledger,
        shadowed: Callable[[Call, Refused], None] | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        """`shadowed` is told of a shadow budget that would have refused a call which binding ones admitted; `bounds`
        counts where a bound does not fit."""
        self._ledger = ledger
        self._shadowed = shadowed
        self._bounds = bounds if bounds is not None else Bounds()
        self._underway = Underway()

    def admit(self, call: Call) -> Held | Reading | Wait | None:
        """Reserve the most that this attempt can cost. Raises Refused: budget_exhausted, budget_busy,
        store_unavailable, or not_allowed for a call to an LLM that nobody can bound.

        A ceiling in the context is a limit of its own, whether or not a rule sets a budget.
        """
        plan, context, ask = call.plan, call.context, call.ask
        ceiling = context.ceiling if context is not None else None
        if not plan.budgets and ceiling is None:
            return self._underway.read_by(call) if ask is None and len(self._underway) else None
        terms: Terms | None = plan.terms
        if terms is None:
            terms = plan.terms = terms_of(plan.budgets)
        if ceiling is not None:
            terms = terms.under_ceiling or terms
        purse = terms.only
        if purse is None or ask is None or ask.unbounded:
            return self._admit_slowly(call, terms)
        if terms.is_plain and ceiling is None and context is not None:
            account, limit = context.account, purse.tokens
            if account.startswith(UNATTRIBUTED):
                limit = call.policy.limits.unattributed_tokens
        else:
            account, limit = account_of(call, purse)
        if self._bounds.raised:
            self._bounds.raise_for(ask)
        cap, bound = bound_of(ask, terms.output_default)
        try:
            entry = self._ledger.hold(account, limit, bound)
        except StoreError:
            entry = None
        if entry is None:
            return self._admit_slowly(call, terms)
        if ask.has_output:
            ask.output_cap_granted = cap
            if call.attempt > 1:
                _forget_clamp(call)
        if ask.begins:
            return Begun(self._underway, call, ask, self._ledger, entry, bound, (), self._bounds)
        if ask.is_stream:
            return HeldStream(self._ledger, entry, ask, bound, (), self._bounds, terms.is_error)
        return Held(self._ledger, entry, ask, bound, (), self._bounds)

    def _admit_slowly(self, call: Call, terms: Terms) -> Held | Reading | Wait | None:
        """Do what `admit` does where it takes several accounts, less than the bound, waiting, or no ask."""
        ask = call.ask
        if ask is None or ask.unbounded:
            self._check_unread(call, terms)
            return self._underway.read_by(call) if ask is None and len(self._underway) else None
        self._bounds.raise_for(ask)
        need = need_of(ask, terms.output_default, terms.floor)
        if terms.is_durable or terms.trials:
            return Wait(self._admit_later(call, ask, terms))
        held: list[Reservation] = []
        bound = need.bound
        try:
            for purse in terms.binding:
                account, limit = account_of(call, purse)
                try:
                    got = self._ledger.reserve(account, limit, bound, need.least)
                except StoreError as error:
                    if purse.is_passed_on_error:
                        continue
                    raise unavailable(purse, error) from error
                if got is None or (_is_short(got, bound) and self._bounds.can_count(call)):
                    self._give_back(got)
                    _release(held)
                    return Wait(self._admit_later(call, ask, terms))
                if isinstance(got, Shortfall):
                    raise exhausted(call, purse, got)
                held.append(got)
                bound = got.bound
        except Refused:
            _release(held)
            raise
        return self._granted(call, ask, terms, need, held)

    async def _admit_later(self, call: Call, ask: Ask, terms: Terms) -> Held | None:
        held: list[Reservation] = []
        trials: list[Reservation] = []
        need = need_of(ask, terms.output_default, terms.floor)
        try:
            bound = need.bound
            for purse in terms.binding:
                one, need = await self._reserve_later(call, ask, purse, terms, bound)
                bound = min(bound, need.bound)
                if one is not None:
                    held.append(one)
                    bound = one.bound
            would: Refused | None = None
            for purse in terms.trials:
                try:
                    one, need = await self._reserve_later(call, ask, purse, terms, bound)
                    bound = min(bound, need.bound)
                except Refused as refused:
                    would = refused
                else:
                    if one is not None:
                        trials.append(one)
            if would is not None and self._shadowed is not None:
                self._shadowed(call, would)
            elif would is not None and not held:
                _release(trials)
                raise would
        except BaseException:
            _release(held)
            _release(trials)
            raise
        return self._granted(call, ask, terms, need, held, trials)

    async def _reserve_later(
        self, call: Call, ask: Ask, purse: Purse, terms: Terms, bound: int
    ) -> tuple[Reservation | None, Need]:
        """Reserve from one account; where it cannot cover the bound, after counting, which may lower what is needed."""
        account, limit = account_of(call, purse)
        is_trial = bool(purse.prefix)
        need = need_of(ask, terms.output_default, terms.floor)
        can_count = self._bounds.can_count(call)
        # Nobody waits in a queue for what a count may show not to be needed.
        queue_s = 0.0 if can_count else purse.queue_s
        wait, is_durable = self._ledger.wait, purse.is_durable
        try:
            got = await wait(account, limit, bound, need.least, queue_s=queue_s, is_durable=is_durable)
            if can_count and _is_short(got, bound):
                self._give_back(got)
                if await self._bounds.count(call):
                    need = need_of(ask, terms.output_default, terms.floor)
                    bound = min(bound, need.bound)
                got = await wait(account, limit, bound, need.least, queue_s=purse.queue_s, is_durable=is_durable)
        except StoreError as error:
            if purse.is_passed_on_error or is_trial:
                return None, need
            raise unavailable(purse, error) from error
        if isinstance(got, Shortfall):
            raise exhausted(call, purse, got)
        return got, need

    def _give_back(self, got: Reservation | Shortfall | None) -> None:
        """Take back what an account said before a count."""
        if isinstance(got, Reservation):
            got.settle(0)
        elif got is not None:
            # It was no refusal yet.
            self._ledger.refused -= 1

    def _granted(
        self,
        call: Call,
        ask: Ask,
        terms: Terms,
        need: Need,
        held: list[Reservation],
        trials: Sequence[Reservation] = (),
    ) -> Held | None:
        """Turn what every account could give into a cap, and hold just that."""
        cap, bound = need.cap, need.bound
        if held and held[-1].bound < bound:
            cap = (held[-1].bound - need.input_bound) // need.choices
            bound = need.input_bound + need.choices * cap
        # One that was held before a count, or before another clamped, holds more than is needed by now.
        for one in (*held, *trials):
            one.shrink(bound)
        if ask.has_output:
            # A trial changes nothing of what the client sent.
            ask.output_cap_granted = cap if held else None
            if call.attempt > 1:
                _forget_clamp(call)
            if cap < need.cap:
                call.reply_headers.append((CLAMPED, b"%d" % cap))
        reservations = (*held, *trials)
        if not reservations:
            return None
        if ask.begins:
            return Begun(self._underway, call, ask, self._ledger, None, bound, reservations, self._bounds)
        if ask.is_stream and held:
            return HeldStream(self._ledger, None, ask, bound, reservations, self._bounds, terms.is_error)
        return Held(self._ledger, None, ask, bound, reservations, self._bounds)

    def _check_unread(self, call: Call, terms: Terms) -> None:
        """Pass what owes no tokens; refuse a call to an LLM whose cost nobody can bound."""
        if call.target.kind is not _LLM or call.upstream.is_unmetered:
            return
        if call.ask is not None or call.dialect is None or not call.dialect.is_free(call.method, call.path):
            raise unread(call, terms)

    def explain(self, call: Call) -> str:
        """Say what was reserved, and of what."""
        terms = terms_of(call.plan.budgets)
        if call.context is not None and call.context.ceiling is not None:
            terms = terms.under_ceiling or terms
        if not terms.binding and not terms.trials:
            return "no rule sets a budget"
        if call.ask is None or call.ask.unbounded:
            return "owes no tokens"
        need = need_of(call.ask, terms.output_default, terms.floor)
        accounts = ", ".join(
            f"{account} (limit {limit:,})"
            for account, limit in (account_of(call, purse) for purse in (*terms.binding, *terms.trials))
        )
        return (
            f"reserves up to {need.bound:,} tokens (input at most {need.input_bound:,} by {call.ask.bound_by}, "
            f"output cap {need.cap:,} x {need.choices}) of {accounts}"
        )


def _forget_clamp(call: Call) -> None:
    """Take back what an attempt before said of its own cap."""
    call.reply_headers[:] = [field for field in call.reply_headers if field[0] != CLAMPED]


def _is_short(got: Reservation | Shortfall, bound: int) -> bool:
    """Say whether an account covers less than the bound."""
    return isinstance(got, Shortfall) or got.bound < bound


def _release(held: list[Reservation]) -> None:
    while held:
        held.pop().settle(0)
