"""What left is kept as it left: in memory, in a file, up to the bound."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from meshd.claims.tape import MEMORY_BYTES, Tape, spill_in


def none() -> Any:
    raise AssertionError("a short answer needs no file")


@pytest.mark.parametrize("size", [0, 1, MEMORY_BYTES])
def test_a_short_answer_stays_in_memory(size: int) -> None:
    tape = Tape(1 << 20, none)
    tape.head(200, [(b"a", b"b")])
    body = os.urandom(size)
    for at in range(0, size, 7000):
        tape.data(body[at : at + 7000])
    tape.end([(b"t", b"u")])
    assert (tape.status, tape.headers, tape.trailers, tape.is_whole) == (200, [(b"a", b"b")], [(b"t", b"u")], True)
    assert tape.body() == body
    assert tape.read(3, 5) == body[3:8]


def test_a_long_one_goes_into_a_file_without_a_name(tmp_path: Path) -> None:
    tape = Tape(1 << 20, spill_in(tmp_path))
    body = os.urandom(MEMORY_BYTES * 3 + 5)
    for at in range(0, len(body), 10_001):
        tape.data(body[at : at + 10_001])
    assert list(tmp_path.iterdir()) == []
    assert tape.body() == body
    assert tape.read(70_000, 100) == body[70_000:70_100]
    # Read in between, it goes on where it was.
    tape.data(b"more")
    assert tape.body() == body + b"more"
    tape.close()
    assert tape.body() is None


@pytest.mark.parametrize("size", [MEMORY_BYTES, MEMORY_BYTES * 2])
def test_it_stays_open_while_it_is_read(tmp_path: Path, size: int) -> None:
    tape, body = Tape(1 << 20, spill_in(tmp_path)), os.urandom(size)
    tape.data(body)
    tape.hold()
    tape.hold()
    tape.close()
    assert tape.read(0, size) == body
    tape.let_go()
    assert tape.read(5, 9) == body[5:14]
    tape.let_go()
    assert tape.read(0, size) == b""


def test_what_is_too_long_is_let_go(tmp_path: Path) -> None:
    tape = Tape(MEMORY_BYTES * 2, spill_in(tmp_path))
    for _ in range(5):
        tape.data(bytes(MEMORY_BYTES))
    assert (tape.is_too_long, tape.size, tape.body()) == (True, 5 * MEMORY_BYTES, None)


class Full(io.RawIOBase):
    """A disk without room."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = min(self.room, len(data))
        self.room -= taken
        return taken


@pytest.mark.parametrize("room", [0, 100, MEMORY_BYTES + 5])
def test_a_full_disk_costs_the_copy_and_nothing_else(room: int) -> None:
    tape = Tape(1 << 20, lambda: Full(room))
    for _ in range(4):
        tape.data(bytes(MEMORY_BYTES))
    tape.end([])
    assert (tape.is_too_long, tape.is_whole, tape.body()) == (True, True, None)


def test_no_file_can_be_opened_at_all(tmp_path: Path) -> None:
    tape = Tape(1 << 20, spill_in(tmp_path / "gone"))
    for _ in range(2):
        tape.data(bytes(MEMORY_BYTES))
    assert tape.is_too_long
