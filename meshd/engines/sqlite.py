"""The embedded store: one SQLite file of records, synced before anything is answered (meshd.engines.sqlite_file)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.engines.port import Ability, Change, Record, StoreError, sum_of
from meshd.engines.sqlite_file import Format, SqliteFile
from meshd.engines.watchers import Watchers

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from pathlib import Path

SCHEMA = 2
APPLICATION_ID = 0x6D657368  # "mesh"

# Values lie beside the index, not within it: where they do (WITHOUT ROWID, as in format 1), looking for a key reads the
# values on the way to it, all of their 256 kB.
_TABLES = """
CREATE TABLE IF NOT EXISTS record (
    space TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (space, key)
);
CREATE TABLE IF NOT EXISTS counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO counter VALUES ('version', 0);
"""
_TO_2 = """
CREATE TABLE record_2 (
    space TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (space, key)
);
INSERT INTO record_2 SELECT space, key, version, value FROM record ORDER BY space, key;
DROP TABLE record;
ALTER TABLE record_2 RENAME TO record;
"""
_FORMAT = Format(APPLICATION_ID, SCHEMA, _TABLES, "UPDATE counter SET value = value", {1: _TO_2})
_READ = "SELECT version, value FROM record WHERE space = ? AND key = ?"
_VERSION = "SELECT version FROM record WHERE space = ? AND key = ?"
# No REPLACE: that takes the row away and puts it in anew, and the index is written twice.
_WRITE = (
    "INSERT INTO record VALUES (?, ?, ?, ?) "
    "ON CONFLICT (space, key) DO UPDATE SET version = excluded.version, value = excluded.value"
)
_DELETE = "DELETE FROM record WHERE space = ? AND key = ?"
_KEYS = "SELECT key FROM record WHERE space = ? AND key > ? ORDER BY key LIMIT ?"


class SqliteStore:
    """One file of records. Methods may be awaited from any loop; the constructor opens, and blocks while it does.

    Raises StoreError or one of its kinds: StoreNewer, StoreCorrupt, StoreLocked, StoreReadOnly, StoreFull.
    """

    name = "sqlite"
    caution = ""

    def __init__(self, path: Path, *, busy_timeout_s: float = 1.0) -> None:
        self.abilities = frozenset({Ability.DURABLE})
        self._file = SqliteFile(
            path,
            _FORMAT,
            thread="meshd-store",
            before_commit=self._keep_version,
            ended=self._tell_watchers,
            busy_timeout_s=busy_timeout_s,
        )
        self._connection = self._file.connection
        self._version: int = self._connection.execute("SELECT value FROM counter").fetchone()[0]
        self._version_kept = self._version
        self._changed: list[tuple[str, str]] = []
        """Space and key of what the group that runs has changed."""
        self._watchers = Watchers()
        self._file.start()

    async def read(self, space: str, keys: Sequence[str]) -> dict[str, Record]:
        result: dict[str, Record] = await self._file.ask(self._read, (space, tuple(keys)), is_write=False)
        return result

    async def write(self, changes: Sequence[Change]) -> list[bool]:
        result: list[bool] = await self._file.ask(self._write, (tuple(changes),), is_write=True)
        return result

    async def take(self, space: str, key: str, amount: int, ceiling: int) -> int | None:
        result: int | None = await self._file.ask(self._take, (space, key, amount, ceiling), is_write=True)
        return result

    async def watch(self, space: str, changed: Callable[[str], None]) -> Callable[[], None]:
        # One process has the file, so whoever changes a record is in this one.
        self._file.check()
        return self._watchers.add(space, changed)

    async def keys(self, space: str, after: str = "", limit: int = 1000) -> list[str]:
        result: list[str] = await self._file.ask(self._keys, (space, after, limit), is_write=False)
        return result

    async def close(self) -> None:
        await self._file.close()

    # What follows runs on the file's own thread.

    def _keep_version(self, connection: sqlite3.Connection) -> None:
        if self._version != self._version_kept:
            connection.execute("UPDATE counter SET value = ?", (self._version,))
            # Ahead of the commit: where that fails, the next change raises the version above this one anyway.
            self._version_kept = self._version

    def _tell_watchers(self, fault: StoreError | None) -> None:
        changed, self._changed = self._changed, []
        if fault is None and self._watchers:
            for space, key in changed:
                self._watchers.tell(space, (key,))

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
