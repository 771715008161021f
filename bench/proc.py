"""Reads the kernel's own books of a process tree: CPU, memory, threads.

CPU comes from `/proc/<pid>/task/*/schedstat` in nanoseconds, summed over the tree; where the kernel keeps none,
from `utime + stime` of `/proc/<pid>/stat` in clock ticks of usually 10 ms. See proc(5) and the kernel's sched-stats.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Stat(NamedTuple):
    """The fields of `/proc/<pid>/stat` that are used here."""

    parent: int
    cpu_ticks: int


def parse_stat(text: str) -> Stat:
    """Read one line of `/proc/<pid>/stat`. The command may hold blanks and brackets, so count from the last one.

    Raises ValueError where the line is not one.
    """
    _, closed, rest = text.rpartition(")")
    fields = rest.split()
    if not closed or len(fields) < 13:
        raise ValueError(f"not a line of /proc/<pid>/stat: {text!r}")
    return Stat(parent=int(fields[1]), cpu_ticks=int(fields[11]) + int(fields[12]))


def parse_schedstat(text: str) -> int:
    """Return nanoseconds on the CPU, the first field of a `schedstat` line. Raises ValueError on anything else."""
    fields = text.split()
    if len(fields) != 3:
        raise ValueError(f"not a line of schedstat: {text!r}")
    return int(fields[0])


def parse_cpu_lines(text: str) -> dict[int, tuple[int, int]]:
    """Return (busy, all) clock ticks for each core, from the text of `/proc/stat`. Idle and I/O wait are not busy."""
    cores = {}
    for line in text.splitlines():
        name, *fields = line.split() or [""]
        if name.startswith("cpu") and name[3:].isdigit():
            ticks = [int(field) for field in fields[:8]]
            cores[int(name[3:])] = (sum(ticks) - ticks[3] - ticks[4], sum(ticks))
    return cores


def tree(root: int) -> list[int]:
    """Return the process ids of `root` and everything below it that is alive."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                parent = parse_stat((entry / "stat").read_text()).parent
            except (OSError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting.extend(children.get(pid, ()))
    return found


def threads_cpu_ns(pid: int) -> dict[int, int]:
    """Return the nanoseconds of CPU of each living thread, by its id; nothing where the kernel keeps no such books."""
    found = {}
    with suppress(OSError):
        for task in (PROC / str(pid) / "task").iterdir():
            with suppress(OSError, ValueError):  # a thread may end while we read: the others count all the same
                found[int(task.name)] = parse_schedstat((task / "schedstat").read_text())
    return found


def _one_cpu_ns(pid: int) -> int:
    total = sum(threads_cpu_ns(pid).values())
    if total:
        return total
    try:
        return parse_stat((PROC / str(pid) / "stat").read_text()).cpu_ticks * _TICK_NS
    except (OSError, ValueError):
        return 0


def cpu_ns(pids: list[int]) -> int:
    """Return the nanoseconds of CPU, user and system, that all threads of these processes have used."""
    return sum(_one_cpu_ns(pid) for pid in pids)


def rss_bytes(pids: list[int]) -> int:
    """Return the resident memory of these processes together (shared pages are counted for each)."""
    pages = 0
    for pid in pids:
        try:
            pages += int((PROC / str(pid) / "statm").read_text().split()[1])
        except (OSError, ValueError, IndexError):
            continue
    return pages * _PAGE_BYTES


def busy_ticks(core: int) -> tuple[int, int]:
    """Return (busy, all) clock ticks of a core since boot; zeros where the kernel does not say."""
    try:
        return parse_cpu_lines((PROC / "stat").read_text()).get(core, (0, 0))
    except (OSError, ValueError):
        return (0, 0)
