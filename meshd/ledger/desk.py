"""The owner's desk: takes messages to the owners of accounts, whose books are records of a store.

Each step is one compare-and-set of the account's record, so two desks on one store can never both grant the same
tokens, and no process must live for an account to have its owner: whoever has a message steps it. An account with an
open lease has an entry in its holder's index, which stands before the lease does and leaves after it: a start reads
these and nothing else.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import msgspec

from meshd.engines.port import Change, StoreCorrupt, StoreError
from meshd.ledger.account import CHILDREN, LEASE_TOKENS_MAX, Answer, Message, Owner, Request, Stake

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.engines.port import Record, Store

_log = logging.getLogger("meshd.ledger")

ACCOUNTS: Final = "account"
RECALL: Final = "recall"
"""Space of notices: an account's name is written there when somebody waits for what others hold of it, or it closes."""
FREED: Final = "freed"
"""Likewise `HOLDER/ACCOUNT`, when that holder can have now what it waits for; `*/ACCOUNT` for all of them."""
BATCH_MAX: Final = 500
_IDENTITY: Final = ("mesh", ("identity",))

T = TypeVar("T")

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

    __slots__ = ("_due", "_lease_tokens_max", "identity", "store")

    def __init__(self, store: Store, *, lease_tokens_max: int = LEASE_TOKENS_MAX) -> None:
        self.store = store
        self.identity = ""
        """By which the store is known; empty where only this process has it."""
        self._lease_tokens_max = lease_tokens_max
        self._due: dict[str, None] = {}
        """Child accounts whose rest is due to their parents."""

    async def owner(self, account: str) -> Owner:
        """Return the books of an account as they stand; empty ones where there are none yet."""
        return _owner(account, (await self.store.read(ACCOUNTS, (account,))).get(account))

    async def owners(self, accounts: Sequence[str]) -> dict[str, Owner]:
        """Return the books of several accounts, without those that are damaged."""
        found = await self.store.read(ACCOUNTS, accounts)
        owners: dict[str, Owner] = {}
        for account in accounts:
            try:
                owners[account] = _owner(account, found.get(account))
            except StoreCorrupt as error:
                _log.error("%s; other accounts go on", error)
        return owners

    async def tell(self, account: str, message: Message) -> Answer:
        """Take one message to the owner of `account`; its answer is in the owner's log when this returns."""
        answer = (await self.tell_all([(account, message)]))[0]
        if isinstance(answer, StoreCorrupt):
            raise answer
        return answer

    async def tell_all(self, messages: Sequence[tuple[str, Message]]) -> list[Answer | StoreCorrupt]:
        """Take many messages, each to another account; for one whose books are damaged the answer says so."""
        answers: dict[str, Answer | StoreCorrupt] = {}
        for at in range(0, len(messages), BATCH_MAX):
            batch = messages[at : at + BATCH_MAX]
            while batch:
                batch = await self._tell(batch, answers)
        return [answers[account] for account, _ in messages]

    async def _tell(
        self, messages: Sequence[tuple[str, Message]], answers: dict[str, Answer | StoreCorrupt]
    ) -> list[tuple[str, Message]]:
        """Step the owners once; return the messages whose owner somebody else has stepped meanwhile."""
        found = await self.store.read(ACCOUNTS, [account for account, _ in messages])
        indexed: list[Change] = []
        stepped: list[Change] = []
        steps: list[_Step] = []
        for account, message in messages:
            record = found.get(account)
            try:
                owner = _owner(account, record)
            except StoreCorrupt as error:
                answers[account] = error
                continue
            if record is None and account.startswith(CHILDREN):
                # A part that has ended: it is gone from the books, and nothing is to be written of it.
                answers[account] = owner.step(message._replace(seen=0, granted=0))
                continue
            was_open = _is_open(owner.stakes.get(message.holder))
            had = owner.available
            answer = owner.step(message, self._lease_tokens_max)
            is_open = _is_open(owner.stakes.get(message.holder))
            stepped.append(Change(ACCOUNTS, account, _encode(owner), record.version if record else 0))
            notice = _notice(owner, account, message, had)
            steps.append(_Step(account, message, answer, owner, was_open and not is_open, notice))
            if is_open and not was_open:
                indexed.append(Change(leases_of(message.holder), account, b""))
        # In this order: an index that names a lease too many costs a look, one too few would lose it.
        made = (await self.store.write([*indexed, *stepped]))[len(indexed) :]
        again: list[tuple[str, Message]] = []
        after: list[Change] = []
        for step, is_made in zip(steps, made, strict=True):
            if not is_made:
                again.append((step.account, step.message))
                continue
            answers[step.account] = step.answer
            if step.is_closed:
                after.append(Change(leases_of(step.message.holder), step.account, None))
            after += step.notice
            if step.owner.is_ended:
                self._due[step.account] = None
        await self._afterwards(after)
        return again

    async def _afterwards(self, changes: list[Change]) -> None:
        """Do what follows from steps that were made. Where that fails they are made all the same: it is tried again,
        or whoever waits asks by itself."""
        try:
            if changes:
                await self.store.write(changes)
            await self.flow_back()
        except StoreError as error:
            _log.warning("after a step of the books: %s", error)

    async def order(self, account: str, change: Callable[[Owner], T], *, notice: str = "") -> T:
        """Change the books of an account as an operator or a delegating caller asks, and return what `change` does.

        It is called again where somebody else was quicker. `notice` is the space in which holders are told.
        """
        while True:
            record = (await self.store.read(ACCOUNTS, (account,))).get(account)
            owner = _owner(account, record)
            result = change(owner)
            written = Change(ACCOUNTS, account, _encode(owner), record.version if record else 0)
            if (await self.store.write([written]))[0]:
                break
        if owner.is_ended:
            self._due[account] = None
        await self._afterwards(_told(notice, account if notice == RECALL else f"*/{account}") if notice else [])
        return result

    async def flow_back(self) -> None:
        """Give what ended child accounts have left to their parents (rule 9). Raises StoreError; then it is still due.

        Twice is as once. Where a crash comes between, whoever delegated ends the child again when it is back. What
        damaged books keep from flowing back stays due, and keeps nothing else.
        """
        damaged: set[str] = set()
        while due := [child for child in self._due if child not in damaged]:
            try:
                await self._flow_back(due[0])
            except StoreCorrupt as error:
                _log.error("what %s has left cannot flow back: %s", due[0], error)
                damaged.add(due[0])

    def is_due(self, child: str) -> bool:
        """Say whether what an ended child has left could not flow back yet."""
        return child in self._due

    async def _flow_back(self, child: str) -> None:
        record = (await self.store.read(ACCOUNTS, (child,))).get(child)
        owner, version = _owner(child, record), record.version if record is not None else 0
        if owner.is_ended:
            await self._take_back(owner.parent, child, owner.available)
            # It is of no use any more, and its name stands for nothing without a parent.
            await self.store.write([Change(ACCOUNTS, child, None, version)])
        self._due.pop(child, None)

    async def _take_back(self, parent: str, child: str, left: int) -> None:
        while True:
            record = (await self.store.read(ACCOUNTS, (parent,))).get(parent)
            owner = _owner(parent, record)
            owner.take_back(child, left)
            written = Change(ACCOUNTS, parent, _encode(owner), record.version if record else 0)
            if (await self.store.write([written]))[0]:
                break
        if owner.is_ended:
            self._due[parent] = None
        await self.store.write(_told(FREED, f"*/{parent}"))

    async def read_identity(self) -> str:
        """Return what the store calls itself; "" where it has no name yet."""
        record = (await self.store.read(*_IDENTITY)).get(_IDENTITY[1][0])
        return record.value.decode("ascii", "replace") if record is not None else ""

    async def name_store(self, name: str) -> str:
        """Give the store a name unless it has one; return the one that it has."""
        await self.store.write([Change(_IDENTITY[0], _IDENTITY[1][0], name.encode(), expected=0)])
        return await self.read_identity()

    async def check_identity(self) -> None:
        """Raise StoreCorrupt where the store is not the one that this desk began with."""
        if self.identity and (found := await self.read_identity()) != self.identity:
            raise StoreCorrupt(
                f"the {self.store.name} store was {'replaced' if found else 'emptied'} while it was in use: "
                "its budgets would be granted again"
            )

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

    async def has_begun_anew(self, name: str, epoch: int) -> bool:
        """Say whether a holder was started again since `epoch`: what it was at then, nobody is at any more."""
        known = (await self.holder(name))[1]
        return known is not None and known.epoch > epoch

    async def write_holder(self, name: str, record: HolderRecord, expected: int | None = None) -> bool:
        """Write a holder's record; False where another start has come between."""
        return (await self.store.write([Change("holder", name, _encode(record), expected)]))[0]

    async def forget_leases(self, holder: str, accounts: Sequence[str]) -> None:
        """Take accounts out of the index of `holder`, on which it has no open lease after all."""
        space = leases_of(holder)
        await self.store.write([Change(space, account, None) for account in accounts])


class _Step(NamedTuple):
    account: str
    message: Message
    answer: Answer
    owner: Owner
    is_closed: bool
    notice: list[Change]
    """How others are told of it; empty where it is none of their business."""


def _notice(owner: Owner, account: str, message: Message, had: int) -> list[Change]:
    """Say whom a step concerns: whoever has what somebody waits for, or who can have it now.

    One that waits is told when its turn has come, and all when one of them waits in vain: were each told of all that
    comes back, the end of a budget that many share would be a storm.
    """
    if message.holder in owner.wants:
        return _told(RECALL, account)
    if owner.wants and (owner.available != had or isinstance(message, Request)):
        name = owner.next_to_tell()
        return _told(FREED, f"{name}/{account}") if name else []
    return []


def _told(space: str, key: str) -> list[Change]:
    # Written and gone: whoever watches is told, and nothing is left behind.
    return [Change(space, key, b""), Change(space, key, None)]


def _is_open(stake: Stake | None) -> bool:
    return stake is not None and stake.is_open


def _owner(account: str, record: Record | None) -> Owner:
    if record is None:
        return Owner(is_closed=account.startswith(CHILDREN))
    try:
        owner = _decode(record.value)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(f"the record of account {account} is damaged") from error
    if not owner.is_balanced:
        # Worse than unreadable: books that do not add up grant tokens that nobody has.
        raise StoreCorrupt(f"the books of account {account} do not add up")
    return owner
