"""How a sidecar reads the log of a bus on RabbitMQ, onto tables in a file that is thrown away."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from meshd.engines import bus_rabbitmq_copy as copies
from meshd.engines import bus_rabbitmq_server as server
from meshd.engines.bus_rabbitmq_entry import Applied, Copied, Group, Message
from meshd.engines.bus_rabbitmq_replica import FORM, LogGone, Replica
from meshd.engines.port import StoreClosed, StoreCorrupt, StoreError
from meshd.engines.sqlite_file import SqliteFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiormq.abc import DeliveredMessage

    from meshd.engines.bus_rabbitmq_pair import Pair
    from meshd.engines.bus_terms import Terms

log = logging.getLogger("meshd")

T = TypeVar("T")
READ_MAX: Final = 500
FILE: Final = "replica.db"


class Reader:
    """Reads over one pair of connections after the other; what a pair that was given up still brings is passed over."""

    def __init__(
        self,
        terms: Terms,
        sidecar: str,
        where: str,
        applied: Callable[[Pair, Applied], None],
        lost: Callable[[Pair, StoreError], None],
    ) -> None:
        """`applied` is told what reading on has changed, and `lost` why it cannot be read on over a pair."""
        self.watched: frozenset[Group] = frozenset()
        self.heard_s = 0.0
        self._terms = terms
        self._sidecar = sidecar
        self._where = where
        self._applied = applied
        self._lost = lost
        self._pair: Pair | None = None
        self._messages: deque[tuple[Pair, Message, int]] = deque()
        self._reading: asyncio.Task[None] | None = None
        self._replica = Replica(terms, sidecar)
        self._directory: Path | None = None
        self._file: SqliteFile | None = None
        self._floor = 0
        self._from_copy = ""
        self._no_use = ""
        """A copy of a log that is gone."""

    @property
    def is_crowded(self) -> bool:
        return self._replica.is_crowded

    @property
    def latest(self) -> int:
        """The greatest place that was read of, in a log that is gone too."""
        return max(self._floor, self._replica.latest)

    @property
    def log_id(self) -> str:
        """Names the log that is read; empty until something was."""
        return self._replica.log_id

    def wants_copy(self, least_bytes: int) -> bool:
        """So much was read since the last copy of the state that the next one is to be made."""
        return self._replica.logged >= max(least_bytes, 2 * self._replica.held_bytes)

    async def begin(self, pair: Pair) -> None:
        """Read over this pair from now on. Raises StoreError, OSError."""
        self._pair = pair
        if self._file is None or self._replica.offset == 0:
            await self._start(pair)
        if self._replica.offset > 0 and await self._hello_offset(pair) < self._replica.offset:
            # It is younger than what was read: from where that ended, nothing would come for long.
            self._no_use = self._from_copy
            await self._start(pair)
        await pair.read(pair.names.log, max(0, self._replica.offset - 1), self._heard)

    async def _hello_offset(self, pair: Pair) -> int:
        """Return where the first entry of these connections stands."""
        async with pair.messages(pair.names.log, "last") as messages, asyncio.timeout(copies.PART_S):
            while True:
                message = await messages.get()
                if message.body == pair.hello:
                    return server.offset_of(message)

    async def _start(self, pair: Pair) -> None:
        await self._drop()
        self._floor = self.latest
        replica = Replica(self._terms, self._sidecar)
        directory = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="meshd-bus-"))
        self._directory = directory
        self._from_copy = await copies.get(pair, directory / FILE, self._no_use)

        def opened() -> SqliteFile:
            file = SqliteFile(
                directory / FILE,
                FORM,
                thread="meshd-bus-log",
                opened=replica.begin,
                ended=lambda fault: replica.look() if fault is not None else None,
                is_synced=False,
                # Another connection makes copies of it.
                is_alone=False,
            )
            file.start()
            return file

        self._file = await asyncio.to_thread(opened)
        self._replica = replica

    def _heard(self, pair: Pair, delivered: DeliveredMessage) -> None:
        offset = server.offset_of(delivered)
        self.heard_s = asyncio.get_running_loop().time()
        if pair is self._pair:
            message = Message(offset, delivered.header.properties.message_type or "", delivered.body)
            self._messages.append((pair, message, server.tag_of(delivered)))
            if self._reading is None:
                self._reading = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        try:
            while self._messages:
                pair, some, tag = self._messages[0][0], list[Message](), 0
                while self._messages and len(some) < READ_MAX and self._messages[0][0] is pair:
                    _, message, tag = self._messages.popleft()
                    some.append(message)
                if pair is self._pair and pair.is_open:
                    await self._carry_out(pair, some, tag)
        finally:
            self._reading = None

    async def _carry_out(self, pair: Pair, some: list[Message], tag: int) -> None:
        if self._file is None:
            return
        try:
            arguments = (some, self.watched, pair.is_first_read)
            applied: Applied = await self._file.ask(self._replica.apply, arguments, is_write=True)
        except StoreClosed:
            return
        except StoreError as error:
            self._lost(pair, error)
            return
        pair.is_first_read = False
        if isinstance(applied.problem, LogGone):
            if self._replica.offset == 0:
                # There is no copy, or none of this log, and its beginning has been cut off.
                self._lost(pair, StoreCorrupt(f"{self._where}: {applied.problem}, and no copy of its state is there"))
                return
            self._no_use = self._from_copy
            await self._drop()
        # Before anything can fail: it has been carried out, and will not be read again.
        self._applied(pair, applied)
        if applied.problem is not None:
            self._lost(pair, applied.problem)
            return
        try:
            await pair.acknowledge(tag)
        except (StoreError, OSError) as error:
            self._lost(pair, error if isinstance(error, StoreError) else StoreError(f"{self._where}: {error}"))

    async def look(self, read: Callable[[Replica], T]) -> T:
        """Look at the tables as they are now. Raises StoreError."""
        if self._file is None:
            raise StoreError(f"{self._where} is being read anew")
        found: T = await self._file.ask(read, (self._replica,), is_write=False)
        return found

    async def is_known(self, sidecar: str, epoch: int) -> bool:
        """Say whether what is last known of a sidecar is that it has a connection of this epoch."""
        if self._file is None:
            return False
        return bool(await self._file.ask(self._replica.is_known, (sidecar, epoch), is_write=False))

    async def copy(self, pair: Pair, name: str) -> Copied:
        """Put a copy of the state on the server. Raises StoreError, OSError."""
        if self._directory is None:
            raise StoreClosed(f"{self._where} is not read")
        target = self._directory / "copy.db"
        try:
            copied = Copied(name, *await asyncio.to_thread(copies.write, self._directory / FILE, target))
            await copies.put(pair, target, copied)
        finally:
            await asyncio.to_thread(target.unlink, missing_ok=True)
        return copied

    async def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            await file.close()
        if self._directory is not None:
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    async def close(self) -> None:
        self._pair = None
        if self._reading is not None:
            await asyncio.wait((self._reading,))
        await self._drop()
