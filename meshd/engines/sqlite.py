"""The embedded store: one SQLite file, one thread that alone touches it, and group commit.

Every operation is queued to that thread. It takes all that wait, runs them in one transaction, syncs once
(`synchronous=FULL` over a write-ahead log) and only then answers them, so a hundred writers share one sync.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

from meshd.engines.port import (
    Ability,
    Change,
    Record,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreNewer,
    StoreReadOnly,
    sum_of,
)
from meshd.engines.watchers import Watchers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SCHEMA = 1
APPLICATION_ID = 0x6D657368  # "mesh": says that the file is ours before anything is written into it
GROUP_MAX = 512
# Checked whole at start only up to this size, so that starting stays well under a second.
CHECKED_BYTES_MAX = 32 * 2**20

_TABLES = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS record (
    space TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (space, key)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO counter VALUES ('version', 0);
"""
_READ = "SELECT version, value FROM record WHERE space = ? AND key = ?"
_VERSION = "SELECT version FROM record WHERE space = ? AND key = ?"
_WRITE = "INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?)"
_DELETE = "DELETE FROM record WHERE space = ? AND key = ?"
_KEYS = "SELECT key FROM record WHERE space = ? AND key > ? ORDER BY key LIMIT ?"

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


class SqliteStore:
    """One file of records. Methods may be awaited from any loop; the constructor opens, and blocks while it does.

    Raises StoreError or one of its kinds: StoreNewer, StoreCorrupt, StoreLocked, StoreReadOnly, StoreFull.
    """

    name = "sqlite"
    caution = ""

    def __init__(self, path: Path, *, busy_timeout_s: float = 1.0) -> None:
        self.abilities = frozenset({Ability.DURABLE})
        self._path = path
        self._connection = self._opened(busy_timeout_s)
        self._version: int = self._connection.execute("SELECT value FROM counter").fetchone()[0]
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._changed: list[tuple[str, str]] = []
        """Space and key of what the group that runs has changed."""
        self._watchers = Watchers()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="meshd-store", daemon=True)
        self._thread.start()

    async def read(self, space: str, keys: Sequence[str]) -> dict[str, Record]:
        result: dict[str, Record] = await self._ask(self._read, (space, tuple(keys)), is_write=False)
        return result

    async def write(self, changes: Sequence[Change]) -> list[bool]:
        result: list[bool] = await self._ask(self._write, (tuple(changes),), is_write=True)
        return result

    async def take(self, space: str, key: str, amount: int, ceiling: int) -> int | None:
        result: int | None = await self._ask(self._take, (space, key, amount, ceiling), is_write=True)
        return result

    async def watch(self, space: str, changed: Callable[[str], None]) -> Callable[[], None]:
        # One process has the file, so whoever changes a record is in this one.
        self._check()
        return self._watchers.add(space, changed)

    async def keys(self, space: str, after: str = "", limit: int = 1000) -> list[str]:
        result: list[str] = await self._ask(self._keys, (space, after, limit), is_write=False)
        return result

    async def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    async def _ask(self, run: Callable[..., Any], arguments: tuple[Any, ...], *, is_write: bool) -> Any:
        self._check()
        job = _Job(run, arguments, is_write=is_write)
        self._jobs.put(job)
        return await job.future

    def _check(self) -> None:
        if self._is_closed:
            raise StoreClosed(f"{self._path} was closed")

    # What follows runs on the store's own thread, the opening aside.

    def _opened(self, busy_timeout_s: float) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = None
        try:
            connection = sqlite3.connect(
                self._path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False
            )
            self._prepare(connection)
        except (sqlite3.Error, OSError) as error:
            if connection is not None:
                connection.close()
            raise self._told(error) from error
        except StoreError:
            if connection is not None:
                connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        schema = connection.execute("PRAGMA user_version").fetchone()[0]
        is_empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if not is_empty and application != APPLICATION_ID:
            raise StoreCorrupt(f"{self._path} is a database of another program; move it away")
        if schema > SCHEMA:
            raise StoreNewer(
                f"{self._path} was written by a newer meshd (format {schema}, this one knows {SCHEMA}); "
                "run that version, or start with another state directory"
            )
        if self._path.stat().st_size <= CHECKED_BYTES_MAX:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise StoreCorrupt(f"{self._path} is damaged ({verdict}); restore it from a backup or move it away")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if schema < SCHEMA:
            connection.executescript(
                f"{_TABLES}PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA}; COMMIT;"
            )
        # A write that changes nothing shows now, not at the first budget, whether the file may be written.
        connection.execute("UPDATE counter SET value = value")

    def _work(self) -> None:
        is_open = True
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
                fault = self._ran(group)
                _answer(group, fault)
                self._tell_watchers(fault)
        self._connection.close()

    def _tell_watchers(self, fault: StoreError | None) -> None:
        changed, self._changed = self._changed, []
        if fault is None and self._watchers:
            for space, key in changed:
                self._watchers.tell(space, (key,))

    def _ran(self, group: list[_Job]) -> StoreError | None:
        """Run a group in one transaction; return what kept it from being committed, or None."""
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE" if any(job.is_write for job in group) else "BEGIN")
            before = self._version
            for job in group:
                try:
                    job.outcome = job.run(*job.arguments)
                except StoreError as error:
                    job.fault = error  # of this one alone
            if self._version != before:
                connection.execute("UPDATE counter SET value = ?", (self._version,))
            connection.execute("COMMIT")
        except (sqlite3.Error, OSError, ValueError, OverflowError) as error:  # ValueError: a key that is no Unicode
            if connection.in_transaction:
                try:
                    connection.execute("ROLLBACK")
                except sqlite3.Error:
                    pass  # SQLite has rolled back by itself on a full disk and on some input errors
            return self._told(error)
        return None

    def _read(self, space: str, keys: tuple[str, ...]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for key in keys:
            row = self._connection.execute(_READ, (space, key)).fetchone()
            if row is not None:
                found[key] = Record(row[0], row[1])
        return found

    def _write(self, changes: tuple[Change, ...]) -> list[bool]:
        return [self._write_one(*change) for change in changes]

    def _write_one(self, space: str, key: str, value: bytes | None, expected: int | None) -> bool:
        connection = self._connection
        if expected is not None:
            row = connection.execute(_VERSION, (space, key)).fetchone()
            if (row[0] if row else 0) != expected:
                return False
        if value is None:
            connection.execute(_DELETE, (space, key))
        else:
            self._version += 1
            connection.execute(_WRITE, (space, key, self._version, value))
        self._changed.append((space, key))
        return True

    def _take(self, space: str, key: str, amount: int, ceiling: int) -> int | None:
        row = self._connection.execute(_READ, (space, key)).fetchone()
        total = sum_of(self.name, key, row[1] if row is not None else None, amount, ceiling)
        if total is not None:
            self._write_one(space, key, b"%d" % total, None)
        return total

    def _keys(self, space: str, after: str, limit: int) -> list[str]:
        return [row[0] for row in self._connection.execute(_KEYS, (space, after, limit))]

    def _told(self, error: Exception) -> StoreError:
        code = getattr(error, "sqlite_errorcode", 0)
        kind, text = _CLASSES.get(code & 0xFF, (StoreError, f"cannot be used: {error}"))
        return kind(f"{self._path} {text}")


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
