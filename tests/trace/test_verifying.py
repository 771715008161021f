"""Whoever changes, leaves out, puts in, moves or cuts off a record is found, and the first bad record is named."""

from __future__ import annotations

import random
import shutil
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pytest

from meshd.trace import kinds
from meshd.trace.log import HEAD_FILE, _place, said_head
from meshd.trace.opening import DIRECTORY
from meshd.trace.reading import Segment, open_segment, segment_paths
from meshd.trace.segment import CHECKED_AT, FRAME_BYTES, HEAD_BYTES
from meshd.trace.verifying import verify
from tests.trace.logs import filled, gathered, reader

TRIALS = 1000


class Placed(NamedTuple):
    """One record in its file."""

    path: Path
    at: int
    end: int
    """Of its frame, with what fills it up."""
    sequence: int


def placed(directory: Path) -> list[Placed]:
    found = []
    for path in segment_paths(directory):
        segment = open_segment(path)
        assert isinstance(segment, Segment)
        for frame in segment.frames():
            end = (frame.at + FRAME_BYTES + len(frame.payload) + 7) & ~7
            found.append(Placed(path, frame.at, end, frame.sequence))
        segment.close()
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of two runs and several segments."""
    home = tmp_path_factory.mktemp("whole")
    for count in (120, 60):
        recorder = filled(home, count)
        for number in (2, 9, 1, 3):
            gathered(recorder, number)
        for number in range(3):
            recorder.note(kinds.STATE, "w", ("between", number, "put"))
        gathered(recorder, 4)
        recorder.close()
    found = verify(home / DIRECTORY)
    assert found.problems == []
    assert found.records == 226
    return home


def refit(data: bytearray, at: int, length: int) -> None:
    """Give a frame the checksum that fits it: the hand that does this knows the format."""
    data[at + 4 : at + 8] = sha256(bytes(data[at + CHECKED_AT : at + length])).digest()[:4]


def fit_head(home: Path) -> None:
    """Have the file `head` say that the log goes as far as it does: the hand that does this knows the format."""
    last = placed(home)[-1]
    data = bytearray(last.path.read_bytes())
    digest = sha256(bytes(data[last.at + CHECKED_AT : last.at + length_of(data, last.at)])).digest()
    said = said_head(home)
    assert said is not None
    head = bytearray((home / HEAD_FILE).read_bytes())
    for at in (64, 192):
        head[at : at + 52] = _place(said[0], last.sequence, digest)
    (home / HEAD_FILE).write_bytes(head)


def length_of(data: bytearray, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def flip(rng: random.Random, data: bytearray, one: Placed, _: list[Placed]) -> int:
    """In the record, or in the few bytes from there to the next one."""
    data[rng.randrange(one.at, one.end)] ^= 1 << rng.randrange(8)
    return one.sequence


def rewrite(rng: random.Random, data: bytearray, one: Placed, _: list[Placed]) -> int:
    """As a flip, by a hand that knows the format."""
    length = length_of(data, one.at)
    at = rng.randrange(one.at + FRAME_BYTES, one.at + length)
    data[at] ^= 1 << rng.randrange(8)
    refit(data, one.at, length)
    return one.sequence


def delete(_rng: random.Random, data: bytearray, one: Placed, _: list[Placed]) -> int:
    gone = data[one.at : one.end]
    del data[one.at : one.end]
    data += bytes(len(gone))
    return one.sequence


def insert(rng: random.Random, data: bytearray, one: Placed, _: list[Placed]) -> int:
    """Put one in before a record: a forged one that claims its sequence, and fits what is before it."""
    length = length_of(data, one.at)
    forged = bytearray(data[one.at : one.end])
    forged[FRAME_BYTES + rng.randrange(length - FRAME_BYTES)] ^= 1 << rng.randrange(8)
    data[one.at : one.at] = forged
    refit(data, one.at, length)
    return one.sequence


def reorder(_rng: random.Random, data: bytearray, one: Placed, all_: list[Placed]) -> int:
    after = next(other for other in all_ if other.path == one.path and other.at == one.end)
    data[one.at : after.end] = data[after.at : after.end] + data[one.at : one.end]
    return one.sequence


def truncate(rng: random.Random, data: bytearray, one: Placed, _: list[Placed]) -> int:
    """Cut the file within a record, or write zeros over all from there."""
    at = rng.randrange(one.at, one.at + length_of(data, one.at))
    if rng.random() < 0.5:
        del data[at:]
    else:
        data[at:] = bytes(len(data) - at)
    return one.sequence


@pytest.mark.parametrize("tamper", [flip, rewrite, delete, insert, reorder, truncate])
def test_tampering_is_found_and_named_in_every_trial(whole: Path, tmp_path: Path, tamper: object) -> None:
    rng = random.Random(f"trials of {tamper.__name__}")  # type: ignore[attr-defined]
    all_ = placed(whole / DIRECTORY)
    home = tmp_path / "tampered"
    shutil.copytree(whole / DIRECTORY, home)
    for trial in range(TRIALS):
        one = rng.choice(all_)
        if tamper is reorder and not any(other.path == one.path and other.at == one.end for other in all_):
            continue
        path = home / one.path.name
        kept = path.read_bytes()
        data = bytearray(kept)
        named = tamper(rng, data, one, all_)  # type: ignore[operator]
        path.write_bytes(data)
        found = verify(home)
        path.write_bytes(kept)
        assert found.problems, f"trial {trial}: {tamper} of {one} was not found"
        assert found.problems[0].record.rsplit("-", 1)[1] == str(named), f"trial {trial}: {one}: {found.problems[0]}"
        assert not found.is_sound
    assert verify(home).problems == []


def test_a_whole_chain_that_is_made_anew_is_shown_by_its_head_and_by_peers(whole: Path, tmp_path: Path) -> None:
    """Who rewrites all that follows leaves a chain that fits; the head, and what peers were told, do not."""
    home = tmp_path / "forged"
    shutil.copytree(whole / DIRECTORY, home)
    last = placed(home)[-1]
    path = last.path
    data = bytearray(path.read_bytes())
    frames = [one for one in placed(home) if one.path == path]
    held = {
        one.sequence: sha256(bytes(data[one.at + CHECKED_AT : one.at + length_of(data, one.at)])).digest()
        for one in frames
    }
    before = bytes(data[frames[3].at + 16 : frames[3].at + 48])
    for one in frames[3:]:
        length = length_of(data, one.at)
        if one is frames[3]:
            data[one.at + FRAME_BYTES + 20] ^= 1
        data[one.at + 16 : one.at + 48] = before
        refit(data, one.at, length)
        before = sha256(bytes(data[one.at + CHECKED_AT : one.at + length])).digest()
    path.write_bytes(data)
    found = verify(home)
    assert [problem.record.rsplit("-", 1)[1] for problem in found.problems] == [str(last.sequence)]
    fit_head(home)
    assert verify(home).problems == []
    heads = {found.sidecar: {one.sequence: held[one.sequence] for one in frames[2:6]}}
    found = verify(home, heads)
    assert found.heads_held == 1
    assert found.problems[0].record.endswith(f"-{frames[3].sequence}")
    assert "a peer holds another hash" in found.problems[0].what


def test_a_tail_that_is_gone_with_its_head_is_shown_by_peers(whole: Path, tmp_path: Path) -> None:
    home = tmp_path / "dropped"
    shutil.copytree(whole / DIRECTORY, home)
    all_ = placed(home)
    last = all_[-1]
    dropped = [one for one in all_ if one.path == last.path][-4]
    data = bytearray(last.path.read_bytes())
    last.path.write_bytes(data[: dropped.at])
    fit_head(home)
    assert verify(home).problems == []
    found = verify(home, {verify(home).sidecar: {last.sequence: b"x" * 32}})
    assert found.problems[0].record.endswith(f"-{dropped.sequence}")
    assert "a peer was told" in found.problems[0].what


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_segment_that_is_gone_is_named(whole: Path, tmp_path: Path, which: int) -> None:
    home = tmp_path / "gone"
    shutil.copytree(whole / DIRECTORY, home)
    paths = segment_paths(home)
    first = next(one.sequence for one in placed(home) if one.path == paths[which])
    paths[which].unlink()
    problem = verify(home).problems[0]
    if which:
        assert problem.record.endswith(f"-{first}")
    else:
        assert "before 2 are missing" in problem.what


def test_nothing_is_found_where_there_is_nothing(tmp_path: Path) -> None:
    found = verify(tmp_path / "none")
    assert (found.records, found.problems, found.notes) == (0, [], [])


@pytest.mark.parametrize(
    "payload", [b"\xdc\0\0", b"\xdc\0\0\0", b"\xdc\0\1" + b"\x91" * 60_000, b"\xdc\xff\xff\x90", b""]
)
def test_a_record_that_holds_no_event_is_read_over(tmp_path: Path, payload: bytes) -> None:
    """Whoever can write into the log can make a record of anything, with all that fits."""
    recorder = filled(tmp_path, 3, segment_bytes=2**18)
    assert recorder.log.append(payload) == 5
    recorder.note(kinds.STATE, "w", ("behind", 1, "put"))
    recorder.close()
    assert [event.sequence for event in reader(tmp_path).events(None)][:4] == [1, 2, 3, 4]
    verify(tmp_path / DIRECTORY)
    # As the first record of a later run too, which says how the log was found.
    at = placed(tmp_path / DIRECTORY)[4].at
    fake = segment_paths(tmp_path / DIRECTORY)[0].read_bytes()[at : at + FRAME_BYTES + len(payload)]
    filled(tmp_path, 1).close()
    path = segment_paths(tmp_path / DIRECTORY)[1]
    path.write_bytes(path.read_bytes()[:HEAD_BYTES] + fake)
    assert verify(tmp_path / DIRECTORY).problems


def test_what_stands_behind_a_record_of_several_events_is_named_by_its_first(tmp_path: Path) -> None:
    recorder = filled(tmp_path, 2)
    first, *_ = gathered(recorder, 5)
    recorder.close()
    path = segment_paths(tmp_path / DIRECTORY)[0]
    path.write_bytes(path.read_bytes() + b"more")
    (problem,) = verify(tmp_path / DIRECTORY).problems
    assert problem.record.rsplit("-", 1)[1] == str(first)
