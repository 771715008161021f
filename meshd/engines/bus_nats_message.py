"""Events and dead letters as messages of a stream: what stands in their headers and in their bodies.

An event's body is its MessagePack array. Its headers say when it was kept, by the bus's clock, and what its key is: so
that to remove what is old nobody reads a body. Whatever else is found under a topic's subject is nobody's event.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple

import msgspec

from meshd.engines.bus_event import check_topic, sequence_text
from meshd.engines.bus_port import DeadLetter, Event, EventMalformed

_AT: Final = b"Meshd-At: "
FOREIGN: Final = "what was found under its topic's subject is no event of meshd: {why}"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Event).decode


class Letter(msgspec.Struct, array_like=True):
    """The body of a dead letter. A new field goes last and has a default."""

    group: str
    topic: str
    event: Event
    place: int
    attempts: int
    reason: str
    died_ms: int


_decode_letter = msgspec.msgpack.Decoder(Letter).decode


class Found(NamedTuple):
    """What was found at a place of the stream of events."""

    place: int
    event: Event
    why: str
    """Why it is no event of meshd; empty for one that is."""
    key: bytes
    at_ms: int
    """When it was kept."""


def written(event: Event, at_ms: int, suffix: str) -> tuple[bytes, bytes]:
    """Return the headers and the body of an event. `suffix`: what sets it apart from one that was forgotten."""
    identity = hashlib.blake2b(f"{len(event.source)}:{event.source}{event.id}".encode(), digest_size=16).hexdigest()
    headers = b"%b%d\r\nNats-Msg-Id: %b%b\r\n" % (_AT, at_ms, identity.encode(), suffix.encode())
    return headers, _encode(event)


def found(prefix: str, subject: str, headers: bytes, data: bytes, place: int) -> Found:
    """Read what stands at a place."""
    topic = subject.removeprefix(prefix)
    try:
        at_ms = kept_ms(headers)
        if at_ms is None:
            raise ValueError("it has no header of one")
        event = _decode(data)
        if event.topic != topic or not event.source or not event.id:
            raise ValueError("its topic is another, or it has no source or id")
    except (ValueError, msgspec.MsgspecError) as error:
        why = FOREIGN.format(why=str(error)[:200])
        return Found(place, _foreign(topic, data, place), why, b"", 2**63)
    # Nobody else has it yet.
    msgspec.structs.force_setattr(event, "sequence", sequence_text(place))
    return Found(place, event, "", _key_of(event), at_ms)


def own(event: Event, place: int, at_ms: int) -> Found:
    """Return an event as it is found at its place."""
    return Found(place, msgspec.structs.replace(event, sequence=sequence_text(place)), "", _key_of(event), at_ms)


def _key_of(event: Event) -> bytes:
    return b"" if not event.partition_key else digest(event.partition_key)


def _foreign(topic: str, data: bytes, place: int) -> Event:
    """Return it as a dead letter shows it."""
    try:
        check_topic(topic)
    except EventMalformed:
        topic = "foreign"
    # Without a source: it is never handed to anybody.
    return Event(topic, "", data=data, data_content_type="application/octet-stream", sequence=sequence_text(place))


def digest(key: str) -> bytes:
    """Return what stands for a partition key in a group's rows: two keys that share it merely wait for each other."""
    return hashlib.blake2b(key.encode(), digest_size=8).digest()


def kept_ms(headers: bytes) -> int | None:
    """Return when an event was kept; None for what is none."""
    text = headers.partition(_AT)[2].partition(b"\r\n")[0]
    return int(text) if text.isdigit() and len(text) < 16 else None


def size_of(headers: bytes) -> int:
    """Return the length of the body of a message of which only the headers were asked for."""
    text = headers.partition(b"Nats-Msg-Size: ")[2].partition(b"\r\n")[0]
    return int(text) if text.isdigit() else 0


def written_letter(letter: Letter, cycle: str) -> tuple[bytes, bytes]:
    """Return the headers and the body of a dead letter. `cycle` tells two deaths of one event apart."""
    identity = hashlib.blake2b(f"{letter.group} {letter.topic} {letter.place} {cycle}".encode(), digest_size=16)
    words = letter.reason.encode("ascii", "replace").decode().translate({13: " ", 10: " "})
    headers = (
        f"Nats-Msg-Id: {identity.hexdigest()}\r\nMeshd-Group: {letter.group}\r\nMeshd-Topic: {letter.topic}\r\n"
        f"Meshd-Attempts: {letter.attempts}\r\nMeshd-Reason: {words[:200]}\r\n"
    )
    return headers.encode(), _encode(letter)


def read_letter(data: bytes) -> Letter | None:
    """Read a dead letter; None for what is none."""
    try:
        return _decode_letter(data)
    except msgspec.MsgspecError:
        return None


def told_letter(number: int, letter: Letter) -> DeadLetter:
    """Return it as the port has it."""
    return DeadLetter(
        number, letter.group, letter.topic, letter.event, letter.attempts, letter.reason, letter.died_ms / 1000
    )
