"""Which accounts a context's calls are charged to under a policy, and how these stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.admin.view import BooksAway, UnknownAccount
from meshd.api.fields import AMOUNT_MAX, moment
from meshd.call import Call, Direction, Kind, Target
from meshd.filters.purse import CEILING, MONEY_CEILING, UNATTRIBUTED, account_of, terms_of
from meshd.policy.matching import GlobSet
from meshd.prices import MONEY
from meshd.refusal import Reason, Refused
from meshd_sdk.context import NO_CEILING
from meshd_sdk.v1 import budget_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.api.mesh import Mesh
    from meshd.filters.purse import Purse
    from meshd.policy.compiled import Policy
    from meshd.policy.matching import Rule
    from meshd.view_books import LedgerBooks
    from meshd_sdk.context import Context

NOWHERE: Final = Target(Kind.LLM, "")


class Limit(NamedTuple):
    """One account that a call would be charged to, and what limits it there."""

    rule: str
    account: str
    limit: int
    """Tokens or micro-dollars."""
    purse: Purse


def call_in(mesh: Mesh, policy: Policy, context: Context, target: Target = NOWHERE) -> Call:
    """Return a call that nobody made, in a context, as filters would see it."""
    wall_s = mesh.wall_clock()
    call = Call(mesh.proxy.next_id(), Direction.OUTBOUND, "", "", "", [], mesh.proxy.clock(), wall_s)
    call.policy, call.context, call.agent, call.target = policy, context, context.agent, target
    return call


def limit_of(call: Call, purse: Purse) -> tuple[str, int]:
    """Return the account that `purse` counts the call on, and its limit; for a part that is to be taken out of it, say,
    where no rule is asked: then the smallest budget of the workflow's own account holds."""
    account, limit = account_of(call, purse)
    if purse is CEILING and not account.startswith(UNATTRIBUTED) and call.policy.workflow_tokens is not None:
        limit = min(limit, call.policy.workflow_tokens)
    return account, min(limit, AMOUNT_MAX)


def limits_of(mesh: Mesh, policy: Policy, context: Context) -> list[Limit]:
    """Return every limit that calls in a context may meet, rule by rule.

    A budget `per: model` is left out: which model is asked for, only the call knows.
    """
    found: list[Limit] = []
    for rule in policy.rules:
        if rule.budget is None or rule.is_shadow or not _is_about(rule, context.agent):
            continue
        for purse in terms_of((rule.budget,)).binding:
            for target in _targets(policy, rule, purse):
                account, limit = account_of(call_in(mesh, policy, context, target), purse)
                found.append(Limit(rule.name, account, limit, purse))
    call = call_in(mesh, policy, context)
    if context.ceiling not in (None, NO_CEILING) and not any(one.purse.is_plain for one in found):
        found.append(Limit("", *limit_of(call, CEILING), CEILING))
    money = [one for one in found if one.purse.is_money and one.purse.is_under_ceiling]
    if context.ceiling_microdollars is not None and not money:
        found.append(Limit("", *account_of(call, MONEY_CEILING), MONEY_CEILING))
    return found


def _is_about(rule: Rule, agent: str) -> bool:
    return rule.match.agent is None or GlobSet(rule.match.agent).fits(agent)


def _targets(policy: Policy, rule: Rule, purse: Purse) -> Iterator[Target]:
    if purse.per == "upstream":
        globs = None if rule.match.target is None else GlobSet(rule.match.target)
        for name, upstream in policy.upstreams.items():
            is_named = globs is None or globs.fits(name)
            if is_named and (rule.match.kind is None or upstream.kind in rule.match.kind):
                yield Target(upstream.kind, name)
    elif purse.per != "model":
        yield NOWHERE


async def balances(books: LedgerBooks, limits: list[Limit], wall_s: float) -> list[budget_pb2.Balance]:
    """Return how accounts stand; those in tokens and in dollars that one rule sets for the same, as one.

    Raises Refused(STORE_UNAVAILABLE).
    """
    found: dict[tuple[str, str], budget_pb2.Balance] = {}
    for one in limits:
        name = one.account.removesuffix(MONEY)
        balance = found.setdefault((one.rule, name), budget_pb2.Balance(account=name, rule=one.rule))
        amounts = await amounts_of(books, one.account, one.limit)
        (balance.microdollars if one.purse.is_money else balance.tokens).CopyFrom(amounts)
        if one.purse.window is not None:
            one.purse.window.at(wall_s)
            balance.window_ends.CopyFrom(moment(one.purse.window.end_s))
    return list(found.values())


async def amounts_of(books: LedgerBooks, account: str, limit: int) -> budget_pb2.Amounts:
    """Return how an account stands under a limit. Raises Refused(STORE_UNAVAILABLE)."""
    try:
        known = await books.account(account)
    except UnknownAccount:
        return budget_pb2.Amounts(total=limit, available=limit)
    except BooksAway as error:
        raise Refused(Reason.STORE_UNAVAILABLE, f"The books cannot be read: {error}") from error
    if known.damage:
        raise Refused(Reason.STORE_UNAVAILABLE, f"The books of {account} cannot be read: {known.damage}")
    total = known.total if known.parent else min(limit, AMOUNT_MAX) + known.extra
    # What another sidecar has on lease may be in use there; what this one has is free but for its calls in flight.
    reserved = known.reserved + sum(lease.outstanding for lease in known.leases if not lease.is_own)
    available = total - known.used - reserved - known.delegated
    return budget_pb2.Amounts(
        total=total, available=available, reserved=reserved, spent=known.used, delegated=known.delegated
    )
