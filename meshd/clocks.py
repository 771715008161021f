"""Vector clocks: what was known where a thing happened, so that two things can be put in order without a common time.

A clock counts, for each sidecar, the things of one workflow that had happened there as far as was known. One thing is
before another exactly if its clock is: no count in it is higher, and one is lower. Clocks of two workflows say nothing
of each other.

Encoded, a clock has at most 256 bytes at 16 sidecars:

    1            the version of this form, one byte
    then for each sidecar, in the order of their ids:
    length       one byte: of the id as ASCII; 0x80 for an id of 16 hex digits, which follows as 8 bytes
    id
    count        7 bits a byte, the lowest first, the highest bit set on all but the last

A clock has one form: what does not encode back to itself is refused. Pure, standard library alone.
"""

from __future__ import annotations

import re
from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PARTICIPANTS_MAX: Final = 256
"""Sidecars of one clock: more is no workflow, and no clock is longer than 4 kB."""
COUNT_MAX: Final = 2**42 - 1
"""Six bytes. A sidecar that counts a million things a second gets there in fifty days."""
ENCODED_BYTES_MAX: Final = 1 + PARTICIPANTS_MAX * 15

_VERSION: Final = 1
_HEX: Final = 0x80
_SIDECAR: Final = re.compile(r"(?:[A-Za-z0-9._-]{1,8}|[0-9a-f]{16})\Z")
_LONG: Final = 16


class Order(Enum):
    """How one clock relates to another."""

    BEFORE = "before"
    AFTER = "after"
    CONCURRENT = "concurrent"
    """Neither knew of the other."""
    EQUAL = "equal"


class ClockMalformed(ValueError):
    """What should be a clock is none."""


class Clock:
    """A frozen mapping from a sidecar's id to a count above 0; a sidecar that is not there has 0.

    An id is 1 to 8 letters, digits, dots, dashes or underscores, or 16 lower-case hex digits: see `sidecar_id`.
    """

    __slots__ = ("_counts",)

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        """Raises ClockMalformed for an id or a count that cannot be one, and for more than 256 sidecars."""
        found = dict(sorted(counts.items())) if counts else {}
        if len(found) > PARTICIPANTS_MAX:
            raise ClockMalformed(f"a clock has at most {PARTICIPANTS_MAX} sidecars, and this one {len(found)}")
        for sidecar, count in found.items():
            if _SIDECAR.match(sidecar) is None:
                raise ClockMalformed("a sidecar's id in a clock is 1 to 8 letters and digits, or 16 hex digits")
            if not 0 < count <= COUNT_MAX:
                raise ClockMalformed(f"a count of a clock is a whole number from 1 to {COUNT_MAX}")
        self._counts = found

    def tick(self, sidecar: str, least: int = 0) -> Clock:
        """Return the clock of the next thing at a sidecar. Its count is at least `least`: where a sidecar has forgotten
        how far it had counted, that keeps it from counting anything twice. Raises ClockMalformed beyond COUNT_MAX."""
        return Clock(self._counts | {sidecar: max(self._counts.get(sidecar, 0) + 1, least)})

    def merged(self, other: Clock) -> Clock:
        """Return the clock of who knows both."""
        if not other._counts or self._counts == other._counts:
            return self
        mine = self._counts
        return Clock(mine | {sidecar: max(count, mine.get(sidecar, 0)) for sidecar, count in other._counts.items()})

    def order(self, other: Clock) -> Order:
        """Say how this clock relates to another one: BEFORE where this one happened before that."""
        mine, theirs = self._counts, other._counts
        if mine == theirs:
            return Order.EQUAL
        is_within = all(count <= theirs.get(sidecar, 0) for sidecar, count in mine.items())
        if is_within:
            return Order.BEFORE
        is_around = all(count <= mine.get(sidecar, 0) for sidecar, count in theirs.items())
        return Order.AFTER if is_around else Order.CONCURRENT

    def encode(self) -> bytes:
        """Return the clock's one form."""
        out = bytearray((_VERSION,))
        for sidecar, count in self._counts.items():
            if len(sidecar) == _LONG:
                out.append(_HEX)
                out += bytes.fromhex(sidecar)
            else:
                out.append(len(sidecar))
                out += sidecar.encode("ascii")
            while count > 0x7F:
                out.append(count & 0x7F | 0x80)
                count >>= 7
            out.append(count)
        return bytes(out)

    @staticmethod
    def decode(data: bytes) -> Clock:
        """Return the clock of its form. Raises ClockMalformed, whatever the bytes are."""
        if len(data) > ENCODED_BYTES_MAX:
            raise ClockMalformed(f"a clock has at most {ENCODED_BYTES_MAX} bytes, and this one {len(data)}")
        if not data or data[0] != _VERSION:
            raise ClockMalformed("it is not a clock of a version that this sidecar knows")
        counts: dict[str, int] = {}
        at = 1
        while at < len(data):
            sidecar, at = _read_id(data, at)
            count, at = _read_count(data, at)
            counts[sidecar] = count
        made = Clock(counts)
        if made.encode() != data:
            raise ClockMalformed("it is not the form that its counts have")
        return made

    @property
    def counts(self) -> dict[str, int]:
        """The counts, by sidecar: a copy."""
        return dict(self._counts)

    def __getitem__(self, sidecar: str) -> int:
        return self._counts.get(sidecar, 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Clock) and self._counts == other._counts

    def __hash__(self) -> int:
        return hash(tuple(self._counts.items()))

    def __repr__(self) -> str:
        return f"Clock({self._counts})"


def sidecar_id(name: str) -> str:
    """Return the id under which a sidecar of this name stands in clocks: 16 hex digits, of any name the same ones."""
    if len(name) >= _LONG and _SIDECAR.match(name[:_LONG]) and name.isascii():
        return name[:_LONG]
    return sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_LONG]


def _read_id(data: bytes, at: int) -> tuple[str, int]:
    length = data[at]
    end = at + 1 + (8 if length == _HEX else length)
    if length > _HEX or not length or end > len(data):
        raise ClockMalformed("it is cut off, or an id in it is none")
    raw = data[at + 1 : end]
    if length == _HEX:
        return raw.hex(), end
    try:
        return raw.decode("ascii"), end
    except UnicodeDecodeError:
        raise ClockMalformed("an id in it is not ASCII") from None


def _read_count(data: bytes, at: int) -> tuple[int, int]:
    count = shift = 0
    while at < len(data) and shift < 42:
        byte = data[at]
        at += 1
        count |= (byte & 0x7F) << shift
        shift += 7
        if byte <= 0x7F:
            return count, at
    raise ClockMalformed("it is cut off, or a count in it is too large")
