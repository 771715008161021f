"""How this process keeps its memory while calls pass."""

from __future__ import annotations

import gc

KEPT_BYTES = 2 * 2**20
"""Freed memory that is kept for the next body: see `_keep_freed_memory`."""


def tune() -> None:
    """Set the allocator and the collector for a process whose calls have begun."""
    _keep_freed_memory()
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
