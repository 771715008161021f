"""What only the embedded bus can be: killed, damaged, full, in two processes, read by whom it is not for."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from meshd.engines.bus_port import Event, Verdict
from meshd.engines.bus_sqlite import SqliteBus
from meshd.engines.bus_sqlite_shelf import SCHEMA
from meshd.engines.bus_terms import SteadyClock
from meshd.engines.port import (
    Ability,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreLocked,
    StoreNewer,
    StoreReadOnly,
)
from meshd.engines.sqlite import SqliteStore
from tests.engines.buses import TERMS, Hands, event, handle, is_waiting, quiet

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


async def _made(path: Path, events: int = 1) -> Path:
    bus = SqliteBus(path)
    await bus.publish([event(id=str(number), data=bytes(200)) for number in range(events)])
    await bus.close()
    return path


async def test_what_each_mode_promises(tmp_path: Path) -> None:
    fast = SqliteBus(tmp_path / "fast.db")
    durable = SqliteBus(tmp_path / "durable.db", is_durable=True)
    assert fast.abilities == {Ability.REPLAYS}
    assert "power cut" in fast.caution
    assert (durable.abilities, durable.caution) == ({Ability.DURABLE, Ability.REPLAYS}, "")
    # 1 is NORMAL, 2 is FULL: https://www.sqlite.org/pragma.html#pragma_synchronous
    for bus, level in ((fast, 1), (durable, 2)):
        await bus.publish([event()])
        connection = bus._shelf._shelf.connection  # type: ignore[attr-defined]
        ask = bus._shelf._file.ask  # type: ignore[attr-defined]
        assert await ask(lambda: connection.execute("PRAGMA synchronous").fetchone(), (), is_write=False) == (level,)  # noqa: B023
        assert await ask(lambda: connection.execute("PRAGMA journal_mode").fetchone(), (), is_write=False) == ("wal",)  # noqa: B023
        await bus.close()


WORKER = """
import asyncio, sys
from pathlib import Path
from meshd.engines.bus_port import Event, Verdict
from meshd.engines.bus_sqlite import SqliteBus
from meshd.engines.bus_terms import Terms

async def publish(bus):
    number = 0
    while True:
        batch = [Event("task.done", "me", f"{number + more}", partition_key=str(more % 3)) for more in range(3)]
        await bus.publish(batch)
        number += 3
        print("published", number, flush=True)

async def handle(bus):
    one = await bus.subscribe(">", "group", starts_at_oldest=True)
    while True:
        delivery = await one.next()
        print("begun", delivery.event.id, flush=True)
        await one.settle(delivery, Verdict.SUCCESS)
        print("settled", delivery.event.id, flush=True)

async def main():
    # Keys wait for each other in vain after a kill if anything is left behind.
    bus = SqliteBus(Path(sys.argv[1]), is_durable=sys.argv[2] == "durable", terms=Terms(attempts_max=1000))
    await asyncio.gather(publish(bus), *(handle(bus) for _ in range(3)))

asyncio.run(main())
"""


@pytest.mark.parametrize("mode", ["fast", "durable"])
@pytest.mark.parametrize("lines", [1, 7, 150, 700])
async def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path, mode: str, lines: int) -> None:
    """Killed at an arbitrary moment of publishing and settling, three times over on one file."""
    path = tmp_path / "bus.db"
    published, begun, settled = 0, set[str](), set[str]()
    for _ in range(3):
        before = set(settled)
        said = _killed_after(lines, path, mode)
        for verb, text in (line.split() for line in said):
            if verb == "published":
                published = max(published, int(text))
            elif verb == "settled":
                settled.add(text)
            else:
                # What was settled is begun by nobody again.
                assert text not in before
                begun.add(text)
    bus = SqliteBus(path, terms=TERMS._replace(attempts_max=1000))
    again = await bus.publish([event(id=str(number)) for number in range(published)])
    assert all(one.is_duplicate for one in again)
    one = await bus.subscribe(">", "group")
    left = await _handle_all(bus, one)
    assert not settled & set(left)
    # A batch whose acknowledgement was under way when it was killed may be there as well.
    every = settled | set(left)
    assert {str(number) for number in range(published)} - every <= begun - settled
    assert await bus.dead_letters("group") == []
    await bus.close()


async def _handle_all(bus: SqliteBus, one: object) -> dict[str, bool]:
    """Settle all that there is; return the ids, and whether each was marked."""
    found: dict[str, bool] = {}
    while True:
        asked = asyncio.ensure_future(one.next())  # type: ignore[attr-defined]
        await quiet(bus)
        if not asked.done():
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
            return found
        delivery = asked.result()
        assert delivery.event.id not in found
        found[delivery.event.id] = delivery.may_have_been_handled
        await one.settle(delivery, Verdict.SUCCESS)  # type: ignore[attr-defined]


def _killed_after(lines: int, path: Path, mode: str) -> list[str]:
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(path), mode], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert worker.stdout is not None
    said = [worker.stdout.readline() for _ in range(lines)]
    worker.send_signal(signal.SIGKILL)
    rest, _ = worker.communicate()
    assert worker.returncode == -signal.SIGKILL
    # The last line may have been cut off as it was written.
    return [line for line in said + rest.splitlines(keepends=True) if line.endswith("\n")]


async def test_an_event_that_was_begun_before_a_kill_comes_back_marked(tmp_path: Path) -> None:
    program = WORKER.replace("await one.settle(delivery, Verdict.SUCCESS)", "await asyncio.Event().wait()")
    path = tmp_path / "bus.db"
    worker = subprocess.Popen(
        [sys.executable, "-c", program, str(path), "fast"], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert worker.stdout is not None
    begun = set[str]()
    while len(begun) < 3:
        verb, _, text = worker.stdout.readline().partition(" ")
        begun |= {text.strip()} if verb == "begun" else set()
    worker.kill()
    worker.communicate()
    bus = SqliteBus(path)
    found = await _handle_all(bus, await bus.subscribe(">", "group"))
    assert {id for id, is_marked in found.items() if is_marked} == begun
    await bus.close()


OPENING = """
import sys
from pathlib import Path
from meshd.engines.bus_sqlite import SqliteBus
input()
try:
    SqliteBus(Path(sys.argv[1]), busy_timeout_s=float(sys.argv[2]))
except Exception as error:
    print(type(error).__name__, error, flush=True)
else:
    print("open", flush=True)
    input()
"""


async def test_one_process_has_it(tmp_path: Path) -> None:
    path = tmp_path / "bus.db"
    bus = SqliteBus(path)
    done = subprocess.run(
        [sys.executable, "-c", OPENING, str(path), "0.01"],
        input="\n",
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    assert done.stdout.startswith("StoreLocked")
    assert "MESHD_HOME" in done.stdout
    assert "--bus sqlite:///" in done.stdout
    # Nor twice in one.
    with pytest.raises(StoreLocked):
        SqliteBus(path, busy_timeout_s=0.01)
    await bus.publish([event()])
    await bus.close()
    again = SqliteBus(path, busy_timeout_s=0.01)
    await again.close()


async def test_of_many_that_open_it_at_once_one_has_it(tmp_path: Path) -> None:
    several = [
        subprocess.Popen(
            [sys.executable, "-c", OPENING, str(tmp_path / "bus.db"), "0.2"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        for _ in range(4)
    ]
    for one in several:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    said = sorted(one.stdout.readline().split()[0] for one in several if one.stdout is not None)
    assert said == ["StoreLocked"] * 3 + ["open"]
    for one in several:
        one.communicate("\n")


async def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = await _made(tmp_path / "bus.db")
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreNewer, match="written by a newer meshd"):
        SqliteBus(path)
    assert path.read_bytes() == before


def _no_database(path: Path) -> None:
    path.write_bytes(b"this is not a database, whatever its name says" * 100)


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE event (sequence, topic, id)")
    connection.close()


def _overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for at in range(4096 + 8, len(content) - 64, 4096):
        content[at : at + 64] = b"\xff" * 64
    path.write_bytes(content)


def _cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: 4096 * 3 + 100])


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_no_database, "is not a database; move it away"),
        (_foreign, "another program; move it away"),
        (_overwritten, "(?s)is damaged.*restore it from a backup or move it away"),
        (_cut_off, "(?s)is damaged.*restore it from a backup or move it away"),
    ],
)
async def test_a_file_that_is_no_bus(tmp_path: Path, harm: Callable[[Path], None], words: str) -> None:
    path = tmp_path / "bus.db"
    if harm in (_overwritten, _cut_off):
        await _made(path, events=500)
    harm(path)
    with pytest.raises(StoreCorrupt, match=words):
        SqliteBus(path)
    # It let go of it: the same is said again, and another may look.
    with pytest.raises(StoreCorrupt, match=words):
        SqliteBus(path)


async def test_the_ledger_s_file_is_not_taken_for_a_bus(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "ledger.db")
    await store.close()
    with pytest.raises(StoreCorrupt, match="another program"):
        SqliteBus(tmp_path / "ledger.db")
    await _made(tmp_path / "bus.db")
    with pytest.raises(StoreCorrupt, match="another program"):
        SqliteStore(tmp_path / "bus.db")


async def test_nowhere_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        SqliteBus(tmp_path / "nowhere" / "bus.db")
    with pytest.raises(StoreError, match="cannot be opened"):
        SqliteBus(tmp_path)


async def test_a_damaged_event_becomes_a_dead_letter_and_holds_nobody_up(tmp_path: Path) -> None:
    path, clock = tmp_path / "bus.db", Hands()
    bus = SqliteBus(path, terms=TERMS, clock=clock)
    one = await bus.subscribe(">", "group")
    await bus.publish([event(id=name, partition_key="k") for name in "abcd"])
    await one.settle(await one.next(), Verdict.RETRY)
    await bus.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE event SET body = x'ff00' WHERE id = 'a'")  # it waits for its retry
        connection.execute("UPDATE event SET body = 7 WHERE id = 'b'")  # another type
        connection.execute("UPDATE event SET body = ? WHERE id = 'c'", (msgspec.msgpack.encode(["task.done", 5]),))
    connection.close()
    bus = SqliteBus(path, terms=TERMS, clock=clock)
    clock.move(1.0)
    one = await bus.subscribe(">", "group")
    assert await handle(one, 1) == ["d"]
    letters = await bus.dead_letters("group")
    assert [letter.reason for letter in letters] == ["its record is damaged"] * 3
    assert {letter.event.topic for letter in letters} == {"task.done"}
    # Redriven it is what it was.
    assert await bus.redrive("group", [letters[0].id]) == 1
    assert await is_waiting(bus, one)
    assert len(await bus.dead_letters("group")) == 3
    await bus.close()


async def test_an_event_of_an_older_build_is_read(tmp_path: Path) -> None:
    path = await _made(tmp_path / "bus.db")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE event SET body = ?", (msgspec.msgpack.encode(["task.done", "me", "old"]),))
    connection.close()
    bus = SqliteBus(path)
    one = await bus.subscribe(">", "group", starts_at_oldest=True)
    assert (await one.next()).event == Event("task.done", "me", "old", sequence=f"{1:020}")
    await bus.close()


FULL = """
import asyncio, resource, sys
from pathlib import Path
from meshd.engines.bus_port import Event, Verdict
from meshd.engines.bus_sqlite import SqliteBus
from meshd.engines.port import StoreError

async def main():
    bus = SqliteBus(Path(sys.argv[1]))
    one = await bus.subscribe(">", "group")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    kept = []
    try:
        for number in range(1000):
            await bus.publish([Event("a", "me", str(number), data=b"x" * 4000)])
            kept.append(str(number))
    except StoreError as error:
        print(type(error).__name__, error)
    else:
        print("nothing failed")
    handled = "none"
    try:
        delivery = await one.next()
        await one.settle(delivery, Verdict.SUCCESS)
        handled = delivery.event.id
    except StoreError as error:
        print(type(error).__name__, error)
    else:
        print("there was room for this")
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    await bus.publish([Event("a", "me", "after")])
    found = [handled] if handled != "none" else []
    while len(found) <= len(kept):
        delivery = await one.next()
        await one.settle(delivery, Verdict.SUCCESS)
        found.append(delivery.event.id)
    print(len(kept) > 10, found == kept + ["after"])
    await bus.close()

asyncio.run(main())
"""


def test_a_full_disk_is_said_and_passes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "bus.db")],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
        timeout=60,
    )
    published, _, after = done.stdout.splitlines()
    assert published.startswith("Store"), published
    assert "cannot" in published
    assert after == "True True"


READ_ONLY = """
import os, sys
from pathlib import Path
from meshd.engines.bus_sqlite import SqliteBus
from meshd.engines.port import StoreError
if os.getuid() == 0:
    os.setuid(65534)
try:
    SqliteBus(Path(sys.argv[1]))
except StoreError as error:
    print(type(error).__name__, error)
"""


async def test_a_file_that_may_not_be_written() -> None:
    # Not `tmp_path`: what root makes there nobody else may enter, and root may write everything.
    with tempfile.TemporaryDirectory() as name:
        path = await _made(Path(name) / "bus.db")
        path.chmod(0o444)
        Path(name).chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(path)], capture_output=True, text=True, check=True, env=ENVIRONMENT
        )
        Path(name).chmod(0o755)
    assert done.stdout.startswith(StoreReadOnly.__name__), done.stdout + done.stderr
    assert "may not be written" in done.stdout


async def test_a_fault_of_the_file_reaches_who_waits_and_the_next_tries_again(tmp_path: Path) -> None:
    bus = SqliteBus(tmp_path / "bus.db")
    one = await bus.subscribe(">", "group")
    ask = bus._shelf._file.ask  # type: ignore[attr-defined]
    connection = bus._shelf._shelf.connection  # type: ignore[attr-defined]
    await ask(lambda: connection.execute("PRAGMA query_only = ON"), (), is_write=False)
    with pytest.raises(StoreReadOnly):
        await bus.publish([event()])
    await ask(lambda: connection.execute("PRAGMA query_only = OFF"), (), is_write=False)
    await bus.publish([event(id="a")])
    await ask(lambda: connection.execute("PRAGMA query_only = ON"), (), is_write=False)
    with pytest.raises(StoreReadOnly):
        await one.next()
    await ask(lambda: connection.execute("PRAGMA query_only = OFF"), (), is_write=False)
    assert await handle(one, 1) == ["a"]
    await bus.close()


async def test_what_was_rolled_back_is_not_taken_for_done(tmp_path: Path) -> None:
    bus = SqliteBus(tmp_path / "bus.db", terms=TERMS._replace(keep_bytes=100_000))
    ask = bus._shelf._file.ask  # type: ignore[attr-defined]
    run = bus._shelf._shelf.connection.execute  # type: ignore[attr-defined]
    await bus.publish([event(data=bytes(2000)) for _ in range(39)])
    fails = "CREATE TEMP TRIGGER t BEFORE INSERT ON event BEGIN SELECT RAISE(ABORT, 'not now'); END"
    await ask(lambda: run(fails) and None, (), is_write=True)
    with pytest.raises(StoreError, match="not now"):
        # Room for it was made, and is taken back.
        await bus.publish([event(data=bytes(20_000))])
    await ask(lambda: run("DROP TRIGGER t") and None, (), is_write=True)
    for number in range(100):
        await bus.publish([event(id=str(number), data=bytes(2000))])
    first = await (await bus.subscribe(">", "late", starts_at_oldest=True)).next()
    assert int(first.event.sequence) > 90
    await bus.close()


async def test_who_subscribes_while_the_bus_is_closed_is_told_and_keeps_it_from_nothing(tmp_path: Path) -> None:
    bus = SqliteBus(tmp_path / "bus.db")
    one = await bus.subscribe(">", "one")
    asked = asyncio.ensure_future(one.next())
    await asyncio.sleep(0)
    joining = asyncio.ensure_future(bus.subscribe(">", "other"))
    await asyncio.sleep(0)
    (line,) = bus._lines.values()
    assert line._task is not None  # closing waits for this first
    await bus.close()
    for waiting in (asked, joining):
        with pytest.raises(StoreClosed):
            await waiting
    await SqliteBus(tmp_path / "bus.db").close()  # nobody has it any more


async def test_what_was_asked_for_before_closing_is_done(tmp_path: Path) -> None:
    bus = SqliteBus(tmp_path / "bus.db")
    asked = [asyncio.ensure_future(bus.publish([event(id=str(number))])) for number in range(50)]
    await asyncio.sleep(0)
    await bus.close()
    done = await asyncio.gather(*asked, return_exceptions=True)
    assert not [one for one in done if isinstance(one, BaseException) and not isinstance(one, StoreClosed)]
    bus = SqliteBus(tmp_path / "bus.db")
    for number, one in enumerate(done):
        known = (await bus.publish([event(id=str(number))]))[0].is_duplicate
        assert known or isinstance(one, StoreClosed)
    await bus.close()


async def test_the_clock_that_is_used_goes_on_when_the_machine_s_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SteadyClock()
    before_s = clock.now_s()
    assert abs(before_s - time.time()) < 3600.0
    monkeypatch.setattr(time, "time", lambda: 5.0)
    monkeypatch.setattr(time, "time_ns", lambda: 5_000_000_000)
    assert before_s <= clock.now_s() < before_s + 3600.0
    # An event says what the machine says.
    assert clock.wall_ns() == 5_000_000_000
    fallen = asyncio.Event()
    clock.at(clock.now_s() - 1.0, fallen.set)
    await fallen.wait()
