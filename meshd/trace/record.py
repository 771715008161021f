"""One event, as it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.clocks import Clock
from meshd.trace.kinds import FACTS, NAMES
from meshd.trace.segment import MANY

if TYPE_CHECKING:
    from collections.abc import Sequence

CALLERS: Final = 0x80
"""Among a span's flags, of which traceparent has the lowest bits."""


class Payload(msgspec.Struct, array_like=True, frozen=True):
    """What a frame of the log holds, as MessagePack. New fields go to the end, with a default."""

    kind: int
    hlc_us: int
    """When, by a hybrid logical clock: Unix microseconds that never go back, here or from cause to effect."""
    workflow: str
    """Or the account of those that nothing ties to one."""
    call: str = ""
    agent: str = ""
    target: str = ""
    clock: bytes = b""
    """What was known of other sidecars; the sidecar's own count is the sequence."""
    causes: tuple[int | str, ...] = ()
    """Sequences of this sidecar and epoch, or ids of events."""
    span: bytes = b""
    """Trace id, span id and flags: 16, 8 and 1 bytes; none where no span is kept. With CALLERS among the flags it is
    the span of whoever called, since meshd made none."""
    digest: bytes = b""
    """SHA-256 of the payload, where there is one and it was short enough to be digested."""
    facts: tuple[Any, ...] = ()


class Event(msgspec.Struct, frozen=True):
    """An event with its id."""

    sidecar: str
    epoch: int
    sequence: int
    head: bytes
    """Its hash."""
    payload: Payload

    @property
    def id(self) -> str:
        """The event's id, as text."""
        return event_id(self.sidecar, self.epoch, self.sequence)

    @property
    def kind(self) -> str:
        """What it is; a number where a newer meshd wrote it."""
        return NAMES.get(self.payload.kind, str(self.payload.kind))

    @property
    def causes(self) -> tuple[str, ...]:
        """Ids of the events that it follows from."""
        return tuple(
            cause if isinstance(cause, str) else event_id(self.sidecar, self.epoch, cause)
            for cause in self.payload.causes
        )

    @property
    def clock(self) -> Clock:
        """Its whole vector clock. Raises ClockMalformed for what is none."""
        known = Clock.decode(self.payload.clock) if self.payload.clock else Clock()
        return known.tick(self.sidecar, self.sequence)

    @property
    def facts(self) -> dict[str, Any]:
        """What else is known of it, by name."""
        return dict(zip(FACTS.get(self.payload.kind, ()), self.payload.facts, strict=False))


def callers(span: bytes) -> bytes:
    """Return a span as the caller's."""
    return span[:24] + bytes((span[24] | CALLERS,)) if len(span) == 25 else b""


def event_id(sidecar: str, epoch: int, sequence: int) -> str:
    """Return an event's id as text."""
    return f"{sidecar}-{epoch}-{sequence}"


def read_event_id(text: str) -> tuple[str, int, int] | None:
    """Return sidecar, epoch and sequence; None for what is no event's id."""
    sidecar, epoch, sequence = [*text.rsplit("-", 2), "", ""][:3]
    if not sidecar or not (epoch.isascii() and epoch.isdigit() and sequence.isascii() and sequence.isdigit()):
        return None
    return (sidecar, int(epoch), int(sequence)) if len(epoch) < 12 and len(sequence) < 20 else None


decoder = msgspec.msgpack.Decoder(Payload)
_split = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_MANY: Final = bytes((MANY,))


def parts_of(record: memoryview) -> Sequence[memoryview | msgspec.Raw | None]:
    """Return the events of a record as they are encoded; one None where they cannot be told apart."""
    if record[:1] != _MANY:
        return [record]
    try:
        return _split(record) or [None]
    except (msgspec.MsgspecError, RecursionError):
        return [None]


def payloads_of(record: memoryview) -> list[Payload | None]:
    """Return what a record holds; None for each part of it that is no event of a form that is known here."""
    return [None if part is None else _payload(part) for part in parts_of(record)]


def _payload(data: memoryview | msgspec.Raw) -> Payload | None:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
