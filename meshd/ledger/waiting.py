"""The line of calls that wait on an account: for room, for a lease, for what others hold, or for its books."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from meshd.engines.port import StoreCorrupt, StoreError
from meshd.ledger.entry import NEVER, WAIT, Reservation, Shortfall, Waiter, fit, wish

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.ledger.entry import Entry
    from meshd.ledger.holder import Holder
    from meshd.ledger.leases import Leases

QUEUE_MAX: Final = 1024
"""Calls that may wait on one account."""
STORE_TIMEOUT_S: Final = 5.0
"""Longest that a call waits for an answer of the store, beyond its own time in the queue."""
POLL_S: Final = 0.25
"""How often the owner is asked again for what others hold: the word that it came back may be lost."""
ASKS_MAX: Final = 3
"""How often the owner is asked in a row for one call."""


class Line:
    """Serves those who wait, first come first served: what fits must not overtake, or a large call would starve."""

    __slots__ = ("_later", "_leases", "_say", "_store", "_take")

    def __init__(
        self,
        leases: Leases,
        store: str,
        *,
        take: Callable[[Entry, Holder, int], Reservation],
        say: Callable[..., None],
        later: Callable[..., Any] | None,
    ) -> None:
        """`take` makes a reservation that fits; `say` is told of faults; `later` sets timers as a loop does."""
        self._leases = leases
        self._store = store
        self._take = take
        self._say = say
        self._later = later

    def _set(self, delay_s: float, callback: Callable[..., None], *arguments: Any) -> Any:
        return (self._later or asyncio.get_running_loop().call_later)(delay_s, callback, *arguments)

    async def join(self, entry: Entry, waiter: Waiter, queue_s: float) -> Reservation | Shortfall:
        """Wait until `waiter` is served, for up to `queue_s` seconds. Raises StoreError."""
        if len(entry.waiting) >= QUEUE_MAX:
            return entry.shortfall(waiter, is_busy=True)
        entry.limit = waiter.limit
        entry.waiting.append(waiter)
        waiter.timer = self._set(queue_s, self._expire, entry, waiter)
        self.pump(entry)
        try:
            return await waiter.future
        except asyncio.CancelledError:
            self._withdraw(entry, waiter)
            raise
        finally:
            waiter.timer.cancel()

    def pump(self, entry: Entry) -> None:
        """Serve those who wait on an account, in order, as far as it goes."""
        self._serve_all(entry)
        self._done_wanting(entry)

    def _serve_all(self, entry: Entry) -> None:
        while entry.waiting:
            waiter = entry.waiting[0]
            holder = entry.holder
            if waiter.future.done():
                entry.waiting.popleft()
            elif holder is None:
                self._leases.ask(entry, waiter.limit, waiter.bound, is_volatile=waiter.is_volatile)
                return
            elif holder.frozen and entry.is_fresh:
                self.dismiss(entry, StoreCorrupt(f"account {entry.id} is frozen: {holder.frozen}"))
            elif not self._serve(entry, holder, waiter):
                if entry.is_asking or not waiter.is_extended:
                    return
                # Its time was over when the store's answer was awaited; that has come, and it is not enough.
                self._give_up(entry, waiter)

    def _serve(self, entry: Entry, holder: Holder, waiter: Waiter) -> bool:
        """Serve the first in the line; False where it must go on waiting."""
        amount = fit(holder, waiter.limit, waiter.bound, waiter.least)
        if not waiter.asks and self._leases.is_shared and holder.whole(waiter.limit) < holder.total:
            # Others may have spent, under a higher limit, since the owner was last asked.
            return self._ask(entry, holder, waiter, max(0, holder.lacking(max(amount, 0))))
        if (amount == NEVER or holder.is_closed or holder.frozen) and not entry.is_fresh and waiter.asks < ASKS_MAX:
            return self._ask(entry, holder, waiter, 0)
        if amount == NEVER or holder.is_closed:
            return self._refuse(entry, waiter)
        if WAIT < amount <= holder.room and (holder.is_volatile or not waiter.is_volatile):
            entry.waiting.popleft()
            entry.limit = waiter.limit
            try:
                waiter.future.set_result(self._take(entry, holder, amount))
            except StoreError as error:
                waiter.future.set_exception(error)
            return True
        if amount == WAIT and not holder.lent:
            return False  # For calls in flight here: the next that is settled serves this one.
        if waiter.asks < ASKS_MAX and not (amount == WAIT and entry.is_wanting):
            need = amount if amount != WAIT else wish(holder, waiter.limit, waiter.bound, waiter.least)
            return self._ask(entry, holder, waiter, max(0, holder.lacking(need)))
        if holder.lent:
            if entry.poll is None:
                entry.poll = self._set(POLL_S, self.again, entry)
            return False
        return self._refuse(entry, waiter)

    def _ask(self, entry: Entry, holder: Holder, waiter: Waiter, need: int) -> bool:
        if not entry.is_asking:
            waiter.asks += 1
            self._leases.ask(entry, waiter.limit, need, is_volatile=waiter.is_volatile)
        return False

    def _refuse(self, entry: Entry, waiter: Waiter) -> bool:
        entry.waiting.popleft()
        waiter.future.set_result(entry.shortfall(waiter, is_busy=False))
        return True

    def again(self, entry: Entry) -> None:
        """Something may have come back: whoever waits asks for it."""
        poll, entry.poll = entry.poll, None
        if poll is not None:
            poll.cancel()
        if entry.waiting:
            entry.waiting[0].asks = 0
            entry.is_wanting = False
            self.pump(entry)

    def _expire(self, entry: Entry, waiter: Waiter) -> None:
        if waiter.future.done():
            return
        if not entry.is_store_awaited:
            self._give_up(entry, waiter)
        elif not waiter.is_extended:
            waiter.is_extended = True
            waiter.timer = self._set(STORE_TIMEOUT_S, self._expire, entry, waiter)
        else:
            error = StoreError(f"the {self._store} store did not answer within {STORE_TIMEOUT_S:.0f} s")
            self._say(error, "store")
            waiter.future.set_exception(error)
        self.pump(entry)

    def _give_up(self, entry: Entry, waiter: Waiter) -> None:
        waiter.future.set_result(entry.shortfall(waiter, is_busy=True))

    def _withdraw(self, entry: Entry, waiter: Waiter) -> None:
        """A caller gave up; what it was given in the same moment goes back."""
        future = waiter.future
        if not future.done():
            future.cancel()
        elif not future.cancelled() and future.exception() is None and isinstance(got := future.result(), Reservation):
            got.settle(0)
        self.pump(entry)

    def _done_wanting(self, entry: Entry) -> None:
        """Let others keep what nobody here waits for any more."""
        if entry.is_wanting and all(waiter.future.done() for waiter in entry.waiting):
            self._leases.tell(entry)

    def dismiss(self, entry: Entry, error: StoreError) -> None:
        """Tell all who wait that they wait in vain."""
        waiting = list(entry.waiting)
        entry.waiting.clear()
        for waiter in waiting:
            if not waiter.future.done():
                waiter.future.set_exception(error)
