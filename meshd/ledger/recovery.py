"""What a start does: settle the leases of the run before it, then begin a new epoch (guarantees, part 1, rule 6).

With its journal a holder knows what it spent: reservations that were open count as spent at their bound and the rest
of each lease goes back. Without it, or where it cannot be trusted, whole leases count as spent. That costs tokens;
the other way round would grant them twice.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.engines.port import StoreCorrupt, StoreLocked
from meshd.ledger.account import Report
from meshd.ledger.desk import HolderRecord
from meshd.ledger.journal import replay
from meshd.ledger.witness import ANOTHER

if TYPE_CHECKING:
    from pathlib import Path

    from meshd.ledger.account import Owner
    from meshd.ledger.desk import Desk
    from meshd.ledger.journal import Replay

_log = logging.getLogger("meshd.ledger")
_PAGE: Final = 500


class Start(NamedTuple):
    """How a holder begins."""

    epoch: int
    recovered: int
    """Leases of the run before that were settled from its journal."""
    stranded_tokens: int
    """Tokens counted as spent because nobody can say that they were not."""


async def start(desk: Desk, holder: str, journal: list[Path], boot_id: str) -> Start:
    """Settle what the run before left and return the new epoch. Repeating it after a crash half-way changes nothing.

    `journal` are the segment files found, in any order. Raises StoreError; StoreCorrupt where the store is older
    than the journal beside it, since a store that was put back grants again what was spent.
    """
    version, before = await desk.holder(holder)
    log = replay(journal)
    known = before.epoch if before is not None else 0
    if log.epoch > known:
        raise StoreCorrupt(
            f"the {desk.store.name} store is older than the journal in {journal[0].parent} (epoch {known}, journal "
            f"{log.epoch}): it is another store than before, was put back from a copy, or replaced. {ANOTHER}"
        )
    recovered = stranded = 0
    if before is not None:
        is_same_boot = _is_same(before.boot_id, boot_id)
        distrust = _distrust(log, before, is_same_boot=is_same_boot)
        accounts = await desk.open_leases(holder)
        if distrust and accounts:
            _log.warning("%d leases are counted as spent: %s", len(accounts), distrust)
        for at in range(0, len(accounts), _PAGE):
            owners = await desk.owners(accounts[at : at + _PAGE])
            closed = [
                _closed(account, owner, holder, before, log, is_trusted=not distrust, is_same_boot=is_same_boot)
                for account, owner in owners.items()
            ]
            await desk.tell_all([(one.account, one.report) for one in closed if one is not None])
            indexed = [account for account, one in zip(owners, closed, strict=True) if one is None]
            if indexed:
                await desk.forget_leases(holder, indexed)
            recovered += sum(1 for one in closed if one is not None and one.stranded_tokens == 0)
            stranded += sum(one.stranded_tokens for one in closed if one is not None)
    epoch = known + 1
    if not await desk.write_holder(holder, HolderRecord(epoch, boot_id), version):
        raise StoreLocked(f"another meshd has started as holder {holder} on the same store")
    return Start(epoch, recovered, stranded)


class _Closed(NamedTuple):
    account: str
    report: Report
    stranded_tokens: int


def _closed(
    account: str, owner: Owner, holder: str, before: HolderRecord, log: Replay, *, is_trusted: bool, is_same_boot: bool
) -> _Closed | None:
    """Return the last report of an account's lease, as the holder itself would have sent it with what is known."""
    stake = owner.stakes.get(holder)
    if stake is None or not stake.is_open:
        return None
    proven = stake.spent
    if stake.epoch == log.epoch:
        proven = max(proven, log.owed.get(stake.slot, 0))
    is_forgotten = stake.is_volatile and not is_same_boot
    lease = stake.granted - stake.returned
    stranded = 0
    if not is_trusted or is_forgotten or stake.slot in log.torn or stake.epoch != before.epoch:
        stranded = max(0, lease - proven)
    report = Report(holder, stake.epoch, stake.serial, proven + stranded, stake.returned, is_closed=True)
    return _Closed(account, report, stranded)


def _distrust(log: Replay, before: HolderRecord, *, is_same_boot: bool) -> str:
    """Return why the journal does not account for the run before; empty where it does."""
    if log.damage:
        return log.damage
    if log.epoch != before.epoch:
        return "the journal of the last run is missing"
    if log.boot_id != before.boot_id:
        return "the journal was written by another run of the host than the last"
    if not log.segments or log.segments[0] > before.segment:
        return "the journal's first segment is missing"
    if log.has_gap and is_same_boot:
        return "the journal has gaps that no crash of this host explains"
    return ""


def _is_same(before: str, now: str) -> bool:
    return bool(now) and before == now
