"""The accounts in memory, and the conversation with their owner: meet, ask for a lease, give it back, report."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from meshd.engines.port import Ability, StoreCorrupt, StoreError, StoreLocked
from meshd.engines.watchers import MISSED
from meshd.ledger.desk import FREED, RECALL
from meshd.ledger.entry import Entry
from meshd.ledger.holder import Holder

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from meshd.ledger.account import Answer, Message, Report
    from meshd.ledger.desk import Desk

_log = logging.getLogger("meshd.ledger")

REPORT_S: Final = 10.0
"""How often a shared store is told what was spent under leases; admissions never wait for it."""


def _told_as(error: Exception) -> StoreError:
    """Return what callers are told; what is no fault of a store is one of ours, and goes to the log."""
    if isinstance(error, StoreError):
        return error
    _log.error("a fault of meshd while the books were asked", exc_info=error)
    return StoreError(f"the books could not be asked: {error!r}")


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
        "_is_looking",
        "_leaving",
        "_listening",
        "_lost",
        "_open_max",
        "_served",
        "_slot",
        "_tasks",
        "entries",
        "is_shared",
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
        self._listening: asyncio.Task[None] | None = None
        self._is_looking = False
        self.is_shared = Ability.SHARED in desk.store.abilities
        """Others may spend from the same accounts meanwhile."""
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
            self.keep(self._ask(entry, total, need, is_volatile=is_volatile))

    async def _ask(self, entry: Entry, total: int, need: int, *, is_volatile: bool) -> None:
        notices = entry.recalls, entry.frees
        try:
            await self._listen()
            holder = entry.holder or await self._met(entry)
            request = holder.request(total, need, max(entry.largest, need), is_volatile=is_volatile)
            answer = await self._desk.tell(entry.id, request)
        except Exception as error:  # noqa: BLE001 - whatever it is, the account must be asked again
            self._not_answered(entry, _told_as(error))
            return
        before = holder.granted
        holder.hear(answer, is_volatile=is_volatile)
        entry.holder = holder
        if holder.granted > before:
            entry.refill_below = (holder.granted - before) // 2
        entry.is_wanting = need > 0 and holder.granted == before
        self._answered(entry, holder, answer, request, notices)

    def tell(self, entry: Entry) -> None:
        """Tell the owner how things stand, and give back what lies idle if others wait for it."""
        if not entry.is_asking and entry.holder is not None:
            entry.is_asking = True
            self.keep(self._tell(entry, entry.holder))

    async def _tell(self, entry: Entry, holder: Holder) -> None:
        notices = entry.recalls, entry.frees
        if holder.is_closed and not holder.reserved:
            report = holder.give_back()  # nothing will be granted any more, and nobody here has anything of it
        else:
            report = holder.give_back_idle() if entry.is_wanted else holder.report()
        try:
            answer = await self._desk.tell(entry.id, report)
        except Exception as error:  # noqa: BLE001 - as above
            self._not_answered(entry, _told_as(error))
            return
        holder.hear(answer)
        entry.is_wanting = False
        self._answered(entry, holder, answer, report, notices)

    def _answered(
        self, entry: Entry, holder: Holder, answer: Answer, message: Message, notices: tuple[int, int]
    ) -> None:
        """Take an answer in. `notices` were heard when it was asked for: of later ones it may know nothing."""
        entry.reported = max(entry.reported, message.spent)
        entry.given_back = max(entry.given_back, message.returned)
        entry.is_asking = False
        if answer.is_stale:
            self._lost(self._superseded())
            return
        recalls, frees = notices
        entry.is_fresh = entry.frees == frees
        entry.is_wanted = holder.wanted > 0 or holder.is_closed or entry.recalls != recalls
        if holder.available <= 0 or entry.is_wanted:
            entry.refill_below = -1
        self._served(entry)
        if entry.is_asking:
            return
        is_left = holder.is_closed and not holder.reserved and holder.serial > holder.closed
        if is_left or (entry.is_wanted and (holder.room > 0 or not entry.is_told)):
            self.tell(entry)

    def _superseded(self) -> StoreLocked:
        return StoreLocked(f"another meshd has started as holder {self._holder} on the same store")

    # What other holders do.

    async def _listen(self) -> None:
        """Hear from now on of what other holders do. Raises StoreError."""
        if self._ends:
            return
        if self._listening is None or self._listening.done():
            self._listening = asyncio.get_running_loop().create_task(self._watch())
        await asyncio.shield(self._listening)

    async def _watch(self) -> None:
        store = self._desk.store
        self._ends = [await store.watch(RECALL, self.recalled), await store.watch(FREED, self.freed)]

    def recalled(self, account: str) -> None:
        """Somebody waits for tokens of `account`, or it was closed; "" where such a word may have been lost."""
        if account == MISSED:
            if not self._is_looking:
                self._is_looking = True
                self.keep(self._look_again())
            return
        entry = self.entries.get(account)
        if entry is None:
            return
        entry.recalls += 1
        if entry.holder is None or entry.is_wanting:
            return
        entry.is_wanted = True
        if entry.holder.room > 0 or not entry.is_told:
            self.tell(entry)  # What is spent will not come back: whoever waits for it must know.

    def freed(self, key: str) -> None:
        """Tokens of an account have come back, or more were added: see `FREED`."""
        name, _, account = key.partition("/")
        entry = self.entries.get(account) if name in ("*", self._holder) else None
        if entry is not None:
            entry.frees += 1
            entry.is_fresh = False
            self._again(entry)

    async def _look_again(self) -> None:
        """After the store was away: hear how every account stands, for words were lost, and perhaps writes too."""
        try:
            await self._desk.check_identity()
        except StoreCorrupt as error:
            self._is_looking = False
            self._lost(error)
            return
        except StoreError:
            self._is_looking = False
            return  # It is away again, and will be missed again.
        try:
            await self._desk.flow_back()
            for entry in tuple(self.entries.values()):
                entry.frees += 1
                entry.is_fresh = False
                if entry.waiting:
                    self._again(entry)
                elif entry.holder is not None and not entry.is_asking:
                    entry.is_asking = True
                    await self._tell(entry, entry.holder)
        except StoreError as error:
            _log.warning("the accounts could not be looked at again: %s", error)
        finally:
            self._is_looking = False

    async def _met(self, entry: Entry) -> Holder:
        """Return this holder's side of an account: taken up again where this epoch has a lease, or new."""
        stake = (await self._desk.owner(entry.id)).stakes.get(self._holder)
        if stake is not None and stake.epoch == self._epoch:
            holder = Holder(self._holder, self._epoch, stake.slot)
            holder.resume(stake)
            entry.reported, entry.given_back = stake.spent, stake.returned
            return holder
        self._slot += 1
        return Holder(self._holder, self._epoch, self._slot)

    def _not_answered(self, entry: Entry, error: StoreError) -> None:
        entry.is_asking = entry.is_wanting = False
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
                assert entry.holder is not None
                # Now, while nothing is reserved: before the task begins the account may be in use again.
                self.keep(self._leave(entry, entry.holder, entry.holder.give_back()))
                return True
            self.entries.move_to_end(entry.id)
        return False

    async def _leave(self, entry: Entry, holder: Holder, report: Report) -> None:
        try:
            await self._desk.tell(entry.id, report)
        except Exception as error:  # noqa: BLE001 - as above
            # Only this process knows what was spent: it stays until the store does too.
            if self._leaving.pop(entry.id, None) is not None:
                self.entries[entry.id] = entry
            self._not_answered(entry, _told_as(error))
            return
        entry.is_asking = False
        entry.reported, entry.given_back = report.spent, report.returned
        if self._leaving.pop(entry.id, None) is None:
            self._served(entry)

    async def report(self) -> None:
        """Put what every account has spent into the store, and see that this run is still the last of its holder.

        Raises StoreError.
        """
        _, record = await self._desk.holder(self._holder)
        if record is not None and record.epoch > self._epoch:
            self._lost(self._superseded())
            raise self._superseded()
        await self._desk.flow_back()
        dirty = [
            (entry, entry.holder.report())
            for entry in (*self.entries.values(), *self._leaving.values())
            if entry.holder is not None and not entry.is_told
        ]
        answers = await self._desk.tell_all([(entry.id, report) for entry, report in dirty])
        for (entry, report), answer in zip(dirty, answers, strict=True):
            if not isinstance(answer, StoreCorrupt):
                entry.reported = max(entry.reported, report.spent)
                entry.given_back = max(entry.given_back, report.returned)

    async def report_for_ever(self, say: Callable[[StoreError | None, str], None]) -> None:
        """Let those who share the store see what was spent here, and learn whether this run is still the last."""
        while True:
            await asyncio.sleep(REPORT_S)
            try:
                await self.report()
            except StoreError as error:
                say(error, "store")
            except Exception:  # noqa: BLE001 - it must go on
                _log.exception("a fault of meshd while spending was reported")
            else:
                say(None, "store")

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

    def keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine as a task that `finish` waits for."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
