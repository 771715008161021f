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


def ask(pid: int) -> None:
    """Ask what runs below the sandbox or guard `pid` to end (SIGTERM)."""
    for one in descendants(pid):
        _signal(one, signal.SIGTERM)


def kill(pid: int, *, is_guarded: bool) -> None:
    """End it at once: a sandbox takes all of its processes with it, and a guard kills all of its own."""
    _signal(pid, signal.SIGTERM if is_guarded else signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return
