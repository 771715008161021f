"""The words that a workflow has used, in a kilobyte: a Bloom filter of two generations, of which the older is dropped.

What was said long ago counts as new again; a loop says the same things soon.
"""

from __future__ import annotations

from typing import Final

GENERATION_BYTES: Final = 512
_BITS: Final = GENERATION_BYTES * 8
_MASK: Final = _BITS - 1
FULL_BITS: Final = _BITS // 3
"""Set bits with which a generation is full: then 1 in 27 words that it never saw is taken for seen."""


class Seen:
    """Whether a word was seen: words are 32-bit hashes."""

    __slots__ = ("new", "new_bits", "old")

    def __init__(self, new: bytes = b"", old: bytes = b"") -> None:
        self.new = bytearray(new) if len(new) == GENERATION_BYTES else bytearray(GENERATION_BYTES)
        self.old = bytearray(old) if len(old) == GENERATION_BYTES else bytearray(GENERATION_BYTES)
        self.new_bits = int.from_bytes(self.new, "little").bit_count() if new else 0

    def has(self, word: int) -> bool:
        """Say whether a word was seen of late; one that was not is taken for seen now and then."""
        new, old = self.new, self.old
        first, second, third = word & _MASK, (word >> 10) & _MASK, (word >> 20) & _MASK
        if (
            new[first >> 3] >> (first & 7) & 1
            and new[second >> 3] >> (second & 7) & 1
            and new[third >> 3] >> (third & 7) & 1
        ):
            return True
        if old[first >> 3] >> (first & 7) & 1 and old[second >> 3] >> (second & 7) & 1:
            return bool(old[third >> 3] >> (third & 7) & 1)
        return False

    def add(self, word: int) -> None:
        """Note a word."""
        if self.new_bits >= FULL_BITS:
            self.old, self.new, self.new_bits = self.new, bytearray(GENERATION_BYTES), 0
        new = self.new
        for at in (word & _MASK, (word >> 10) & _MASK, (word >> 20) & _MASK):
            bit = 1 << (at & 7)
            if not new[at >> 3] & bit:
                new[at >> 3] |= bit
                self.new_bits += 1

    def merge(self, new: bytes, old: bytes) -> None:
        """Add what another sidecar saw."""
        if len(new) == GENERATION_BYTES and len(old) == GENERATION_BYTES:
            self.new = _either(self.new, new)
            self.old = _either(self.old, old)
            self.new_bits = int.from_bytes(self.new, "little").bit_count()


def _either(one: bytearray, other: bytes) -> bytearray:
    both = int.from_bytes(one, "little") | int.from_bytes(other, "little")
    return bytearray(both.to_bytes(GENERATION_BYTES, "little"))
