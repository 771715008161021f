"""The accounts in memory, and the conversation with their owner: meet, ask for a lease, give it back, report."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from meshd.engines.port import StoreCorrupt, StoreError, StoreLocked
from meshd.engines.watchers import MISSED
from meshd.ledger.desk import FREED, RECALL
from meshd.ledger.entry import Entry
from meshd.ledger.holder import Holder

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from meshd.ledger.account import Answer
    from meshd.ledger.desk import Desk


class Leases:
    """Entries by account, those used last at the end, and at most one message to each owner at a time.

    `served(entry)` is called whenever an answer came in, `failed(entry, error)` when none will, `again(entry)` when
    something may have come back, and `lost(error)` when this holder must spend nothing more.
    """

    __slots__ = (
        "_again",
        "_desk",
        "_ends",
        "_epoch",
        "_failed",
        "_holder",
        "_leaving",
        "_lost",
        "_open_max",
        "_served",
        "_slot",
        "_tasks",
        "entries",
    )

    def __init__(
        self,
        desk: Desk,
        holder: str,
        epoch: int,
        open_max: int,
        *,
        served: Callable[[Entry], None],
        failed: Callable[[Entry, StoreError], None],
        lost: Callable[[StoreError], None],
        again: Callable[[Entry], None],
    ) -> None:
        self._desk = desk
        self._holder = holder
        self._epoch = epoch
        self._open_max = open_max
        self._served = served
        self._failed = failed
        self._lost = lost
        self._again = again
        self._slot = 0
        self._ends: list[Callable[[], None]] = []
        """Each ends a watch."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.entries: OrderedDict[str, Entry] = OrderedDict()
        self._leaving: dict[str, Entry] = {}
        """Accounts that leave memory; one that is used meanwhile comes back."""

    def entry(self, account: str) -> Entry:
        """Return the entry of an account, made now if there is none. Raises UnicodeError for what is no text."""
        entry = self.entries.get(account)
        if entry is None:
            account.encode()  # a lone surrogate must not reach a store
            while len(self.entries) >= self._open_max and self._evict():
                pass
            entry = self._leaving.pop(account) if account in self._leaving else Entry(account)
            self.entries[account] = entry
        return entry

    def ask(self, entry: Entry, total: int, need: int, *, is_volatile: bool) -> None:
        """Ask the owner for `need` tokens or, with 0, for a refill; nothing where a message is under way already."""
        if not entry.is_asking:
            entry.is_asking = True
            self._keep(self._ask(entry, total, need, is_volatile=is_volatile))

    async def _ask(self, entry: Entry, total: int, need: int, *, is_volatile: bool) -> None:
        try:
            if not self._ends:
                await self._listen()
            holder = entry.holder or await self._met(entry)
            request = holder.request(total, need, max(entry.largest, need), is_volatile=is_volatile)
            answer = await self._desk.tell(entry.id, request)
        except StoreError as error:
            self._not_answered(entry, error)
            return
        before = holder.granted
        holder.hear(answer, is_volatile=is_volatile)
        entry.holder = holder
        if holder.granted > before:
            entry.refill_below = (holder.granted - before) // 2
        entry.is_wanting = need > 0 and holder.granted == before
        self._answered(entry, holder, answer, request.spent)

    def tell(self, entry: Entry) -> None:
        """Tell the owner how things stand, and give back what lies idle if others wait for it."""
        if not entry.is_asking and entry.holder is not None:
            entry.is_asking = True
            self._keep(self._tell(entry, entry.holder))

    async def _tell(self, entry: Entry, holder: Holder) -> None:
        report = holder.give_back_idle() if entry.is_wanted else holder.report()
        try:
            answer = await self._desk.tell(entry.id, report)
        except StoreError as error:
            self._not_answered(entry, error)
            return
        holder.hear(answer)
        entry.is_wanting = False
        self._answered(entry, holder, answer, report.spent)

    def _answered(self, entry: Entry, holder: Holder, answer: Answer, spent: int) -> None:
        entry.reported = max(entry.reported, spent)
        entry.is_asking = False
        if answer.is_stale:
            self._lost(self._superseded())
            return
        entry.is_fresh = True
        entry.is_wanted = holder.wanted > 0 or holder.is_closed
        if holder.available <= 0 or entry.is_wanted:
            entry.refill_below = -1
        self._served(entry)
        if entry.is_wanted and holder.room > 0:
            self.tell(entry)

    def _superseded(self) -> StoreLocked:
        return StoreLocked(f"another meshd has started as holder {self._holder} on the same store")

    # What other holders do.

    async def _listen(self) -> None:
        """Hear from now on of what other holders do. Raises StoreError."""
        store = self._desk.store
        self._ends = [await store.watch(RECALL, self.recalled), await store.watch(FREED, self.freed)]

    def recalled(self, account: str) -> None:
        """Somebody waits for tokens of `account`; "" where such a word may have been lost."""
        if account == MISSED:
            self._keep(self._look_again())
            return
        entry = self.entries.get(account)
        if entry is None or entry.holder is None or entry.is_wanting:
            return
        entry.is_wanted = True
        if entry.holder.room > 0 or entry.holder.spent > entry.reported:
            self.tell(entry)  # What is spent will not come back: whoever waits for it must know.

    def freed(self, account: str) -> None:
        """Tokens of `account` have come back, or more were added."""
        entry = self.entries.get(account)
        if entry is not None:
            entry.is_fresh = False
            self._again(entry)

    async def _look_again(self) -> None:
        """After the store was away: hear how every account stands, for words were lost, and perhaps writes too."""
        try:
            await self._desk.check_identity()
        except StoreCorrupt as error:
            self._lost(error)
            return
        except StoreError:
            return  # It is away again, and will be missed again.
        for entry in tuple(self.entries.values()):
            entry.is_fresh = False
            if entry.waiting:
                self._again(entry)
            elif entry.holder is not None and not entry.is_asking:
                entry.is_asking = True
                await self._tell(entry, entry.holder)

    async def _met(self, entry: Entry) -> Holder:
        """Return this holder's side of an account: taken up again where this epoch has a lease, or new."""
        stake = (await self._desk.owner(entry.id)).stakes.get(self._holder)
        if stake is not None and stake.epoch == self._epoch:
            holder = Holder(self._holder, self._epoch, stake.slot)
            holder.resume(stake)
            entry.reported = stake.spent
            return holder
        self._slot += 1
        return Holder(self._holder, self._epoch, self._slot)

    def _not_answered(self, entry: Entry, error: StoreError) -> None:
        entry.is_asking = False
        # A refill that failed is tried again when somebody waits for it, not at every call.
        entry.refill_below = -1
        if entry.holder is None:
            self.entries.pop(entry.id, None)
        self._failed(entry, error)

    def _evict(self) -> bool:
        """Let the account that was idle for longest leave; False where none of the oldest few is idle."""
        for _ in range(min(8, len(self.entries))):
            entry = next(iter(self.entries.values()))
            if entry.is_idle:
                del self.entries[entry.id]
                self._leaving[entry.id] = entry
                entry.is_asking = True
                self._keep(self._leave(entry))
                return True
            self.entries.move_to_end(entry.id)
        return False

    async def _leave(self, entry: Entry) -> None:
        holder = entry.holder
        assert holder is not None
        try:
            await self._desk.tell(entry.id, holder.give_back())
        except StoreError as error:
            # Only this process knows what was spent: it stays until the store does too.
            if self._leaving.pop(entry.id, None) is not None:
                self.entries[entry.id] = entry
            self._not_answered(entry, error)
            return
        entry.is_asking = False
        entry.reported = holder.spent
        if self._leaving.pop(entry.id, None) is None:
            self._served(entry)

    async def report(self) -> None:
        """Put what every account has spent into the store, and see that this run is still the last of its holder.

        Raises StoreError.
        """
        _, record = await self._desk.holder(self._holder)
        if record is not None and record.epoch > self._epoch:
            self._lost(self._superseded())
            return
        dirty = [
            (entry, entry.holder.spent, entry.holder.report())
            for entry in (*self.entries.values(), *self._leaving.values())
            if entry.holder is not None and entry.holder.spent > entry.reported
        ]
        await self._desk.tell_all([(entry.id, report) for entry, _, report in dirty])
        for entry, spent, _ in dirty:
            entry.reported = max(entry.reported, spent)

    async def finish(self) -> None:
        """Return when no message is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def close(self) -> None:
        """Give every lease back. Raises StoreError."""
        for end in self._ends:
            end()
        held = [(entry.id, entry.holder) for entry in self.entries.values() if entry.holder is not None]
        await self._desk.tell_all([(account, holder.give_back()) for account, holder in held])

    def _keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
