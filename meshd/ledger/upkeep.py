"""What keeps a journal in order, off the hot path: group sync, late flushes, checkpoints into the store."""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from meshd.engines.port import StoreError
from meshd.ledger.journal import told

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

    from meshd.ledger.desk import Desk, HolderRecord
    from meshd.ledger.directory import Directory
    from meshd.ledger.journal import Journal

FLUSH_S = 0.2
"""Longest that a settle record waits for a reservation to be written with."""
SEGMENT_BYTES_MAX = 4 * 2**20
"""A journal past this is checkpointed: 65,000 calls, read again in some 0.1 s at a start."""
RETRY_BYTES = 2**20


class Upkeep:
    """The care of one journal. `say` is told of every fault (a StoreError) and of every success (None)."""

    __slots__ = (
        "_desk",
        "_directory",
        "_flush",
        "_holder",
        "_is_directory_stale",
        "_is_durable",
        "_is_syncing",
        "_journal",
        "_loop",
        "_record",
        "_say",
        "_segment_bytes_max",
        "_syncing",
        "_tasks",
        "_thread",
        "rotate_at",
    )

    def __init__(
        self,
        journal: Journal,
        directory: Directory,
        desk: Desk,
        holder: str,
        record: HolderRecord,
        say: Callable[[StoreError | None], None],
        *,
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
    ) -> None:
        self._journal = journal
        self._directory = directory
        self._desk = desk
        self._holder = holder
        self._record = record
        self._say = say
        self._segment_bytes_max = segment_bytes_max
        self._loop = asyncio.get_running_loop()
        # One thread: a descriptor handed to it for closing is closed after the sync that may be using it.
        self._thread = ThreadPoolExecutor(1, "meshd-journal")
        self._syncing: list[asyncio.Future[None]] = []
        self._is_syncing = False
        self._is_directory_stale = False
        self._is_durable = False
        """Somebody has relied on a sync."""
        self._flush: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.rotate_at = segment_bytes_max
        """Size of the journal in bytes at which `rotate` is due."""

    def flush_soon(self) -> None:
        """See to it that what waits is written in a while."""
        if self._flush is None:
            self._flush = self._loop.call_later(FLUSH_S, self._flush_now)

    def _flush_now(self) -> None:
        self._flush = None
        if self._journal.is_pending:
            try:
                self._journal.flush()
                self._say(None)
            except StoreError as error:
                self._say(error)
                self.flush_soon()

    async def synced(self) -> None:
        """Return when all that was written so far survives a crash of the host; many callers share one sync.

        Raises StoreError where it may not.
        """
        self._is_durable = True
        future: asyncio.Future[None] = self._loop.create_future()
        self._syncing.append(future)
        if not self._is_syncing:
            self._is_syncing = True
            self._keep(self._sync())
        await future

    async def _sync(self) -> None:
        while self._syncing:
            group, self._syncing = self._syncing, []
            fault = await self._sync_once()
            self._say(fault)
            for future in group:
                if future.done():
                    continue
                if fault is None:
                    future.set_result(None)
                else:
                    future.set_exception(fault)
        self._is_syncing = False

    async def _sync_once(self) -> StoreError | None:
        # After a rotation the new segment holds every open reservation, so it alone has to be synced.
        with_directory, self._is_directory_stale = self._is_directory_stale, False
        try:
            await self._loop.run_in_executor(self._thread, self._sync_now, self._journal.fileno, with_directory)
        except OSError as error:
            self._is_directory_stale = True
            # The kernel may have dropped the pages that it failed to write: only a new file can be trusted again.
            self.rotate_at = 0
            return told(error, self._journal.paths[-1])
        return None

    def _sync_now(self, fd: int, with_directory: bool) -> None:
        os.fdatasync(fd)
        if with_directory:
            self._directory.sync()

    def rotate(self, carried: Iterable[tuple[int, int, int]], report: Callable[[], Awaitable[None]]) -> None:
        """Begin a new segment with the open reservations, then have `report` put all spending into the store.

        Only when the store has them is the old segment deleted; until then both count. Never raises.
        """
        self.rotate_at = sys.maxsize
        try:
            old = self._journal.rotate(carried)
        except StoreError as error:
            self._say(error)
            self.rotate_at = self._journal.size + RETRY_BYTES
            return
        self._is_directory_stale = True
        self._thread.submit(os.close, old)
        self._keep(self._checkpoint(report))

    async def _checkpoint(self, report: Callable[[], Awaitable[None]]) -> None:
        try:
            await report()
            if self._is_durable:
                # The old segment goes: what it held must not depend on a crash (which writes fast leases off anyway).
                await self.synced()
            self._record.segment = self._journal.segment
            await self._desk.write_holder(self._holder, self._record)
            self._journal.forget()
        except StoreError as error:
            self._say(error)
            self.rotate_at = self._journal.size + RETRY_BYTES
        except OSError as error:
            self._say(told(error, self._journal.paths[0]))
            self.rotate_at = self._journal.size + RETRY_BYTES
        else:
            self.rotate_at = self._segment_bytes_max

    def _keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Finish what runs, write what waits, close the journal. Raises StoreError where the last write fails."""
        if self._flush is not None:
            self._flush.cancel()
        self.rotate_at = sys.maxsize
        while self._tasks:
            await asyncio.wait(self._tasks)
        try:
            if self._journal.is_pending:
                self._journal.flush()
        finally:
            self._journal.close()
            await self._loop.run_in_executor(None, self._thread.shutdown)
