"""BudgetService: what is left, a part for somebody else, and usage that no intercepted call has shown."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import msgspec

from meshd.api.fields import checked_amount, checked_id, shown, utc_day
from meshd.api.in_order import InOrder
from meshd.api.limits import amounts_of, balances, call_in, limit_of, limits_of
from meshd.api.reports import Reports
from meshd.engines.port import StoreError
from meshd.filters.purse import CEILING, DELEGATED, root_of
from meshd.filters.shortage import exhausted, unavailable
from meshd.ledger.entry import Shortfall
from meshd.refusal import Reason, Refused
from meshd.view_books import LedgerBooks
from meshd_sdk.v1 import budget_pb2

if TYPE_CHECKING:
    from meshd.api.mesh import Mesh
    from meshd_sdk.context import Context

QUEUE_S: Final = 2.0
"""How long a part waits for tokens that are only held by calls in flight."""
_KIND: Final = "part"


class Reclaimed(msgspec.Struct):
    """What a part came to, as it is remembered. In tokens."""

    spent: int
    returned: int


class BudgetService:
    """Answers for meshd.v1.BudgetService."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._books = LedgerBooks(lambda: mesh.ledger)
        self._in_order = InOrder()
        self._reports = Reports(mesh)

    async def get_balance(self, request: budget_pb2.GetBalanceRequest) -> budget_pb2.GetBalanceResponse:
        """Say how the accounts stand. Raises Refused: CONTEXT_INVALID, STORE_UNAVAILABLE."""
        mesh = self._mesh
        limits = limits_of(mesh, mesh.policy, mesh.read(request.token))
        return budget_pb2.GetBalanceResponse(balances=await balances(self._books, limits, mesh.wall_clock()))

    async def delegate(self, request: budget_pb2.DelegateRequest) -> budget_pb2.DelegateResponse:
        """Set a part aside (guarantees, part 1, rule 9). Raises Refused: BUDGET_EXHAUSTED where there is too little."""
        context = self._mesh.read(request.token)
        id = checked_id("delegation_id", request.delegation_id)
        tokens = checked_amount("tokens", request.tokens, least=1)
        child = _child(context.account, id)
        given = await self._in_order.run(child, lambda: self._give(context, child, tokens))
        ceiling = given if context.ceiling is None else min(context.ceiling, given)
        part = replace(context, account=child, ceiling=ceiling)
        balance = budget_pb2.Balance(account=child, tokens=await amounts_of(self._books, child, given))
        return budget_pb2.DelegateResponse(context=shown(part, self._mesh.issue(part, "")), balance=balance)

    async def _give(self, context: Context, child: str, tokens: int) -> int:
        """Return how many tokens the part has, which is made now unless it is there."""
        mesh = self._mesh
        orders, parent = mesh.ledger.orders, context.account
        if mesh.ledger.fault is not None:
            raise mesh.ledger.fault
        known = await orders.books(child)
        if known.sequence and known.is_closed:
            raise _is_over(child)
        if known.parent:
            return known.total
        if await orders.remembered.find(_KIND, child, utc_day(mesh.wall_clock())) is not None:
            raise _is_over(child)
        call = call_in(mesh, mesh.policy, context)
        _, limit = limit_of(call, CEILING)
        try:
            got = await mesh.ledger.delegate(parent, limit, child, tokens, tokens, queue_s=QUEUE_S)
        except StoreError as error:
            orders.end(parent, child)
            raise unavailable(CEILING, error) from error
        if isinstance(got, Shortfall):
            raise exhausted(call, CEILING, got)
        return got

    async def reclaim(self, request: budget_pb2.ReclaimRequest) -> budget_pb2.ReclaimResponse:
        """End a part. Raises Refused(UNKNOWN_TARGET) for one that is not known, or not any more."""
        context = self._mesh.read(request.token)
        child = _child(context.account, checked_id("delegation_id", request.delegation_id))
        found = await self._in_order.run(child, lambda: self._end(context.account, child))
        return budget_pb2.ReclaimResponse(spent_tokens=found.spent, returned_tokens=found.returned)

    async def _end(self, parent: str, child: str) -> Reclaimed:
        mesh = self._mesh
        orders, day = mesh.ledger.orders, utc_day(mesh.wall_clock())
        if mesh.ledger.fault is not None:
            raise mesh.ledger.fault
        if (before := await orders.remembered.find(_KIND, child, day)) is not None:
            return msgspec.json.decode(before, type=Reclaimed)
        if not (await orders.books(child)).parent:
            raise Refused(
                Reason.UNKNOWN_TARGET,
                "No part of this id was taken from this context's account, or it has ended: parts end with the sidecar "
                "that gave them, and what they came to is remembered until the end of the next day (UTC).",
            )
        closed = (await self._books.close(child)).account
        # What calls in flight hold flows back, or is spent, when they end; of another sidecar nobody knows before.
        held = closed.reserved + closed.delegated + sum(one.outstanding for one in closed.leases if not one.is_own)
        found = Reclaimed(spent=closed.used, returned=max(0, closed.total - closed.used - held))
        await orders.remembered.write(_KIND, child, msgspec.json.encode(found), day)
        orders.end(parent, child)
        return found

    async def report_usage(self, request: budget_pb2.ReportUsageRequest) -> budget_pb2.ReportUsageResponse:
        """Charge usage. Raises Refused: CONTEXT_INVALID, MALFORMED, STORE_UNAVAILABLE."""
        context = self._mesh.read(request.token)
        checked_id("report_id", request.report_id)
        key = Reports.key(context, request.report_id)
        return await self._in_order.run(key, lambda: self._reports.take(context, key, request))


def _child(parent: str, id: str) -> str:
    """Return the account of a part. It follows from what it is taken from and its id: asked again it is the same."""
    mark = sha256(f"{parent}\n{id}".encode()).hexdigest()[:16]
    return f"{DELEGATED}{mark}/{root_of(parent)}"


def _is_over(child: str) -> Refused:
    return Refused(
        Reason.BUDGET_EXHAUSTED,
        f"The part {child} has ended, and has nothing left. Give the next one an id of its own.",
    )
