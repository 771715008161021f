"""Definitions pinned by their digest: what was seen first is what is offered, until a person approves another.

A server that changes what a tool says after it was found harmless (a rug pull) changes its digest. Names that are gone
stay pinned: one that leaves and comes back as another is a changed one.
"""

from __future__ import annotations

from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from meshd.discovery.entry import Entry, Sort

PINS_MAX: Final = 2048
"""Of one server. Where they are used up, a new name is not offered: no flood of names can push a pin out."""
NAME_CHARACTERS_MAX: Final = 128
"""Longer ones (addresses of resources) are kept as a hash: all pins of a server are one record."""
FORMAT: Final = 1


class Pin(msgspec.Struct, frozen=True, array_like=True):
    """What is known of one name."""

    digest: str
    """Of what is offered."""
    is_approved: bool = False
    """A person has looked at it; else it is what was seen first."""
    since_s: int = 0
    """Unix seconds."""


class _Record(msgspec.Struct, frozen=True):
    format: int
    pins: dict[str, Pin]


class PinsDamaged(Exception):
    """What the store holds is no record of pins."""


class Why(str, Enum):
    """Why an entry is not offered."""

    CHANGED = "changed"
    """It is not what it was."""
    FLAWED = "flawed"
    """Something in it is for a person to look at first."""
    FULL = "full"
    """Its server has used up its pins with other names."""


class Judged(NamedTuple):
    """What becomes of what a server offers."""

    offered: tuple[Entry, ...]
    quarantined: tuple[tuple[Entry, Why], ...]
    pins: dict[str, Pin]
    """As they are to be kept."""


def name_of(entry: Entry) -> str:
    """Return under what name an entry is pinned. What stands in two places of one server is pinned in both."""
    name = entry.name
    if len(name) > NAME_CHARACTERS_MAX:
        name = "#" + sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{entry.origin.value}/{entry.sort.value}/{name}"


def judge(
    entries: Iterable[Entry],
    held: Collection[tuple[Sort, str, str]],
    pins: Mapping[str, Pin],
    now_s: float,
    *,
    is_own: bool = False,
) -> Judged:
    """Decide which entries of one server are offered, by its pins.

    `held` are those that a person must look at first, whether they are new or not. `is_own`: they are the operator's or
    of an agent beside the sidecar, which may change them as it likes.
    """
    kept = dict(pins)
    offered: list[Entry] = []
    quarantined: list[tuple[Entry, Why]] = []
    for entry in entries:
        name, digest = name_of(entry), entry.digest()
        pin = kept.get(name)
        if pin is None or (is_own and pin.digest != digest):
            if pin is None and len(kept) >= PINS_MAX:
                quarantined.append((entry, Why.FULL))
                continue
            pin = kept[name] = Pin(digest, since_s=int(now_s))
        if pin.digest != digest:
            quarantined.append((entry, Why.CHANGED))
        elif entry.key in held and not pin.is_approved:
            quarantined.append((entry, Why.FLAWED))
        else:
            offered.append(entry)
    return Judged(tuple(offered), tuple(quarantined), kept)


def approve(pins: Mapping[str, Pin], entries: Iterable[Entry], now_s: float) -> dict[str, Pin]:
    """Return pins by which exactly these entries are offered. Where there is no room, names that are not among them
    and that nobody has approved make it."""
    kept = dict(pins)
    for entry in entries:
        kept[name_of(entry)] = Pin(entry.digest(), is_approved=True, since_s=int(now_s))
    if len(kept) > PINS_MAX:
        loose = [name for name, pin in kept.items() if not pin.is_approved]
        for name in loose[: len(kept) - PINS_MAX]:
            del kept[name]
    return kept


def encode(pins: Mapping[str, Pin]) -> bytes:
    """Return pins as the store keeps them."""
    return msgspec.json.encode(_Record(FORMAT, dict(pins)))


def decode(value: bytes) -> dict[str, Pin]:
    """Return the pins that a record holds. Raises PinsDamaged."""
    try:
        record = msgspec.json.decode(value, type=_Record)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise PinsDamaged(f"the record of its pins is damaged: {error}") from None
    if record.format != FORMAT:
        raise PinsDamaged(f"its pins were written by a newer meshd (format {record.format})")
    return record.pins
