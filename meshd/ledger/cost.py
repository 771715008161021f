"""What an attempt can cost at most, and what it did cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.call import Usage
from meshd.outcome import Verdict

if TYPE_CHECKING:
    from meshd.call import Ask
    from meshd.outcome import Outcome
    from meshd.prices.price import Quote

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11.
_SUCCESS: Final = Verdict.SUCCESS

BILLED_ERRORS: Final = frozenset({408, 499, 504, 524})
"""Statuses with which something between us and the model says that it stopped waiting; the model may have gone on."""


class Need(NamedTuple):
    """What one attempt asks of its accounts, in tokens."""

    input_bound: int
    choices: int
    cap: int
    """Output tokens for each choice."""
    floor: int
    """Fewest of these that are worth having."""


def bound_of(ask: Ask, output_default: int) -> tuple[int, int]:
    """Return the output cap of each choice, and the most that an attempt can cost, in tokens.

    That is the input's bound and `n` times the output cap (guarantees, part 1).
    """
    input_bound, cap = ask.input_bound, 0
    if ask.has_output:
        asked = ask.output_cap
        cap = output_default if asked is None else asked if asked > 0 else 0
    bound = input_bound + (cap if ask.choices <= 1 else ask.choices * cap)
    # Reserving nothing would let a call through an exhausted account.
    return cap, bound if bound > 0 else 1


def need_of(ask: Ask, output_default: int, floor: int) -> Need:
    """Return what an attempt asks of its accounts; it can be made with a shorter answer, down to the floor."""
    cap, _ = bound_of(ask, output_default)
    return Need(ask.input_bound, max(ask.choices, 1), cap, floor)


NOTHING: Final = 0
REPORTED: Final = 1
BOUND: Final = 2
BROKEN: Final = 3


def basis_of(outcome: Outcome) -> int:
    """Return by what an attempt is charged: NOTHING, its REPORTED usage, its BOUND; or BROKEN, by both.

    Missing usage is not zero, and hanging up is not free: what was forwarded and has no final usage is charged at its
    bound. The exception is a reply whose status says that the provider refused or failed before it answered: it
    bills none of those. Where the status says that somebody only stopped waiting, the model may have run: the bound.
    """
    usage = outcome.usage
    if not outcome.is_forwarded:
        return NOTHING
    if usage is not None and (outcome.is_terminal or outcome.verdict is _SUCCESS or outcome.status >= 400):
        return REPORTED
    if outcome.status >= 400 and usage is None and outcome.status not in BILLED_ERRORS:
        return NOTHING
    # BROKEN: it ended after a first report. The input is known, the output may have gone on.
    return BOUND if usage is None else BROKEN


def charge_of(outcome: Outcome, input_bound: int, output_bound: int) -> tuple[int, bool]:
    """Return the tokens to charge for an attempt, and whether they are a guess: see `basis_of`."""
    usage = outcome.usage
    if usage is not None and outcome.is_forwarded and outcome.verdict is _SUCCESS:
        # REPORTED, as nearly every attempt is: every call comes here.
        return usage.input_tokens + usage.output_tokens, usage.is_estimated
    basis = basis_of(outcome)
    if basis == NOTHING:
        return 0, False
    if usage is None:
        return input_bound + output_bound, True
    if basis == REPORTED:
        return usage.input_tokens + usage.output_tokens, usage.is_estimated
    return max(usage.total, (usage.input_tokens or input_bound) + output_bound), True


def cost_of(outcome: Outcome, quote: Quote, input_bound: int, output_bound: int) -> int:
    """Return the micro-dollars to charge for an attempt, by the same rules."""
    basis, usage = basis_of(outcome), outcome.usage
    if basis == NOTHING:
        return 0
    if usage is None:
        return quote.most(input_bound, output_bound)
    cost = quote.charge(usage)
    if basis == REPORTED:
        return cost
    made = max(usage.output_tokens, output_bound)
    if usage.input_tokens <= 0:
        return max(cost, quote.most(input_bound, made))
    return quote.charge(Usage(usage.input_tokens, made, usage.cached_tokens, billed=usage.billed))
