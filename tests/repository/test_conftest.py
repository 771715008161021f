"""The shared settings do what they promise: a skip can be made to count, async tests run on the right loops."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import groupby
from typing import TYPE_CHECKING

import pytest

from tests.conftest import BEGINS_FIRST
from tests.repository.tree import ROOT

if TYPE_CHECKING:
    from pathlib import Path

SUITE = """
import asyncio
import pytest

def test_needs_a_tool(require_engine):
    require_engine("no-such-program-anywhere")

@pytest.mark.xfail(reason="known")
def test_known_to_fail():
    assert False

async def test_default_loop():
    print("LOOP", type(asyncio.get_running_loop()).__module__)

@pytest.mark.both_loops
async def test_both_loops():
    print("BOTH", type(asyncio.get_running_loop()).__module__)

def test_runs_its_own(loop_factory):
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        print("OWN", type(runner.get_loop()).__module__)
"""


def run(folder: Path, is_required: str) -> subprocess.CompletedProcess[str]:
    """Run the suite above under the project's conftest and settings."""
    (folder / "test_suite.py").write_text(SUITE)
    environment = os.environ | {"MESHD_REQUIRE_ENGINES": is_required, "PYTHONPATH": str(ROOT)}
    options = [
        "-p",
        "tests.conftest",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(folder),
        "-p",
        "no:cacheprovider",
    ]
    command = [sys.executable, "-m", "pytest", *options, "-q", "-s", str(folder)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_skip_is_reported(tmp_path: Path) -> None:
    done = run(tmp_path, "0")
    assert done.returncode == 0, done.stdout
    assert "no-such-program-anywhere is not installed" in done.stdout


def test_a_skip_fails_where_nothing_may_be_left_out(tmp_path: Path) -> None:
    done = run(tmp_path, "1")
    assert done.returncode == 1
    assert "1 failed" in done.stdout
    assert "no-such-program-anywhere is not installed" in done.stdout


@pytest.mark.parametrize(
    ("word", "loops"),
    [("LOOP", {"uvloop"}), ("BOTH", {"uvloop", "asyncio.unix_events"}), ("OWN", {"uvloop", "asyncio.unix_events"})],
)
def test_async_tests_run_on_the_loops_they_ask_for(tmp_path: Path, word: str, loops: set[str]) -> None:
    assert set(re.findall(rf"{word} (\S+)", run(tmp_path, "0").stdout)) == loops


def test_what_begins_first_is_there() -> None:
    assert [name for name in BEGINS_FIRST if not (ROOT / "tests" / name).is_file()] == []


def test_the_long_files_begin_first() -> None:
    files = ["tests/test_config.py", f"tests/{BEGINS_FIRST[1]}", f"tests/{BEGINS_FIRST[0]}"]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:randomly", *files]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [file for file, _ in groupby(re.findall(r"^(\S+)::", out, re.MULTILINE))] == files[::-1]
