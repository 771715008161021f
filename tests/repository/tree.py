"""The files of this project, as the tests of the repository read them."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_NEVER_PUBLISHED = {".git", ".venv", ".make", "__pycache__", "node_modules", "build", "dist", "results"}


@functools.cache
def tracked() -> tuple[Path, ...]:
    """Return every file that is committed or would be; outside a git clone, every file that could be."""
    listing = None
    if shutil.which("git") and (ROOT / ".git").exists():
        ask = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        listing = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing is not None and listing.returncode == 0:
        found = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not _NEVER_PUBLISHED & set(path.relative_to(ROOT).parts)]
    return tuple(sorted(path for path in found if path.is_file()))


def is_generated(path: Path) -> bool:
    """Say whether a machine wrote this file."""
    return path.name.endswith(("_pb2.py", "_pb2_grpc.py", "_pb2.pyi"))


def modules() -> tuple[Path, ...]:
    """Return the Python files of the two distributions that people wrote."""
    rooms = (ROOT / "meshd", ROOT / "sdk")
    return tuple(
        path
        for path in tracked()
        if path.suffix == ".py" and not is_generated(path) and any(room in path.parents for room in rooms)
    )


def name_of(path: Path) -> str:
    """Return a path as the reader of a failure wants it."""
    return path.relative_to(ROOT).as_posix()
