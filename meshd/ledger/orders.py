"""What is asked of accounts apart from calls: by operators, and by callers that delegate a part of what they have.

A delegation is a transfer into a child account (rule 9). The tokens are first reserved in the parent, so that the
usual queue, recall and refusal hold for them; then one step of the parent's books turns the reservation into a
transfer; then the child receives them. Only when both stand does anybody learn the child's name. An index of each
holder names the parts that it gave, from before they are set aside until they are ended: a start ends what is left.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any, Final, TypeVar

from meshd.engines.port import Change, StoreCorrupt, StoreError
from meshd.ledger.account import CHILDREN
from meshd.ledger.desk import ACCOUNTS, FREED, RECALL
from meshd.ledger.remembered import Remembered

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from meshd.ledger.account import Owner
    from meshd.ledger.desk import Desk
    from meshd.ledger.entry import Reservation

_log = logging.getLogger("meshd.ledger")

T = TypeVar("T")

RETRY_S: Final = 0.5
RETRY_S_MAX: Final = 15.0
"""Between two tries to end a delegation."""
CLOSE_S: Final = 2.0
"""How long a close waits for those that are being ended."""
TRIES: Final = 3
"""How often the books are told of a transfer whose outcome is not known: twice is as once."""


class Orders:
    """Orders to the owners of accounts. Every method but `end` may raise StoreError."""

    __slots__ = ("_desk", "_space", "_tasks", "remembered")

    def __init__(self, desk: Desk, holder: str) -> None:
        """`holder` is whose delegations these are."""
        self._desk = desk
        self._space = f"delegation/{holder}"
        self._tasks: set[asyncio.Task[None]] = set()
        self.remembered = Remembered(desk.store)

    # Operators.

    async def names(self, after: str = "", limit: int = 100) -> list[str]:
        """Return the names of up to `limit` accounts, from the first beyond `after`."""
        return await self._desk.store.keys(ACCOUNTS, after, limit)

    async def sound(self, accounts: Sequence[str]) -> dict[str, Owner]:
        """Return the books of accounts, without those that are damaged: `books` says why."""
        return await self._desk.owners(accounts)

    async def books(self, account: str) -> Owner:
        """Return the books of an account; empty ones where nobody has used it."""
        return await self._desk.owner(account)

    async def top_up(self, account: str, tokens: int) -> Owner:
        """Add tokens to whatever the policy gives an account."""
        order = os.urandom(8).hex()
        return await self._ordered(account, lambda owner: owner.top_up(tokens, order), FREED)

    async def close(self, account: str) -> Owner:
        """Let an account grant nothing more."""
        return await self._ordered(account, _close, RECALL)

    async def reopen(self, account: str) -> Owner:
        """Undo a close, or a freeze whose reason an operator has looked at."""
        is_child = account.startswith(CHILDREN)
        return await self._ordered(account, lambda owner: owner.reopen(is_child=is_child), FREED)

    async def write_off(self, account: str, holder: str) -> Owner:
        """Count as spent what a holder has on lease that will not come back to say what it spent."""
        return await self._ordered(account, lambda owner: owner.write_off(holder), FREED)

    async def _ordered(self, account: str, change: Any, notice: str) -> Owner:
        def changed(owner: Owner) -> Owner:
            change(owner)
            return owner

        # Each of them is as once where it is told twice, so one whose outcome is not known can be told again.
        return await self._certainly(lambda: self._desk.order(account, changed, notice=notice))

    # Delegation.

    async def delegate(self, reservation: Reservation, child: str) -> int:
        """Turn what is reserved into a child account of that name; return its tokens, 0 where the owner has too few.

        The name must be new. Where this raises, nobody may use the child: `end` it, and what stands flows back.
        """
        tokens, parent = reservation.bound, reservation.account
        # Before anything is set aside: whoever starts with this directory next ends what it lists.
        try:
            await self._certainly(lambda: self._index(child, parent.encode()))
        except BaseException:
            reservation.settle(0)
            raise

        def move(owner: Owner) -> int:
            owner.step(reservation.lending())
            return owner.transfer(child, tokens)

        try:
            given: int = await self._certainly(lambda: self._desk.order(parent, move))
        finally:
            # Made or not, it may have been: they are the owner's to give now.
            reservation.lend()
        if not given:
            await self._index(child, None)
            return 0
        await self._certainly(lambda: self._desk.order(child, lambda owner: owner.receive(parent, tokens)))
        return given

    async def _index(self, child: str, parent: bytes | None) -> None:
        await self._desk.store.write([Change(self._space, child, parent)])

    async def left_over(self) -> dict[str, str]:
        """Return the parts that an earlier run of this holder gave and did not end, with their parents."""
        store, after = self._desk.store, ""
        found: dict[str, str] = {}
        while page := await store.keys(self._space, after):
            records = await store.read(self._space, page)
            found |= {child: record.value.decode("utf-8", "replace") for child, record in records.items()}
            after = page[-1]
        return found

    @staticmethod
    async def _certainly(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        for _ in range(TRIES - 1):
            try:
                return await work()
            except StoreError:
                continue
        return await work()

    def end(self, parent: str, child: str) -> asyncio.Task[None]:
        """Close a child account; what it has left flows back when the last lease on it has. Neither this nor the task
        raises.

        Tried until it is made; what is not made when the ledger closes is ended by the next start.
        """
        task = asyncio.get_running_loop().create_task(self._end(parent, child))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _end(self, parent: str, child: str) -> None:
        wait_s = RETRY_S
        while True:
            try:
                await self._end_once(parent, child)
                return
            except StoreCorrupt as error:
                _log.error("account %s cannot be ended: %s", child, error)
                return
            except StoreError as error:
                _log.warning("account %s is not ended yet: %s", child, error)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RETRY_S_MAX)

    async def _end_once(self, parent: str, child: str) -> None:
        owner = await self._ordered(child, _close, RECALL)
        if not owner.parent:
            # It never received what was set aside for it, and now never can.
            await self._desk.order(parent, lambda books: books.take_back(child, books.children.get(child, 0)))
        await self._desk.flow_back()
        if not self._desk.is_due(child):
            await self._index(child, None)  # else the next start tries again, when somebody has mended the books

    async def finish(self) -> None:
        """Return when nothing is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def let_go(self) -> None:
        """Let go of what is not made yet: the next start goes on with it."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)
        for task in self._tasks:
            task.cancel()


def _close(owner: Owner) -> None:
    owner.close()
