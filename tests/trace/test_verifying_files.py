"""What stands beside the records, and behind them: whoever changes that is found, and named."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from meshd.trace import kinds
from meshd.trace.indexing import INDEX_SUFFIX, Index
from meshd.trace.log import HEAD_FILE, said_head
from meshd.trace.opening import DIRECTORY
from meshd.trace.reading import segment_paths
from meshd.trace.segment import HEAD_BYTES
from meshd.trace.texts import SUFFIX, erase, texts_in
from meshd.trace.verified import Verified
from meshd.trace.verifying import verify
from tests.trace.logs import OTHER_BOOT, filled, killed, opened, reader

WORDS = b"sold at 40, as ann had asked"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of two runs and several segments, in the first of which an agent says something."""
    home = tmp_path_factory.mktemp("whole")
    recorder = opened(home)
    assert recorder.entry(kinds.STEP, "w", "ann", WORDS, ("s", "", 1, 2, False))
    recorder.close()
    filled(home, 120).close()
    filled(home, 60).close()
    list(reader(home).events("w"))  # makes the indexes
    assert verify(home / DIRECTORY).problems == []
    return home


@pytest.fixture
def home(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole / DIRECTORY, tmp_path / DIRECTORY)
    return tmp_path


def found(home: Path) -> Verified:
    return verify(home / DIRECTORY)


@pytest.mark.parametrize("garbage", [b"x", b"garbage!" * 20, bytes(7) + b"x"])
@pytest.mark.parametrize("which", range(-6, 0))
def test_what_is_written_behind_the_last_record_of_a_closed_segment(home: Path, which: int, garbage: bytes) -> None:
    path = segment_paths(home / DIRECTORY)[which]
    with path.open("ab") as stream:
        stream.write(garbage)
    (problem,) = found(home).problems
    assert (problem.file, "written behind it" in problem.what) == (path.name, True)


def test_more_than_a_record_can_have_is_none_that_was_cut_short(tmp_path: Path) -> None:
    recorder = filled(tmp_path, 3, segment_bytes=2**20)
    recorder.log._map[-1:] = b"x"
    killed(recorder)
    (problem,) = found(tmp_path).problems
    assert "written behind it" in problem.what


def test_a_head_that_is_gone_or_damaged_is_no_whole_log(home: Path) -> None:
    path = home / DIRECTORY / HEAD_FILE
    size = path.stat().st_size
    for data in (bytes(size), b"junk" * (size // 4), b""):
        path.write_bytes(data)
        assert [problem.file for problem in found(home).problems] == [HEAD_FILE]
    path.unlink()
    assert [problem.file for problem in found(home).problems] == [HEAD_FILE]


def test_a_bit_of_the_head_that_is_flipped_moves_nothing(home: Path) -> None:
    """Of two places one is whole still; were the other believed, the log would lack what never was."""
    path = home / DIRECTORY / HEAD_FILE
    whole, said = path.read_bytes(), said_head(home / DIRECTORY)
    assert said is not None
    newest = next(at for at in (64, 192) if whole[at + 8 : at + 16] == said[1].to_bytes(8, "little"))
    for at in range(newest, newest + 52):
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            path.write_bytes(data)
            assert said_head(home / DIRECTORY)[1] == said[1] - 1  # type: ignore[index]
            assert found(home).problems == []


def test_a_head_of_an_earlier_meshd_is_read(home: Path) -> None:
    path = home / DIRECTORY / HEAD_FILE
    data, said = bytearray(path.read_bytes()), said_head(home / DIRECTORY)
    assert said is not None
    for at in (64, 192):
        data[at : at + 52] = struct.pack("<QQ32sI", *said, zlib.crc32(said[2], said[0] + said[1]))
    path.write_bytes(data)
    assert (said_head(home / DIRECTORY), found(home).problems) == (said, [])


def test_a_file_of_another_name_is_named(home: Path) -> None:
    path = segment_paths(home / DIRECTORY)[-1]
    path.rename(path.with_name("log-00000003-00000099.seg"))
    assert "swapped or renamed" in found(home).problems[0].what


def test_files_that_were_swapped_are_named(home: Path) -> None:
    one, other = segment_paths(home / DIRECTORY)[1:3]
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)
    problems = found(home).problems
    assert {problem.file for problem in problems if "swapped or renamed" in problem.what} == {one.name, other.name}


def _words(home: Path) -> Path:
    (path,) = (home / DIRECTORY).glob(f"*{SUFFIX}")
    return path


def other_words(data: bytes) -> bytes:
    """By a hand that knows the format: the checksum fits, and the digest stays."""
    words = WORDS.replace(b"40", b"90")
    return data[:4] + zlib.crc32(words).to_bytes(4, "little") + data[8:40] + words


def other_words_and_digest(data: bytes) -> bytes:
    from hashlib import sha256

    words = WORDS.replace(b"40", b"90")
    return data[:4] + zlib.crc32(words).to_bytes(4, "little") + sha256(words).digest() + words


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (other_words, "was changed"),
        (other_words_and_digest, "was changed"),
        (lambda data: data.replace(b"40", b"90"), "was changed"),
        (lambda data: data[:-1], "is missing"),
        (lambda data: b"", "is missing"),
    ],
)
def test_words_of_an_agent_that_were_changed(home: Path, change: Callable[[bytes], bytes], word: str) -> None:
    path = _words(home)
    path.write_bytes(change(path.read_bytes()))
    (problem,) = found(home).problems
    (event,) = [event for event in reader(home).events("w") if event.kind == "step"]
    assert (problem.record, word in problem.what) == (event.id, True)
    assert reader(home).text(event) == b""  # shown as what it is not, never


def test_words_that_are_gone_with_their_file(home: Path) -> None:
    _words(home).unlink()
    assert "is missing" in found(home).problems[0].what


def test_words_that_were_erased_leave_a_whole_log(home: Path) -> None:
    (text,) = texts_in(_words(home))
    assert erase(home / DIRECTORY, text.digest) == 1
    assert erase(home / DIRECTORY, text.digest) == 0
    assert found(home).problems == []


def test_words_that_are_damaged_are_erased_all_the_same(home: Path) -> None:
    path = _words(home)
    (text,) = texts_in(path)
    path.write_bytes(path.read_bytes().replace(b"40", b"90"))
    assert erase(home / DIRECTORY, text.digest) == 1
    assert b"ann" not in path.read_bytes()


def test_an_index_that_leaves_out_events_is_named(home: Path) -> None:
    path = sorted((home / DIRECTORY).glob(f"*{INDEX_SUFFIX}"))[1]
    kept = msgspec.msgpack.decode(path.read_bytes()[4:], type=Index)
    kept.parts["w"].places = kept.parts["w"].places[4:]
    data = msgspec.msgpack.encode(kept)
    path.write_bytes(zlib.crc32(data).to_bytes(4, "little") + data)
    (problem,) = found(home).problems
    assert problem.file == path.name
    path.unlink()
    assert found(home).problems == []


UNLISTED = """
import os, sys
from pathlib import Path
from meshd.trace.reading import Reader
from meshd.trace.texts import erase
from meshd.trace.verifying import verify
import encodings.idna, locale
directory = Path(sys.argv[1])
if os.getuid() == 0:
    os.setuid(65534)
for ask in (verify, lambda one: Reader(one).workflows(), lambda one: erase(one, bytes(32))):
    try:
        print(ask(directory))
    except OSError as error:
        print(type(error).__name__)
"""


def test_a_directory_that_may_not_be_listed_is_not_empty() -> None:
    # Not `tmp_path`: what root makes there nobody else may enter, and root may read everything.
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        filled(home, 5).close()
        home.chmod(0o755)
        (home / DIRECTORY).chmod(0o311)
        path = os.pathsep.join(sys.path)
        command = [sys.executable, "-c", UNLISTED, str(home / DIRECTORY)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
        )
        (home / DIRECTORY).chmod(0o755)
    assert done.stdout.splitlines() == ["PermissionError"] * 3, done


def test_a_log_without_segments_is_gone(home: Path) -> None:
    for path in [*segment_paths(home / DIRECTORY), home / DIRECTORY / HEAD_FILE]:
        path.unlink()
    (problem,) = found(home).problems
    assert "it has no segment" in problem.what
    assert reader(home).workflows() == {}
    assert list(reader(home).events(None)) == []


def test_a_whole_log_that_is_gone_is_named_after_the_next_start_too(home: Path) -> None:
    last = said_head(home / DIRECTORY)
    assert last is not None
    for path in segment_paths(home / DIRECTORY):
        path.unlink()
    filled(home, 3).close()
    (problem,) = found(home).problems
    assert problem.record.endswith(f"-{last[0]}-1")
    assert f"it and all up to {last[1]} are missing: the file head said at the next start" in problem.what


@pytest.mark.parametrize("kept", [None, b"", b"x" * 4096])
def test_a_head_that_was_gone_at_a_start_is_named_afterwards(home: Path, kept: bytes | None) -> None:
    path = home / DIRECTORY / HEAD_FILE
    path.unlink()
    if kept is not None:
        path.write_bytes(kept)
    filled(home, 3).close()
    filled(home, 3).close()
    (problem,) = found(home).problems
    assert (problem.file, problem.record) == (HEAD_FILE, "")
    assert "it was missing or damaged as epoch 4 began" in problem.what


def test_a_head_that_a_crash_of_the_host_took_is_a_note(home: Path) -> None:
    (home / DIRECTORY / HEAD_FILE).unlink()
    opened(home, boot=OTHER_BOOT).close()
    after = found(home)
    assert after.problems == []
    (note,) = after.notes
    assert note.startswith("head: it was missing or damaged as epoch 4 began")


def test_a_start_that_was_killed_before_its_first_record_takes_no_head(tmp_path: Path) -> None:
    filled(tmp_path, 0).close()
    for path in [*segment_paths(tmp_path / DIRECTORY), tmp_path / DIRECTORY / HEAD_FILE]:
        path.write_bytes(path.read_bytes()[: HEAD_BYTES if path.suffix else 0])
    filled(tmp_path, 3).close()
    assert found(tmp_path).problems == []
