"""Usage that an agent reports: charged in full, once, to every account that such a call would have been charged to.

In this order: the tokens are reserved in all accounts, so that the journal has them; the report's id is written into
the store, where only the first can; then they are settled, or given back where the report had been taken before. So a
crash loses no report. One that comes between the first two steps may charge a report that is sent again twice.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from meshd.api.fields import checked_amount, malformed, utc_day
from meshd.api.limits import call_in, limit_of
from meshd.call import Kind, Target, Usage
from meshd.engines.port import StoreError
from meshd.filters.purse import CEILING, DELEGATED, root_of, terms_of
from meshd.filters.shortage import unavailable
from meshd.ledger.charging import hold_whole
from meshd.prices.price import Quote
from meshd.telemetry.entries import count_reported
from meshd_sdk.v1 import budget_pb2

if TYPE_CHECKING:
    from meshd.api.mesh import Mesh
    from meshd.call import Call
    from meshd.filters.purse import Purse
    from meshd.ledger import Reservation
    from meshd_sdk.context import Context

MODEL_CHARACTERS_MAX: Final = 256
TOKENS_MAX: Final = 10**12
"""Of one report, each way: what an agent says must fit into the journal many times over."""
_KIND: Final = "report"


class Reports:
    """Takes reports."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    @staticmethod
    def key(context: Context, id: str) -> str:
        """Return by what a report is known: its id, within the workflow that pays."""
        return sha256(f"{root_of(context.account)}\n{id}".encode()).hexdigest()[:32]

    async def take(
        self, context: Context, key: str, request: budget_pb2.ReportUsageRequest
    ) -> budget_pb2.ReportUsageResponse:
        """Charge one report. Raises Refused: MALFORMED, STORE_UNAVAILABLE; then nothing is charged."""
        mesh, usage = self._mesh, _usage(request)
        if mesh.ledger.fault is not None:
            raise mesh.ledger.fault
        day = utc_day(mesh.wall_clock())
        remembered = mesh.ledger.orders.remembered
        if await remembered.find(_KIND, key, day) is not None:
            return budget_pb2.ReportUsageResponse()
        call = call_in(mesh, mesh.policy, await self._payer(context), Target(Kind.LLM, "", request.model))
        price = call.policy.prices.find("", request.model)
        money = 0 if price is None else Quote(price).charge(usage)
        held: list[tuple[Purse, Reservation, int]] = []
        try:
            for purse in _purses(call):
                amount = money if purse.is_money else usage.total
                if amount:
                    account, limit = limit_of(call, purse)
                    held.append((purse, await hold_whole(mesh.ledger, account, limit, amount), amount))
            is_first = await remembered.write(_KIND, key, b"", day)
        except BaseException as error:
            for _, one, _ in held:
                one.settle(0)
            if isinstance(error, StoreError):
                raise unavailable(CEILING, error) from error
            raise
        for _, one, amount in held:
            one.settle(amount if is_first else 0)
        if not is_first:
            return budget_pb2.ReportUsageResponse()
        if usage.is_estimated:
            mesh.ledger.estimated += 1
        count_reported(mesh.telemetry.series, request.model if price is not None else "", usage, money)
        is_exhausted = any(not purse.prefix and self._is_exhausted(one) for purse, one, _ in held)
        return budget_pb2.ReportUsageResponse(charged_tokens=usage.total, is_exhausted=is_exhausted)

    async def _payer(self, context: Context) -> Context:
        """Return the context that is charged: where a part has ended meanwhile, what it was taken from at first."""
        if context.account.startswith(DELEGATED):
            books = await self._mesh.ledger.orders.books(context.account)
            if not books.parent or books.is_closed:
                return replace(context, account=root_of(context.account))
        return context

    def _is_exhausted(self, reservation: Reservation) -> bool:
        """Say whether the account has less than nothing left, as far as this sidecar knows."""
        entry = self._mesh.ledger.accounts.get(reservation.account)
        holder = entry.holder if entry is not None else None
        if holder is None:
            return False
        used = holder.elsewhere - holder.lent + holder.spent + holder.reserved
        return used > reservation.limit


def _purses(call: Call) -> list[Purse]:
    """Return what such a call would be charged to: by every rule that fits it, and the workflow's own account."""
    call.plan = call.policy.plan(call.target, call.agent, "")
    terms = terms_of(call.plan.budgets)
    under = terms.under_ceiling or terms
    found = [purse for purse in (*under.binding, *terms.trials) if purse.per != "upstream"]
    context, policy = call.context, call.policy
    is_limited = policy.workflow_tokens is not None or (context is not None and context.ceiling is not None)
    # An account that nothing limits is not opened for it.
    return [purse for purse in found if purse is not CEILING or is_limited]


def _usage(request: budget_pb2.ReportUsageRequest) -> Usage:
    model = request.model
    if not 0 < len(model) <= MODEL_CHARACTERS_MAX or not model.isprintable():
        raise malformed("model", f"1 to {MODEL_CHARACTERS_MAX} printable characters")
    given = checked_amount("input_tokens", request.input_tokens)
    made = checked_amount("output_tokens", request.output_tokens)
    cached = checked_amount("cached_tokens", request.cached_tokens)
    if cached > given:
        raise malformed("cached_tokens", "at most input_tokens")
    if max(given, made) > TOKENS_MAX:
        raise malformed("input_tokens and output_tokens", f"at most {TOKENS_MAX}")
    return Usage(given, made, cached, is_estimated=request.is_estimated)
