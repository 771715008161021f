"""Budget: no attempt goes out unless the most that it can cost fits into what its account has left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from meshd.call import Kind, Wait
from meshd.engines.port import StoreError
from meshd.filters.contract import Cut, Settings
from meshd.filters.units import Count, Duration
from meshd.ledger.cost import charge_of, need_of
from meshd.ledger.entry import Shortfall
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.call import Ask, Call, Outcome
    from meshd.dialects.contract import Event
    from meshd.ledger import Ledger, Reservation
    from meshd.ledger.cost import Need

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_LLM = Kind.LLM


class BudgetSettings(Settings):
    """What a rule sets: how many tokens, for whom, and what happens at the end of them."""

    tokens: Count = Field(..., ge=0)
    """Tokens, input and output together, that the account may spend in all."""
    per: Literal["workflow", "agent"] = "workflow"
    """Whose tokens are counted together."""
    account: str = Field("", max_length=64, pattern=r"^[A-Za-z0-9._-]*$")
    """A name makes this budget an account of its own, apart from others of the same workflow or agent. Budgets
    without one count the same tokens, each against its own limit."""
    mode: Literal["fast", "durable"] = "fast"
    """`fast`: a killed process loses nothing, a crashed host the rest of the lease. `durable`: synced first."""
    output_default: Count = Field(4096, ge=1)
    """Output cap in tokens for a request that sets none."""
    floor: Count = Field(16, ge=1)
    """Fewest output tokens worth clamping to; below that the call is refused."""
    on_exhausted: Literal["cut", "error"] = "cut"
    """How a stream that runs past its cap ends: as if the cap had been reached, or with an error event."""
    queue_s: Duration = Field(2.0, alias="queue", ge=0, le=60)
    """Most seconds to wait while only calls in flight stand in the way."""
    on_store_error: Literal["refuse", "pass"] = "refuse"
    """What to do while the books cannot be kept. `pass` lets calls through unaccounted."""


STREAM_MARGIN = 1.5
STREAM_MARGIN_TOKENS = 256
"""A stream is cut where a low guess of its output passes its cap times the one plus the other. The cap that the
upstream was given is the guarantee; this catches one that ignores it, and must never cut an honest answer."""

CLAMPED = b"x-meshd-budget-clamped"
"""Reply header: the output cap, in tokens, that was all that the budget had left."""

TERMS_MAX = 4096
"""Plans remembered; the policy's own memory of plans is bounded too."""


class Purse(NamedTuple):
    """The budgets of a plan that count the same tokens, as one: the smallest limit holds."""

    settings: BudgetSettings
    """Those with the smallest limit, for messages."""
    prefix: str
    suffix: str
    is_per_workflow: bool
    tokens: int
    is_durable: bool
    is_passed_on_error: bool
    queue_s: float


class Terms(NamedTuple):
    """What the budgets of one plan come to, worked out once per plan."""

    plan: Any
    """Held, so that its id stays its own while these terms are remembered."""
    binding: tuple[Purse, ...]
    trials: tuple[Purse, ...]
    output_default: int
    floor: int
    is_error: bool
    is_durable: bool


class Held:
    """Tokens held for one attempt, in one account or several."""

    __slots__ = ("_input_bound", "_ledger", "_output_bound", "_ran_tokens", "_reservations")

    def __init__(self, ledger: Ledger, reservations: tuple[Reservation, ...], input_bound: int, output_bound: int):
        self._ledger = ledger
        self._reservations = reservations
        self._input_bound = input_bound
        self._output_bound = output_bound
        self._ran_tokens = 0

    def settle(self, outcome: Outcome) -> None:
        """Charge what the attempt cost to each account, and give the rest back."""
        tokens, is_estimated = charge_of(outcome, self._input_bound, max(self._output_bound, self._ran_tokens))
        if is_estimated:
            self._ledger.estimated += 1
        for reservation in self._reservations:
            reservation.settle(tokens)


class HeldStream(Held):
    """The same for a streamed answer, which is cut where it runs past what was granted."""

    __slots__ = ("_cut_at", "_is_error", "judges_whole")

    def __init__(
        self,
        ledger: Ledger,
        reservations: tuple[Reservation, ...],
        input_bound: int,
        output_bound: int,
        *,
        is_error: bool,
    ):
        super().__init__(ledger, reservations, input_bound, output_bound)
        self._cut_at = int(output_bound * STREAM_MARGIN) + STREAM_MARGIN_TOKENS
        self._is_error = is_error
        self.judges_whole = False

    def on_event(self, event: Event) -> Event | Cut:
        """Let the piece pass, or cut the stream here."""
        if event.output_estimate <= self._cut_at:
            return event
        self._ran_tokens = event.output_estimate
        return Cut(
            f"the answer ran past its cap: about {event.output_estimate} tokens for {self._output_bound} granted",
            is_error=self._is_error,
        )


class Budget:
    """Reserves before, settles after. The same instance serves every policy: it reads its settings from the plan."""

    name = "budget"
    __slots__ = ("_ledger", "_shadowed", "_terms")

    def __init__(self, ledger: Ledger, shadowed: Callable[[Call, Refused], None] | None = None) -> None:
        """`shadowed` is told of a shadow budget that would have refused a call which binding ones admitted."""
        self._ledger = ledger
        self._shadowed = shadowed
        self._terms: dict[int, Terms] = {}

    def admit(self, call: Call) -> Held | Wait | None:
        """Reserve the most that this attempt can cost. Raises Refused: budget_exhausted, budget_busy,
        store_unavailable, or not_allowed for a call to an LLM that nobody can bound."""
        plan = call.plan
        if not plan.budgets:
            return None
        terms = self._terms.get(id(plan)) or self._remember(plan)
        ask = call.ask
        if ask is None:
            self._check_unread(call, terms)
            return None
        need = need_of(ask, terms.output_default, terms.floor)
        if terms.is_durable or terms.trials:
            return Wait(self._admit_later(call, ask, terms, need))
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
                if got is None:
                    _release(held)
                    return Wait(self._admit_later(call, ask, terms, need))
                if isinstance(got, Shortfall):
                    raise refusal(call, purse, got)
                held.append(got)
                bound = got.bound
        except Refused:
            _release(held)
            raise
        return self._granted(call, ask, terms, need, held)

    async def _admit_later(self, call: Call, ask: Ask, terms: Terms, need: Need) -> Held | None:
        held: list[Reservation] = []
        trials: list[Reservation] = []
        try:
            bound = need.bound
            for purse in terms.binding:
                one = await self._reserve_later(call, purse, bound, need)
                if one is not None:
                    held.append(one)
                    bound = one.bound
            would: Refused | None = None
            for purse in terms.trials:
                try:
                    one = await self._reserve_later(call, purse, bound, need)
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

    async def _reserve_later(self, call: Call, purse: Purse, bound: int, need: Need) -> Reservation | None:
        account, limit = account_of(call, purse)
        is_trial = bool(purse.prefix)
        try:
            got = await self._ledger.wait(
                account, limit, bound, need.least, queue_s=purse.queue_s, is_durable=purse.is_durable
            )
        except StoreError as error:
            if purse.is_passed_on_error or is_trial:
                return None
            raise unavailable(purse, error) from error
        if isinstance(got, Shortfall):
            raise refusal(call, purse, got)
        return got

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
            for one in held:
                one.shrink(bound)
        if ask.has_output:
            # A trial changes nothing of what the client sent.
            ask.output_cap_granted = cap if held and cap != ask.output_cap else None
            if call.attempt > 1:
                call.reply_headers[:] = [field for field in call.reply_headers if field[0] != CLAMPED]
            if cap < need.cap:
                call.reply_headers.append((CLAMPED, b"%d" % cap))
        reservations = (*held, *trials)
        if not reservations:
            return None
        output_bound = bound - need.input_bound
        if ask.is_stream and held:
            return HeldStream(self._ledger, reservations, need.input_bound, output_bound, is_error=terms.is_error)
        return Held(self._ledger, reservations, need.input_bound, output_bound)

    def _check_unread(self, call: Call, terms: Terms) -> None:
        """Pass what owes no tokens; refuse a call to an LLM whose cost nobody can bound."""
        if call.target.kind is not _LLM or call.upstream.is_unmetered:
            return
        path = call.path.partition("?")[0]
        if call.dialect is not None and call.dialect.is_free(call.method, call.path):
            return
        settings = (terms.binding or terms.trials)[0].settings
        raise Refused(
            Reason.NOT_ALLOWED,
            f"{call.method} {path} of {call.target.name} may cost tokens that meshd cannot bound, and budget rule "
            f"{settings.rule or 'budget'} applies to it. Use a path that meshd reads, or set `unmetered: true` on the "
            "upstream to let such calls pass uncounted.",
            rule=settings.rule,
            is_shadow=not terms.binding,
        )

    def _remember(self, plan: Any) -> Terms:
        if len(self._terms) >= TERMS_MAX:
            self._terms.clear()
        terms = self._terms[id(plan)] = terms_of(plan)
        return terms

    def explain(self, call: Call) -> str:
        """Say what was reserved, and of what."""
        plan = call.plan
        if not plan.budgets:
            return "no rule sets a budget"
        if call.ask is None:
            return "owes no tokens"
        terms = terms_of(plan)
        need = need_of(call.ask, terms.output_default, terms.floor)
        accounts = ", ".join(
            f"{account} (limit {limit:,})"
            for account, limit in (account_of(call, purse) for purse in (*terms.binding, *terms.trials))
        )
        return (
            f"reserves up to {need.bound:,} tokens (input at most {need.input_bound:,}, output cap {need.cap:,} "
            f"x {need.choices}) of {accounts}"
        )


def terms_of(plan: Any) -> Terms:
    """Work out the terms of a plan: budgets that count the same tokens become one, with the smallest limit."""
    grouped: dict[tuple[bool, str, str], list[BudgetSettings]] = {}
    for settings in plan.budgets:
        grouped.setdefault((settings.is_shadow, settings.per, settings.account), []).append(settings)
    purses = {key: _purse(key, group) for key, group in grouped.items()}
    # Always in the same order, so that two calls never hold what the other waits for.
    binding = tuple(purses[key] for key in sorted(purses) if not key[0])
    trials = tuple(purses[key] for key in sorted(purses) if key[0])
    judged = [one for one in plan.budgets if not one.is_shadow] or list(plan.budgets)
    return Terms(
        plan,
        binding,
        trials,
        output_default=min(one.output_default for one in judged),
        floor=max(one.floor for one in judged),
        is_error=any(one.on_exhausted == "error" for one in judged),
        is_durable=any(one.mode == "durable" for one in judged),
    )


def _purse(key: tuple[bool, str, str], group: list[BudgetSettings]) -> Purse:
    is_shadow, per, account = key
    tightest = min(group, key=lambda one: one.tokens)
    return Purse(
        tightest,
        "shadow/" if is_shadow else "",
        f"/{account}" if account else "",
        per == "workflow",
        tightest.tokens,
        is_durable=not is_shadow and any(one.mode == "durable" for one in group),
        is_passed_on_error=all(one.on_store_error == "pass" for one in group),
        queue_s=0.0 if is_shadow else min(one.queue_s for one in group),
    )


def account_of(call: Call, purse: Purse) -> tuple[str, int]:
    """Return the account that a call spends from, and its limit in tokens."""
    context = call.context
    if not purse.is_per_workflow:
        return f"{purse.prefix}agent/{call.agent}{purse.suffix}", purse.tokens
    account = context.account if context is not None else f"unattributed/{call.agent}"
    limit = purse.tokens
    if account.startswith("unattributed/"):
        limit = call.policy.limits.unattributed_tokens
    if context is not None and context.ceiling is not None and context.ceiling < limit:
        limit = context.ceiling
    if purse.prefix or purse.suffix:
        account = f"{purse.prefix}{account}{purse.suffix}"
    return account, limit


def unavailable(purse: Purse, error: StoreError) -> Refused:
    """Return the refusal for books that cannot be kept: no call goes out on a budget that nobody counts."""
    return Refused(
        Reason.STORE_UNAVAILABLE,
        f"the budget of rule {purse.settings.rule or 'budget'} cannot be kept, so the call is refused: {error}",
        rule=purse.settings.rule,
    )


def refusal(call: Call, purse: Purse, short: Shortfall) -> Refused:
    """Return the refusal for an account that cannot cover a call: who, used and limit, and what to do next."""
    rule = purse.settings.rule
    if call.policy.expose_amounts:
        amounts = (
            f"has spent {short.used:,} of its {short.limit:,} tokens and holds {short.reserved:,} for calls in flight; "
            f"this call may take {short.bound:,}"
        )
        if short.least < short.bound:
            amounts += f" and needs at least {short.least:,}"
    else:
        amounts = "has too few tokens left for this call"
    set_by = f" (rule {rule})" if rule else ""
    if short.is_busy:
        return Refused(
            Reason.BUDGET_BUSY,
            f"Budget busy: account {short.account}{set_by} {amounts}. Try again when calls in flight have ended.",
            rule=rule,
            retry_after_s=1,
            is_shadow=bool(purse.prefix),
        )
    return Refused(
        Reason.BUDGET_EXHAUSTED,
        f"Budget exhausted: account {short.account}{set_by} {amounts}. {_advice(call, purse, short)}",
        rule=rule,
        is_shadow=bool(purse.prefix),
    )


def _advice(call: Call, purse: Purse, short: Shortfall) -> str:
    context = call.context
    if short.account.startswith("unattributed/"):
        return (
            "These calls belong to no workflow: start the agent with `meshd exec`, name a workflow, raise "
            "`limits.unattributed_tokens`, or wait for the next day (UTC)."
        )
    if purse.is_per_workflow and context is not None and context.ceiling == short.limit < purse.tokens:
        return "The limit was set by the caller that delegated this work: ask it for more, or finish with less."
    other = "begin a new workflow" if short.used else "send a shorter request"
    return f"Raise `budget.tokens` in the policy, or {other}."


def _release(held: list[Reservation]) -> None:
    while held:
        held.pop().settle(0)
