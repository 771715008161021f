"""What keeps a journal in order, off the hot path: group sync, and checkpoints into the store."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from meshd.engines.port import StoreError, StoreLocked
from meshd.ledger.journal import told

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from meshd.ledger.desk import Desk, HolderRecord
    from meshd.ledger.directory import Directory
    from meshd.ledger.journal import Journal


class Upkeep:
    """The care of one journal. `say` is told of every fault (a StoreError) and of every success (None).

    `report` puts all spending into the store: whenever the journal has begun a new segment, which holds every open
    reservation, it is awaited, and then those before are deleted. Until then all of them count.
    """

    __slots__ = (
        "_desk",
        "_directory",
        "_holder",
        "_is_checkpointing",
        "_is_directory_stale",
        "_is_durable",
        "_is_syncing",
        "_journal",
        "_loop",
        "_record",
        "_report",
        "_say",
        "_syncing",
        "_tasks",
        "_thread",
    )

    def __init__(
        self,
        journal: Journal,
        directory: Directory,
        desk: Desk,
        holder: str,
        record: HolderRecord,
        *,
        report: Callable[[], Awaitable[None]],
        say: Callable[[StoreError | None], None],
    ) -> None:
        self._journal = journal
        self._directory = directory
        self._desk = desk
        self._holder = holder
        self._record = record
        self._report = report
        self._say = say
        self._loop = asyncio.get_running_loop()
        # One thread: a descriptor handed to it for closing is closed after the sync that may be using it.
        self._thread = ThreadPoolExecutor(1, "meshd-journal")
        self._syncing: list[asyncio.Future[None]] = []
        self._is_syncing = False
        self._is_checkpointing = False
        self._is_directory_stale = False
        self._is_durable = False
        """Somebody has relied on a sync."""
        self._tasks: set[asyncio.Task[None]] = set()
        journal.retire = self._retire

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
        path = self._journal.paths[-1]
        try:
            await self._loop.run_in_executor(self._thread, self._sync_now, self._journal.fileno, with_directory)
        except OSError as error:
            self._is_directory_stale = True
            # The kernel may have dropped the pages that it failed to write: only a new file can be trusted again.
            if path == self._journal.paths[-1]:
                self._journal.seal()
            return told(error, path)
        return None

    def _sync_now(self, fd: int, with_directory: bool) -> None:
        os.fdatasync(fd)
        if with_directory:
            self._directory.sync()

    def _retire(self, old: int) -> None:
        self._is_directory_stale = True
        self._thread.submit(self._close_old, old)
        if not self._is_checkpointing:
            self._is_checkpointing = True
            self._keep(self._checkpoint())

    def _close_old(self, old: int) -> None:
        try:
            if self._is_durable:
                os.fdatasync(old)
        except OSError as error:
            self._loop.call_soon_threadsafe(self._say, told(error, self._journal.paths[0]))
        finally:
            os.close(old)

    async def _checkpoint(self) -> None:
        """Make the segments before the last superfluous; where that fails, the next rotation tries again."""
        first = -1
        try:
            while first != (first := self._journal.segment):
                await self._report()
                if self._is_durable:
                    # The old ones go: what they held must not depend on a crash (which writes fast leases off anyway).
                    await self.synced()
                self._record.segment = first
                version, known = await self._desk.holder(self._holder)
                if (
                    known is None
                    or known.epoch != self._record.epoch
                    or not await self._desk.write_holder(self._holder, self._record, version)
                ):
                    raise StoreLocked(f"another meshd has started as holder {self._holder} on the same store")
                self._journal.forget(first)
        except StoreError as error:
            self._say(error)
        except OSError as error:
            self._say(told(error, self._journal.paths[0]))
        finally:
            self._is_checkpointing = False

    def _keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Finish what runs and close the journal."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        self._journal.close()
        await self._loop.run_in_executor(None, self._thread.shutdown)
