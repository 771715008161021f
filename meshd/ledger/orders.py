"""What is asked of accounts apart from calls: by operators, and by callers that delegate a part of what they have.

A delegation is a transfer into a child account (rule 9). The tokens are first reserved in the parent, so that the
usual queue, recall and refusal hold for them; then one step of the parent's books turns the reservation into a
transfer; then the child receives them. Only when both stand does anybody learn the child's name, so that a crash in
between strands what was set aside until the delegation is ended, and grants nothing twice.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from meshd.engines.port import StoreError
from meshd.ledger.desk import ACCOUNTS, FREED, RECALL

if TYPE_CHECKING:
    from meshd.ledger.account import Owner
    from meshd.ledger.desk import Desk
    from meshd.ledger.entry import Reservation

_log = logging.getLogger("meshd.ledger")

TRIES: Final = 3
"""How often the books are told of a transfer whose outcome is not known: twice is as once."""


class Orders:
    """Orders to the owners of accounts. Every method but `end` may raise StoreError."""

    __slots__ = ("_desk", "_tasks")

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._tasks: set[asyncio.Task[None]] = set()

    # Operators.

    async def accounts(self, after: str = "", limit: int = 100) -> dict[str, Owner]:
        """Return the books of up to `limit` accounts, by name, from the first beyond `after`."""
        return await self._desk.owners(await self._desk.store.keys(ACCOUNTS, after, limit))

    async def names(self, after: str = "", limit: int = 100) -> list[str]:
        """Return the names of up to `limit` accounts, from the first beyond `after`."""
        return await self._desk.store.keys(ACCOUNTS, after, limit)

    async def books(self, account: str) -> Owner:
        """Return the books of an account; empty ones where nobody has used it."""
        return await self._desk.owner(account)

    async def top_up(self, account: str, tokens: int) -> Owner:
        """Add tokens to whatever the policy gives an account."""
        return await self._ordered(account, lambda owner: owner.top_up(tokens), FREED)

    async def close(self, account: str) -> Owner:
        """Let an account grant nothing more."""
        return await self._ordered(account, _close, RECALL)

    async def reopen(self, account: str) -> Owner:
        """Undo a close, or a freeze whose reason an operator has looked at."""
        return await self._ordered(account, _reopen, FREED)

    async def write_off(self, account: str, holder: str) -> Owner:
        """Count as spent what a holder has on lease that will not come back to say what it spent."""
        return await self._ordered(account, lambda owner: owner.write_off(holder), FREED)

    async def _ordered(self, account: str, change: Any, notice: str) -> Owner:
        def changed(owner: Owner) -> Owner:
            change(owner)
            return owner

        return await self._desk.order(account, changed, notice=notice)

    # Delegation.

    async def delegate(self, reservation: Reservation, child: str) -> int:
        """Turn what is reserved into a child account of that name; return its tokens.

        The name must be new. Where this raises, nobody may use the child: `end` it, and what stands flows back.
        """
        tokens, parent = reservation.bound, reservation.account
        report = reservation.lend()

        def move(owner: Owner) -> int:
            owner.step(report)
            return owner.transfer(child, tokens)

        await self._certainly(parent, move)
        await self._certainly(child, lambda owner: owner.receive(parent, tokens))
        return tokens

    async def _certainly(self, account: str, change: Any) -> None:
        for attempt in range(1, TRIES + 1):
            try:
                await self._desk.order(account, change)
                return
            except StoreError:
                if attempt == TRIES:
                    raise

    def end(self, parent: str, child: str) -> None:
        """Close a child account; what it has left flows back when the last lease on it has. Never raises."""
        task = asyncio.get_running_loop().create_task(self._end(parent, child))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, parent: str, child: str) -> None:
        try:
            owner = await self._ordered(child, _close, RECALL)
            if not owner.parent:
                # It never received what was set aside for it, and now never can.
                await self._desk.order(parent, lambda books: books.take_back(child, books.children.get(child, 0)))
        except StoreError as error:
            _log.warning("account %s stays open until an operator closes it: %s", child, error)

    async def finish(self) -> None:
        """Return when nothing is under way."""
        while self._tasks:
            await asyncio.wait(self._tasks)


def _close(owner: Owner) -> None:
    owner.close()


def _reopen(owner: Owner) -> None:
    owner.reopen()
