"""The bus port: events with the attributes of CloudEvents 1.0, kept until every group has handled them.

A group is a name and a topic: subscribers that give the same two share the events, each of which one of them handles.
What a group has settled with SUCCESS it never sees again. An event whose end is unknown (its handler took too long,
its subscriber or the sidecar went away) is handed out again, marked. docs/events.md says it all, with the numbers.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import msgspec

from meshd.engines.port import StoreUnable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.engines.port import Ability

HANDLING_S: Final = 300.0
"""How long a handler may take where its subscriber does not say (proto/meshd/v1/events.proto)."""
KEEP_S: Final = 7 * 86_400.0
"""How long an event is kept."""
KEEP_BYTES: Final = 2**30
"""How much is kept: beyond it, what no group still needs goes, then publishing is refused."""
REPEAT_S: Final = 86_400.0
"""How long at least the same (source, id) is known as the same event."""
DEAD_KEEP_S: Final = 30 * 86_400.0
"""How long a dead letter is kept."""
ATTEMPTS_MAX: Final = 8
"""After so many attempts without SUCCESS or DROP, an event is a dead letter of its group."""
GROUPS_MAX: Final = 10_000
"""How many groups a bus remembers."""
PLACE_MAX: Final = 2**62
"""Above every place, and every id of a dead letter."""


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An event. Attributes are those of proto/meshd/v1/events.proto, where each is explained.

    Engines keep it as a MessagePack array: a new field goes last and has a default.
    """

    topic: str
    source: str
    id: str = ""
    """Empty for one that the bus chooses."""
    type: str = ""
    """Empty for the topic."""
    subject: str = ""
    time_ns: int = 0
    """`time`, in Unix nanoseconds; 0 for the moment in which it is published."""
    data_content_type: str = ""
    """Empty for `application/json`."""
    data_schema: str = ""
    data: bytes = b""
    data_ref: str = ""
    partition_key: str = ""
    correlation_id: str = ""
    causation_id: str = ""
    sequence: str = ""
    """Written by the bus: 20 digits that grow within a topic, not by one."""
    extensions: dict[str, str] = {}
    token: bytes = b""
    """The context in which it was published, as the sidecar wrote it: no attribute, and never shown to an agent."""
    clock: bytes = b""
    """What its publisher's sidecar knew, signed as on a hop between two sidecars: no attribute, and never shown."""


class Published(NamedTuple):
    """What became of an event that was published."""

    id: str
    sequence: str
    is_duplicate: bool
    """Its (source, id) had been published before, so that nothing was done."""


class Verdict(str, Enum):
    """What a handler says of an event (its protobuf's UNSPECIFIED is RETRY)."""

    SUCCESS = "success"
    RETRY = "retry"
    DROP = "drop"
    DEFER = "defer"
    """Said by no handler, but for one: the attempt ended since somebody must decide first, and does not count."""


class Delivery(NamedTuple):
    """One attempt at one event."""

    event: Event
    attempt: int
    """From 1."""
    may_have_been_handled: bool
    """An earlier attempt may have been carried out, although nothing was heard of it."""
    place: int
    """Names the event within its bus."""
    life: int = 0
    """Grows where it is redriven, and attempts are counted from 1 again, and where an attempt was set aside."""

    @property
    def token(self) -> bytes:
        """The context in which the event was published."""
        return self.event.token


class DeadLetter(NamedTuple):
    """An event that a group gave up."""

    id: int
    """Names it for `Bus.redrive`; grows."""
    group: str
    topic: str
    """The group's topic, with its wildcards."""
    event: Event
    attempts: int
    reason: str
    """Of the last attempt."""
    died_s: float
    """Unix seconds."""


class Position(NamedTuple):
    """How far a group has come."""

    group: str
    topic: str
    sequence: str
    """Every event up to this one has been handed out, or is among those that are counted here."""
    under_way: int
    waiting: int
    """For their retry, or behind another of their key."""
    dead: int
    dropped: int
    expired: int
    """Given up because they had been kept for as long as events are."""


class Start(NamedTuple):
    """Where a new group begins: exactly one of the two is set. A group that is known goes on where it was."""

    at_s: float | None = None
    """With what was published at this moment (Unix seconds) or later, as far as it is kept. No moment to come."""
    after: int | None = None
    """Behind this place: the `sequence` of an event of this bus, as a number, behind which all is kept; or 0, for the
    oldest event that is kept."""

    @property
    def at_ms(self) -> int | None:
        """The moment as engines count it: the first whole millisecond that is no earlier."""
        return None if self.at_s is None else math.ceil(self.at_s * 1000)


class Topic(NamedTuple):
    """A topic that has events."""

    topic: str
    events: int
    bytes: int
    latest: str
    """`sequence` of the last of them."""


class Subscription(Protocol):
    """One subscriber of a group. Methods may raise StoreError; after `close`, next and settle raise StoreClosed."""

    group: str

    async def next(self) -> Delivery:
        """Wait for an event and return it. Nothing is fetched ahead: each waiting `next` is one unit of credit.

        Who cancels it was handed nothing.
        """
        ...

    async def settle(
        self, delivery: Delivery, verdict: Verdict, *, retry_after_s: float | None = None, reason: str = ""
    ) -> bool:
        """Say what became of a delivery; return whether that counted.

        It does not where the delivery is settled already, or is no longer this subscriber's because it took too long;
        SUCCESS counts even then, unless the event is settled. RETRY waits for `retry_after_s`, or for a time drawn
        from 0 to a bound that doubles with each attempt; at the last attempt the event becomes a dead letter. Raises
        EventMalformed for a `retry_after_s` that is no time.
        """
        ...

    async def defer(self, delivery: Delivery, wait_s: float) -> bool:
        """Set an attempt aside, which then does not count: the event is handed out again, at the same attempt, after
        `wait_s`. Said again before that, it waits for `wait_s` from now on, and is handed out at once where that is 0.

        Return whether it does. May be called after `close` too, as long as the bus is open.
        """
        ...

    async def lapse(self, delivery: Delivery, reason: str) -> bool:
        """End the wait of what was set aside, in vain: the attempt counts after all, as one that ended with RETRY.
        Return whether it does. May be called after `close`, as above."""
        ...

    def left_s(self, delivery: Delivery) -> float:
        """Return for how many seconds its handler may yet do something that it must hear of in its time; 0 where that
        is over, or the delivery is not this subscriber's."""
        ...

    async def holds(self, delivery: Delivery) -> bool:
        """Say whether a delivery may be handed to its handler at this moment; to be asked right before that.

        Where too little of its time is left, or the engine has taken this sidecar for gone, another may have it by now,
        and have settled it. It is then given back as unseen. `next` has asked when it returns.
        """
        ...

    def is_sure(self, delivery: Delivery) -> bool:
        """Say whether that is so without asking anybody: where not, `holds` may find it so all the same."""
        ...

    async def give_back(self, delivery: Delivery, *, is_unseen: bool) -> None:
        """End an attempt of which nothing will be heard: the event goes to others at once, marked, or is a dead letter
        where it was the last. With `is_unseen` nobody was handed it: the attempt does not count, and it is not marked.

        Where the delivery is settled, or no longer this subscriber's, nothing is done.
        """
        ...

    async def close(self) -> None:
        """End it: what is unsettled goes to others at once, marked, and a `next` that waits raises StoreClosed."""
        ...


class Bus(Protocol):
    """What an engine that carries events offers. Methods raise StoreError, EventMalformed, and nothing else."""

    name: str
    abilities: frozenset[Ability]
    unheard: Callable[[DeadLetter], None] | None
    """Told, at one of the sidecars that share the bus, of each that became a dead letter since nothing was heard of its
    last attempt: no handler has said so."""
    caution: str
    """Why acknowledged events may be lost all the same, in words for an operator; empty where they may not."""

    async def publish(self, events: Sequence[Event]) -> list[Published]:
        """Keep events, in order, and return when they are kept: all of them, or, where an error is raised, none.

        The same (source, id) is the same event and kept once, for as long as events are kept and at least 24 hours.
        """
        ...

    async def subscribe(
        self,
        topic: str,
        group: str,
        *,
        starts_at_oldest: bool = False,
        handling_s: float = HANDLING_S,
        start: Start | None = None,
    ) -> Subscription:
        """Join a group, which begins with what is published from now on, or with what is still kept.

        `start` says where else a new group begins, on a bus with `Ability.REPLAYS`; StoreUnable on any other, and
        StartGone where it cannot begin there. In `topic`, `*` stands for one word and a `>` at the end for one or
        more. Events of a group with the same partition key are handed out one after the other. `handling_s`: how long
        a handler may take.
        """
        ...

    async def dead_letters(self, group: str, after: int = 0, limit: int = 100) -> list[DeadLetter]:
        """Return up to `limit` dead letters of a group, oldest first, with ids above `after`."""
        ...

    async def redrive(self, group: str, ids: Sequence[int]) -> int:
        """Hand dead letters to their group again, as if for the first time; return how many there were."""
        ...

    async def positions(self) -> list[Position]:
        """Return how far each group has come."""
        ...

    async def kept(self, topic: str, after: int = 0, limit: int = 100) -> list[Event]:
        """Return up to `limit` events that are kept, of topics that `topic` stands for, behind the place `after`.
        Nobody's place in them is changed. StoreUnable without `Ability.REPLAYS`."""
        ...

    async def behind(self, topic: str, after: int, most: int) -> int:
        """Return how many events of `topic` are kept behind the place `after`, `most` for more. StoreUnable without
        `Ability.REPLAYS`."""
        ...

    async def topics(self) -> list[Topic]:
        """Return what topics have events that are kept, by name. StoreUnable without `Ability.REPLAYS`."""
        ...

    async def close(self) -> None:
        """Finish what was asked for and let go. Closing twice is fine; anything else afterwards is StoreClosed."""
        ...


class StartGone(StoreUnable):
    """No new group can begin behind a place: it is another bus's, or some of what came behind it is kept no more."""


class EventMalformed(ValueError):
    """An event, topic, group or time that is none; `field` is its name in the protocol."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(f"{field}: {text}")
        self.field = field
        self.text = text
