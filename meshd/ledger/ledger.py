"""The ledger of one sidecar: the holder of leases on many accounts, beside the desk of their owner.

A reservation that its lease covers is a few integer comparisons and one record in the journal. Everything else (the
first use of an account, a lease that runs out, calls in flight in the way, a sync) is `wait`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from meshd.engines.port import Ability, StoreClosed, StoreError
from meshd.ledger.account import LEASE_TOKENS_MAX
from meshd.ledger.desk import Desk, HolderRecord
from meshd.ledger.directory import Directory, boot_id
from meshd.ledger.entry import NEVER, WAIT, AccountView, Entry, Reservation, Shortfall, Waiter, fit
from meshd.ledger.faults import Faults
from meshd.ledger.journal import SEGMENT_BYTES, TOKENS_MAX, Journal, segments_in, told
from meshd.ledger.leases import Leases
from meshd.ledger.orders import Orders
from meshd.ledger.recovery import Start, start
from meshd.ledger.upkeep import Upkeep
from meshd.ledger.waiting import Line
from meshd.ledger.witness import holder_name, recognise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshd.engines.port import Store
    from meshd.ledger.holder import Holder

HOLDER: Final = "local"
DELEGATE_TRIES: Final = 3
OPEN_MAX: Final = 16_384  # accounts in memory, 1 kB each; those idle for longest leave first, and give leases back

_log = logging.getLogger("meshd.ledger")


class Ledger:
    """See the module. `state` says "ok" or, in plain words, what is wrong; while it is wrong, reserving raises."""

    def __init__(
        self,
        desk: Desk,
        epoch: int,
        *,
        holder: str = HOLDER,
        open_max: int = OPEN_MAX,
        later: Callable[..., Any] | None = None,
    ) -> None:
        """Use `open`, `in_memory` or `failed`. `later` sets a timer as the loop's `call_later` does."""
        self._desk = desk
        self.holder = holder  # the name by which the owners of accounts know this sidecar
        self._faults = Faults()
        self._say = self._faults.say
        self._leases = Leases(
            desk, holder, epoch, open_max, served=self._served, failed=self._failed, lost=self._lost, again=self._again
        )
        self.behind = self._leases.keep  # runs a coroutine behind the calls; `close` waits for it
        self.orders = Orders(desk, holder)
        self._line = Line(self._leases, desk.store.name, take=self.taken, say=self._say, later=later)
        self.accounts = self._entries = self._leases.entries
        self._used_last: Entry | None = None
        self._journal: Journal | None = None
        self._upkeep: Upkeep | None = None
        self._directory: Directory | None = None
        self._reporting: asyncio.Task[None] | None = None
        self.fault: StoreError | None = None  # why nothing more is spent, for good
        self.started = Start(epoch, 0, 0)
        self.refused = 0  # reservations that were not made, since the start of the process
        self.spent_tokens = 0  # charged since then
        self.spent_microdollars = 0
        self.bound_violations = 0
        """Attempts that cost more than their bound. The guarantee holds given sound bounds, so this is published."""
        self.estimated = 0  # attempts charged without usage that their upstream reported

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        store: Store | None = None,
        holder: str = "",
        open_max: int = OPEN_MAX,
        lease_tokens_max: int = LEASE_TOKENS_MAX,
        segment_bytes: int = SEGMENT_BYTES,
        boot: Callable[[], str] = boot_id,
        later: Callable[..., Any] | None = None,
    ) -> Ledger:
        """Open the books in a state directory, settling what the last run left open.

        Without `store` they are kept in the embedded one, in that directory. In a store that several sidecars share,
        this one is a holder under a name that the directory keeps, unless it is given one. Raises StoreError or one
        of its kinds, whose message is for the operator: held by another process, newer, damaged, full, not writable,
        or not the store that this directory knew.
        """
        directory = Directory(path)
        try:
            if store is None:
                from meshd.engines.sqlite import SqliteStore

                store = SqliteStore(path / "ledger.db")
            try:
                desk = Desk(store, lease_tokens_max=lease_tokens_max)
                if Ability.SHARED in store.abilities:
                    holder = holder or holder_name(directory)
                    await recognise(desk, directory)
                holder = holder or HOLDER
                before, boot_now = segments_in(path), boot()
                started = await start(desk, holder, before, boot_now)
                ledger = cls(desk, started.epoch, holder=holder, open_max=open_max, later=later)
                ledger.started = started
                record = HolderRecord(started.epoch, boot_now)
                ledger._keep_journal(directory, holder, record, before, segment_bytes)
                for child, parent in (await ledger.orders.left_over()).items():
                    ledger.orders.end(parent, child)
                if Ability.SHARED in store.abilities:
                    ledger._reporting = asyncio.get_running_loop().create_task(
                        ledger._leases.report_for_ever(ledger._say)
                    )
            except BaseException:
                await store.close()
                raise
        except BaseException:
            directory.close()
            raise
        return ledger

    def _keep_journal(
        self, directory: Directory, holder: str, record: HolderRecord, before: list[Path], segment_bytes: int
    ) -> None:
        journal = Journal(directory.path, record.epoch, record.boot_id, segment_bytes=segment_bytes)
        try:
            directory.sync()
            for path in before:
                path.unlink(missing_ok=True)
        except OSError as error:
            journal.close()
            raise told(error, directory.path) from error
        self._directory = directory
        self._journal = journal
        journal.carried = self._carried
        self._upkeep = Upkeep(journal, directory, self._desk, holder, record, report=self._leases.report, say=self._say)

    @classmethod
    def in_memory(cls, *, store: Store | None = None, open_max: int = OPEN_MAX) -> Ledger:
        """Return a ledger that nothing survives: for `meshd explain` and for tests."""
        from meshd.engines.memory import MemoryStore

        return cls(Desk(store or MemoryStore()), 1, open_max=open_max)

    @classmethod
    def failed(cls, error: StoreError) -> Ledger:
        """Return a ledger whose every reservation raises `error`: budgets fail closed, everything else runs on."""
        ledger = cls.in_memory()
        ledger.fault = error
        return ledger

    def store(self) -> Store | None:
        """Return where the books are kept; None where it could not be opened."""
        return self._desk.store if self.fault is None else None

    @property
    def state(self) -> str:
        """ "ok", or what is wrong."""
        if self.fault is not None:
            return str(self.fault)
        return str(self._faults) or "ok"

    @property
    def reserved_tokens(self) -> int:
        """Tokens held by attempts in flight, over all accounts."""
        return self._reserved_in(is_money=False)

    @property
    def reserved_microdollars(self) -> int:
        """The same of accounts that hold money."""
        return self._reserved_in(is_money=True)

    def _reserved_in(self, *, is_money: bool) -> int:
        entries = self._entries.values()
        return sum(one.holder.reserved for one in entries if one.holder is not None and one.is_money is is_money)

    def snapshot(self) -> list[AccountView]:
        """Return the accounts in memory, the one used last at the end."""
        return [
            AccountView(one.id, one.limit, holder.elsewhere + holder.spent, holder.reserved)
            for one in self._entries.values()
            if (holder := one.holder) is not None
        ]

    # The hot path.

    def hold(self, account: str, limit: int, bound: int) -> Entry | None:
        """Reserve all of `bound` at once; None where that takes more than a comparison: call `reserve`.

        Whoever is given an entry calls `pay` with it, exactly once. Raises StoreError where it cannot be logged.
        """
        entry = self._entries.get(account)
        if entry is None or entry.waiting or self.fault is not None:
            return None
        holder = entry.holder
        if holder is None or not holder.is_volatile:
            return None
        owed = holder.spent + holder.reserved + bound
        if owed > holder.granted - holder.returned or owed + holder.elsewhere > limit + holder.extra:
            return None
        if limit + holder.extra < holder.total and self._leases.is_shared:
            return None  # a lower limit than others have: what they spent under it must be known
        entry.limit = limit
        self._take(entry, holder, bound)
        return entry

    def reserve(self, account: str, limit: int, bound: int, least: int) -> Reservation | Shortfall | None:
        """Reserve `bound` tokens, or what is left of `limit` if that is `least` or more; None: call `wait`.

        Raises StoreError where the reservation cannot be logged.
        """
        if self.fault is not None:
            raise self.fault
        entry = self._entries.get(account)
        if entry is None or entry.waiting:
            return None
        holder = entry.holder
        if holder is None or not holder.is_volatile:
            return None
        amount = fit(holder, limit, bound, least)
        if amount > holder.room or amount == WAIT:
            return None
        if holder.whole(limit) < holder.total and self._leases.is_shared:
            return None
        entry.limit = limit
        if amount == NEVER:
            if not entry.is_fresh or holder.is_closed:
                return None
            self.refused += 1
            used = holder.elsewhere - holder.lent + holder.spent
            return Shortfall(account, holder.whole(limit), used, holder.reserved, bound, least, is_busy=False)
        return self.taken(entry, holder, amount)

    def taken(self, entry: Entry, holder: Holder, amount: int) -> Reservation:
        """Reserve, whatever is left: who calls this has judged whether it fits."""
        self._take(entry, holder, amount)
        return Reservation(self, entry, amount)

    def _again(self, entry: Entry) -> None:
        self._line.again(entry)

    def _take(self, entry: Entry, holder: Holder, amount: int) -> None:
        owed = holder.spent + holder.reserved + amount
        if self._journal is not None:
            try:
                self._journal.note(holder.slot, owed)
            except StoreError as error:
                self._say(error)
                raise
            if self._faults.of_now:
                self._say(None)
        holder.reserved += amount
        if entry is not self._used_last:
            self._used_last = entry
            self._entries.move_to_end(entry.id)
        if amount > entry.largest:
            entry.largest = amount
        if holder.granted - holder.returned - owed < entry.refill_below:
            self._leases.ask(entry, entry.limit, 0, is_volatile=False)

    def pay(self, entry: Entry, bound: int, tokens: int) -> None:
        """End what was held: charge `tokens`, all of them, and give the rest of `bound` back. Never raises."""
        holder = entry.holder
        assert holder is not None
        if tokens > bound:
            self.bound_violations += 1
            tokens = min(tokens, TOKENS_MAX)
        holder.reserved -= bound
        holder.spent += tokens
        if entry.is_money:
            self.spent_microdollars += tokens
        else:
            self.spent_tokens += tokens
        if self._journal is not None:
            self._note(self._journal, holder)
        if entry.waiting:
            self._line.pump(entry)
        elif entry.is_wanted:
            self._leases.tell(entry)

    def _note(self, journal: Journal, holder: Holder) -> None:
        """Log what a lease owes now. Where that fails, the log says more than is true until the next record."""
        try:
            journal.note(holder.slot, holder.spent + holder.reserved)
        except StoreError as error:
            self._say(error)

    def loosen(self, entry: Entry, tokens: int) -> None:
        """Hold so many tokens fewer; the bound that is paid is then smaller by these."""
        holder = entry.holder
        assert holder is not None
        holder.reserved -= tokens
        if self._journal is not None:
            self._note(self._journal, holder)
        if entry.waiting:
            self._line.pump(entry)

    def lend(self, entry: Entry, tokens: int) -> None:
        """End what was held without a charge: it is no longer ours."""
        holder = entry.holder
        assert holder is not None
        holder.lend(tokens)
        if self._journal is not None:
            self._note(self._journal, holder)

    # What may wait.

    async def wait(
        self, account: str, limit: int, bound: int, least: int, *, queue_s: float, is_durable: bool = False
    ) -> Reservation | Shortfall:
        """Reserve as `reserve` does, after reading the account, taking a lease or queueing for up to `queue_s` seconds.

        `is_durable`: on return the reservation survives a crash of the host. Raises StoreError.
        """
        if self.fault is not None:
            raise self.fault
        entry = self._leases.entry(account)
        future = asyncio.get_running_loop().create_future()
        taken = await self._line.join(entry, Waiter(limit, bound, least, future, is_volatile=not is_durable), queue_s)
        if isinstance(taken, Shortfall):
            self.refused += 1
            return taken
        if is_durable and self._upkeep is not None:
            try:
                await self._upkeep.synced()
            except BaseException:
                taken.settle(0)
                raise
        return taken

    async def delegate(
        self, account: str, limit: int, child: str, tokens: int, least: int, *, queue_s: float
    ) -> int | Shortfall:
        """Give a new child account up to `tokens` of an account, `least` or more; return how many. Raises StoreError.

        End it with `orders.end`: what it has left flows back.
        """
        for _ in range(DELEGATE_TRIES):
            got = await self.wait(account, limit, tokens, least, queue_s=queue_s)
            if isinstance(got, Shortfall):
                return got
            if given := await self.orders.delegate(got, child):
                return given
        return Shortfall(account, limit, 0, 0, tokens, least, is_busy=True)

    def _carried(self) -> list[tuple[int, int]]:
        """Return slot and tokens owed of every lease with an open reservation."""
        holders = (entry.holder for entry in self._entries.values())
        return [(one.slot, one.spent + one.reserved) for one in holders if one is not None and one.reserved]

    def _served(self, entry: Entry) -> None:
        self._say(None, "store")
        self._line.pump(entry)

    def _failed(self, entry: Entry, error: StoreError) -> None:
        self._say(error, "store")
        self._line.dismiss(entry, error)

    def _lost(self, error: StoreError) -> None:
        """Spend nothing more: the leases of this process are somebody else's, or the store is another."""
        if self.fault is None:
            _log.critical("budgets are refused from now on: %s", error)
            self.fault = error
            for entry in self._entries.values():
                self._line.dismiss(entry, error)

    async def close(self) -> None:
        """Settle the books and let go: what is still reserved counts as spent at its bound. Closing twice is fine.

        A store that fails here is logged, not raised: the journal stays, and the next start settles from it.
        """
        if self.fault is not None and self._directory is None:
            return
        self.fault = StoreClosed("the ledger was closed")
        for entry in self._entries.values():
            self._line.dismiss(entry, self.fault)
        if self._reporting is not None:
            self._reporting.cancel()
        await self.orders.let_go()
        await self._leases.finish()
        try:
            if self._upkeep is not None:
                await self._upkeep.close()
            await self._leases.close()
        except StoreError:
            _log.exception("the books could not be settled; the next start settles them from the journal")
        self._journal = self._upkeep = None
        await self._desk.store.close()
        if self._directory is not None:
            self._directory.close()
            self._directory = None
