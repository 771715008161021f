"""The log: what is appended is read, by workflow, after a kill, a torn tail, a power cut and a full disk."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from meshd.engines.port import StoreError, StoreFull, StoreLocked
from meshd.refusal import Reason, Refused
from meshd.trace import kinds, log, segment
from meshd.trace.indexing import INDEX_SUFFIX
from meshd.trace.opening import DIRECTORY, NAME_FILE, SKIPPED
from meshd.trace.reading import segment_paths
from meshd.trace.retention import Retention
from meshd.trace.segment import HEAD_BYTES
from meshd.trace.texts import FILE_BYTES
from meshd.trace.verifying import verify
from tests.trace.logs import OTHER_BOOT, Wall, filled, frames_in, gathered, killed, opened, reader


def sequences(home: Path, workflow: str | None = "w") -> list[int]:
    return [event.sequence for event in reader(home).events(workflow)]


def test_what_is_written_is_read_by_workflow(tmp_path: Path) -> None:
    recorder = opened(tmp_path)
    for number in range(300):
        recorder.note(kinds.STATE, f"w{number % 3}", (f"k{number}", number, "put"), agent="ann", call=f"c{number}")
    found = list(reader(tmp_path).events("w1"))
    assert [event.facts["version"] for event in found] == list(range(1, 300, 3))
    assert found[0].facts == {"key": "k1", "version": 1, "act": "put"}
    assert (found[0].kind, found[0].payload.agent, found[0].payload.call) == ("state", "ann", "c1")
    assert found[0].id == f"{recorder.log.sidecar}-1-3"
    assert len(segment_paths(tmp_path / DIRECTORY)) > 5
    # Full segments are indexed once, the one that is written to is not.
    indexed = {path.stem for path in (tmp_path / DIRECTORY).glob(f"*{INDEX_SUFFIX}")}
    assert indexed == {path.stem for path in segment_paths(tmp_path / DIRECTORY)[:-1]}
    assert {w: part.events for w, part in reader(tmp_path).workflows().items()} == {
        "w0": 100,
        "w1": 100,
        "w2": 100,
        "": 1,
    }
    recorder.close()
    assert len(list(reader(tmp_path).events("w1"))) == 100


def test_an_index_that_is_damaged_or_of_another_file_is_made_anew(tmp_path: Path) -> None:
    filled(tmp_path, 100).close()
    expected = sequences(tmp_path)
    for path in (tmp_path / DIRECTORY).glob(f"*{INDEX_SUFFIX}"):
        path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    assert sequences(tmp_path) == expected
    assert len(expected) == 100


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    killed(filled(tmp_path, 100))
    assert sequences(tmp_path) == list(range(2, 102))
    again = opened(tmp_path)
    assert again.note(kinds.STATE, "w", ("k", 1, "put")) == 103
    assert again.prefix == f"{again.log.sidecar}-2-"
    again.close()
    found = verify(tmp_path / DIRECTORY)
    assert (found.problems, found.notes, found.records) == ([], [], 103)


def test_events_of_one_turn_are_one_record_and_read_each_on_its_own(tmp_path: Path) -> None:
    recorder = opened(tmp_path)
    first = gathered(recorder, 10)
    assert len(frames_in(segment_paths(tmp_path / DIRECTORY)[0])) == 2  # and the start's own
    assert first == list(range(2, 12))
    assert sequences(tmp_path) == [sequence for number, sequence in enumerate(first) if number % 3]
    assert sequences(tmp_path, "w-6") == [8]
    assert [event.sequence for event in reader(tmp_path).events("w", after=6)] == [7, 9, 10]
    found = reader(tmp_path).find("call-4")
    assert found is not None
    assert (found.sequence, found.payload.call, found.facts["status"]) == (6, "call-4", 200)
    # Over the end of many segments too: none is torn, and none is lost.
    for _ in range(30):
        gathered(recorder, 25)
    recorder.close()
    assert len(segment_paths(tmp_path / DIRECTORY)) > 10
    assert sequences(tmp_path, None) == list(range(1, 12 + 750))
    verified = verify(tmp_path / DIRECTORY)
    assert (verified.problems, verified.notes, verified.records) == ([], [], 761)
    again = opened(tmp_path)
    assert gathered(again, 1) == [763]
    again.close()


def test_what_was_not_stored_is_lost_with_the_process_and_nothing_else(tmp_path: Path) -> None:
    recorder = opened(tmp_path)
    gathered(recorder, 4)
    recorder.log.is_gathering = True
    recorder.log.append(b"\x9bnever stored")
    killed(recorder)
    assert sequences(tmp_path, None) == [1, 2, 3, 4, 5]
    verified = verify(tmp_path / DIRECTORY)
    assert (verified.problems, verified.notes, verified.records) == ([], [], 5)


def test_what_is_noted_beside_calls_is_stored_at_once_with_all_before_it(tmp_path: Path) -> None:
    recorder = opened(tmp_path)
    recorder.log.is_gathering = True
    assert recorder.log.append(b"\x9b" + bytes(9)) == 2
    assert frames_in(segment_paths(tmp_path / DIRECTORY)[0]) == [HEAD_BYTES]
    assert recorder.note(kinds.STATE, "w", ("k", 1, "put")) == 3
    assert len(frames_in(segment_paths(tmp_path / DIRECTORY)[0])) == 3
    assert sequences(tmp_path) == [3]
    recorder.close()


@pytest.mark.uncompiled
def test_a_log_of_the_format_before_is_read_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "FORMAT", 1)
    filled(tmp_path, 100).close()
    monkeypatch.undo()
    recorder = opened(tmp_path)
    gathered(recorder, 5)
    recorder.close()
    assert len(sequences(tmp_path)) == 100 + 3
    assert verify(tmp_path / DIRECTORY).problems == []


def test_what_is_appended_to_a_closed_log_is_counted_as_missing(tmp_path: Path) -> None:
    recorder = filled(tmp_path, 3)
    recorder.close()
    assert gathered(recorder, 2) == [0, 0]
    assert recorder.note(kinds.STATE, "w", ("k", 1, "put")) == 0
    assert recorder.missed == 3
    assert sequences(tmp_path) == [2, 3, 4]


def test_time_never_goes_back(tmp_path: Path) -> None:
    wall = Wall()
    recorder = opened(tmp_path, wall_clock=wall)
    for _ in range(5):
        wall.now_s -= 100.0
        recorder.note(kinds.STATE, "w", ("k", 1, "put"))
    recorder.close()
    opened(tmp_path, wall_clock=wall).close()
    times = [event.payload.hlc_us for event in reader(tmp_path).events(None)]
    assert times == sorted(set(times))


@pytest.mark.parametrize("cut", [1, 8, 40, 100])
def test_a_torn_tail_is_told_and_what_is_before_it_stays(
    tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = filled(tmp_path, 5)
    path, place = recorder.log.path, recorder.log._heads[64:256]
    recorder.note(kinds.STATE, "w", ("torn" * 30, 1, "put"))
    end = recorder.log._at
    # As a kill in the middle of a store leaves it: a piece of the record, and the place of the one before.
    recorder.log._heads[64:256] = place
    killed(recorder)
    start = frames_in(path)[-1]
    with path.open("r+b") as stream:
        stream.seek(start + cut)
        stream.write(bytes(end - start - cut))
    again = opened(tmp_path)
    assert again.log.sequence == 7
    assert "ended within a record" in caplog.text
    again.close()
    assert sequences(tmp_path) == [2, 3, 4, 5, 6]
    found = verify(tmp_path / DIRECTORY)
    assert found.problems == []
    assert len(found.notes) == 1


def test_a_power_cut_that_took_the_tail_is_told_and_no_sequence_is_used_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = filled(tmp_path, 10)
    path = recorder.log.path
    killed(recorder)
    lost = frames_in(path)[-3]
    with path.open("r+b") as stream:
        stream.seek(lost)
        stream.write(bytes(path.stat().st_size - lost))
    again = opened(tmp_path, boot=OTHER_BOOT)
    assert "lacks its last 3 events" in caplog.text
    assert again.note(kinds.STATE, "w", ("k", 1, "put")) == 11 + SKIPPED + 2
    again.close()
    found = verify(tmp_path / DIRECTORY)
    assert found.problems == []
    assert "3 records" in found.notes[0]
    assert "crash of the host" in found.notes[0]


def test_a_corrupt_page_is_named_and_the_rest_stays_readable(tmp_path: Path) -> None:
    recorder = filled(tmp_path, 200, segment_bytes=65_536)
    path = recorder.log.path
    recorder.close()
    with path.open("r+b") as stream:
        stream.seek(8192)
        stream.write(os.urandom(4096))
    found = verify(tmp_path / DIRECTORY)
    left = frames_in(path)
    assert found.problems[0].at < 8192 + 4096
    assert found.problems[0].at > 8192 - 200
    read = sequences(tmp_path)
    assert read[0] == 2
    assert read[-1] == 201
    # Some forty records of a hundred bytes stood in that page, and no other is lost.
    assert 140 < len(read) < 180
    assert len(left) == len(read) + 1


def test_a_head_that_is_damaged_is_named_and_other_segments_stay_readable(tmp_path: Path) -> None:
    filled(tmp_path, 200).close()
    paths = segment_paths(tmp_path / DIRECTORY)
    with paths[2].open("r+b") as stream:
        stream.write(b"nonsense")
    found = verify(tmp_path / DIRECTORY)
    assert found.problems[0].file == paths[2].name
    assert "head is damaged" in found.problems[0].what
    assert len(sequences(tmp_path)) > 150
    # And a start goes on behind it.
    with paths[-1].open("r+b") as stream:
        stream.write(b"nonsense")
    again = opened(tmp_path)
    assert again.note(kinds.STATE, "w", ("k", 1, "put")) > 200
    again.close()


@pytest.mark.uncompiled
def test_what_a_newer_meshd_wrote_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "FORMAT", segment.FORMAT + 1)
    filled(tmp_path, 3).close()
    monkeypatch.undo()
    with pytest.raises(StoreError, match="newer meshd"):
        opened(tmp_path)
    assert "newer meshd" in verify(tmp_path / DIRECTORY).problems[0].what


@pytest.mark.parametrize("data", [b"", b"x", bytes(5000), os.urandom(5000)])
def test_files_that_are_no_segments_harm_nothing(tmp_path: Path, data: bytes) -> None:
    filled(tmp_path, 3).close()
    (tmp_path / DIRECTORY / "log-00000009-00000009.seg").write_bytes(data)
    assert sequences(tmp_path) == [2, 3, 4]
    assert "cannot be read" in verify(tmp_path / DIRECTORY).problems[0].what
    again = opened(tmp_path)
    assert again.note(kinds.STATE, "w", ("k", 1, "put"))
    again.close()


@pytest.mark.parametrize("left", [None, b"", b"evil", b"\xff\xfe\x00"])
def test_a_sidecar_whose_name_is_lost_keeps_it(
    tmp_path: Path, left: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path, 3).close()
    name = tmp_path / DIRECTORY / NAME_FILE
    was = name.read_text()
    name.unlink()
    if left is not None:
        name.write_bytes(left)
    filled(tmp_path, 3).close()
    assert name.read_text() == was
    assert "was lost or damaged" in caplog.text
    assert verify(tmp_path / DIRECTORY).problems == []


def test_one_directory_has_one_writer(tmp_path: Path) -> None:
    recorder = opened(tmp_path)
    with pytest.raises(StoreLocked):
        opened(tmp_path)
    recorder.close()
    recorder.close()
    opened(tmp_path).close()


@pytest.mark.uncompiled
def test_on_a_full_disk_calls_go_on_and_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = opened(tmp_path)

    def full(*_: object) -> None:
        raise StoreFull("the disk is full")

    monkeypatch.setattr(log, "begin", full)
    written = sum(1 for _ in range(100) if recorder.note(kinds.STATE, "w", ("k", 1, "put")))
    assert 0 < written < 100
    assert recorder.missed == 100 - written
    assert caplog.text.count("cannot be written") == 1
    monkeypatch.undo()
    assert recorder.note(kinds.STATE, "w", ("k", 2, "put"))
    recorder.close()
    missed = [event for event in reader(tmp_path).events(None) if event.kind == "missed"]
    assert missed[0].facts == {"count": 100 - written, "why": "the disk is full"}
    assert verify(tmp_path / DIRECTORY).problems == []


def test_what_is_longer_than_an_event_may_be_is_not_written(tmp_path: Path) -> None:
    recorder = opened(tmp_path, segment_bytes=2**20)
    assert not recorder.note(kinds.STATE, "w", ("k" * 2**21, 1, "put"))
    assert not recorder.note(kinds.STATE, "w\ud800", ("k", 1, "put"))
    assert recorder.missed == 2
    assert recorder.note(kinds.STATE, "w", ("k", 1, "put"))
    recorder.close()


async def test_all_that_wait_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syncs: list[int] = []
    really = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (syncs.append(fd), time.sleep(0.005), really(fd)))
    recorder = opened(tmp_path)

    async def write(number: int) -> int:
        recorder.note(kinds.STATE, "w", (f"k{number}", number, "put"))
        await recorder.whole()
        return recorder.log.sequence

    await asyncio.gather(*(write(number) for number in range(200)))
    # One for those that came first, one for all others; the segments that were filled meanwhile are synced too.
    assert len(set(syncs)) > 1
    assert len(syncs) <= 2 + 2 * len(segment_paths(tmp_path / DIRECTORY))
    recorder.close()


async def test_who_waits_for_a_sync_that_fails_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = opened(tmp_path, is_durable=True)

    def broken(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    recorder.note(kinds.STATE, "w", ("k", 1, "put"))
    with pytest.raises(Refused) as raised:
        await recorder.whole()
    assert raised.value.reason is Reason.STORE_UNAVAILABLE
    monkeypatch.undo()
    await recorder.whole()
    recorder.close()


def test_retention_by_bytes_keeps_the_newest_and_says_what_went(tmp_path: Path) -> None:
    recorder = filled(tmp_path, 1000, keep_bytes=10 * 4096)
    recorder.tick()
    paths = segment_paths(tmp_path / DIRECTORY)
    assert 5 < len(paths) <= 11
    recorder.close()
    found = verify(tmp_path / DIRECTORY)
    assert found.problems == []
    retired = [event for event in reader(tmp_path).events(None) if event.kind == "retired"]
    assert retired[-1].facts["last_sequence"] == sequences(tmp_path, None)[0] - 1
    assert sequences(tmp_path)[-1] > 1000
    # One more that is missing is no work of retention.
    paths[0].unlink()
    assert "before" in verify(tmp_path / DIRECTORY).problems[0].what


def test_what_agents_say_counts_and_no_segment_holds_it_back(tmp_path: Path) -> None:
    most = 10 * 2**20
    recorder = opened(tmp_path, segment_bytes=2**20, keep_bytes=most)
    for number in range(40):
        assert recorder.entry(kinds.NOTE, "w", "ann", b"%07d " % number * 2**17, (f"n{number}", "", 0, 0, False))
        kept = sum(one.stat().st_size for one in (tmp_path / DIRECTORY).iterdir())
        # Beside the segment that is written to, whose texts are not let go.
        assert kept <= most + FILE_BYTES + 3 * 2**20
    recorder.close()
    assert verify(tmp_path / DIRECTORY).problems == []
    entries = [one for one in reader(tmp_path).events("w") if one.payload.kind == kinds.NOTE]
    assert 8 <= len(entries) < 40


def test_retention_by_age(tmp_path: Path) -> None:
    wall = Wall(time.time())
    recorder = filled(tmp_path, 200, keep_s=3600.0, wall_clock=wall)
    before = len(segment_paths(tmp_path / DIRECTORY))
    recorder.tick()
    assert len(segment_paths(tmp_path / DIRECTORY)) == before
    wall.now_s += 3700.0
    recorder.tick()
    # The one that is written to stays.
    assert len(segment_paths(tmp_path / DIRECTORY)) == 1
    recorder.close()
    assert verify(tmp_path / DIRECTORY).problems == []


def test_retention_whose_record_cannot_be_written_removes_nothing(tmp_path: Path) -> None:
    recorder = filled(tmp_path, 200)
    before = segment_paths(tmp_path / DIRECTORY)

    class Deaf:
        wall_clock = staticmethod(time.time)

        def note(self, *_: object) -> int:
            return 0

    assert Retention(tmp_path / DIRECTORY, keep_bytes=0).apply(Deaf()) == []
    assert segment_paths(tmp_path / DIRECTORY) == before
    recorder.close()
