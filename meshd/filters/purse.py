"""Whose tokens the budgets of a plan count, and within which limits: worked out once for each plan."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.call import Call
    from meshd.filters.budget_settings import BudgetSettings

OUTPUT_DEFAULT: Final = 4096
FLOOR: Final = 16
QUEUE_S: Final = 2.0
"""Defaults of a budget, and what holds where a context's ceiling is the only limit."""
UNATTRIBUTED: Final = "unattributed/"
DELEGATED_FLOOR: Final = 1000
"""Fewest tokens worth giving to an agent."""
DELEGATED: Final = "delegated/"
"""Before the name of a child account: `delegated/ID/` and the account that all was delegated from at first."""

Key = tuple[bool, str, str]
"""Is it on trial, per what, which account: budgets with the same key count the same tokens."""
_OF_WORKFLOW: Final[Key] = (False, "workflow", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Purse:
    """The budgets of a plan that count the same tokens, as one: the smallest limit holds."""

    rule: str
    """Name of the rule with the smallest limit, for messages; empty for a context's ceiling."""
    prefix: str = ""
    suffix: str = ""
    is_per_workflow: bool = True
    tokens: int
    is_durable: bool = False
    is_passed_on_error: bool = False
    queue_s: float = QUEUE_S

    @property
    def is_plain(self) -> bool:
        """It counts on the very account that a context names."""
        return self.is_per_workflow and not self.prefix and not self.suffix


CEILING: Final = Purse(rule="", tokens=sys.maxsize)
"""No limit but the context's own."""


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
    """The one purse where a reservation can be made at once: there is no other, and none of it waits for a sync."""
    is_plain: bool
    """`only` counts on the account that the context names."""
    under_ceiling: Terms | None = None
    """The same for calls whose context has a ceiling: with a purse for it, where none here counts its tokens."""

    @property
    def is_durable(self) -> bool:
        """Some of it waits for a sync."""
        return any(purse.is_durable for purse in self.binding)


def terms_of(budgets: Sequence[BudgetSettings]) -> Terms:
    """Work out the terms of a plan's budgets; those that count the same tokens become one."""
    grouped: dict[Key, list[BudgetSettings]] = {}
    for settings in budgets:
        grouped.setdefault((settings.is_shadow, settings.per, settings.account), []).append(settings)
    purses = {key: _purse(key, group) for key, group in grouped.items()}
    terms = _terms(purses, budgets)
    terms.under_ceiling = terms if _OF_WORKFLOW in purses else _terms({**purses, _OF_WORKFLOW: CEILING}, budgets)
    return terms


def _terms(purses: dict[Key, Purse], budgets: Sequence[BudgetSettings]) -> Terms:
    binding = tuple(purses[key] for key in sorted(purses) if not key[0])
    trials = tuple(purses[key] for key in sorted(purses) if key[0])
    # A budget on trial shapes nothing where one that binds, or a ceiling, does.
    judged = [one for one in budgets if not (binding and one.is_shadow)]
    only = binding[0] if len(binding) == 1 and not trials and not binding[0].is_durable else None
    return Terms(
        binding=binding,
        trials=trials,
        output_default=min((one.output_default for one in judged), default=OUTPUT_DEFAULT),
        floor=max((one.floor for one in judged), default=FLOOR),
        is_error=any(one.on_exhausted == "error" for one in judged),
        only=only,
        is_plain=only is not None and only.is_plain,
    )


def _purse(key: Key, group: list[BudgetSettings]) -> Purse:
    is_shadow, per, account = key
    tightest = min(group, key=lambda one: one.tokens)
    return Purse(
        rule=tightest.rule,
        prefix="shadow/" if is_shadow else "",
        suffix=f"/{account}" if account else "",
        is_per_workflow=per == "workflow",
        tokens=tightest.tokens,
        is_durable=not is_shadow and any(one.mode == "durable" for one in group),
        is_passed_on_error=all(one.on_store_error == "pass" for one in group),
        queue_s=0.0 if is_shadow else min(one.queue_s for one in group),
    )


def account_of(call: Call, purse: Purse) -> tuple[str, int]:
    """Return the account that a call spends from, and its limit in tokens."""
    context = call.context
    if not purse.is_per_workflow:
        return f"{purse.prefix}agent/{call.agent}{purse.suffix}", purse.tokens
    account = context.account if context is not None else UNATTRIBUTED + call.agent
    limit = purse.tokens
    if account.startswith(UNATTRIBUTED):
        limit = call.policy.limits.unattributed_tokens
    if context is not None and context.ceiling is not None and context.ceiling < limit:
        limit = context.ceiling
    if purse.prefix or purse.suffix:
        # What was delegated is a part of the workflow's own account, and no second purse of any other.
        account = f"{purse.prefix}{root_of(account)}{purse.suffix}"
    return account, limit


def root_of(account: str) -> str:
    """Return the account that a delegated one was taken from at first; any other is its own."""
    return account.split("/", 2)[2] if account.startswith(DELEGATED) else account
