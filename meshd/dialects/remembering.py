"""What was read once need not be read again: an agent offers the same tools with every call."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

REMEMBERED_MAX: Final = 32
REMEMBERED_BYTES_MAX: Final = 32 * 1024
"""Together at most 1 MiB for each reader."""


def remembered(read: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """Return `read` with a small memory by the exact bytes; neither what it raises nor what is large is remembered."""
    memory = lru_cache(maxsize=REMEMBERED_MAX)(read)

    def reader(raw: bytes) -> T:
        return memory(raw) if len(raw) <= REMEMBERED_BYTES_MAX else read(raw)

    return reader
