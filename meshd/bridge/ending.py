"""How a server that was started is ended: told first, and killed where it does not listen."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Return the processes below one, whatever namespace they are in; empty where /proc does not tell."""
    found: list[int] = []
    waiting = [pid]
    while waiting:
        try:
            tasks = list(Path(f"/proc/{waiting.pop()}/task").iterdir())
        except OSError:
            continue
        for task in tasks:
            try:
                children = [int(child) for child in (task / "children").read_text().split()]
            except (OSError, ValueError):
                continue
            found += children
            waiting += children
    return found


def ask(pid: int, *, is_sandboxed: bool) -> None:
    """Ask what runs below the guard `pid` to end (SIGTERM); a sandbox, its child, would end all of it at once."""
    below = descendants(pid)
    for one in below[1:] if is_sandboxed else below:
        _signal(one, signal.SIGTERM)


def kill(pid: int) -> None:
    """End it at once: a guard that is told so kills all of its own."""
    _signal(pid, signal.SIGTERM)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return
