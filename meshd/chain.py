"""The order of the filters is the architecture; here it stands once, and here it is walked.

`admit` runs plain function calls and collects tickets; `settle` pays them back in reverse, each exactly once. What
happens between the two (attempts, bytes) is the proxy's.
"""

from __future__ import annotations

import logging
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.call import NeedBody, Reply, Wait
from meshd.filters.allow_list import AllowList
from meshd.filters.approval import Approval
from meshd.filters.breaker import Breaker
from meshd.filters.budget import Budget
from meshd.filters.context import Context
from meshd.filters.delegation import Delegation
from meshd.filters.fallback import Fallback
from meshd.filters.forwarding import Forwarding
from meshd.filters.hop_limit import HopLimit
from meshd.filters.idempotency import Idempotency
from meshd.filters.prompts import Prompts
from meshd.filters.routing import Routing
from meshd.filters.turns import Turns
from meshd.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.call import Call
    from meshd.filters.contract import Filter, Ticket
    from meshd.ledger import Ledger
    from meshd.outcome import Outcome

    Asked = Callable[[Call], Any]

log = logging.getLogger("meshd.chain")


class Scope(Enum):
    """How often a filter is asked."""

    PER_CALL = "per call"
    PER_ATTEMPT = "per attempt"


class Place(NamedTuple):
    """One filter's place in the order, and the reason for it."""

    filter: type
    scope: Scope
    reason: str


FILTERS: Final[tuple[Place, ...]] = (
    Place(Context, Scope.PER_CALL, "first: all others read the workflow that it establishes"),
    Place(HopLimit, Scope.PER_CALL, "a loop must cost nothing: before any lookup"),
    Place(Routing, Scope.PER_CALL, "judge the target that will really be called"),
    Place(AllowList, Scope.PER_CALL, "nobody is asked about, or sees a replay of, what is forbidden"),
    Place(Prompts, Scope.PER_CALL, "no forbidden name is looked up; all below judge what the model will read"),
    Place(Idempotency, Scope.PER_CALL, "a replay asks nobody, spends nothing and is no turn; a retry is not a loop"),
    Place(Turns, Scope.PER_CALL, "loops and turn limits, on the resolved edge"),
    Place(Approval, Scope.PER_CALL, "before anything is reserved: hold no tokens while a person sleeps"),
    Place(Delegation, Scope.PER_CALL, "last before the attempts: a part is set aside for a call that will go out"),
    Place(Fallback, Scope.PER_ATTEMPT, "sees each attempt fail and picks the next"),
    Place(Budget, Scope.PER_ATTEMPT, "each attempt may be billed, so each is reserved and settled on its own"),
    Place(Breaker, Scope.PER_ATTEMPT, "innermost: a permit is never held by a refused call"),
    Place(Forwarding, Scope.PER_ATTEMPT, "decides nothing: what goes out now is written down first, if it is claimed"),
)


class Pending(NamedTuple):
    """A filter must wait: when `wait` has ended in a ticket, the chain goes on at `resume_at`.

    Where `wait` is None, it goes on when the call's body is whole; where that `is_wish`, soon at the latest.
    """

    wait: Wait | None
    resume_at: int
    is_wish: bool = False


class Chain:
    """The filters, built once and kept over reloads: they read a call's settings from its plan."""

    __slots__ = ("_per_attempt", "_per_call", "_shadowed", "context", "each_attempt", "each_call", "fallback")

    def __init__(self, filters: dict[type, Any], shadowed: Callable[[Call, Refused], None]) -> None:
        """`filters` holds an instance for each class in FILTERS; `shadowed` is told what a shadow rule decided."""
        self.context: Context = filters[Context]
        self.fallback: Fallback = filters[Fallback]
        # Bound once: to look a method up on each filter of each call costs as much as some filters do.
        self.each_call: tuple[Asked, ...] = ()
        """What asks each filter about a call, in order."""
        self.each_attempt: tuple[Asked, ...] = ()
        """The same of an attempt."""
        self.per_call = _in_order(filters, Scope.PER_CALL)
        self.per_attempt = _in_order(filters, Scope.PER_ATTEMPT)
        self._shadowed = shadowed

    @property
    def per_call(self) -> tuple[Filter, ...]:
        """The filters that are asked once for a call."""
        return self._per_call

    @per_call.setter
    def per_call(self, filters: tuple[Filter, ...]) -> None:
        self._per_call = filters
        self.each_call = tuple([one.admit for one in filters])

    @property
    def per_attempt(self) -> tuple[Filter, ...]:
        """The filters that are asked for each attempt."""
        return self._per_attempt

    @per_attempt.setter
    def per_attempt(self, filters: tuple[Filter, ...]) -> None:
        self._per_attempt = filters
        self.each_attempt = tuple([one.admit for one in filters])

    def keep_books(self, ledger: Ledger) -> None:
        """Let the filters that spend go on with another ledger."""
        for one in (*self.per_call, *self.per_attempt):
            if isinstance(one, Budget | Delegation | Approval):
                one.ledger = ledger
            elif isinstance(one, Idempotency | Prompts):
                one.keep_books(ledger)

    async def close_books(self) -> None:
        """Write down what filters still know; the store closes next."""
        for one in self.per_call:
            if isinstance(one, Idempotency):
                await one.book.close()
            elif isinstance(one, Prompts):
                await one.registry.close()

    def admit(
        self, each: tuple[Asked, ...], call: Call, tickets: list[Ticket], start: int = 0
    ) -> Reply | Pending | None:
        """Ask each filter of `each_call` or `each_attempt` from `start` on, adding what it takes to `tickets`.

        Raises Refused.

        Returns None where all admit, a Reply that answers the call here, or Pending where one must wait. Whatever
        it ends in, the tickets in the list are the caller's to settle.
        """
        at = start
        for asked in each[start:] if start else each:
            at += 1
            try:
                decision: Any = asked(call)
            except Refused as refused:
                if not refused.is_shadow:
                    raise
                self._shadowed(call, refused)
                continue
            if decision is None:
                continue
            kind = type(decision)
            if kind is Wait:
                return Pending(decision, at)
            if kind is Reply:
                reply: Reply = decision
                return reply
            if kind is NeedBody:
                return Pending(None, at - 1, decision.is_wish)
            tickets.append(decision)
        return None


def _in_order(filters: dict[type, Any], scope: Scope) -> tuple[Filter, ...]:
    # Fallback is asked after an attempt, not before it, so it has no `admit` and stands in no list.
    return tuple(filters[place.filter] for place in FILTERS if place.scope is scope and place.filter is not Fallback)


def settle(tickets: list[Ticket], outcome: Outcome) -> None:
    """Settle every ticket in reverse and empty the list, so that none can be settled twice."""
    while tickets:
        ticket = tickets.pop()
        try:
            ticket.settle(outcome)
        except Exception:
            # One ticket's fault must not keep the others from being paid back.
            log.exception("a ticket of %s could not be settled", type(ticket).__name__)
