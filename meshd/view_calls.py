"""What was decided of calls, as the admin ports show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.admin.view import AttemptDump, CallDump, CallsPage, RefusalDump, TakenDump
from meshd.telemetry.provenance import NONE, Attempted, Denied, short
from meshd.view_books import unit_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.call import Call
    from meshd.telemetry.provenance import Provenance

Records = list[Attempted | Denied]


def call_of(provenance: Provenance, live: Iterable[Call], id: str) -> CallDump | None:
    """Return what was decided of a call, one in flight too; None where nothing is known of it."""
    flying = next((call for call in live if call.id == id), None)
    if records := _records(provenance, {id}).get(id):
        return _dump(records, is_open=flying is not None)
    if flying is None:
        return None
    context = flying.context
    return CallDump(
        id=id,
        began_at_s=flying.wall_s,
        is_open=True,
        direction=flying.direction.value,
        agent=flying.agent,
        workflow=context.workflow if context is not None else "",
        evidence=flying.evidence.value,
        kind=flying.target.kind.value,
        target=flying.target.name,
        model=short(flying.target).model,
        operation=flying.ask.operation if flying.ask is not None else "",
    )


def calls_of(provenance: Provenance, live: Iterable[Call], *, is_refused: bool, limit: int) -> CallsPage:
    """Return the last calls, the newest first, or the last that were refused."""
    refused = [(one.sequence, one.call) for one in provenance.refusals() if not (is_refused and one.is_shadow)]
    attempted = [] if is_refused else [(one.sequence, one.call) for one in provenance.attempts()]
    newest = dict.fromkeys(call for _, call in sorted([*refused, *attempted], reverse=True))
    wanted = list(newest)[:limit]
    records = _records(provenance, set(wanted))
    flying = {call.id for call in live}
    return CallsPage([_dump(records[id], is_open=id in flying) for id in wanted])


def _records(provenance: Provenance, calls: set[str]) -> dict[str, Records]:
    """Return the records of some calls, each call's in the order in which they were made."""
    found: dict[str, Records] = {}
    every: Records = [*provenance.attempts(), *provenance.refusals()]
    for record in every:
        if record.call in calls:
            found.setdefault(record.call, []).append(record)
    for records in found.values():
        records.sort(key=lambda record: record.sequence)
    return found


def _dump(records: Records, *, is_open: bool) -> CallDump:
    last = records[-1]
    operation = next((one.operation for one in records if isinstance(one, Attempted)), "")
    return CallDump(
        id=last.call,
        began_at_s=last.wall_s,
        is_open=is_open,
        direction=last.direction.value,
        agent=last.agent,
        workflow=last.workflow,
        evidence=last.evidence.value,
        kind=last.target.kind.value,
        target=last.target.name,
        model=last.target.model,
        operation=operation,
        attempts=[_attempt(one) for one in records if isinstance(one, Attempted)],
        refusals=[_refusal(one) for one in records if isinstance(one, Denied)],
    )


def _attempt(one: Attempted) -> AttemptDump:
    has_usage = one.input_tokens != NONE
    taken = _taken(one)
    return AttemptDump(
        number=one.number,
        accounts=taken,
        input_bound=one.input_bound if one.has_budget else 0,
        bound_by=one.bound_by,
        choices=one.choices,
        output_cap_asked=None if one.cap_asked == NONE else one.cap_asked,
        output_cap=None if one.cap_granted == NONE else one.cap_granted,
        model_sent=one.model_sent,
        charged_tokens=one.charged if one.has_budget else 0,
        is_estimated=one.has_budget and one.is_estimated,
        is_bound_passed=any(account.charged > account.bound for account in taken),
        input_tokens=one.input_tokens if has_usage else None,
        output_tokens=one.output_tokens if has_usage else None,
        cached_tokens=one.cached_tokens if has_usage else None,
        status=one.status,
        verdict=one.verdict.value,
        fault=one.fault.value,
        is_forwarded=one.is_forwarded,
        first_byte_s=one.first_byte_s,
        took_s=one.took_s,
    )


def _taken(one: Attempted) -> list[TakenDump]:
    if not one.has_budget:
        return []
    if one.account:
        return [TakenDump(one.account, unit_of(one.account), one.limit, one.bound, one.charged)]
    return [
        TakenDump(held.account, unit_of(held.account), held.limit, held.bound, held.charged)
        for held in (one.rest.reservations if one.rest is not None else ())
    ]


def _refusal(one: Denied) -> RefusalDump:
    lack = one.short
    return RefusalDump(
        attempt=one.number,
        reason=one.reason.value,
        status=one.status,
        rule=one.rule,
        message=one.message,
        is_shadow=one.is_shadow,
        account=lack.account if lack is not None else "",
        unit=unit_of(lack.account) if lack is not None else "",
        limit=lack.limit if lack is not None else None,
        used=lack.used if lack is not None else None,
        reserved=lack.reserved if lack is not None else None,
        bound=lack.bound if lack is not None else None,
        least=lack.least if lack is not None else None,
    )
