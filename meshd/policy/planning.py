"""How the rules that fit a call become its plan.

- Every budget that matched applies: each is a limit of its own.
- For every other filter the first matching rule that sets it wins.
- `allow` and `deny` are one filter. A `deny` that comes first ends the matter; an `allow` that comes first takes the
  lists that it does not name itself from the `allow` rules after it, so that a rule about models does not
  lift the short form's `allowed_tools`.
- A shadow rule never takes the place of one that binds: a rule on trial must not switch off what it may replace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

from meshd.filters.breaker_settings import BreakerSettings
from meshd.filters.concurrency_settings import ConcurrencySettings
from meshd.filters.fallback_settings import RetrySettings
from meshd.filters.idempotency_settings import IdempotencySettings
from meshd.filters.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from meshd.call import Target
    from meshd.filters.allow_list_settings import AllowSettings
    from meshd.filters.contract import Settings
    from meshd.filters.turns_settings import TurnsSettings
    from meshd.policy.matching import Rule

ALLOWED = ("models", "tools", "prompts", "targets", "hosts")
"""Lists of `allow`: each is taken from the first rule that has it."""
DEFAULT_RULE = "default"
"""The name that the settings of upstreams without a rule carry in messages and counters."""

S = TypeVar("S", bound="Settings")


def named(settings: S, rule: str, *, is_shadow: bool = False) -> S:
    """Return the same settings, marked with the rule that set them."""
    return settings.named(rule, is_shadow=is_shadow)


class Defaults(NamedTuple):
    """What holds where no rule says otherwise, for the filters that are on by themselves."""

    breaker: BreakerSettings
    retry: RetrySettings
    concurrency: ConcurrencySettings
    idempotency: IdempotencySettings
    turns: TurnsSettings


def planner(turns: TurnsSettings) -> Callable[[list[Rule], Target], Plan]:
    """Return the function that builds plans, with the defaults made once. `turns` is what `limits.turns` says."""
    defaults = Defaults(
        named(BreakerSettings.model_validate({}), DEFAULT_RULE),
        named(RetrySettings.model_validate({}), DEFAULT_RULE),
        named(ConcurrencySettings.model_validate({}), DEFAULT_RULE),
        named(IdempotencySettings.model_validate({}), DEFAULT_RULE),
        named(turns, "limits.turns"),
    )

    def build(rules: list[Rule], target: Target) -> Plan:
        return build_plan(rules, defaults)

    return build


def build_plan(rules: list[Rule], defaults: Defaults) -> Plan:
    """Build the plan of a call that all of `rules` fit, in their order."""
    binding = [rule for rule in rules if not rule.is_shadow]
    shadows = [rule for rule in rules if rule.is_shadow]
    allow = merge_allow(rule.allow for rule in binding if rule.allow is not None)
    approval = _first(rule.approval for rule in binding)
    # Where no rule binds, the shadow's settings stand in its place, marked: AllowList and Approval judge by them,
    # and the chain counts. What acts (a route, a retry, a breaker) must not act in shadow: it is only ever a trial.
    allow_shadow = _first(rule.allow for rule in shadows) if allow is None else None
    approval_shadow = _first(rule.approval for rule in shadows) if approval is None else None
    budgets = tuple(rule.budget for rule in rules if rule.budget is not None)
    plan = Plan(
        route=_first(rule.route for rule in binding),
        allow=allow or allow_shadow,
        budgets=budgets,
        breaker=_first(rule.breaker for rule in binding) or defaults.breaker,
        retry=_first(rule.retry for rule in binding) or defaults.retry,
        approval=approval or approval_shadow,
        delegate=_first(rule.delegate for rule in binding),
        chain=_first(rule.chain for rule in binding),
        concurrency=_first(rule.concurrency for rule in binding) or defaults.concurrency,
        idempotency=_first(rule.idempotency for rule in binding) or defaults.idempotency,
        turns=_first(rule.turns for rule in binding) or defaults.turns,
    )
    placed = {id(settings) for settings in (plan.allow, plan.approval, *budgets)}
    plan.trials = tuple(s for rule in shadows for s in rule.settings if id(s) not in placed)
    used = [rule for rule in rules if _is_used(rule, plan)]
    plan.rules = tuple(rule.name for rule in used)
    plan.hits = tuple(rule.hits for rule in used)
    return plan


def merge_allow(every: Iterable[AllowSettings]) -> AllowSettings | None:
    """Return what the `allow` and `deny` settings of the rules that fit amount to, or None where there are none."""
    given = list(every)
    if not given or given[0].denied is not None:
        return given[0] if given else None
    first, *rest = given
    lists: dict[str, tuple[str, ...]] = {}
    givers = [first.rule]
    for settings in rest:
        if settings.denied is not None:
            break
        gives = {
            key: value
            for key in ALLOWED
            if (value := getattr(settings, key)) is not None and getattr(first, key) is None and key not in lists
        }
        if gives:
            lists.update(gives)
            givers.append(settings.rule)
    return named(first.model_copy(update=lists), "+".join(givers)) if lists else first


def _first(every: Iterable[S | None]) -> S | None:
    return next((settings for settings in every if settings is not None), None)


def _is_used(rule: Rule, plan: Plan) -> bool:
    if rule.is_shadow or rule.budget is not None:
        return True
    acting = (
        plan.route, plan.breaker, plan.retry, plan.approval, plan.delegate, plan.chain, plan.concurrency,
        plan.idempotency, plan.turns,
    )  # fmt: skip
    if any(s is p for s in rule.settings for p in acting):
        return True
    return rule.allow is not None and plan.allow is not None and rule.name in plan.allow.rule.split("+")
