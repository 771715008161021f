"""What the embedded store says when its file is not what it should be."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from meshd.engines.bus_port import Event
from meshd.engines.bus_sqlite import SqliteBus
from meshd.engines.port import Change, StoreCorrupt, StoreError, StoreLocked, StoreNewer
from meshd.engines.sqlite import SCHEMA, SqliteStore
from meshd.engines.sqlite_file import CHECKED_BYTES_MAX, Format, SqliteFile


async def _made(path: Path, records: int = 1) -> Path:
    store = SqliteStore(path)
    await store.write([Change("space", f"{number:05d}", b"value" * 20) for number in range(records)])
    await store.close()
    return path


async def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = await _made(tmp_path / "store.db")
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreNewer, match="written by a newer meshd"):
        SqliteStore(path)
    assert path.read_bytes() == before


FORMAT_1 = """
CREATE TABLE record (
    space TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (space, key)
) WITHOUT ROWID;
CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counter VALUES ('version', 41);
INSERT INTO record VALUES ('space', 'a', 7, X'00ff'), ('space', 'b', 41, zeroblob(262144)), ('other', 'a', 9, 'text');
PRAGMA application_id = 1835365224;
PRAGMA user_version = 1;
"""


async def test_a_file_of_the_first_format_is_brought_up(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    connection = sqlite3.connect(path)
    connection.executescript(FORMAT_1)
    connection.close()
    for _ in range(2):
        store = SqliteStore(path)
        found = await store.read("space", ("a", "b"))
        assert [(one.version, len(one.value)) for one in found.values()] == [(7, 2), (41, 2**18)]
        assert found["a"].value == b"\x00\xff"
        assert await store.keys("space") == ["a", "b"]
        assert await store.keys("other") == ["a"]
        await store.close()
    store = SqliteStore(path)
    assert await store.write([Change("space", "a", b"new", 7), Change("space", "c", b"", 0)]) == [True, True]
    assert [one.version for one in (await store.read("space", ("a", "c"))).values()] == [42, 43]  # counted on
    await store.close()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA,)
    assert {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")} == {
        "record",
        "counter",
    }
    connection.close()


async def test_a_file_that_cannot_be_brought_up_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    connection = sqlite3.connect(path)
    connection.executescript(FORMAT_1 + "CREATE TABLE record_2 (is_in_the_way)")
    connection.close()
    with pytest.raises(StoreError):
        SqliteStore(path)
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    assert connection.execute("SELECT count(*) FROM record").fetchone() == (3,)
    connection.close()


async def test_a_value_that_is_damaged_hides_nothing_else(tmp_path: Path) -> None:
    """In a file that is too large to be checked whole at the start."""
    path = tmp_path / "store.db"
    store = SqliteStore(path)
    keys = [f"{number:03d}" for number in range(CHECKED_BYTES_MAX // 2**18 + 2)]
    for key in keys:
        await store.write([Change("space", key, (b"\xee" if key == "050" else b"\x11") * 2**18)])
    await store.close()
    content = bytearray(path.read_bytes())
    pages = [at for at in range(0, len(content), 4096) if content[at + 4 : at + 4096] == b"\xee" * 4092]
    assert len(pages) > 60
    for at in pages:
        content[at : at + 4] = b"\xff" * 4  # where the value goes on
    path.write_bytes(content)
    store = SqliteStore(path)
    assert await store.keys("space") == keys
    with pytest.raises(StoreCorrupt):
        await store.read("space", ("050",))
    for key in keys:
        if key != "050":
            assert (await store.read("space", (key,)))[key].value == b"\x11" * 2**18
    assert await store.write([Change("space", "049", b"new"), Change("space", "051", None)]) == [True, True]
    await store.close()


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"this is not a database, whatever its name says" * 100)
    with pytest.raises(StoreCorrupt, match="not a database"):
        SqliteStore(path)


async def test_a_database_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(StoreCorrupt, match="another program"):
        SqliteStore(path)


async def test_a_damaged_database(tmp_path: Path) -> None:
    path = await _made(tmp_path / "store.db", records=500)
    content = bytearray(path.read_bytes())
    for at in range(4096 + 8, len(content) - 64, 4096):
        content[at : at + 64] = b"\xff" * 64
    path.write_bytes(content)
    with pytest.raises(StoreCorrupt, match="damaged"):
        SqliteStore(path)


async def test_a_truncated_database(tmp_path: Path) -> None:
    path = await _made(tmp_path / "store.db", records=500)
    path.write_bytes(path.read_bytes()[: 4096 * 3 + 100])
    with pytest.raises(StoreCorrupt):
        SqliteStore(path)


async def test_locked_at_start(tmp_path: Path) -> None:
    path = await _made(tmp_path / "store.db")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(StoreLocked, match="locked by another process"):
            SqliteStore(path, busy_timeout_s=0.01)
    finally:
        other.close()


async def test_locked_while_running_fails_and_recovers(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store.db", busy_timeout_s=0.01)
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreLocked):
        await store.write([Change("space", "a", b"")])
    other.execute("ROLLBACK")
    other.close()
    assert await store.write([Change("space", "a", b"one")]) == [True]
    await store.close()


TABLES = Format(0x6D74, 1, "CREATE TABLE t (n INTEGER);", "UPDATE t SET n = n")


@pytest.mark.parametrize("where", ["in what was asked", "at its end"])
async def test_what_nobody_foresaw_is_told_to_who_asked_and_ends_nothing(where: str, tmp_path: Path) -> None:
    faults: list[StoreError | None] = []

    def ended(fault: StoreError | None) -> None:
        faults.append(fault)
        if len(faults) == 1 and where == "at its end":
            raise KeyError("unforeseen")

    def fail() -> None:
        file.connection.execute("INSERT INTO t VALUES (1)")
        raise KeyError("unforeseen")

    file = SqliteFile(tmp_path / "some.db", TABLES, thread="test", ended=ended)
    file.start()
    count = file.connection.execute
    async with asyncio.timeout(20):
        if where == "at its end":
            await file.ask(lambda: None, (), is_write=True)
        else:
            with pytest.raises(StoreError, match=r"some\.db cannot be used: 'unforeseen'"):
                await file.ask(fail, (), is_write=True)
        assert await file.ask(lambda: count("SELECT count(*) FROM t").fetchone(), (), is_write=False) == (0,)
        await file.close()
    told = [type(fault) for fault in faults]
    assert told == ([StoreError, type(None)] if where != "at its end" else [type(None), StoreError, type(None)])


async def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        SqliteStore(tmp_path / "nowhere" / "store.db")


FULL = """
import asyncio, resource, sys
from pathlib import Path
from meshd.engines.port import Change, StoreError
from meshd.engines.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.write([Change("space", "kept", b"kept")])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        for number in range(1000):
            await store.write([Change("space", str(number), b"x" * 4000)])
    except StoreError as error:
        print(type(error).__name__, error)
    else:
        print("nothing failed")
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    print(await store.write([Change("space", "after", b"after")]))
    print((await store.read("space", ["kept", "after"]))["after"].value)
    await store.close()

asyncio.run(main())
"""


def test_no_room_to_write_is_said_and_passes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "store.db")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    said, written, after = done.stdout.splitlines()
    assert said.startswith("Store"), said
    assert "cannot" in said
    assert (written, after) == ("[True]", "b'after'")


READ_ONLY = """
import os, sys
from pathlib import Path
from meshd.engines.port import StoreError
from meshd.engines.sqlite import SqliteStore
if os.getuid() == 0:
    os.setuid(65534)
try:
    SqliteStore(Path(sys.argv[1]))
except StoreError as error:
    print(type(error).__name__, error)
"""


async def test_a_file_that_may_not_be_written() -> None:
    # Not `tmp_path`: what root makes there nobody else may enter, and root may write everything.
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        path = await _made(directory / "store.db")
        path.chmod(0o444)
        directory.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(path)],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        directory.chmod(0o755)
    assert done.stdout.startswith("StoreReadOnly"), done.stdout + done.stderr
    assert "may not be written" in done.stdout


async def test_its_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    """Wherever they lie: they hold answers, shared state and, of the bus, tokens."""
    umask = os.umask(0)
    try:
        store, bus = SqliteStore(tmp_path / "store.db"), SqliteBus(tmp_path / "bus.db")
        await store.write([Change("space", "key", b"value")])
        await bus.publish([Event(topic="a", source="ann", data=b"{}")])
        files = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        await store.close()
        await bus.close()
    finally:
        os.umask(umask)
    assert {"store.db", "store.db-wal", "bus.db"} <= set(files)
    assert set(files.values()) == {0o600}, files
