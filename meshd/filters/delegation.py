"""Delegation: an agent is given a part of its caller's tokens, and no more (guarantees, part 1, rule 9).

The part is an account of its own, which the token names that goes to the called agent. Whatever the agent does with
it, and whoever it calls in turn, spends from there; what is left flows back when the call has ended. Rules that count
by agent, model or a purse of their own go on counting: a part is no second budget.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Final

from meshd.call import Direction, Kind, Wait
from meshd.engines.port import StoreError
from meshd.filters.purse import CEILING, DELEGATED, DELEGATED_FLOOR, UNATTRIBUTED, account_of, root_of, terms_of
from meshd.filters.shortage import exhausted, unavailable
from meshd.ledger.entry import Shortfall
from meshd.refusal import Reason, Refused
from meshd_sdk import context as codec

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call
    from meshd.filters.plan import Plan
    from meshd.filters.purse import Purse
    from meshd.ledger import Ledger
    from meshd.outcome import Outcome

TOKENS_MAX: Final = 10**15
"""Of one delegation, and of a workflow that nothing limits."""
_TOKENS: Final = re.compile(rb"[1-9][0-9]{0,14}\Z")

# Bound here: looking a member up on its enum takes 0.1 us on Python 3.11.
_AGENT: Final = Kind.AGENT
_OUTBOUND: Final = Direction.OUTBOUND


class Delegated:
    """A child account that lives as long as the call."""

    __slots__ = ("_child", "_ledger", "_parent")

    def __init__(self, ledger: Ledger, parent: str, child: str) -> None:
        self._ledger = ledger
        self._parent = parent
        self._child = child

    def settle(self, outcome: Outcome) -> None:
        """Close the account; what it has left flows back."""
        self.end()

    def end(self) -> None:
        """Do so, whatever became of the call."""
        self._ledger.orders.end(self._parent, self._child)


class Delegation:
    """Gives what the rule or the caller says, on calls to agents."""

    name = "delegation"
    __slots__ = ("_random_bytes", "ledger")

    def __init__(self, ledger: Ledger, random_bytes: Callable[[int], bytes]) -> None:
        self.ledger = ledger
        self._random_bytes = random_bytes

    def admit(self, call: Call) -> Wait | None:
        """Raise Refused: malformed, budget_exhausted, budget_busy, store_unavailable."""
        plan: Plan = call.plan
        settings = plan.delegate
        if call.direction is not _OUTBOUND:
            return None
        upstream = call.upstream
        if call.target.kind is not _AGENT and (upstream is None or not upstream.is_peer):
            return None
        tokens = asked_tokens(call)
        if settings is not None:
            tokens = settings.tokens if tokens is None else min(tokens, settings.tokens)
        if tokens is None or call.context is None:
            return None
        floor = min(tokens, settings.floor if settings is not None else DELEGATED_FLOOR)
        return Wait(self._delegate(call, tokens, floor))

    async def _delegate(self, call: Call, tokens: int, floor: int) -> Delegated:
        context, settings = call.context, call.plan.delegate
        assert context is not None
        purse = _purse(call)
        parent, limit = account_of(call, purse)
        if call.policy.workflow_tokens is not None and not parent.startswith(UNATTRIBUTED):
            limit = min(limit, call.policy.workflow_tokens)
        child = f"{DELEGATED}{self._random_bytes(8).hex()}/{root_of(parent)}"
        delegated = Delegated(self.ledger, parent, child)
        try:
            queue_s = settings.queue_s if settings is not None else purse.queue_s
            got = await self.ledger.delegate(parent, min(limit, TOKENS_MAX), child, tokens, floor, queue_s=queue_s)
        except StoreError as error:
            delegated.end()
            raise unavailable(purse, error) from error
        except asyncio.CancelledError:
            delegated.end()  # what was set aside by then comes back
            raise
        if isinstance(got, Shortfall):
            raise exhausted(call, purse, got)
        ceiling = got if context.ceiling is None else min(context.ceiling, got)
        call.context = codec.Context(
            context.workflow,
            context.agent,
            context.hops,
            context.path,
            context.deadline_s,
            child,
            ceiling,
            context.parent,
            context.memory,
            context.ceiling_microdollars,
        )
        return delegated

    def explain(self, call: Call) -> str:
        """Say how many tokens the called agent is given."""
        if call.context is None or not call.context.account.startswith(DELEGATED):
            return "the called agent spends from the caller's own account"
        return f"gives the called agent {call.context.ceiling:,} tokens of its own, in account {call.context.account}"


def asked_tokens(call: Call) -> int | None:
    """Return the tokens that the caller itself gives, None where it says nothing. Raises Refused(MALFORMED)."""
    found: bytes | None = None
    for name, value in call.governed:
        if name == codec.HEADER_DELEGATE:
            if found is not None or _TOKENS.match(value) is None:
                raise Refused(
                    Reason.MALFORMED,
                    "x-meshd-delegate must be one whole number of tokens, such as 5000: at most so many of yours may "
                    "be spent by the agent that you call.",
                )
            found = value
    return int(found) if found is not None else None


def _purse(call: Call) -> Purse:
    """Return the budget that the part is taken from: the workflow's own, or none that limits it."""
    for purse in terms_of(call.plan.budgets).binding:
        if purse.is_plain:
            return purse
    return CEILING
