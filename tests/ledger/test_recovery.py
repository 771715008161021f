"""A start after whatever may have happened to the run before."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from meshd.engines.memory import MemoryStore
from meshd.engines.port import StoreCorrupt, StoreError, StoreNewer
from meshd.ledger import Ledger, Reservation, Shortfall
from meshd.ledger.directory import boot_id
from meshd.ledger.journal import FORMAT, RECORD_BYTES

# The first lease of an account of 1,000 tokens is half of it.
TOTAL, LEASE = 1000, 500
SPENT, OPEN = 30, 100
HEAD_BYTES = 80


async def died(directory: Path, **options: object) -> None:
    """Leave what a killed process leaves: `fast` with 30 spent, 100 open; `slow` (durable) likewise."""
    ledger = await Ledger.open(directory, **options)  # type: ignore[arg-type]
    for account, is_durable in (("fast", False), ("slow", True)):
        one = await ledger.wait(account, TOTAL, 50, 50, queue_s=5, is_durable=is_durable)
        assert isinstance(one, Reservation)
        one.settle(SPENT)
        two = await ledger.wait(account, TOTAL, OPEN, OPEN, queue_s=5, is_durable=is_durable)
        assert isinstance(two, Reservation)
    await _drop(ledger)


async def _drop(ledger: Ledger) -> None:
    """End a ledger as a kill would: nothing is settled, only descriptors are closed."""
    assert ledger._journal is not None
    assert ledger._directory is not None
    await ledger._leases.finish()
    ledger._journal.close()
    ledger._directory.close()
    await ledger._desk.store.close()


async def used(directory: Path, **options: object) -> tuple[int, int, int]:
    """Start again; return the tokens used of both accounts, and how many were stranded."""
    ledger = await Ledger.open(directory, **options)  # type: ignore[arg-type]
    found = []
    try:
        for account in ("fast", "slow"):
            short = await ledger.wait(account, 0, 1, 1, queue_s=0)
            assert isinstance(short, Shortfall)
            found.append(short.used)
    finally:
        await ledger.close()
    return found[0], found[1], ledger.started.stranded_tokens


def journal_of(directory: Path) -> Path:
    return sorted(directory.glob("journal-*.log"))[-1]


async def test_open_reservations_count_as_spent_and_the_rest_comes_back(tmp_path: Path) -> None:
    await died(tmp_path)
    assert await used(tmp_path) == (SPENT + OPEN, SPENT + OPEN, 0)


async def test_a_second_start_changes_nothing_more(tmp_path: Path) -> None:
    await died(tmp_path)
    first = await used(tmp_path)
    assert await used(tmp_path) == first


async def test_a_crash_of_the_host_writes_off_what_was_not_synced(tmp_path: Path) -> None:
    await died(tmp_path)
    assert await used(tmp_path, boot=lambda: "another run") == (LEASE, SPENT + OPEN, LEASE - SPENT - OPEN)


async def test_a_host_without_a_boot_id_is_never_the_same(tmp_path: Path) -> None:
    await died(tmp_path, boot=lambda: "")
    assert (await used(tmp_path, boot=lambda: ""))[0] == LEASE


def _remove(path: Path) -> None:
    path.unlink()


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _garbage(path: Path) -> None:
    path.write_bytes(os.urandom(1000))


def _flip_first_record(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[HEAD_BYTES] ^= 1
    path.write_bytes(content)


def _cut_the_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _cut_in_last_record(path: Path) -> None:
    """As a process leaves it that is killed while it stores a record."""
    content = path.read_bytes()
    path.write_bytes(content.rstrip(b"\0")[:-3].ljust(len(content), b"\0"))


def _zeros_in_the_middle(path: Path) -> None:
    """As a host leaves it that crashes before it has written this page, and after it has written the next."""
    content = bytearray(path.read_bytes())
    content[HEAD_BYTES : HEAD_BYTES + RECORD_BYTES] = bytes(RECORD_BYTES)
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [_remove, _empty, _garbage, _flip_first_record, _cut_the_file, _zeros_in_the_middle])
async def test_a_journal_that_cannot_be_trusted_writes_the_leases_off(
    harm: Callable[[Path], None], tmp_path: Path
) -> None:
    await died(tmp_path)
    harm(journal_of(tmp_path))
    fast, slow, stranded = await used(tmp_path)
    assert (fast, slow) == (LEASE, LEASE)
    assert 0 < stranded <= 2 * LEASE


async def test_a_torn_end_writes_off_the_lease_that_it_names(tmp_path: Path) -> None:
    await died(tmp_path)
    _cut_in_last_record(journal_of(tmp_path))
    # The last record is that of `slow`; what is known of `fast` stands.
    assert (await used(tmp_path))[:2] == (SPENT + OPEN, LEASE)


async def test_zeros_that_a_crash_of_the_host_explains(tmp_path: Path) -> None:
    await died(tmp_path)
    _zeros_in_the_middle(journal_of(tmp_path))
    assert (await used(tmp_path, boot=lambda: "another run"))[:2] == (LEASE, SPENT + OPEN)


async def test_a_journal_of_an_earlier_run_does_not_resume_a_lease(tmp_path: Path) -> None:
    await died(tmp_path)
    old = journal_of(tmp_path)
    kept = tmp_path.parent / "kept.log"
    shutil.copy(old, kept)
    await used(tmp_path)
    await died(tmp_path)
    for path in tmp_path.glob("journal-*.log"):
        path.unlink()
    shutil.copy(kept, old)
    fast, slow, _ = await used(tmp_path)
    # 130 of the first run, and the whole lease of the second: half of what was left.
    assert fast == slow == 130 + (TOTAL - 130) // 2


async def test_a_store_that_was_put_back_is_refused(tmp_path: Path) -> None:
    await died(tmp_path)
    copy = tmp_path.parent / "copy.db"
    shutil.copy(tmp_path / "ledger.db", copy)
    await used(tmp_path)
    shutil.copy(copy, tmp_path / "ledger.db")
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"ledger.db{suffix}").unlink(missing_ok=True)
    with pytest.raises(StoreCorrupt, match="older than the journal"):
        await Ledger.open(tmp_path)


async def test_a_store_that_was_deleted_is_refused_while_its_journal_is_there(tmp_path: Path) -> None:
    await died(tmp_path)
    for path in tmp_path.glob("ledger.db*"):
        path.unlink()
    with pytest.raises(StoreCorrupt, match="older than the journal") as refused:
        await Ledger.open(tmp_path)
    assert f"the journal in {tmp_path} (" in str(refused.value)
    assert "another state directory (MESHD_HOME)" in str(refused.value)


@pytest.mark.uncompiled
async def test_a_newer_journal_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("meshd.ledger.journal.FORMAT", FORMAT + 1)
        await died(tmp_path)
    with pytest.raises(StoreNewer):
        await Ledger.open(tmp_path)
    # What was refused is left as it was, lock and all.
    with pytest.raises(StoreNewer):
        await Ledger.open(tmp_path)


async def test_a_start_that_fails_half_way_is_made_good_by_the_next(tmp_path: Path) -> None:
    class Failing(MemoryStore):
        writes_left = 10**9

        async def write(self, changes):  # type: ignore[no-untyped-def]
            self.writes_left -= 1
            if self.writes_left < 0:
                raise StoreError("failed")
            return await super().write(changes)

        async def close(self) -> None:
            pass

    store = Failing()
    await died(tmp_path, store=store)
    for writes in range(3):
        store.writes_left = writes
        try:
            await used(tmp_path, store=store)
        except StoreError:
            continue
    store.writes_left = 10**9
    assert (await used(tmp_path, store=store))[:2] == (SPENT + OPEN, SPENT + OPEN)


async def test_overshoot_in_the_journal_is_charged_at_a_restart(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path)
    one = await ledger.wait("fast", TOTAL, 100, 100, queue_s=5)
    assert isinstance(one, Reservation)
    one.settle(900)
    await _drop(ledger)
    assert (await used(tmp_path))[0] == 900


async def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(StoreError):
        await Ledger.open(path)


def test_the_boot_id_of_this_host_is_stable() -> None:
    assert boot_id() == boot_id()


FULL = """
import asyncio, resource, sys
from pathlib import Path
from meshd.engines.port import StoreError
from meshd.ledger import Ledger, Reservation

async def main():
    ledger = await Ledger.open(Path(sys.argv[1]), segment_bytes=4096)
    one = await ledger.wait("a", 10**9, 10, 10, queue_s=5)
    one.settle(10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, hard))
    spent = 10
    try:
        for number in range(10_000):
            one = ledger.reserve("a", 10**9, 10, 10)
            one.settle(10)
            spent += 10
    except StoreError as error:
        print(type(error).__name__)
        print(error.args[0].partition("log ")[2])
        print(ledger.state == str(error))
    else:
        print("nothing failed")
    try:
        ledger.reserve("a", 10**9, 10, 10)
    except StoreError:
        print("refused again")
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one = ledger.reserve("a", 10**9, 10, 10)
    one.settle(10)
    print(ledger.state, ledger.snapshot()[0].spent == spent + 10)
    import os
    print(spent + 10, flush=True)
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


async def test_a_full_disk_refuses_says_so_and_passes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    lines = done.stdout.splitlines()
    assert lines[:5] == ["StoreFull", "cannot grow: the disk is full", "True", "refused again", "ok True"], done.stderr
    ledger = await Ledger.open(tmp_path)
    short = await ledger.wait("a", 0, 1, 1, queue_s=0)
    assert isinstance(short, Shortfall)
    assert short.used == int(lines[5])
    await ledger.close()
