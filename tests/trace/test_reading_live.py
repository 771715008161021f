"""A log that is written to while it is read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meshd.trace import kinds, verifying
from meshd.trace.opening import DIRECTORY
from meshd.trace.reading import Segment, open_segment, segment_paths
from meshd.trace.verifying import verify
from tests.end_to_end.sidecar import ROOT, environ
from tests.trace.logs import filled, killed, opened, reader

CUT = """
import sys
from pathlib import Path
from meshd.trace.reading import open_segment, segment_paths
from tests.trace.logs import filled

recorder = filled(Path(sys.argv[1]), 20, segment_bytes=2**20)
segment = open_segment(segment_paths(Path(sys.argv[1]) / "trace")[0])
if sys.argv[2] == "closed":
    recorder.close()
else:
    while recorder.log.path == segment.path:
        recorder.note(20, "w", ("long " * 10_000, 1, "put"), agent="ann")
print(len(list(segment.frames())))
"""


@pytest.mark.parametrize("how", ["closed", "full"])
def test_a_segment_that_is_cut_while_it_is_read(tmp_path: Path, how: str) -> None:
    """In a process of its own: memory that is mapped to what is no longer there ends the one that touches it."""
    command = [sys.executable, "-c", CUT, str(tmp_path), how]
    found = subprocess.run(command, cwd=ROOT, env=environ(), capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "21\n"), found


def test_what_is_written_meanwhile_leaves_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is seen of a record, all before it is seen."""
    recorder = filled(tmp_path, 40, segment_bytes=2**18)
    read = os.pread

    def reads(fd: int, length: int, at: int) -> bytes:
        for number in range(20):
            recorder.note(kinds.STATE, "w", (f"later-{number}", number, "put"), agent="ann")
        return read(fd, length, at)

    monkeypatch.setattr(os, "pread", reads)
    segment = open_segment(segment_paths(tmp_path / DIRECTORY)[0])
    assert isinstance(segment, Segment)
    sequences = [frame.sequence for frame in segment.frames()]
    assert sequences == list(range(1, len(sequences) + 1))
    assert len(sequences) >= 41
    assert verify(tmp_path / DIRECTORY).problems == []
    recorder.close()


def test_old_segments_that_are_let_go_while_the_log_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = filled(tmp_path, 200)
    assert recorder.retention is not None
    gone: list[Path] = []

    def opens(path: Path) -> Any:
        found = open_segment(path)
        if not gone:
            # The first is open by now; those after it go before their turn.
            recorder.retention.keep_bytes = 3 * 4096  # type: ignore[union-attr]
            gone.extend(recorder.retention.apply(recorder))  # type: ignore[union-attr]
        return found

    monkeypatch.setattr(verifying, "open_segment", opens)
    found = verify(tmp_path / DIRECTORY)
    assert len(gone) > 1
    assert (found.problems, found.segments) == ([], len(segment_paths(tmp_path / DIRECTORY)))
    recorder.close()


def test_of_a_segment_that_was_never_cut_no_more_is_held_than_was_written(tmp_path: Path) -> None:
    killed(filled(tmp_path, 20, segment_bytes=2**20))
    opened(tmp_path).close()
    segments: list[Any] = [open_segment(path) for path in segment_paths(tmp_path / DIRECTORY)]
    assert segments[0].file_bytes == 2**20
    assert segments[0].size <= 8192
    assert len(list(reader(tmp_path).events("w"))) == 20
    assert verify(tmp_path / DIRECTORY).problems == []
