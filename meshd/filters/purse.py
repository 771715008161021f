"""Whose tokens and dollars the budgets of a plan count, and within which limits: worked out once for each plan."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from meshd.filters.window import Window
from meshd.ledger.account import CHILDREN
from meshd.prices import MONEY
from meshd.prices.price import dearest
from meshd_sdk.context import NO_CEILING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.call import Ask, Call
    from meshd.filters.budget_settings import BudgetSettings
    from meshd.filters.plan import Plan
    from meshd.prices.price import Price

OUTPUT_DEFAULT: Final = 4096
FLOOR: Final = 16
QUEUE_S: Final = 2.0
"""Defaults of a budget, and what holds where a context's ceiling is the only limit."""
UNATTRIBUTED: Final = "unattributed/"
DELEGATED_FLOOR: Final = 1000
"""Fewest tokens worth giving to an agent."""
DELEGATED: Final = CHILDREN
"""Before the name of a child account: `delegated/ID/` and the account that all was delegated from at first."""
NAME_CHARACTERS_MAX: Final = 64
_SAFE: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-")
_REMEMBERED_CHARACTERS_MAX: Final = 1024

Key = tuple[bool, str, str, str, bool]
"""Is it on trial, per what, which account, which window, is it money: budgets with the same key count the same."""
_OF_WORKFLOW: Final[Key] = (False, "workflow", "", "", False)
_MONEY_OF_WORKFLOW: Final[Key] = (False, "workflow", "", "", True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Purse:
    """The budgets of a plan that count the same, as one: the smallest limit holds."""

    rule: str
    """Name of the rule with the smallest limit, for messages; empty for a context's ceiling."""
    prefix: str = ""
    suffix: str = ""
    """Ends the account's name, behind the window's."""
    per: str = "workflow"
    is_per_workflow: bool = True
    window: Window | None = None
    is_money: bool = False
    limit: int
    """Tokens, or micro-dollars."""
    is_durable: bool = False
    is_passed_on_error: bool = False
    queue_s: float = QUEUE_S
    warn_at: int = 0
    """Thousandths of the limit; 0 for never."""
    warn_rule: str = ""
    degrade_at: int = 0
    """Thousandths of the limit; 0 for never."""
    degrade_to: str = ""
    degrade_rule: str = ""

    @property
    def is_plain(self) -> bool:
        """It counts on the very account that a context names."""
        return self.is_per_workflow and not self.prefix and not self.suffix and self.window is None

    @property
    def is_under_ceiling(self) -> bool:
        """A context's ceiling limits it: what is counted is all that the workflow spends."""
        return self.is_plain or (
            self.is_per_workflow and not self.prefix and self.suffix == MONEY and self.window is None
        )


CEILING: Final = Purse(rule="", limit=sys.maxsize)
"""No limit but the context's own."""
MONEY_CEILING: Final = Purse(rule="", suffix=MONEY, is_money=True, limit=sys.maxsize)
"""The same in money."""


@dataclass(slots=True, kw_only=True, eq=False)
class Terms:
    """What the budgets of one plan come to."""

    binding: tuple[Purse, ...]
    """Always in the same order, so that two calls never hold what the other waits for."""
    trials: tuple[Purse, ...]
    output_default: int
    floor: int
    is_error: bool
    only: Purse | None
    """The one purse where a reservation can be made at once: of tokens, with no other beside it, never waiting for a
    sync, and with no cheaper model to look for."""
    is_plain: bool
    """`only` counts on the account that the context names."""
    has_money: bool
    has_warnings: bool
    price: Price | None = None
    """Of the model that these terms are for, where any of them is money; None where it is not known."""
    is_priced: bool = False
    """The price was looked for."""
    under_ceiling: Terms | None = None
    """The same for calls whose context has a ceiling: with a purse for it, where none here counts its tokens."""
    under_money: Terms | None = None
    """The same for calls whose context has a ceiling in money alone."""
    under_both: Terms | None = None

    @property
    def is_durable(self) -> bool:
        """Some of it waits for a sync."""
        return any(purse.is_durable for purse in self.binding)

    @property
    def binds_tokens(self) -> bool:
        """Tokens hold, whatever dollars do."""
        return any(not purse.is_money for purse in self.binding)


def terms_for(call: Call) -> Terms:
    """Return the terms of a call's plan and target, worked out when the first call asks for them."""
    plan: Plan = call.plan
    terms: Terms | None = plan.terms
    if terms is None:
        terms = plan.terms = terms_of(plan.budgets)
    context = call.context
    if context is not None and context.ceiling is not None:
        under = terms.under_ceiling
        if context.ceiling_microdollars is not None:
            under = terms.under_money if context.ceiling == NO_CEILING else terms.under_both
        terms = under or terms
    if terms.has_money and not terms.is_priced:
        target = call.target
        terms.price, terms.is_priced = call.policy.prices.find(target.name, target.model), True
    return terms


def price_for(call: Call, ask: Ask, terms: Terms) -> Price | None:
    """Return what a call costs by `terms`: the dearest of the models that may serve it; None where the price of one is
    not known."""
    if terms.price is None or not ask.other_models:
        return terms.price
    prices = [terms.price]
    for model in ask.other_models:
        price = call.policy.prices.find(call.target.name, model)
        if price is None:
            return None
        prices.append(price)
    return dearest(prices)


def terms_of(budgets: Sequence[BudgetSettings]) -> Terms:
    """Work out the terms of a plan's budgets; those that count the same become one."""
    grouped: dict[Key, list[BudgetSettings]] = {}
    for one in budgets:
        for is_money, limit in ((False, one.tokens), (True, one.dollars)):
            if limit is not None:
                key = (one.is_shadow, one.per, one.account, one.window or "", is_money)
                grouped.setdefault(key, []).append(one)
    purses = {key: _purse(key, group) for key, group in grouped.items()}
    terms = _terms(purses, budgets)
    tokens, money = {_OF_WORKFLOW: CEILING}, {_MONEY_OF_WORKFLOW: MONEY_CEILING}
    terms.under_ceiling = terms if _OF_WORKFLOW in purses else _terms(tokens | purses, budgets)
    terms.under_money = terms if _MONEY_OF_WORKFLOW in purses else _terms(money | purses, budgets)
    terms.under_both = _terms(tokens | money | purses, budgets)
    return terms


def _terms(purses: dict[Key, Purse], budgets: Sequence[BudgetSettings]) -> Terms:
    binding = tuple(purses[key] for key in sorted(purses) if not key[0])
    trials = tuple(purses[key] for key in sorted(purses) if key[0])
    # A budget on trial shapes nothing where one that binds, or a ceiling, does.
    judged = [one for one in budgets if not (binding and one.is_shadow)]
    only: Purse | None = None
    if len(binding) == 1 and not trials:
        first = binding[0]
        only = None if first.is_durable or first.is_money or first.degrade_at else first
    return Terms(
        binding=binding,
        trials=trials,
        output_default=min((one.output_default for one in judged), default=OUTPUT_DEFAULT),
        floor=max((one.floor for one in judged), default=FLOOR),
        is_error=any(one.on_exhausted == "error" for one in judged),
        only=only,
        is_plain=only is not None and only.is_plain,
        has_money=any(purse.is_money for purse in purses.values()),
        has_warnings=any(purse.warn_at for purse in binding),
    )


def _purse(key: Key, group: list[BudgetSettings]) -> Purse:
    is_shadow, per, account, window, is_money = key
    tightest = min(group, key=lambda one: _limit(one, is_money))
    limit = _limit(tightest, is_money)
    # Each threshold is a share of its own budget's limit: the one that is reached first stands for all.
    warns = [(_share_of(one, is_money, one.warn_at, limit), one) for one in group if one.warn_at is not None]
    degrades = [(_share_of(one, is_money, one.degrade.at, limit), one) for one in group if one.degrade is not None]
    warn_at, warner = min(warns, key=lambda pair: pair[0], default=(0, None))
    degrade_at, degrader = min(degrades, key=lambda pair: pair[0], default=(0, None))
    return Purse(
        rule=tightest.rule,
        prefix="shadow/" if is_shadow else "",
        suffix=(f"/{account}" if account else "") + (MONEY if is_money else ""),
        per=per,
        is_per_workflow=per == "workflow",
        window=Window(window) if window else None,
        is_money=is_money,
        limit=limit,
        is_durable=not is_shadow and any(one.mode == "durable" for one in group),
        is_passed_on_error=all(one.on_store_error == "pass" for one in group),
        queue_s=0.0 if is_shadow else min(one.queue_s for one in group),
        warn_at=warn_at,
        warn_rule=warner.rule if warner is not None else "",
        degrade_at=degrade_at,
        degrade_to=degrader.degrade.to if degrader is not None and degrader.degrade is not None else "",
        degrade_rule=degrader.rule if degrader is not None else "",
    )


def _limit(budget: BudgetSettings, is_money: bool) -> int:
    limit = budget.dollars if is_money else budget.tokens
    return limit if limit is not None else 0


def _share_of(budget: BudgetSettings, is_money: bool, share: float, tightest: int) -> int:
    """Return a share of a budget's own limit as thousandths of the tightest one of its purse, at least one."""
    wanted = round(share * 1000) * _limit(budget, is_money)
    return max(1, wanted // tightest) if tightest else 1


def account_of(call: Call, purse: Purse) -> tuple[str, int]:
    """Return the account that a call spends from, and its limit in tokens or micro-dollars."""
    limit = purse.limit
    if purse.is_per_workflow:
        context = call.context
        account = context.account if context is not None else UNATTRIBUTED + call.agent
        if not purse.is_money and account.startswith(UNATTRIBUTED):
            limit = call.policy.limits.unattributed_tokens
        if context is not None and context.ceiling is not None and purse.is_under_ceiling:
            ceiling = context.ceiling_microdollars if purse.is_money else context.ceiling
            if ceiling is not None and ceiling < limit:
                limit = ceiling
        if not purse.is_plain:
            # What was delegated is a part of the workflow's own account, and no second purse of any other.
            account = root_of(account)
    else:
        account = f"{purse.per}/{safe(_whose(call, purse.per))}"
    window = purse.window
    if window is not None:
        account = f"{account}/@{window.at(call.wall_s)}"
    if purse.prefix or purse.suffix:
        account = f"{purse.prefix}{account}{purse.suffix}"
    return account, limit


def root_of(account: str) -> str:
    """Return the account that a delegated one was taken from at first; any other is its own."""
    return account.split("/", 2)[2] if account.startswith(DELEGATED) else account


def _whose(call: Call, per: str) -> str:
    if per == "agent":
        return call.agent
    if per == "model":
        return call.target.model
    if per == "upstream":
        return call.target.name
    tenant: str = call.policy.tenant
    return tenant


def safe(name: str) -> str:
    """Return a name fit to stand in an account's: itself where it is short and plain, else marked by its hash.

    Agents and models are named by callers: no name may be long, break a store, or be read as another account's.
    """
    if len(name) <= _REMEMBERED_CHARACTERS_MAX:
        return _safe(name)
    return _hashed(name)


@lru_cache(maxsize=1024)
def _safe(name: str) -> str:
    return name if 0 < len(name) <= NAME_CHARACTERS_MAX and _SAFE.issuperset(name) else _hashed(name)


def _hashed(name: str) -> str:
    shown = "".join([character if character in _SAFE else "_" for character in name[:40]])
    # `~` is in no name that stands for itself.
    return f"{shown}~{sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
