"""What Budget says where it refuses: who, which limit, used and limit, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.filters.purse import UNATTRIBUTED
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.call import Call
    from meshd.engines.port import StoreError
    from meshd.filters.purse import Purse, Terms
    from meshd.ledger import Shortfall


def unavailable(purse: Purse, error: StoreError) -> Refused:
    """Return the refusal for books that cannot be kept: no call goes out on a budget that nobody counts."""
    return Refused(
        Reason.STORE_UNAVAILABLE,
        f"the budget of rule {purse.rule or 'budget'} cannot be kept, so the call is refused: {error}",
        rule=purse.rule,
    )


def unread(call: Call, terms: Terms) -> Refused:
    """Return the refusal for a call to an LLM whose cost nobody can bound."""
    rule = (terms.binding or terms.trials)[0].rule
    applies = f"budget rule {rule} applies to it" if rule else "its workflow has a token limit"
    return Refused(
        Reason.NOT_ALLOWED,
        f"{call.method} {call.path.partition('?')[0]} of {call.target.name} may cost tokens that meshd cannot bound, "
        f"and {applies}. Use a path that meshd reads, or set `unmetered: true` on the upstream to let such calls pass "
        "uncounted.",
        rule=rule,
        is_shadow=not terms.binding,
    )


def exhausted(call: Call, purse: Purse, short: Shortfall) -> Refused:
    """Return the refusal for an account that cannot cover a call."""
    refused = _exhausted(call, purse, short)
    refused.short = short
    return refused


def _exhausted(call: Call, purse: Purse, short: Shortfall) -> Refused:
    rule = purse.rule
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
    if purse.is_per_workflow and context is not None and context.ceiling == short.limit < purse.tokens:
        return (
            "The limit was set by the caller that delegated this work, or by `meshd exec --budget`: ask for more "
            "there, or finish with less."
        )
    if short.account.startswith(UNATTRIBUTED):
        return (
            "These calls belong to no workflow: start the agent with `meshd exec`, name a workflow, raise "
            "`limits.unattributed_tokens`, or wait for the next day (UTC)."
        )
    other = "begin a new workflow" if short.used else "send a shorter request"
    return f"Raise `budget.tokens` in the policy, or {other}."
