"""How this process keeps its memory while calls pass."""

from __future__ import annotations

import gc
import mmap
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

KEPT_BYTES = 2 * 2**20
"""Freed memory that is kept for the next body: see `_keep_freed_memory`."""


def tune() -> None:
    """Set the allocator and the collector for a process whose calls have begun."""
    _keep_freed_memory()
    give_back_code()
    # What is alive now stays so: the collector need not look at it again.
    gc.freeze()
    # A call makes some fifty objects that die with it and no cycles; by default it would look every dozen calls.
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


def _keep_freed_memory() -> None:
    """Let the allocator keep what a long body leaves, in place of giving it back and fetching it page by page.

    glibc hands the top of its heap back above 128 kB, and every body of that length would fault its pages in anew: a
    sixth of such a call. It raises that threshold to twice the largest block that was ever freed (mallopt(3), under
    M_MMAP_THRESHOLD); this one is never touched, so it costs no memory.
    """
    bytes(KEPT_BYTES)


_MAPPING: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-.p \S+ \S+ [1-9]\d*\s+/")
"""Of a file, private, and not writable: start and end."""


def give_back_code() -> None:
    """Let go of the code that only the start has needed: what is needed again comes back from the system's cache.

    The system maps code in blocks of 64 kB around what is touched, and importing touches nearly all there is: 35 MB,
    of which an idle sidecar uses a tenth. A block comes back where it is first used, in a microsecond or two and once.
    Nothing is written to these files' pages (`clean_code`), so nothing can be lost.
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with suppress(OSError), open("/proc/self/smaps", encoding="utf-8", errors="replace") as told:  # noqa: PTH123
        for start, size in list(clean_code(told)):
            madvise(start, size, mmap.MADV_DONTNEED)


def clean_code(smaps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Yield start and size of what is mapped of files, may not be written, and never was (`/proc/PID/smaps`).

    What a linker or a debugger has put into such a mapping is this process's own: the file does not hold it. It is told
    as anonymous while it is in memory, and as swapped where the system has written it out.
    """
    place: tuple[int, int] | None = None
    for line in smaps:
        if line.startswith("Anonymous:"):
            if line.split()[1] != "0":
                place = None
        elif line.startswith("Swap:"):
            if place is not None and line.split()[1] == "0":
                yield place
            place = None
        elif "-" in line.partition(" ")[0]:
            found = _MAPPING.match(line)
            place = None
            if found is not None:
                start = int(found[1], 16)
                place = start, int(found[2], 16) - start
