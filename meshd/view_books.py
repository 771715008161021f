"""The accounts as the admin ports show and order them: the owners' books, beside this sidecar's own lease."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from meshd.admin.view import (
    AccountDump,
    AccountsPage,
    BooksAway,
    LeaseDump,
    Ordered,
    OrderRefused,
    UnknownAccount,
)
from meshd.engines.port import StoreCorrupt, StoreError
from meshd.ledger.account import Owner
from meshd.prices import MONEY
from meshd.telemetry.budgets import SCOPES, scope_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from meshd.ledger import Ledger
    from meshd.ledger.holder import Holder

TOKENS, MICRODOLLARS = "tokens", "microdollars"
AMOUNT_MAX = 10**15
"""Most that an account can be made to hold: far beyond any budget, and its sums stay within 64 bits."""
_MADE_BY_MESHD = "delegated"


def unit_of(account: str) -> str:
    """Return what an account counts: tokens, or micro-dollars."""
    return MICRODOLLARS if account.endswith(MONEY) else TOKENS


class LedgerBooks:
    """The ledger of this sidecar as `Books`."""

    def __init__(self, ledger: Callable[[], Ledger]) -> None:
        """`ledger` returns the one that is in use: another comes where the books could not be opened at the start."""
        self._opened = ledger

    @property
    def _ledger(self) -> Ledger:
        return self._opened()

    async def page(self, *, after: str, limit: int) -> AccountsPage:
        """Return accounts in the order of their ids; one whose books are damaged says so, and hides no other."""
        orders = self._ledger.orders
        with self._reached():
            names = await orders.names(after, limit + 1)
            found = await orders.sound(names)
            dumps = [self._dump(id, found[id]) if id in found else await self._one(id) for id in names]
        shown = dumps[:limit]
        return AccountsPage(shown, shown[-1].id if len(dumps) > limit else "")

    async def _one(self, id: str) -> AccountDump:
        try:
            return self._dump(id, await self._ledger.orders.books(id))
        except StoreCorrupt as error:
            return replace(self._dump(id, Owner()), damage=str(error))

    async def account(self, id: str) -> AccountDump:
        """Return one account. Raises UnknownAccount."""
        with self._reached():
            return self._dump(id, await self._known(id))

    async def top_up(self, id: str, amount: int, unit: str) -> Ordered:
        """Add to an account's limit, before its first use too."""
        if unit != unit_of(id):
            other = id.removesuffix(MONEY) if unit == TOKENS else id + MONEY
            raise OrderRefused(f"{id} counts {unit_of(id)}, not {unit}; {other} counts these.")
        with self._reached():
            before = await self._ledger.orders.books(id)
            is_new = not before.sequence
            if is_new:
                _check_new(id)
            if max(before.total, before.extra) + amount > AMOUNT_MAX:
                raise OrderRefused(f"{id} would hold more than {AMOUNT_MAX} {unit}.")
            owner = await self._ledger.orders.top_up(id, amount)
        return Ordered(self._dump(id, owner), is_new=is_new)

    async def close(self, id: str) -> Ordered:
        """Let an account grant nothing more."""
        with self._reached():
            await self._known(id)
            owner = await self._ledger.orders.close(id)
        return Ordered(self._dump(id, owner))

    async def reopen(self, id: str) -> Ordered:
        """Undo a close or a freeze."""
        with self._reached():
            await self._known(id)
            owner = await self._ledger.orders.reopen(id)
        return Ordered(self._dump(id, owner))

    async def write_off(self, id: str, holder: str) -> Ordered:
        """Count a holder's lease as spent."""
        with self._reached():
            stake = (await self._known(id)).stakes.get(holder)
            if stake is None or not stake.is_open:
                raise UnknownAccount(f"{holder} has no open lease on {id}.")
            if holder == self._ledger.holder:
                raise OrderRefused(
                    f"{holder} is the sidecar that you ask: it is alive, and settles its lease itself. "
                    f"To end the account's spending, close it."
                )
            before = stake.outstanding
            owner = await self._ledger.orders.write_off(id, holder)
        return Ordered(self._dump(id, owner), written_off=before)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn what keeps the books from being read or written into the port's own error."""
        if (fault := self._ledger.fault) is not None:
            raise BooksAway(str(fault))
        try:
            yield
        except StoreError as error:
            raise BooksAway(str(error)) from error

    async def _known(self, id: str) -> Owner:
        owner = await self._ledger.orders.books(id)
        if not owner.sequence:
            raise UnknownAccount(f"Nobody has used an account {id}.")
        return owner

    def _dump(self, id: str, owner: Owner) -> AccountDump:
        ledger = self._ledger
        entry = ledger.accounts.get(id)
        own: Holder | None = entry.holder if entry is not None else None
        leases: list[LeaseDump] = []
        used, reserved = owner.settled, own.reserved if own is not None else 0
        for name, stake in owner.stakes.items():
            is_own = name == ledger.holder
            unreported = 0
            if is_own and own is not None and own.epoch == stake.epoch:
                unreported = max(0, own.spent - stake.spent)
            used += unreported
            outstanding, spent = stake.outstanding - unreported, stake.spent + unreported
            leases.append(LeaseDump(name, outstanding, spent, stake.is_open, is_own=is_own))
        delegated = owner.delegated
        return AccountDump(
            id=id,
            scope=scope_of(id),
            unit=unit_of(id),
            total=owner.total,
            extra=owner.extra,
            used=used,
            settled=owner.settled,
            reserved=reserved,
            delegated=delegated,
            left=owner.total - used - reserved - delegated,
            available=owner.available,
            leases=leases,
            wants={holder: want.need for holder, want in owner.wants.items()},
            children=owner.children,
            parent=owner.parent,
            is_closed=owner.is_closed,
            is_open_here=entry is not None,
            frozen=owner.frozen,
        )


def _check_new(id: str) -> None:
    """Raise OrderRefused where no call can ever spend from an account of this name: it was mistyped."""
    scope, slash, name = id.partition("/")
    if not slash or not name or scope not in SCOPES or scope == _MADE_BY_MESHD:
        known = ", ".join(f"{one}/" for one in SCOPES if one != _MADE_BY_MESHD)
        raise OrderRefused(f"Nobody has used {id}, and no call can: the names of accounts begin with {known}.")
