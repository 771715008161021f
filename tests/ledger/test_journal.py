"""The holder's log: what is read back is what was written, or its loss is known."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshd.engines.port import StoreFull, StoreNewer
from meshd.ledger import journal as module
from meshd.ledger.journal import RECORD_BYTES, Journal, Replay, replay, segments_in

HEAD_BYTES = 80
SEGMENT_BYTES = HEAD_BYTES + 20 * RECORD_BYTES


def _journal(directory: Path, epoch: int = 3, **options: int) -> Journal:
    return Journal(directory, epoch, "boot", **{"segment_bytes": SEGMENT_BYTES, **options})


def _written(directory: Path, calls: int = 5) -> Path:
    """A journal in which slot 1 has spent 10 a call, and the last call, of bound 100, is open."""
    journal = _journal(directory)
    for number in range(1, calls):
        journal.note(1, (number - 1) * 10 + 100)
        journal.note(1, number * 10)
    journal.note(1, (calls - 1) * 10 + 100)
    journal.close()
    return journal.paths[-1]


WRITTEN_BYTES = HEAD_BYTES + 9 * RECORD_BYTES


def _read(directory: Path) -> Replay:
    return replay(segments_in(directory))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    _written(tmp_path)
    log = _read(tmp_path)
    assert (log.epoch, log.boot_id, log.segments, log.damage) == (3, "boot", [0], "")
    assert (log.owed, log.has_gap, log.torn) == ({1: 140}, False, set())


def test_no_journal_is_no_damage(tmp_path: Path) -> None:
    assert _read(tmp_path) == Replay()


def test_each_record_can_be_read_at_once(tmp_path: Path) -> None:
    """No close, no sync: what stands in the map is what another process reads."""
    journal = _journal(tmp_path)
    journal.note(1, 100)
    assert _read(tmp_path).owed == {1: 100}
    journal.note(1, 10)
    journal.note(2, 2**63)
    assert _read(tmp_path).owed == {1: 10, 2: 2**63}
    journal.close()


def test_a_segment_is_whole_before_it_is_used(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 1, "boot")
    status = journal.paths[0].stat()
    assert status.st_size == module.SEGMENT_BYTES
    assert status.st_blocks * 512 >= status.st_size, "its blocks must be reserved"
    assert [path.name for path in tmp_path.iterdir()] == [journal.paths[0].name]
    journal.close()


def test_a_full_segment_is_followed_by_one_that_says_the_same(tmp_path: Path) -> None:
    """A rotation carries open reservations on; until the old segments go, all of them count, in their order."""
    journal = _journal(tmp_path)
    owed: dict[int, int] = {}
    journal.carried = lambda: list(owed.items())
    for number in range(1, 101):
        owed[number % 3 + 1] = number
        journal.note(number % 3 + 1, number)
    assert journal.segment > 4
    assert _read(tmp_path).segments == list(range(journal.segment + 1))
    assert _read(tmp_path).owed == owed
    journal.forget(journal.segment)
    assert _read(tmp_path).owed == owed
    log = _read(tmp_path)
    assert (log.segments, log.damage, log.has_gap) == ([journal.segment], "", False)
    journal.close()


def test_more_than_a_segment_can_be_carried(tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    many = {slot: slot * 7 for slot in range(1, 1000)}
    journal.carried = lambda: list(many.items())
    journal.rotate()
    journal.note(5, 1)
    assert _read(tmp_path).owed == {**many, 5: 1}
    journal.close()


def test_a_sealed_segment_has_no_gap(tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    journal.note(1, 100)
    journal.seal()
    journal.note(2, 50)
    log = _read(tmp_path)
    assert (log.segments, log.owed, log.has_gap, log.damage) == ([0, 1], {1: 100, 2: 50}, False, "")
    journal.close()


def test_older_epochs_do_not_count(tmp_path: Path) -> None:
    old = _journal(tmp_path, 1)
    old.note(1, 999)
    old.note(2, 999)
    old.close()
    _written(tmp_path)
    assert _read(tmp_path).owed == {1: 140}


@pytest.mark.uncompiled
def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT", module.FORMAT + 1)
        _written(tmp_path)
    with pytest.raises(StoreNewer, match="written by a newer meshd"):
        _read(tmp_path)


@pytest.mark.uncompiled
def test_an_older_format_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT", 1)
        _written(tmp_path)
    assert _read(tmp_path).damage


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 4096, b"meshd-jl", os.urandom(500)])
def test_nonsense_is_damage(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "journal-0000000003-00000000.log").write_bytes(content)
    assert _read(tmp_path).damage


def test_a_missing_segment_is_damage(tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    journal.rotate()
    journal.rotate()
    journal.paths[1].unlink()
    assert "missing" in _read(tmp_path).damage
    journal.close()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_known(at: float, bit: int, tmp_path: Path) -> None:
    path = _written(tmp_path)
    content = bytearray(path.read_bytes())
    place = int(at * len(content))
    content[place] ^= 1 << bit
    path.write_bytes(content)
    try:
        log = _read(tmp_path)
    except StoreNewer:
        assert place < HEAD_BYTES, "a flipped format number looks newer"
        return
    assert log.damage or log.torn, f"a flip in byte {place} went by"


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(0, SEGMENT_BYTES - 1))
def test_a_cut_file_is_known(size: int, tmp_path: Path) -> None:
    path = _written(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    assert _read(tmp_path).damage


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(HEAD_BYTES, WRITTEN_BYTES))
def test_a_log_cut_short_is_known_unless_it_ends_with_a_record(size: int, tmp_path: Path) -> None:
    """What a process leaves that is killed while it stores a record, at any byte."""
    path = _written(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:size].ljust(len(content), b"\0"))
    log = _read(tmp_path)
    if (size - HEAD_BYTES) % RECORD_BYTES == 0:
        assert not log.damage
        assert not log.torn
    else:
        assert log.damage or log.torn == {1}


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.binary(min_size=1, max_size=200))
def test_garbage_at_the_end_is_known(tail: bytes, tmp_path: Path) -> None:
    path = _written(tmp_path)
    with path.open("ab") as file:
        file.write(tail)
    log = _read(tmp_path)
    assert log.damage
    assert log.owed == {1: 140}, "what stands before it is read all the same"


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.binary(min_size=1, max_size=170), gap=st.integers(0, 10))
def test_garbage_after_the_records_is_known(tail: bytes, gap: int, tmp_path: Path) -> None:
    path = _written(tmp_path)
    content = bytearray(path.read_bytes())
    at = WRITTEN_BYTES + gap
    tail = tail[: len(content) - at]
    content[at : at + len(tail)] = tail
    path.write_bytes(content)
    log = _read(tmp_path)
    assert log.damage or log.torn or not any(tail)
    assert log.owed == {1: 140}, "what stands before it is read all the same"


def test_a_gap_is_known_and_what_follows_is_read(tmp_path: Path) -> None:
    path = _written(tmp_path)
    content = bytearray(path.read_bytes())
    content[HEAD_BYTES : HEAD_BYTES + 5 * RECORD_BYTES] = bytes(5 * RECORD_BYTES)
    path.write_bytes(content)
    log = _read(tmp_path)
    assert (log.has_gap, log.damage, log.torn, log.owed) == (True, "", set(), {1: 140})


def test_an_earlier_segment_that_is_not_full_has_a_gap(tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    journal.note(1, 100)
    journal.rotate()
    journal.note(1, 50)
    journal.close()
    assert _read(tmp_path).has_gap


def test_a_record_in_another_place_does_not_count(tmp_path: Path) -> None:
    """An old record put at the end would say that what was spent since was not."""
    path = _written(tmp_path)
    content = bytearray(path.read_bytes())
    content[WRITTEN_BYTES : WRITTEN_BYTES + RECORD_BYTES] = content[HEAD_BYTES : HEAD_BYTES + RECORD_BYTES]
    path.write_bytes(content)
    log = _read(tmp_path)
    assert log.damage
    assert log.owed == {1: 140}


def test_records_of_another_file_do_not_count(tmp_path: Path) -> None:
    path = _written(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    stranger = _journal(other, 4)
    for number in range(20):
        stranger.note(1, 10**6 + number)
    stranger.close()
    content = path.read_bytes()[:WRITTEN_BYTES] + stranger.paths[0].read_bytes()[WRITTEN_BYTES:]
    path.write_bytes(content)
    log = _read(tmp_path)
    assert log.damage
    assert log.owed == {1: 140}


def test_a_full_disk_refuses_and_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment that cannot be made leaves the one before readable and no half of itself; later it goes on."""
    journal = _journal(tmp_path)
    journal.carried = lambda: [(1, last)]
    last = refused = 0

    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for number in range(1, 401):
        with monkeypatch.context() as patch:
            if number % 100 > 50:
                patch.setattr(os, "posix_fallocate", full)
            try:
                journal.note(1, number)
            except StoreFull:
                refused += 1
            else:
                last = number
        assert _read(tmp_path).owed == {1: last}
        assert not list(tmp_path.glob("*.new"))
    journal.close()
    log = _read(tmp_path)
    assert (log.damage, log.torn, log.has_gap) == ("", set(), False)
    assert 100 < refused < 300


@pytest.mark.parametrize("error", [AttributeError(), OSError(errno.EOPNOTSUPP, "Operation not supported")])
def test_where_blocks_cannot_be_reserved_they_are_written(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(fd: int, offset: int, size: int) -> None:
        raise error

    monkeypatch.setattr(os, "posix_fallocate", missing)
    journal = Journal(tmp_path, 1, "boot")
    journal.note(1, 5)
    status = journal.paths[0].stat()
    assert status.st_blocks * 512 >= status.st_size == module.SEGMENT_BYTES
    assert _read(tmp_path).owed == {1: 5}
    journal.close()


FULL = """
import os, sys
from pathlib import Path
from meshd.engines.port import StoreFull
from meshd.ledger.journal import Journal

journal = Journal(Path(sys.argv[1]), 1, "boot", segment_bytes=65536)
last = 0
try:
    for number in range(1, 10**6):
        journal.note(1, number)
        last = number
except StoreFull:
    print("full", last, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """On a file system of 1 MB: the process is refused, not killed by a store that has no block."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        done = subprocess.run(
            [sys.executable, "-c", FULL, str(place)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        words = done.stdout.split()
        assert words[:1] == ["full"], done.stderr
        log = _read(place)
        assert (log.owed, log.damage, log.has_gap) == ({1: int(words[1])}, "", False)
    finally:
        subprocess.run(["umount", str(place)], check=True)


KILLED = """
import os, sys
from pathlib import Path
from meshd.ledger.journal import Journal

journal = Journal(Path(sys.argv[1]), 1, "boot", segment_bytes=4096)
for number in range(1, 10**9):
    journal.note(1, number)
    if number % 100 == 0:
        os.write(1, b"%d\\n" % number)
"""


def test_a_killed_process_loses_no_record(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) == 20_000:
                child.kill()
            said = int(line)
    log = _read(tmp_path)
    assert not log.damage
    assert not log.has_gap
    assert log.torn or log.owed[1] >= said
