"""Prompts over the store port.

A version is added by two writes: its text first, if it is absent, then the head that lists it, by compare-and-set.
Whoever finds the text without its place in the head, since a crash lay between the two, may add the very same again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from meshd.engines.port import Change, StoreClosed, StoreError
from meshd.prompts.choosing import ordered
from meshd.prompts.record import (
    BEFORE_MAX,
    HEADS,
    HISTORY_MAX,
    LABELS_MAX,
    PINS,
    TEXTS,
    VERSIONS_MAX,
    Damaged,
    Head,
    Move,
    Pin,
    Prompt,
    Weights,
    checked_weights,
    decode,
    encode,
    head_key,
    pin_key,
    text_key,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from meshd.engines.port import Store

TRIES_MAX: Final = 32
"""Compare-and-sets that may be lost to others before it is given up."""
PAGE: Final = 200
PIN_S: Final = 30 * 86_400.0
"""For how long a workflow's version is kept in the store after its last use there, at least half of this."""


class Conflict(Exception):
    """What was to be changed is not as it was thought to be; nothing has changed."""


class UnknownPrompt(Exception):
    """There is no prompt of this name, or no such version or label of it."""


class Shelf:
    """Every method may raise StoreError, and Damaged."""

    def __init__(self, store: Callable[[], Store | None]) -> None:
        """`store` returns the one that is in use, None while it cannot be opened."""
        self._store = store

    @property
    def store(self) -> Store:
        """The store. Raises StoreError where there is none."""
        store = self._store()
        if store is None:
            raise StoreClosed("the store is not open")
        return store

    # ------------------------------------------------------------------ reading

    async def head(self, tenant: str, name: str) -> tuple[Head | None, int]:
        """Return what there is of a name, and the version of its record; None and 0 where there is nothing."""
        key = head_key(tenant, name)
        record = (await self.store.read(HEADS, (key,))).get(key)
        return (None, 0) if record is None else (decode(record.value, Head, key), record.version)

    async def prompt(self, tenant: str, name: str, version: str) -> Prompt | None:
        """Return one version."""
        key = text_key(tenant, name, version)
        record = (await self.store.read(TEXTS, (key,))).get(key)
        return None if record is None else decode(record.value, Prompt, key)

    async def heads(self, tenant: str, after: str, limit: int) -> tuple[list[Head], list[str]]:
        """Return up to `limit` names of a tenant, in their order, from the first beyond `after`, and which of them are
        damaged: those have nothing but their name."""
        prefix = head_key(tenant, "")
        keys = await self.store.keys(HEADS, prefix + after, limit)
        keys = [key for key in keys if key.startswith(prefix)]
        records = await self.store.read(HEADS, keys) if keys else {}
        found, problems = [], []
        for key in keys:
            if key in records:
                try:
                    found.append(decode(records[key].value, Head, key))
                except Damaged as error:
                    found.append(Head(key.removeprefix(prefix)))
                    problems.append(str(error))
        return found, problems

    # ------------------------------------------------------------------ changing

    async def add(self, tenant: str, prompt: Prompt) -> tuple[Prompt, bool]:
        """Add a version; return it as it is kept, and whether it is new. The very same may be added again.

        Raises Conflict where that version has another text, or there are too many.
        """
        name, version = prompt.name, prompt.version
        key = text_key(tenant, name, version)
        is_new = (await self.store.write([Change(TEXTS, key, encode(prompt), 0)]))[0]
        kept = await self.prompt(tenant, name, version)
        if kept is None:
            raise StoreError(f"the version {version} of {name} was written, and is not there")
        if not is_new and not kept.is_same(prompt):
            raise Conflict(
                f"{name}@{version} is there already with another text or other notes. Versions never change."
            )
        for _ in range(TRIES_MAX):
            head, at = await self.head(tenant, name)
            head = head or Head(name)
            if version in head.versions:
                return kept, is_new
            if len(head.versions) >= VERSIONS_MAX:
                raise Conflict(f"{name} has {VERSIONS_MAX} versions already: begin a new name")
            changed = msgspec.structs.replace(head, versions={**head.versions, version: kept.digest})
            if await self._put(tenant, changed, at):
                return kept, True
        raise _busy(name)

    async def promote(
        self,
        tenant: str,
        name: str,
        label: str,
        weigh: Callable[[Head], Weights],
        expected: Weights | None,
        now_s: float,
    ) -> Head:
        """Move a label to what `weigh` makes of the head. `expected` is where it must stand now; None for where it is
        found to stand at first, empty for nowhere.

        Raises UnknownPrompt; Conflict where somebody else has moved it meanwhile; ValueError for weights that are none.
        """
        was = expected
        for _ in range(TRIES_MAX):
            head, at = await self.head(tenant, name)
            if head is None:
                raise UnknownPrompt(f"There is no prompt {name}.")
            stands = head.labels.get(label, {})
            if was is None:
                was = stands
            if stands != was:
                raise Conflict(f"The label {label} of {name} stands at {words_of(stands)}, not at {words_of(was)}.")
            weights = checked_weights(weigh(head), head.versions)
            if weights == stands:
                return head
            if label not in head.labels and len(head.labels) >= LABELS_MAX:
                raise Conflict(f"{name} has {LABELS_MAX} labels already.")
            before = (*head.before.get(label, ()), stands)[-BEFORE_MAX:]
            changed = _moved(head, label, weights, before, Move(label, weights, now_s))
            if await self._put(tenant, changed, at):
                return changed
        raise _busy(name)

    async def roll_back(self, tenant: str, name: str, label: str, expected: Weights | None, now_s: float) -> Head:
        """Move a label to where it stood before its last move; again, to where it stood before that.

        Raises UnknownPrompt; Conflict.
        """
        was = expected
        for _ in range(TRIES_MAX):
            head, at = await self.head(tenant, name)
            if head is None:
                raise UnknownPrompt(f"There is no prompt {name}.")
            stands = head.labels.get(label, {})
            if was is None:
                was = stands
            if stands != was:
                raise Conflict(f"The label {label} of {name} stands at {words_of(stands)}, not at {words_of(was)}.")
            before = head.before.get(label, ())
            if not before:
                raise Conflict(f"The label {label} of {name} stood nowhere before, as far as is kept.")
            changed = _moved(head, label, before[-1], before[:-1], Move(label, before[-1], now_s, is_rollback=True))
            if await self._put(tenant, changed, at):
                return changed
        raise _busy(name)

    async def _put(self, tenant: str, head: Head, at: int) -> bool:
        return (await self.store.write([Change(HEADS, head_key(tenant, head.name), encode(head), at)]))[0]

    # ------------------------------------------------------------------ pins

    async def pinned(self, tenant: str, workflow: str, name: str, selector: str, now_s: float) -> Pin | None:
        """Return what a reference means in a workflow; None where that is open. It is kept for longer from now on."""
        key = pin_key(tenant, workflow, name, selector)
        record = (await self.store.read(PINS, (key,))).get(key)
        if record is None:
            return None
        pin = decode(record.value, Pin, key)
        if pin.ends_s - now_s < PIN_S / 2:
            longer = msgspec.structs.replace(pin, ends_s=now_s + PIN_S)
            # Whoever else does the same does it as well.
            await self.store.write([Change(PINS, key, encode(longer), record.version)])
            return longer
        return pin

    async def pin(self, tenant: str, pin: Pin) -> Pin:
        """Keep what a reference means in a workflow, unless another sidecar has done so: return what holds."""
        key = pin_key(tenant, pin.workflow, pin.name, pin.selector)
        for _ in range(TRIES_MAX):
            if (await self.store.write([Change(PINS, key, encode(pin), 0)]))[0]:
                return pin
            record = (await self.store.read(PINS, (key,))).get(key)
            if record is not None:
                return decode(record.value, Pin, key)
        raise _busy(pin.name)

    async def expired(self, now_s: float) -> AsyncIterator[int]:
        """Forget pins whose time is over, page by page; yield how many."""
        after = ""
        while keys := await self.store.keys(PINS, after, PAGE):
            records = await self.store.read(PINS, keys)
            over = [
                Change(PINS, key, None, record.version)
                for key, record in records.items()
                if _is_over(record.value, key, now_s)
            ]
            yield sum(await self.store.write(over)) if over else 0
            after = keys[-1]


def words_of(weights: Weights) -> str:
    """Return where a label stands, in words."""
    if len(weights) < 2:
        return next(iter(weights), "nowhere")
    return " and ".join(f"{version} ({weights[version]})" for version in ordered(list(weights)))


def _is_over(value: bytes, key: str, now_s: float) -> bool:
    try:
        return decode(value, Pin, key).ends_s < now_s
    except Damaged:
        # Its workflow is told so, and nobody else is kept waiting.
        return False


def _moved(head: Head, label: str, weights: Weights, before: tuple[Weights, ...], move: Move) -> Head:
    labels = {**head.labels, label: weights}
    if not weights:
        del labels[label]
    kept = {**head.before, label: before}
    if not before:
        del kept[label]
    return msgspec.structs.replace(head, labels=labels, before=kept, history=(*head.history, move)[-HISTORY_MAX:])


def _busy(name: str) -> StoreError:
    return StoreError(f"the prompt {name} was changed by others {TRIES_MAX} times in a row")
