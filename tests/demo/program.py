"""A demo in a process of its own, and what is left of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO, cast

ROOT = Path(__file__).resolve().parents[2]


def start(directory: Path, *arguments: str, module: str = "demo") -> subprocess.Popen[str]:
    """Start `python -m MODULE ARGUMENTS` with `directory` as its place for temporary files."""
    # A temporary directory of the test's own, named in the environment of every process that the demo starts.
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(directory), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def left_running(directory: Path) -> list[str]:
    """Return the command lines of processes that the demo of `directory` started and that still run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environ = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"TMPDIR={directory}".encode() in environ.split(b"\0"):
            found.append(command)
    return found


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Read its lines up to one with `text`."""
    lines: list[str] = []
    for line in cast("IO[str]", process.stdout):
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError(f"it ended without {text!r}:\n{''.join(lines)}")
