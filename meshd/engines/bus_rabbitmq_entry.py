"""What stands in the log of a bus on RabbitMQ: an entry is one message, and holds what one sidecar asks, in order.

A group is named, not numbered, so that an entry says the same whatever stood before it. Times are Unix milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import msgspec

from meshd.engines.bus_port import DeadLetter, Delivery, Event, Position, Published, Verdict
from meshd.engines.port import StoreError

if TYPE_CHECKING:
    from meshd.engines.bus_shelf import Unheard
    from meshd.engines.bus_terms import Terms

FORMAT: Final = 3
TYPE: Final = "meshd.bus."
"""How the `type` of each message begins; the number of the format follows."""
TYPES: Final = frozenset(f"{TYPE}{one}" for one in range(1, FORMAT + 1))
"""What can be read."""


class Numbers(msgspec.Struct, frozen=True, array_like=True):
    """The part of `Terms` on which what an entry does depends: that of the last sidecar that came holds for all."""

    keep_ms: int
    keep_bytes: int
    repeat_ms: int
    dead_keep_ms: int
    attempts_max: int
    groups_max: int


def numbers_of(terms: Terms) -> Numbers:
    keep_ms, repeat_ms, dead_ms = (int(one * 1000) for one in (terms.keep_s, terms.repeat_s, terms.dead_keep_s))
    return Numbers(keep_ms, terms.keep_bytes, repeat_ms, dead_ms, terms.attempts_max, terms.groups_max)


class Group(msgspec.Struct, frozen=True, array_like=True):
    """A group's name and topic."""

    name: str
    topic: str


class _Command(msgspec.Struct, array_like=True, frozen=True):
    pass


class Hello(_Command, frozen=True, tag=0):
    """A sidecar is there, by a new connection: what it sent over an older one and is not in the log yet is void."""

    numbers: Numbers
    floor: int
    """A place that the sidecar knows of, perhaps of a log that is gone: no other event gets it."""


class Gone(_Command, frozen=True, tag=1):
    """A sidecar's connection of an epoch is gone, and it made no other: what it had under way goes to others."""

    sidecar: str
    epoch: int


class Keep(_Command, frozen=True, tag=2):
    events: list[Event]


class Join(_Command, frozen=True, tag=3):
    group: Group
    starts_at_oldest: bool
    at_ms: int | None = None
    """Where a new group begins instead: at a moment, or behind a place."""
    after: int | None = None


class HandOut(_Command, frozen=True, tag=4):
    group: Group
    handling_ms: list[int]


class Settle(_Command, frozen=True, tag=5):
    group: Group
    place: int
    attempt: int
    verdict: Verdict
    wait_ms: int
    """Until the next attempt, where the verdict is RETRY or, from format 3 on, DEFER."""
    reason: str


class GiveBack(_Command, frozen=True, tag=6):
    group: Group
    attempts: list[tuple[int, int]]
    """Places and numbers."""
    is_unseen: bool


class Letters(_Command, frozen=True, tag=7):
    """Read dead letters. Like Positions it changes nothing: it says up to where the log must have been read."""

    group: str
    after: int
    limit: int


class Redrive(_Command, frozen=True, tag=8):
    """As format 1 had it: attempts have the numbers of those before."""

    group: str
    ids: list[int]


class Positions(_Command, frozen=True, tag=9):
    pass


class Trim(_Command, frozen=True, tag=10):
    pass


class Claim(_Command, frozen=True, tag=11):
    """The first sidecar to say this makes the next copy of the state, in the queue `name`."""

    name: str


class Copied(_Command, frozen=True, tag=12):
    """A copy of the state is complete: it holds all entries before `offset`, and its queue is `name`."""

    name: str
    offset: int
    logged: int
    """Bytes of the log that it holds."""


class Revive(_Command, frozen=True, tag=13):
    """Hand dead letters to their group again."""

    group: str
    ids: list[int]


Command: TypeAlias = (
    Hello
    | Gone
    | Keep
    | Join
    | HandOut
    | Settle
    | GiveBack
    | Letters
    | Redrive
    | Positions
    | Trim
    | Claim
    | Copied
    | Revive
)


class Entry(msgspec.Struct, frozen=True, array_like=True):
    sidecar: str
    epoch: int
    """Of its connection."""
    number: int
    """Of the entry, among those of this epoch."""
    at_ms: int
    commands: list[Command]


class Message(NamedTuple):
    """What stands at one place of the log."""

    offset: int
    type: str
    body: bytes


class Outcome(NamedTuple):
    """What became of the commands of one of our own entries."""

    epoch: int
    number: int
    is_void: bool
    """It was not carried out, and never will be."""
    results: list[Any]
    """By command; a StoreError is raised where the command is awaited."""


class Applied(NamedTuple):
    """What reading on in the log has changed."""

    outcomes: list[Outcome]
    topics: set[str]
    """Of what others published."""
    freed: set[Group]
    """Groups of which something can be handed out that could not before."""
    dues: dict[Group, int]
    """When the next thing is due, of groups of which that has changed."""
    problem: StoreError | None
    """Why the log cannot be read on."""
    unheard: list[Unheard]
    """What our own entries have made dead letters of since nothing was heard of the last attempt."""


Result: TypeAlias = list[Published] | list[DeadLetter] | list[Position] | list[Delivery] | StoreError | None

encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder(Entry).decode
