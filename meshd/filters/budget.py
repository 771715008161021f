"""Budget: no attempt goes out unless the most that it can cost fits into what its accounts have left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.call import Kind, Wait
from meshd.engines.port import StoreError
from meshd.filters.bounds import Bounds
from meshd.filters.hearsay import Tasks
from meshd.filters.held import Held, HeldStream
from meshd.filters.purse import UNATTRIBUTED, account_of, price_for, terms_for
from meshd.filters.reported import reported
from meshd.filters.shortage import amount_of, exhausted, unavailable, unpriced, unread, whose
from meshd.filters.taking import Taken
from meshd.filters.thresholds import DEGRADED, STEPS_MAX, WARNING, Tally, count, degrade, forget, is_past, warning
from meshd.filters.underway import Begun, Underway
from meshd.ledger.cost import bound_of, need_of
from meshd.ledger.entry import Reservation, Shortfall
from meshd.prices.price import quoted
from meshd.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Ask, Call
    from meshd.filters.allow_list_settings import AllowSettings
    from meshd.filters.plan import Plan
    from meshd.filters.purse import Purse, Terms
    from meshd.filters.underway import Reading
    from meshd.ledger import Ledger
    from meshd.ledger.entry import Entry

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_LLM: Final = Kind.LLM

CLAMPED: Final = b"x-meshd-budget-clamped"
"""Reply header: the output cap, in tokens, that was all that the budget had left."""


class Budget:
    """Reserves before, settles after. The same instance serves every policy: it reads its settings from the plan."""

    name = "budget"
    __slots__ = ("_bounds", "_judge", "_shadowed", "_tasks", "_underway", "ledger", "tally")

    def __init__(
        self,
        ledger: Ledger,
        shadowed: Callable[[Call, Refused], None] | None = None,
        bounds: Bounds | None = None,
        judge: Callable[[Call, AllowSettings], None] | None = None,
        malformed: Callable[[Call, bytes], None] | None = None,
    ) -> None:
        """`shadowed` is told of a shadow budget that would have refused a call which binding ones admitted; `bounds`
        counts where a bound does not fit.

        `judge` raises Refused where a call's request is not allowed: what AllowList asks, asked again of a cheaper
        model. Without it no model that an `allow` is about is put in another's place.

        `malformed` is told of a call whose answer reports what is no number of tokens, and of that.
        """
        self.ledger = ledger
        self._shadowed = shadowed
        self._bounds = bounds if bounds is not None else Bounds()
        self._judge = judge
        self._tasks = Tasks(malformed)
        self._underway = Underway()
        self.tally = Tally()

    def admit(self, call: Call) -> Held | Reading | Wait | None:
        """Reserve the most that this attempt can cost. Raises Refused: budget_exhausted, budget_busy,
        store_unavailable, or not_allowed for a call to an LLM that nobody can bound or price.

        A ceiling in the context is a limit of its own, whether or not a rule sets a budget.
        """
        plan: Plan = call.plan
        context, ask = call.context, call.ask
        ceiling = context.ceiling if context is not None else None
        if not plan.budgets and ceiling is None:
            return self._underway.read_by(call) if ask is None and len(self._underway) else None
        known: Terms | None = plan.terms
        terms = known if known is not None and ceiling is None else terms_for(call)
        purse = terms.only
        if purse is None or ask is None or ask.unbounded:
            return self._admit_slowly(call, terms, 0)
        if terms.is_plain and ceiling is None and context is not None:
            account, limit = context.account, purse.limit
            if account.startswith(UNATTRIBUTED):
                limit = call.policy.limits.unattributed_tokens
        else:
            account, limit = account_of(call, purse)
        if self._bounds.raised:
            self._bounds.raise_for(ask)
        cap, bound = bound_of(ask, terms.output_default)
        try:
            entry = self.ledger.hold(account, limit, bound)
        except StoreError:
            entry = None
        if entry is None:
            return self._admit_slowly(call, terms, 0)
        if ask.has_output:
            ask.output_cap_granted = cap
        if call.attempt > 1:
            forget(call, CLAMPED, WARNING)
        if purse.warn_at:
            self._warn(call, purse, entry, limit)
        if ask.begins:
            return Begun(self._underway, call, ask, self.ledger, entry, bound, None, self._bounds)
        if ask.is_stream:
            return HeldStream(self.ledger, entry, ask, bound, None, self._bounds, terms.is_error)
        return Held(self.ledger, entry, ask, bound, None, self._bounds)

    def _admit_slowly(self, call: Call, terms: Terms, steps: int) -> Held | Reading | Wait | None:
        """Do what `admit` does where it takes several accounts, money, a cheaper model, less than the bound, waiting,
        or no ask. `steps` counts the cheaper models so far."""
        ask = call.ask
        if ask is None or ask.unbounded:
            self._check_unread(call, terms)
            if ask is not None:
                return None
            ticket = reported(call, terms, self.ledger, self._tasks)
            return ticket or (self._underway.read_by(call) if len(self._underway) else None)
        self._bounds.raise_for(ask)
        taken = self._taking(call, ask, terms)
        if terms.is_durable or terms.trials:
            return Wait(self._admit_later(call, ask, terms, taken, steps))
        try:
            for purse in terms.binding:
                if not taken.counts(purse):
                    continue
                account, limit = account_of(call, purse)
                amount = taken.amount(purse, taken.cap)
                try:
                    got = self.ledger.reserve(account, limit, amount, taken.least(purse, amount))
                except StoreError as error:
                    if purse.is_passed_on_error:
                        continue
                    raise unavailable(purse, error) from error
                if got is None or (_is_short(got, amount) and self._bounds.can_count(call)):
                    self._give_back(got)
                    taken.release()
                    return Wait(self._admit_later(call, ask, terms, taken, steps))
                if isinstance(got, Shortfall):
                    if self._is_degraded(call, purse, None, 0, steps):
                        taken.release()
                        return self._admit_again(call, steps)
                    raise exhausted(call, purse, got)
                taken.add(purse, got, limit, amount)
                if purse.degrade_at and self._is_degraded(call, purse, got, limit, steps):
                    taken.release()
                    return self._admit_again(call, steps)
        except Refused:
            taken.release()
            raise
        return self._granted(call, ask, terms, taken)

    def _admit_again(self, call: Call, steps: int) -> Held | Reading | Wait | None:
        """Begin anew with a cheaper model: its own rules hold."""
        return self._admit_slowly(call, terms_for(call), steps + 1)

    def _taking(self, call: Call, ask: Ask, terms: Terms) -> Taken:
        """Begin to take. Raises Refused where nothing but dollars holds and the price is not known."""
        need = need_of(ask, terms.output_default, terms.floor)
        if not terms.has_money:
            return Taken(need, None)
        price = price_for(call, ask, terms)
        if price is not None:
            return Taken(need, quoted(price, ask, call.body))
        binding = [purse for purse in terms.binding if purse.is_money]
        for purse in binding or [purse for purse in terms.trials if purse.is_money]:
            count(self.tally.unpriced, purse.rule)
        if binding and not terms.binds_tokens:
            raise unpriced(call, binding[0])
        return Taken(need, None)

    def _is_degraded(self, call: Call, purse: Purse, got: Reservation | None, limit: int, steps: int) -> bool:
        """Put a cheaper model in place where the purse has come to its threshold, or (`got` is None) has too little.

        Too few tokens are too few for any model: only where dollars are short does a cheaper one help.
        """
        if not purse.degrade_at or steps >= STEPS_MAX:
            return False
        if got is None:
            is_due = purse.is_money
        else:
            entry = got.entry
            is_due = entry is not None and is_past(entry, limit, purse.degrade_at, got.bound)
        if not is_due or not degrade(call, purse, self._judge):
            return False
        count(self.tally.degraded, purse.degrade_rule)
        return True

    async def _admit_later(self, call: Call, ask: Ask, terms: Terms, taken: Taken, steps: int) -> Held | Reading | None:
        try:
            for purse in terms.binding:
                if not taken.counts(purse):
                    continue
                # A call that has queued already, and then got a cheaper model, does not queue again.
                queue_s = 0.0 if steps else purse.queue_s
                got, amount = await self._reserve_later(call, ask, purse, terms, taken, queue_s)
                if got is None:
                    continue
                if isinstance(got, Shortfall):
                    if self._is_degraded(call, purse, None, 0, steps):
                        taken.release()
                        return await self._waited(self._admit_again(call, steps))
                    raise exhausted(call, purse, got)
                limit = account_of(call, purse)[1]
                taken.add(purse, got, limit, amount)
                if self._is_degraded(call, purse, got, limit, steps):
                    taken.release()
                    return await self._waited(self._admit_again(call, steps))
            await self._try(call, ask, terms, taken)
        except BaseException:
            taken.release()
            raise
        return self._granted(call, ask, terms, taken)

    async def _waited(self, decision: Held | Reading | Wait | None) -> Held | Reading | None:
        if isinstance(decision, Wait):
            held: Held | Reading | None = await decision.coroutine
            return held
        return decision

    async def _reserve_later(
        self, call: Call, ask: Ask, purse: Purse, terms: Terms, taken: Taken, queue_s: float
    ) -> tuple[Reservation | Shortfall | None, int]:
        """Reserve from one account, and say how much was asked for. Where it cannot cover that, the request is
        counted first, which may lower what is needed."""
        account, limit = account_of(call, purse)
        can_count = self._bounds.can_count(call)
        wait, is_durable, amount = self.ledger.wait, purse.is_durable, taken.amount(purse, taken.cap)
        # Nobody waits in a queue for what a count may show not to be needed.
        first_s = 0.0 if can_count else queue_s
        try:
            least = taken.least(purse, amount)
            got = await wait(account, limit, amount, least, queue_s=first_s, is_durable=is_durable)
            if can_count and _is_short(got, amount):
                self._give_back(got)
                if await self._bounds.count(call):
                    taken.lower(need_of(ask, terms.output_default, terms.floor))
                    amount = taken.amount(purse, taken.cap)
                    least = taken.least(purse, amount)
                got = await wait(account, limit, amount, least, queue_s=queue_s, is_durable=is_durable)
        except StoreError as error:
            if purse.is_passed_on_error or purse.prefix:
                return None, amount
            raise unavailable(purse, error) from error
        return got, amount

    def _give_back(self, got: Reservation | Shortfall | None) -> None:
        """Take back what an account said before a count."""
        if isinstance(got, Reservation):
            got.settle(0)
        elif got is not None:
            # It was no refusal yet.
            self.ledger.refused -= 1

    async def _try(self, call: Call, ask: Ask, terms: Terms, taken: Taken) -> None:
        """Let budgets on trial decide too. Raises Refused where nothing binds: the chain then counts it."""
        would: Refused | None = None
        for purse in terms.trials:
            if purse.is_money and taken.quote is None:
                would = would or unpriced(call, purse)
            if not taken.counts(purse):
                continue
            got, _ = await self._reserve_later(call, ask, purse, terms, taken, 0.0)
            if isinstance(got, Shortfall):
                would = exhausted(call, purse, got)
            elif got is not None:
                taken.trials += ((purse, got),)
                self._try_thresholds(call, purse, got)
        if would is not None and self._shadowed is not None:
            self._shadowed(call, would)
        elif would is not None and not taken.bound:
            raise would

    def _try_thresholds(self, call: Call, purse: Purse, got: Reservation) -> None:
        entry, limit = got.entry, account_of(call, purse)[1]
        if entry is None:
            return
        if purse.warn_at and is_past(entry, limit, purse.warn_at):
            count(self.tally.warned, purse.warn_rule)
        if purse.degrade_at and is_past(entry, limit, purse.degrade_at, got.bound):
            count(self.tally.degraded, purse.degrade_rule)

    def _granted(self, call: Call, ask: Ask, terms: Terms, taken: Taken) -> Held | None:
        """Turn what every account could give into a cap, and hold just that."""
        taken.shrink()
        if call.attempt > 1:
            forget(call, CLAMPED, WARNING)
        if ask.has_output:
            # A trial changes nothing of what the client sent.
            ask.output_cap_granted = taken.cap if taken.bound else None
            if taken.cap < taken.need.cap:
                call.reply_headers.append((CLAMPED, b"%d" % taken.cap))
        if terms.has_warnings:
            for purse, one, limit in taken.bound:
                entry = one.entry
                if purse.warn_at and entry is not None:
                    self._warn(call, purse, entry, limit)
        return taken.held(self.ledger, call, ask, terms, self._bounds, self._underway)

    def _warn(self, call: Call, purse: Purse, entry: Entry, limit: int) -> None:
        if is_past(entry, limit, purse.warn_at):
            call.reply_headers.append((WARNING, warning(call, purse, entry, limit)))
            count(self.tally.warned, purse.warn_rule)

    def _check_unread(self, call: Call, terms: Terms) -> None:
        """Pass what owes nothing; refuse a call to an LLM whose cost nobody can bound."""
        if call.target.kind is not _LLM or (call.upstream is not None and call.upstream.is_unmetered):
            return
        if call.ask is not None or call.dialect is None or not call.dialect.is_free(call.method, call.path):
            raise unread(call, terms)

    def explain(self, call: Call) -> str:
        """Say what was reserved, of which accounts, and by which price."""
        terms = terms_for(call)
        ask = call.ask
        if not terms.binding and not terms.trials:
            return "no rule sets a budget"
        if ask is None or ask.unbounded:
            return "owes no tokens"
        need = need_of(ask, terms.output_default, terms.floor)
        price = price_for(call, ask, terms)
        quote = None if price is None else quoted(price, ask, call.body)
        taken = Taken(need, quote)
        reserves = f"{need.input_bound + need.choices * need.cap:,} tokens"
        priced = ""
        if terms.has_money:
            if quote is None:
                priced = f"; the price of {ask.model_sent[:128]} is not known"
            else:
                reserves += f" and {amount_of(quote.most(need.input_bound, need.choices * need.cap), is_money=True)}"
                priced = f"; priced by {quote.price.source}"
        accounts = []
        for purse in (*terms.binding, *terms.trials):
            account, limit = account_of(call, purse)
            shown = amount_of(limit, is_money=True) if purse.is_money else f"{limit:,}"
            more = whose(call, purse) if purse.window is not None or not purse.is_per_workflow else ""
            unheld = "" if taken.counts(purse) else ", holds nothing"
            accounts.append(f"{account} (limit {shown}{more and f', {more}'}{unheld})")
        changed = f"; {DEGRADED.decode()}: {ask.model_sent} by rule {ask.degraded_by}" if ask.degraded_by else ""
        return (
            f"reserves up to {reserves} (input at most {need.input_bound:,} by {ask.bound_by}, "
            f"output cap {need.cap:,} x {need.choices}) of {', '.join(accounts)}{priced}{changed}"
        )


def _is_short(got: Reservation | Shortfall, amount: int) -> bool:
    """Say whether an account covers less than was asked of it."""
    return isinstance(got, Shortfall) or got.bound < amount
