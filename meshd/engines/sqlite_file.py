"""One SQLite file, one thread that alone touches it, and group commit: what the embedded store and bus have in common.

Every operation is queued to that thread. It takes all that wait, runs them in one transaction, commits once (which
syncs, where the file is `synced`) and only then answers them, so a hundred writers share one sync.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from meshd.engines.port import (
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreNewer,
    StoreReadOnly,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

log = logging.getLogger("meshd.store")

GROUP_MAX = 512
# Checked whole at start only up to this size, so that starting stays well under a second.
CHECKED_BYTES_MAX = 32 * 2**20

# Primary result codes, https://www.sqlite.org/rescode.html
_CLASSES: dict[int, tuple[type[StoreError], str]] = {
    sqlite3.SQLITE_BUSY: (StoreLocked, "is locked by another process"),
    sqlite3.SQLITE_LOCKED: (StoreLocked, "is locked by another process"),
    sqlite3.SQLITE_CORRUPT: (StoreCorrupt, "is damaged; restore it from a backup or move it away"),
    sqlite3.SQLITE_NOTADB: (StoreCorrupt, "is not a database; move it away"),
    sqlite3.SQLITE_FULL: (StoreFull, "cannot grow: the disk is full"),
    sqlite3.SQLITE_READONLY: (StoreReadOnly, "may not be written"),
    sqlite3.SQLITE_CANTOPEN: (StoreError, "cannot be opened: check that its directory exists and is writable"),
}

_FORESEEN = (sqlite3.Error, OSError, ValueError, OverflowError)
"""A ValueError is a key that is no Unicode."""


class Format(NamedTuple):
    """What a file of one kind looks like."""

    application_id: int
    """Says that the file is ours before anything is written into it."""
    schema: int
    """The newest format that this build writes and reads."""
    tables: str
    """SQL that makes them, inside of a transaction."""
    probe: str
    """A write that changes nothing: shows at the start, not at the first write, whether the file may be written."""
    upgrades: Mapping[int, str] = MappingProxyType({})
    """SQL that makes the next format of one, in the same transaction as all that follow: a start that is cut short
    finds the old one."""


class _Job:
    __slots__ = ("arguments", "fault", "future", "is_write", "loop", "outcome", "run")

    def __init__(self, run: Callable[..., Any], arguments: tuple[Any, ...], *, is_write: bool) -> None:
        self.run = run
        self.arguments = arguments
        self.is_write = is_write
        self.outcome: Any = None
        self.fault: StoreError | None = None
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()


class SqliteFile:
    """A file that is opened, and the thread that works on it. `ask` may be awaited from any loop.

    The constructor blocks while it opens. Raises StoreError or one of its kinds: StoreNewer, StoreCorrupt, StoreLocked,
    StoreReadOnly, StoreFull. `is_synced`: a commit survives a power cut, not a killed process alone. `is_alone`: nobody
    else may open the file meanwhile, and `instead` says what they can do.
    """

    def __init__(
        self,
        path: Path,
        form: Format,
        *,
        thread: str,
        opened: Callable[[sqlite3.Connection], None] | None = None,
        before_commit: Callable[[sqlite3.Connection], None] | None = None,
        ended: Callable[[StoreError | None], None] | None = None,
        busy_timeout_s: float = 1.0,
        is_synced: bool = True,
        is_alone: bool = False,
        instead: str = "",
    ) -> None:
        self.path = path
        self._form = form
        self._is_synced = is_synced
        self._is_alone = is_alone
        self._instead = instead
        self._when_opened = opened
        self._before_commit = before_commit
        self._ended = ended
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._is_closed = False
        self.connection = self._opened(busy_timeout_s)
        self._thread = threading.Thread(target=self._work, name=thread, daemon=True)

    def start(self) -> None:
        """Start the thread: from now on it alone touches the connection."""
        self._thread.start()

    def check(self) -> None:
        """Raises StoreClosed where the file was closed."""
        if self._is_closed:
            raise StoreClosed(f"{self.path} was closed")

    async def ask(self, run: Callable[..., Any], arguments: tuple[Any, ...], *, is_write: bool) -> Any:
        """Run a function on the thread, and return what it returned once that is committed. Raises StoreError.

        A StoreError of `run` is of this job alone: it must be raised before anything was written.
        """
        self.check()
        job = _Job(run, arguments, is_write=is_write)
        self._jobs.put(job)
        return await job.future

    async def close(self) -> None:
        """Finish what was asked for, and close."""
        if not self._is_closed:
            self._is_closed = True
            self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def told(self, error: Exception) -> StoreError:
        """Say in words for an operator what SQLite said."""
        code = getattr(error, "sqlite_errorcode", 0)
        kind, text = _CLASSES.get(code & 0xFF, (StoreError, f"cannot be used: {error}"))
        if kind is StoreLocked and self._is_alone:
            text = "is held by another process, and one at a time may have it; " + self._instead
        return kind(f"{self.path} {text}")

    # What follows runs on the file's own thread, the opening aside.

    def _opened(self, busy_timeout_s: float) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = None
        self._make()
        try:
            connection = sqlite3.connect(
                self.path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
            )
            self._prepare(connection)
        except (sqlite3.Error, OSError) as error:
            if connection is not None:
                connection.close()
            raise self.told(error) from error
        except StoreError:
            if connection is not None:
                connection.close()
            raise
        return connection

    def _make(self) -> None:
        """Make the file where there is none, for its owner alone: it holds answers, shared state and tokens. SQLite
        would ask the umask; what it makes beside the file is for whom the file is."""
        with contextlib.suppress(OSError):  # SQLite says what is wrong
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    def _prepare(self, connection: sqlite3.Connection) -> None:
        form = self._form
        if self._is_alone:
            if self.path.exists() and not os.access(self.path, os.W_OK):
                # Asked for alone, SQLite would speak of a disk error.
                raise StoreReadOnly(f"{self.path} {_CLASSES[sqlite3.SQLITE_READONLY][1]}")
            # Before the first look at the log beside the file: the lock is then held until the file is closed, and
            # the log's index is kept in memory, https://www.sqlite.org/wal.html#noshm
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            # Of two that come at once, one has it: each with a shared lock would keep the other from a greater one.
            connection.executescript("BEGIN EXCLUSIVE; COMMIT;")
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        schema = connection.execute("PRAGMA user_version").fetchone()[0]
        is_empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if not is_empty and application != form.application_id:
            raise StoreCorrupt(f"{self.path} is a database of another program; move it away")
        if schema > form.schema:
            raise StoreNewer(
                f"{self.path} was written by a newer meshd (format {schema}, this one knows {form.schema}); "
                "run that version, or start with another state directory"
            )
        if self.path.stat().st_size <= CHECKED_BYTES_MAX:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise StoreCorrupt(f"{self.path} is damaged ({verdict}); restore it from a backup or move it away")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if self._is_synced else 'NORMAL'}")
        if schema < form.schema:
            steps = "" if is_empty else "".join([form.upgrades.get(old, "") for old in range(schema, form.schema)])
            connection.executescript(
                f"BEGIN IMMEDIATE;{steps}{form.tables}PRAGMA application_id = {form.application_id};"
                f"PRAGMA user_version = {form.schema};COMMIT;"
            )
        connection.execute(form.probe)
        if self._when_opened is not None:
            self._when_opened(connection)

    def _work(self) -> None:
        is_open, wrong = True, None
        while is_open:
            group: list[_Job] = []
            job = self._jobs.get()
            while job is not None:
                group.append(job)
                if len(group) >= GROUP_MAX or self._jobs.empty():
                    break
                job = self._jobs.get()
            is_open = job is not None
            if group:
                if wrong is not None:
                    wrong = self._end(wrong)
                fault = wrong or self._ran(group)
                _answer(group, fault)
                if wrong is None:
                    wrong = self._end(fault)
        self.connection.close()

    def _end(self, fault: StoreError | None) -> StoreError | None:
        """Say how a group ended. Where that fails, what is remembered beside the tables may not be what they say:
        return why, and run nothing until it does not."""
        if self._ended is None:
            return None
        try:
            self._ended(fault)
        except Exception as error:  # noqa: BLE001 - this thread must go on, or all who ask wait for ever
            return self._unforeseen(error)
        return None

    def _unforeseen(self, error: Exception) -> StoreError:
        """Say in words what went wrong, and where, if it is nothing that SQLite says."""
        if not isinstance(error, _FORESEEN):
            log.error("%s: what was to be done with it failed", self.path, exc_info=error)
        return self.told(error)

    def _ran(self, group: list[_Job]) -> StoreError | None:
        """Run a group in one transaction; return what kept it from being committed, or None."""
        connection = self.connection
        try:
            connection.execute("BEGIN IMMEDIATE" if any(job.is_write for job in group) else "BEGIN")
            for job in group:
                try:
                    job.outcome = job.run(*job.arguments)
                except StoreError as error:
                    job.fault = error  # of this one alone
            if self._before_commit is not None:
                self._before_commit(connection)
            connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            if connection.in_transaction:
                try:
                    connection.execute("ROLLBACK")
                except sqlite3.Error:
                    pass  # SQLite has rolled back by itself on a full disk and on some input errors
            return self._unforeseen(error)
        return None


def _answer(group: list[_Job], error: StoreError | None) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in group:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, jobs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, jobs, error)
        except RuntimeError:
            pass  # the loop was closed: nobody waits any more


def _resolve(jobs: list[_Job], error: StoreError | None) -> None:
    for job in jobs:
        if job.future.done():
            continue
        fault = error or job.fault
        if fault is None:
            job.future.set_result(job.outcome)
        else:
            job.future.set_exception(fault)
