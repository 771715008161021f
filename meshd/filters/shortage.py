"""What Budget says where it refuses: who, which limit, used and limit, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.filters.purse import UNATTRIBUTED
from meshd.filters.units import dollars
from meshd.refusal import Reason, Refused
from meshd.tokens.encodings import WINDOW

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
    why, instead = "", "Use a path that meshd reads"
    if call.ask is not None:
        why, instead = f" ({call.ask.unbounded})", "Use a model and a request whose tokens can be bounded"
    return Refused(
        Reason.NOT_ALLOWED,
        f"{call.method} {call.path.partition('?')[0]} of {call.target.name} may cost tokens that meshd cannot bound"
        f"{why}, and {applies}. {instead}, or set `unmetered: true` on the upstream to let such calls pass uncounted.",
        rule=rule,
        is_shadow=not terms.binding,
    )


def unpriced(call: Call, purse: Purse) -> Refused:
    """Return the refusal for a model whose price nobody has said, on a budget that is nothing but dollars."""
    target, ask = call.target, call.ask
    models = [target.model, *(ask.other_models if ask is not None else ())]
    unknown = [model for model in models if call.policy.prices.find(target.name, model) is None]
    model = (unknown or models)[0][:128]
    whose_budget = f"the dollar budget of rule {purse.rule}" if purse.rule else "what its workflow may spend in dollars"
    return Refused(
        Reason.NOT_ALLOWED,
        f"The price of the model {model!r} on {target.name} is not known, so it cannot be charged to "
        f"{whose_budget}. Say it in the policy, in dollars for a million tokens "
        f'(`prices: {{"{_glob(model)}": {{input: 0.15, output: 0.60}}}}`; 0 is a price), or set `tokens` beside '
        "`dollars`.",
        rule=purse.rule,
        is_shadow=bool(purse.prefix),
    )


def _glob(model: str) -> str:
    return model if model and model.isascii() and model.isprintable() and '"' not in model else "NAME"


def exhausted(call: Call, purse: Purse, short: Shortfall) -> Refused:
    """Return the refusal for an account that cannot cover a call."""
    refused = _exhausted(call, purse, short)
    refused.short = short
    return refused


def _exhausted(call: Call, purse: Purse, short: Shortfall) -> Refused:
    rule, is_money = purse.rule, purse.is_money
    unit = "" if is_money else " tokens"
    if call.policy.expose_amounts:
        amounts = (
            f"has spent {amount_of(short.used, is_money=is_money)} of its "
            f"{amount_of(short.limit, is_money=is_money)}{unit} and holds "
            f"{amount_of(short.reserved, is_money=is_money)} for calls in flight; "
            f"this call may take {amount_of(short.bound, is_money=is_money)}"
        )
        if short.least < short.bound:
            amounts += f" and needs at least {amount_of(short.least, is_money=is_money)}"
    else:
        amounts = f"has too few {'dollars' if is_money else 'tokens'} left for this call"
    if short.is_closed:
        amounts += ", and was closed"
    set_by = f" ({whose(call, purse)})" if rule else ""
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


def amount_of(amount: int, *, is_money: bool) -> str:
    """Return an amount as people read it: `50,000`, or `$1.25`."""
    return dollars(amount) if is_money else f"{amount:,}"


def whose(call: Call, purse: Purse) -> str:
    """Say whose budget it is: its rule, what it is counted by, and when its window ends."""
    said = f"rule {purse.rule}, per {purse.per}"
    if purse.window is not None:
        said += f", window {purse.window.text}, resets {purse.window.resets(call.wall_s)}"
    return said


def _less_of(call: Call) -> str:
    if call.ask is None or call.ask.bound_by != WINDOW:
        return "send a shorter request"
    return (
        "leave out of the request what only the model's whole context window bounds (files, sound, references to what "
        "the provider keeps, tools that it runs)"
    )


def _advice(call: Call, purse: Purse, short: Shortfall) -> str:
    context = call.context
    if short.is_closed:
        return "Begin a new workflow, or ask whoever closed it."
    if purse.is_per_workflow and context is not None:
        ceiling = context.ceiling_microdollars if purse.is_money else context.ceiling
        if ceiling == short.limit < purse.limit:
            option = "--dollars" if purse.is_money else "--budget"
            return (
                f"The limit was set by whoever opened this work or delegated it, or by `meshd exec {option}`: ask for "
                "more there, or finish with less."
            )
        if not purse.is_money and short.account.startswith(UNATTRIBUTED):
            otherwise = _less_of(call) if short.least > short.limit else "wait for the next day (UTC)"
            return (
                "These calls belong to no workflow: start the agent with `meshd exec`, name a workflow, raise "
                f"`limits.unattributed_tokens`, or {otherwise}."
            )
    key = "budget.dollars" if purse.is_money else "budget.tokens"
    if not short.limit:
        return f"The budget is zero, which allows nothing: raise `{key}` in the policy."
    if not short.used or short.least > short.limit:
        # Neither time nor a new workflow helps: an account that nobody has used does not cover this call either.
        other = _less_of(call)
    elif purse.window is not None:
        other = f"wait until {purse.window.resets(call.wall_s)}"
    else:
        other = "begin a new workflow" if purse.is_per_workflow else "finish with less"
    return f"Raise `{key}` in the policy, or {other}."
