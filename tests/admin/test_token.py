"""The admin token: made once, readable by nobody else, and never weaker than it should be."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from meshd.admin.token import FILE_NAME, TokenError, obtain


def test_it_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        token, path = obtain(tmp_path / "state" / "meshd")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(token) >= 40
    assert obtain(path.parent) == (token, path)
    assert [found.name for found in path.parent.iterdir()] == [FILE_NAME]


def test_two_that_start_at_once_agree(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        tokens = {token for token, _ in pool.map(lambda _: obtain(tmp_path), range(32))}
    assert len(tokens) == 1
    assert [found.name for found in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"short", b"x" * 600, b"a b" * 20, b"\x00" * 40, "ü".encode() * 40, b"a" * 40 + b"\nb"]
)
def test_what_is_no_token_is_not_used(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(TokenError, match="holds no token"):
        obtain(tmp_path)
    assert path.read_bytes() == content


def test_a_token_that_others_could_read_is_not_used(tmp_path: Path) -> None:
    _, path = obtain(tmp_path)
    path.chmod(0o640)
    with pytest.raises(TokenError, match="others can read it"):
        obtain(tmp_path)


def test_a_link_a_folder_and_a_pipe_are_no_token(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    (tmp_path / "elsewhere").write_text("x" * 40)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TokenError, match=FILE_NAME):
        obtain(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(TokenError, match=FILE_NAME):
        obtain(tmp_path)
    path.rmdir()
    os.mkfifo(path, 0o600)
    with pytest.raises(TokenError, match="not a plain file"):
        obtain(tmp_path)


def test_a_state_directory_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TokenError, match="Not a directory"):
        obtain(tmp_path / "file" / "state")
