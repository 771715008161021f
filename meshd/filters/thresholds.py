"""What happens before a budget is used up: a warning, and a cheaper model in the place of the one asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from meshd.call import Target
from meshd.dialects.rebounding import bound_anew
from meshd.filters.units import dollars
from meshd.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call
    from meshd.filters.allow_list_settings import AllowSettings
    from meshd.filters.purse import Purse
    from meshd.ledger.entry import Entry

WARNING: Final = b"x-meshd-budget-warning"
"""Reply header: a budget of which the policy wanted to hear before it is used up. One for each."""
DEGRADED: Final = b"x-meshd-model-degraded"
"""Reply header: the cheaper model that was asked for, and the rule whose budget chose it."""
STEPS_MAX: Final = 3
"""Cheaper models that one call may go through."""
RULES_MAX: Final = 1024
OTHER: Final = "other"


class Tally:
    """How often thresholds were passed, by rule. As many as the policy's rules: beyond a bound, `other`."""

    __slots__ = ("degraded", "unpriced", "warned")

    def __init__(self) -> None:
        self.warned: dict[str, int] = {}
        self.degraded: dict[str, int] = {}
        self.unpriced: dict[str, int] = {}
        """Attempts on a dollar budget with a model whose price is not known."""


def count(counts: dict[str, int], rule: str) -> None:
    """Count one more of `rule`."""
    if rule not in counts and len(counts) >= RULES_MAX:
        rule = OTHER
    counts[rule] = counts.get(rule, 0) + 1


def is_past(entry: Entry, limit: int, at: int, own: int = 0) -> bool:
    """Say whether what is spent and reserved on an account, but for `own`, comes to `at` thousandths of its limit."""
    holder = entry.holder
    if holder is None:
        return False
    stands = holder.elsewhere - holder.lent + holder.spent + holder.reserved - own
    return stands * 1000 >= (limit + holder.extra) * at


def warning(call: Call, purse: Purse, entry: Entry, limit: int) -> bytes:
    """Return the value of the reply header that warns of a budget."""
    said = [
        f"rule={purse.warn_rule or purse.rule}",
        f"per={purse.per}",
        f"unit={'dollars' if purse.is_money else 'tokens'}",
        f"at={purse.warn_at / 1000:g}",
    ]
    holder = entry.holder
    if call.policy.expose_amounts and holder is not None:
        stands = holder.elsewhere - holder.lent + holder.spent + holder.reserved
        whole = limit + holder.extra
        said.append(f"limit={_plain(whole, purse)}")
        said.append(f"remaining={_plain(max(0, whole - stands), purse)}")
    if purse.window is not None:
        said.append(f"resets={purse.window.resets(call.wall_s)}")
    return "; ".join(said).encode("latin-1", "replace")


def _plain(amount: int, purse: Purse) -> str:
    return dollars(amount).replace(",", "") if purse.is_money else str(amount)


def degrade(call: Call, purse: Purse, judge: Callable[[Call, AllowSettings], None] | None) -> bool:
    """Put the cheaper model of `purse` in the place of the one that is asked for; False where that cannot be.

    The model is judged as if it had been asked for: its own plan holds from here on, with its own budgets, breaker
    and `allow`. What it would not be allowed, or what cannot be judged, leaves the call as it was.
    """
    ask, to = call.ask, purse.degrade_to
    if ask is None or not ask.has_output or not to or to in (ask.model, ask.model_sent):
        return False
    if ask.is_sealed and (call.upstream is None or call.upstream.key_header is None):
        return False
    was_granted, was_target, was_plan = ask.model_granted, call.target, call.plan
    was_bound, was_bound_by, was_unbounded = ask.input_bound, ask.bound_by, ask.unbounded
    ask.model_granted = to
    call.target = Target(was_target.kind, was_target.name, to)
    plan = call.plan = call.policy.plan(call.target, call.agent, ask.operation)
    try:
        is_allowed = _may_be_sent(call, was_plan, judge)
        if is_allowed:
            bound_anew(call, ask)
            is_allowed = not ask.unbounded
    except Refused:
        is_allowed = False
    if not is_allowed:
        ask.model_granted, call.target, call.plan = was_granted, was_target, was_plan
        ask.input_bound, ask.bound_by, ask.unbounded = was_bound, was_bound_by, was_unbounded
        return False
    plan.hit()
    ask.degraded_by = purse.degrade_rule
    forget(call, DEGRADED)
    value = f"{to}; rule={purse.degrade_rule}".encode("latin-1", "replace")
    call.reply_headers.append((DEGRADED, value))
    return True


def _may_be_sent(call: Call, before: Any, judge: Callable[[Call, AllowSettings], None] | None) -> bool:
    allow, allowed_before = call.plan.allow, before.allow
    tools = None if allow is None or allow.is_shadow else allow.tools
    tools_before = None if allowed_before is None or allowed_before.is_shadow else allowed_before.tools
    if tools is not None and tools != tools_before:
        # Whoever watches the answer for tools judges by the plan that the call had when it was admitted.
        return False
    if call.plan.approval is not before.approval:
        return False
    if allow is not None and not allow.is_shadow:
        if judge is None:
            return False
        judge(call, allow)
    return True


def forget(call: Call, *names: bytes) -> None:
    """Take back what an attempt before said in these reply headers."""
    call.reply_headers[:] = [field for field in call.reply_headers if field[0] not in names]
