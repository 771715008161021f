"""The owner's desk: takes messages to the owners of accounts, whose books are records of a store.

Each step is one compare-and-set of the account's record, so two desks on one store can never both grant the same
tokens. An account with an open lease has an entry in its holder's index, written together with it: a start reads
these and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from meshd.engines.port import Change, StoreCorrupt
from meshd.ledger.account import LEASE_TOKENS_MAX, Answer, Message, Owner, Stake

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.engines.port import Record, Store

ACCOUNTS: Final = "account"
BATCH_MAX: Final = 500

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Owner).decode


class HolderRecord(msgspec.Struct):
    """What the owner knows of a holder: with it every start of a holder begins (rule 6)."""

    epoch: int
    boot_id: str = ""
    segment: int = 0
    """First segment of the holder's journal that no checkpoint has made superfluous."""


_decode_holder = msgspec.json.Decoder(HolderRecord).decode


def leases_of(holder: str) -> str:
    """Return the space that holds the keys of accounts with an open lease of `holder`."""
    return f"lease/{holder}"


class Desk:
    """Reads, steps and writes owners. Every method may raise StoreError."""

    __slots__ = ("_lease_tokens_max", "store")

    def __init__(self, store: Store, *, lease_tokens_max: int = LEASE_TOKENS_MAX) -> None:
        self.store = store
        self._lease_tokens_max = lease_tokens_max

    async def owner(self, account: str) -> Owner:
        """Return the books of an account as they stand; empty ones where there are none yet."""
        return _owner(account, (await self.store.read(ACCOUNTS, (account,))).get(account))

    async def owners(self, accounts: Sequence[str]) -> dict[str, Owner]:
        """Return the books of several accounts."""
        found = await self.store.read(ACCOUNTS, accounts)
        return {account: _owner(account, found.get(account)) for account in accounts}

    async def tell(self, account: str, message: Message) -> Answer:
        """Take one message to the owner of `account`; its answer is in the owner's log when this returns."""
        return (await self.tell_all([(account, message)]))[0]

    async def tell_all(self, messages: Sequence[tuple[str, Message]]) -> list[Answer]:
        """Take many messages, each to another account, in batches that are written whole."""
        answers: list[Answer] = []
        for at in range(0, len(messages), BATCH_MAX):
            answers += await self._tell(messages[at : at + BATCH_MAX])
        return answers

    async def _tell(self, messages: Sequence[tuple[str, Message]]) -> list[Answer]:
        while True:
            found = await self.store.read(ACCOUNTS, [account for account, _ in messages])
            changes: list[Change] = []
            answers: list[Answer] = []
            for account, message in messages:
                record = found.get(account)
                owner = _owner(account, record)
                was_open = _is_open(owner.stakes.get(message.holder))
                answers.append(owner.step(message, self._lease_tokens_max))
                changes.append(Change(ACCOUNTS, account, _encode(owner), record.version if record else 0))
                is_open = _is_open(owner.stakes.get(message.holder))
                if is_open != was_open:
                    changes.append(Change(leases_of(message.holder), account, b"" if is_open else None))
            if await self.store.write(changes):
                return answers

    async def open_leases(self, holder: str) -> list[str]:
        """Return the accounts on which `holder` has an open lease."""
        space, found, after = leases_of(holder), [], ""
        while page := await self.store.keys(space, after):
            found += page
            after = page[-1]
        return found

    async def holder(self, name: str) -> tuple[int, HolderRecord | None]:
        """Return the version and the record of a holder; 0 and None for one never seen."""
        record = (await self.store.read("holder", (name,))).get(name)
        if record is None:
            return 0, None
        try:
            return record.version, _decode_holder(record.value)
        except msgspec.MsgspecError as error:
            raise StoreCorrupt(f"the record of holder {name} in the {self.store.name} store is damaged") from error

    async def write_holder(self, name: str, record: HolderRecord, expected: int | None = None) -> bool:
        """Write a holder's record; False where another start has come between."""
        return await self.store.write([Change("holder", name, _encode(record), expected)])


def _is_open(stake: Stake | None) -> bool:
    return stake is not None and stake.is_open


def _owner(account: str, record: Record | None) -> Owner:
    if record is None:
        return Owner()
    try:
        owner = _decode(record.value)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(f"the record of account {account} is damaged") from error
    if owner.available + owner.outstanding + owner.settled != owner.total:
        # Worse than unreadable: books that do not add up grant tokens that nobody has.
        raise StoreCorrupt(f"the books of account {account} do not add up")
    return owner
