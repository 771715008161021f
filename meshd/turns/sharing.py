"""The turns of workflows in the store, so that they outlive a restart and span sidecars.

No call waits for it. What the store knows of a workflow is read as soon as its first turn has been judged: that one
turn is judged without. What changes is written behind the calls, about twice a second: so much later other sidecars
know it, and so much is lost where a process is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from meshd.engines.port import Ability, Change, StoreError
from meshd.turns.record import RecordBroken, encoded, merge

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.engines.port import Record, Store
    from meshd.turns.book import Book
    from meshd.turns.workflow import Workflow

SPACE: Final = "turns"
FLUSH_S: Final = 0.5
PAUSE_S: Final = 5.0
"""After the store failed."""
TRIES_MAX: Final = 4
"""To write a record that others change meanwhile."""
BATCH_MAX: Final = 128
SWEEP_S: Final = 3600.0
"""How often what nobody needs any more is looked for; more often where that is sooner, but not more than"""
SWEEP_S_MIN: Final = 60.0
PAGE: Final = 200

log = logging.getLogger("meshd.turns")


class Sharing:
    """Keeps the book of one sidecar and the store together."""

    __slots__ = (
        "_awake", "_book", "_clock", "_sidecar", "_span_s", "_stamp", "_stop_watching", "_store", "_told",
        "_wall_clock", "_wanted", "_watched", "fault", "flushes",
    )  # fmt: skip

    def __init__(
        self,
        book: Book,
        store: Callable[[], Store | None],
        sidecar: int,
        wall_clock: Callable[[], float],
        clock: Callable[[], float],
        span_s: Callable[[], float],
    ) -> None:
        """`store()` is asked each time; `sidecar` is a number from 1 to 2**32 - 1 that no other process has. `clock`
        returns the monotonic seconds that turns are counted by, and `span_s` for how long a workflow without a turn is
        remembered."""
        self._book = book
        self._store = store
        self._sidecar = sidecar
        self._wall_clock = wall_clock
        self._clock = clock
        self._span_s = span_s
        self._stamp = 0
        self._awake = asyncio.Event()
        self._wanted: dict[str, Workflow] = {}
        """Read next."""
        self._told: dict[str, Workflow] = {}
        """Those that have turns, and may change."""
        self._watched: Store | None = None
        self._stop_watching: Callable[[], None] | None = None
        self.fault: StoreError | None = None
        """Why the store could not be read or written the last time; None where it could."""
        self.flushes = 0
        book.dropped = self._dropped

    # ------------------------------------------------------------------ from the filter

    def want(self, key: str, workflow: Workflow) -> None:
        """A workflow has its first turn here: read what is known of it, and keep it written from now on."""
        workflow.is_read = True
        self._wanted[key] = workflow
        self._told[key] = workflow
        self._awake.set()

    def _dropped(self, key: str, workflow: Workflow) -> None:
        # What had to make room is written once more, and read anew when it is needed.
        if not workflow.is_changed:
            self._told.pop(key, None)

    # ------------------------------------------------------------------ behind the calls

    async def run(self) -> None:
        """Read and write, for ever."""
        swept_s = self._wall_clock()
        flushed_s = swept_s
        while True:
            pause_s = FLUSH_S if self.fault is None else PAUSE_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._awake.wait()
            self._awake.clear()
            is_due = abs(self._wall_clock() - flushed_s) >= pause_s
            if is_due:
                flushed_s = self._wall_clock()
            if is_due or self.fault is None:
                await self.flush(writes=is_due)
            if self._wall_clock() - swept_s > min(SWEEP_S, max(self._span_s(), SWEEP_S_MIN)):
                swept_s = self._wall_clock()
                await self.sweep()

    async def flush(self, *, writes: bool = True) -> None:
        """Read what is wanted and write what has changed, once."""
        store = self._store()
        if store is None:
            return
        self.flushes += 1
        try:
            await self._watch(store)
            while self._wanted:
                keys = list(self._wanted)[:BATCH_MAX]
                await self._read(store, keys)
                for key in keys:
                    self._wanted.pop(key, None)
            changed = [key for key, one in self._told.items() if one.is_changed] if writes else []
            for at in range(0, len(changed), BATCH_MAX):
                await self._write(store, changed[at : at + BATCH_MAX])
        except StoreError as error:
            if self.fault is None:
                log.warning("the turns of workflows cannot be shared: %s", error)
            self.fault = error
        else:
            if self.fault is not None:
                log.info("the turns of workflows are shared again")
            self.fault = None
        self._let_go()

    def _let_go(self) -> None:
        for key in [key for key, one in self._told.items() if not one.is_changed and not self._is_kept(key, one)]:
            del self._told[key]

    def _is_kept(self, key: str, workflow: Workflow) -> bool:
        return self._book.workflows.get(key) is workflow

    async def _watch(self, store: Store) -> None:
        if store is self._watched or Ability.SHARED not in store.abilities:
            return
        if self._stop_watching is not None:
            self._stop_watching()
        self._stop_watching = await store.watch(SPACE, self._changed)
        self._watched = store

    def _changed(self, key: str) -> None:
        """Somebody has written a record, perhaps this process itself."""
        if not key:
            self._wanted.update(self._told)
        elif (workflow := self._told.get(key)) is not None:
            self._wanted[key] = workflow

    async def _read(self, store: Store, keys: list[str]) -> None:
        found = await store.read(SPACE, keys)
        for key, record in found.items():
            workflow = self._told.get(key)
            if workflow is not None and record.version != workflow.version:
                self._take(key, workflow, record)

    def _take(self, key: str, workflow: Workflow, record: Record) -> None:
        workflow.version = record.version
        try:
            merge(workflow, record.value, self._sidecar)
        except RecordBroken as error:
            log.warning("the turns of %s in the store cannot be read, and are written anew: %s", key, error)

    async def _write(self, store: Store, keys: list[str]) -> None:
        for _ in range(TRIES_MAX):
            self._stamp += 1
            changes: list[Change] = []
            for key in keys:
                workflow = self._told[key]
                workflow.is_changed = False
                value = encoded(workflow, self._sidecar, self._stamp, self._wall_clock())
                changes.append(Change(SPACE, key, value, workflow.version))
            try:
                made = await store.write(changes)
            except StoreError:
                for key in keys:
                    self._told[key].is_changed = True
                raise
            # The version under which it now stands is learned with the next read: until then a write finds it changed.
            keys = [key for key, is_made in zip(keys, made, strict=True) if not is_made]
            written = [change.key for change, is_made in zip(changes, made, strict=True) if is_made]
            await self._read_versions(store, written)
            if not keys:
                return
            await self._read(store, keys)
            for key in keys:
                self._told[key].is_changed = True

    async def _read_versions(self, store: Store, keys: list[str]) -> None:
        if keys:
            for key, record in (await store.read(SPACE, keys)).items():
                workflow = self._told.get(key)
                if workflow is not None and record.version != workflow.version:
                    self._take(key, workflow, record)

    async def sweep(self) -> None:
        """Forget workflows without a turn for so long that nobody needs them, here and in the store."""
        store, after, span_s = self._store(), "", self._span_s()
        before_s = self._wall_clock() - span_s
        self._book.forget(self._clock() - span_s)
        self._let_go()
        try:
            while store is not None:
                keys = await store.keys(SPACE, after, PAGE)
                if not keys:
                    return
                after = keys[-1]
                records = await store.read(SPACE, keys)
                stale = [
                    Change(SPACE, key, None, record.version)
                    for key, record in records.items()
                    if key not in self._told and _last_of_use(record.value) < before_s
                ]
                if stale:
                    await store.write(stale)
        except StoreError as error:
            self.fault = error

    async def close(self) -> None:
        """Write what is not written yet, and watch no longer."""
        await self.flush()
        if self._stop_watching is not None:
            self._stop_watching()
            self._stop_watching = self._watched = None


def _last_of_use(record: bytes) -> float:
    from meshd.turns.workflow import Workflow

    try:
        return float(merge(Workflow(), record, -1))
    except RecordBroken:
        return 0.0
