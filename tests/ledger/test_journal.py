"""The holder's log: what is read back is what was written, or its loss is known."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshd.engines.port import StoreError, StoreFull, StoreNewer
from meshd.ledger import journal as module
from meshd.ledger.journal import RECORD_BYTES, Journal, Replay, replay, segments_in

HEAD_BYTES = 72


def _written(directory: Path, calls: int = 5) -> Path:
    """A journal in which slot 1 has spent 10 a call, and the last call, of bound 100, is open."""
    journal = Journal(directory, epoch=3, boot_id="boot")
    for serial in range(1, calls):
        journal.reserve(1, serial, 100)
        journal.settle(1, serial, serial * 10)
    journal.reserve(1, calls, 100)
    journal.close()
    return journal.paths[-1]


def _read(directory: Path) -> Replay:
    return replay(segments_in(directory))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    _written(tmp_path)
    log = _read(tmp_path)
    assert (log.epoch, log.boot_id, log.segments, log.damage) == (3, "boot", [0], "")
    assert (log.spent, log.open) == ({1: 40}, {5: (1, 100)})
    assert log.spent_with_open == {1: 140}


def test_no_journal_is_no_damage(tmp_path: Path) -> None:
    assert _read(tmp_path) == Replay()


def test_settle_records_wait_for_the_next_write(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 1, "boot")
    journal.reserve(1, 1, 100)
    journal.settle(1, 1, 10)
    assert _read(tmp_path).spent_with_open == {1: 100}
    journal.flush()
    assert _read(tmp_path).spent_with_open == {1: 10}
    journal.close()


def test_reading_twice_changes_nothing(tmp_path: Path) -> None:
    """A rotation carries open reservations on; until the old segment goes, both say the same."""
    journal = Journal(tmp_path, 1, "boot")
    journal.reserve(1, 1, 100)
    journal.reserve(2, 2, 50)
    os.close(journal.rotate([(1, 1, 100), (2, 2, 50)]))
    journal.settle(1, 1, 30)
    journal.reserve(2, 3, 5)
    both = _read(tmp_path).spent_with_open
    journal.forget()
    assert both == _read(tmp_path).spent_with_open == {1: 30, 2: 55}
    journal.close()


def test_a_shrunk_reservation_counts_what_is_left_of_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 1, "boot")
    journal.reserve(1, 1, 100)
    journal.shrink(1, 1, 40)
    journal.settle(2, 9, 0)
    journal.flush()
    assert _read(tmp_path).spent_with_open[1] == 40
    journal.close()


def test_older_epochs_do_not_count(tmp_path: Path) -> None:
    old = Journal(tmp_path, 1, "boot")
    old.reserve(1, 1, 999)
    old.close()
    _written(tmp_path)
    assert _read(tmp_path).spent_with_open == {1: 140}


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT", 2)
        _written(tmp_path)
    with pytest.raises(StoreNewer, match="written by a newer meshd"):
        _read(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 4096, b"meshd-jl", os.urandom(500)])
def test_nonsense_is_damage(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "journal-0000000003-00000000.log").write_bytes(content)
    assert _read(tmp_path).damage


def test_a_missing_segment_is_damage(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 1, "boot")
    os.close(journal.rotate([]))
    os.close(journal.rotate([]))
    journal.paths[1].unlink()
    assert "missing" in _read(tmp_path).damage
    journal.close()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(0, 72 + 9 * 32))
def test_a_cut_file_is_known_unless_it_ends_with_a_record(size: int, tmp_path: Path) -> None:
    path = _written(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    log = _read(tmp_path)
    if size >= HEAD_BYTES and (size - HEAD_BYTES) % RECORD_BYTES == 0:
        assert not log.damage
        assert not log.torn
    else:
        assert log.damage or log.torn == {1}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tail=st.binary(min_size=1, max_size=200))
def test_garbage_at_the_end_is_known(tail: bytes, tmp_path: Path) -> None:
    path = _written(tmp_path)
    with path.open("ab") as file:
        file.write(tail)
    log = _read(tmp_path)
    assert log.damage or log.torn or log.is_tail_blank
    assert log.spent_with_open == {1: 140}, "what stands before it is read all the same"


def test_records_of_another_file_do_not_count(tmp_path: Path) -> None:
    path = _written(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    stranger = Journal(other, epoch=4, boot_id="boot")
    stranger.reserve(1, 99, 10**6)
    stranger.close()
    with path.open("ab") as file:
        file.write(stranger.paths[0].read_bytes()[HEAD_BYTES:])
    log = _read(tmp_path)
    assert log.damage
    assert log.spent_with_open == {1: 140}


def test_a_full_disk_refuses_and_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes that fail whole, or in part, leave the file readable; later ones go on."""
    chance = random.Random(1)
    journal = Journal(tmp_path, 1, "boot")
    write = os.write
    expected: dict[int, int] = {}

    def failing(fd: int, data: bytes) -> int:
        roll = chance.random()
        if roll < 0.3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, bytes(data)[: chance.randrange(len(data))] if roll < 0.6 else data)

    refused = 0
    for serial in range(1, 400):
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", failing)
            try:
                journal.reserve(serial % 3, serial, 7)
            except StoreFull:
                refused += 1
            else:
                expected[serial] = serial % 3
    journal.flush()
    journal.close()
    log = _read(tmp_path)
    assert not log.damage
    assert not log.torn
    assert {serial: slot for serial, (slot, _) in log.open.items()} == expected
    assert 100 < refused < 300


def test_where_the_file_cannot_be_mended_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, 1, "boot")
    write = os.write

    def broken(fd: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, bytes(data)[:5]))
        patch.setattr(os, "ftruncate", broken)
        with pytest.raises(StoreError):
            journal.reserve(1, 1, 7)
        with pytest.raises(StoreError):
            journal.reserve(1, 2, 7)
    journal.reserve(1, 3, 7)
    journal.close()
    log = _read(tmp_path)
    assert (log.damage, log.torn, log.open) == ("", set(), {3: (1, 7)})
