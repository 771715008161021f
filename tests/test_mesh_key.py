"""The mesh key file: made once, read strictly, never left open to others."""

from __future__ import annotations

import os
import stat
import threading
from base64 import b64encode
from pathlib import Path

import pytest

from meshd.mesh_key import FILE_BYTES_MAX, MeshKeyError, MeshKeys, parse

SECRET = b64encode(b"s" * 32).decode()
OTHER = b64encode(b"t" * 32).decode()


def written(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_first_start_makes_a_key_that_the_second_reads(tmp_path: Path) -> None:
    path = tmp_path / "state" / "mesh.key"
    first = MeshKeys(path)
    assert first.is_made
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]
    again = MeshKeys(path, can_be_made=False)
    assert not again.is_made
    assert again.ring.signing.id == first.ring.signing.id
    assert again.ring.signing.mac(b"x") == first.ring.signing.mac(b"x")


def test_a_file_that_another_has_to_make_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(MeshKeyError, match="there is no mesh key file"):
        MeshKeys(tmp_path / "mesh.key", can_be_made=False)
    assert not list(tmp_path.iterdir())


def test_two_files_get_two_keys(tmp_path: Path) -> None:
    assert MeshKeys(tmp_path / "a").ring.signing.mac(b"x") != MeshKeys(tmp_path / "b").ring.signing.mac(b"x")


def test_processes_that_start_together_get_one_key(tmp_path: Path) -> None:
    path, found, made, gate = tmp_path / "mesh.key", [], [], threading.Barrier(8)

    def start() -> None:
        gate.wait()
        found.append((keys := MeshKeys(path)).ring.signing.mac(b"x"))
        made.append(keys.is_made)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert sum(made) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o601, 0o777])
def test_a_file_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "mesh.key", f"k1 {SECRET}\n", mode)
    with pytest.raises(MeshKeyError, match=f"chmod 600 {path}"):
        MeshKeys(path)


def test_comments_and_blank_lines_are_passed_over_and_the_first_key_signs(tmp_path: Path) -> None:
    ring = parse(f"# ours\n\nk2 {OTHER}\r\n  k1   {SECRET}  \n".encode(), "f")
    assert [key.id for key in ring.keys] == ["k2", "k1"]
    assert ring.signing.id == "k2"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("k1", "not 1 words"),
        (f"k1 {SECRET} more", "not 3 words"),
        (SECRET, "not 1 words"),
        (f"{SECRET} k1", "the id is not"),
        (f"k/1 {SECRET}", "the id is not"),
        (f"{'k' * 17} {SECRET}", "the id is not"),
        (f"\u00e4 {SECRET}", "the id is not"),
        ("k1 ???", "not base64"),
        (f"k1 {SECRET[:-1]}", "not base64"),
        (f"k1 {SECRET}\x00", "not base64"),
        (f"k1 {b64encode(b's' * 31).decode()}", "has 31 bytes"),
        (f"k1 {b64encode(b's' * 257).decode()}", "has 257 bytes"),
        (f"ok {SECRET}", "stands on line 1 already"),
    ],
)
def test_a_malformed_line_is_named_and_its_secret_is_not(line: str, message: str) -> None:
    with pytest.raises(MeshKeyError) as caught:
        parse(f"ok {OTHER}\n{line}\n".encode(), "mesh.key")
    text = str(caught.value)
    assert text.startswith("mesh.key: line 2: ")
    assert message in text
    assert SECRET not in text


def test_every_malformed_line_is_named_at_once() -> None:
    with pytest.raises(MeshKeyError, match=r"line 1: .*line 3: "):
        parse(f"a\nok {OTHER}\nb c\n".encode(), "mesh.key")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"# nothing\n"])
def test_a_file_without_a_key_is_refused(content: bytes) -> None:
    with pytest.raises(MeshKeyError, match="holds no key"):
        parse(content, "mesh.key")


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    with pytest.raises(MeshKeyError, match="not a regular file"):
        MeshKeys(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(MeshKeyError, match="not a regular file"):
        MeshKeys(tmp_path / "pipe")
    with pytest.raises(MeshKeyError, match="more than"):
        MeshKeys(written(tmp_path / "big", "#" * (FILE_BYTES_MAX + 1)))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(MeshKeyError, match="cannot be read"):
        MeshKeys(tmp_path / "loop")
    with pytest.raises(MeshKeyError, match="cannot be"):
        MeshKeys(tmp_path / "big" / "mesh.key")


def test_rotation_is_a_line_in_front(tmp_path: Path) -> None:
    path = written(tmp_path / "mesh.key", f"k1 {SECRET}\n")
    keys = MeshKeys(path)
    assert not keys.is_changed()
    assert not keys.reload()
    assert keys.generation == 0
    written(path, f"k2 {OTHER}\nk1 {SECRET}\n")
    assert keys.is_changed()
    assert keys.reload()
    assert not keys.is_changed()
    assert not keys.reload()
    assert (keys.generation, keys.ring.signing.id, len(keys.ring.keys)) == (1, "k2", 2)


def test_a_bad_reload_keeps_the_keys_and_is_complained_of_once(tmp_path: Path) -> None:
    path = written(tmp_path / "mesh.key", f"k1 {SECRET}\n")
    keys = MeshKeys(path)
    written(path, f"k1 {SECRET}\nnonsense\n")
    with pytest.raises(MeshKeyError, match="line 2"):
        keys.reload()
    assert not keys.is_changed()
    written(path, f"k2 {OTHER}\n", 0o644)
    with pytest.raises(MeshKeyError, match="chmod"):
        keys.reload()
    assert not keys.is_changed()
    path.chmod(0o600)
    assert keys.is_changed()
    path.unlink()
    assert keys.is_changed()
    with pytest.raises(MeshKeyError, match="stay in use"):
        keys.reload()
    assert (keys.generation, keys.ring.signing.id) == (0, "k1")
