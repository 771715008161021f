"""What is known of other sidecars' part in a workflow, and how it travels.

A sidecar's own count is the sequence of its log, which never goes back. What it has heard of others is kept for each
workflow that others have a part in, and merged with what comes: so clocks of one workflow are in order exactly where
one event can have followed from the other.

On a hop between two sidecars goes `x-meshd-clock`: the sender's event, its hash and its clock, signed with the mesh key
over the workflow, so that it can be moved to no other. The reply carries one back. The receiver writes the hash down:
what the sender's log loses later can then be shown.
"""

from __future__ import annotations

import hmac
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.clocks import Clock, ClockMalformed

if TYPE_CHECKING:
    from meshd_sdk.context import Keyring

FIELD: Final = b"x-meshd-clock"
FIELD_BYTES_MAX: Final = 8192
WORKFLOWS_MAX: Final = 16_384
"""Of which what others know is in memory; the one that was quiet for longest is forgotten first."""
AHEAD_US_MAX: Final = 60_000_000
"""A clock that is further in the future than this orders events, and moves no time here."""

_FIXED: Final = Struct("<8sIQQ32s")
_VERSION: Final = 1
_MAC_BYTES: Final = 16
_PURPOSE: Final = b"\0meshd clock 1\0"
"""No token begins so: a signature of the one is none of the other."""
_TO_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_TO_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")


class Told(NamedTuple):
    """What a peer says with a hop."""

    sidecar: str
    epoch: int
    sequence: int
    hlc_us: int
    head: bytes
    """Hash of its event."""
    clock: Clock

    @property
    def event(self) -> str:
        """Id of its event."""
        return f"{self.sidecar}-{self.epoch}-{self.sequence}"


def encode(told: Told, workflow: str, keyring: Keyring) -> bytes:
    """Return the field's value."""
    key = keyring.signing
    id = key.id.encode("ascii")
    fixed = _FIXED.pack(told.sidecar.encode("ascii"), told.epoch, told.sequence, told.hlc_us, told.head)
    data = b"".join((bytes((_VERSION, len(id))), id, fixed, told.clock.encode()))
    mac = key.mac(_PURPOSE + workflow.encode() + b"\0" + data)[:_MAC_BYTES]
    return b2a_base64(data + mac, newline=False).translate(_TO_URL_SAFE).rstrip(b"=")


def decode(value: bytes, workflow: str, keyring: Keyring) -> Told:
    """Return what a field says. Raises ClockMalformed for what is none, or was not signed for this workflow."""
    if len(value) > FIELD_BYTES_MAX:
        raise ClockMalformed(f"it has {len(value)} bytes, and a clock's field at most {FIELD_BYTES_MAX}")
    try:
        data = a2b_base64(value.translate(_TO_STANDARD) + b"=="[: -len(value) % 4])
    except Base64Error:
        raise ClockMalformed("it is not base64") from None
    if len(data) < 2 or data[0] != _VERSION:
        raise ClockMalformed("it is not of a version that this sidecar knows")
    at = 2 + data[1]
    key = keyring.by_id.get(data[2:at])
    if key is None:
        raise ClockMalformed("it was signed with a key that this sidecar does not have")
    signed, mac = data[:-_MAC_BYTES], data[-_MAC_BYTES:]
    if not hmac.compare_digest(key.mac(_PURPOSE + workflow.encode() + b"\0" + signed)[:_MAC_BYTES], mac):
        raise ClockMalformed("its signature is wrong, or it is of another workflow")
    if len(signed) < at + _FIXED.size:
        raise ClockMalformed("it is cut off")
    sidecar, epoch, sequence, hlc_us, head = _FIXED.unpack_from(signed, at)
    clock = Clock.decode(signed[at + _FIXED.size :])
    try:
        name = sidecar.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError:
        raise ClockMalformed("its sidecar has no name") from None
    if clock[name] != sequence:
        raise ClockMalformed("its clock does not count its own event")
    return Told(name, epoch, sequence, hlc_us, head, clock)


class Knowledge:
    """By workflow: the clock of what others did. Pure."""

    __slots__ = ("_clocks", "_encoded", "_sidecar")

    def __init__(self, sidecar: str) -> None:
        self._sidecar = sidecar
        self._clocks: dict[str, Clock] = {}
        self._encoded: dict[str, bytes] = {}

    def of(self, workflow: str) -> bytes:
        """Return the clock of others as it is written down; empty where none has a part."""
        return self._encoded.get(workflow, b"")

    def at(self, workflow: str, sequence: int) -> Clock:
        """Return the whole clock of an event of this sidecar."""
        return self._clocks.get(workflow, _NOTHING).tick(self._sidecar, sequence)

    def learn(self, workflow: str, clock: Clock) -> int:
        """Merge what a peer knows; return its count of this sidecar's own events, 0 where it knows of none."""
        counts = clock.counts
        own = counts.pop(self._sidecar, 0)
        # The one that was heard of last stands last: the first is forgotten first.
        known = self._clocks.pop(workflow, _NOTHING).merged(Clock(counts))
        self._clocks[workflow] = known
        self._encoded[workflow] = known.encode()
        if len(self._clocks) > WORKFLOWS_MAX:
            oldest = next(iter(self._clocks))
            del self._clocks[oldest], self._encoded[oldest]
        return own

    def recall(self, workflow: str, encoded: bytes) -> None:
        """Take what an event of an earlier run had written down."""
        if encoded != self._encoded.get(workflow, b""):
            self.learn(workflow, Clock.decode(encoded))


_NOTHING: Final = Clock()
