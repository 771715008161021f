"""What the bus in memory keeps: events, groups, and what these have begun with and not settled."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

from meshd.engines.bus_event import matcher, size_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshd.engines.bus_port import DeadLetter, Event


class Kept:
    """An event that is kept; without its event, an id that is still known."""

    __slots__ = ("at_s", "bytes", "event", "id")

    def __init__(self, event: Event, at_s: float) -> None:
        self.event: Event | None = event
        self.id = (event.source, event.id)
        self.at_s = at_s
        self.bytes = size_of(event)


class Pending:
    """An event that a group has begun with and not settled. It is READY where nothing else is said."""

    __slots__ = ("attempt", "due_s", "event", "is_done", "is_led", "is_marked", "is_out", "since_s")

    def __init__(self, event: Event, *, is_led: bool, since_s: float = 0.0, is_marked: bool = False) -> None:
        self.event = event
        self.attempt = 0
        """Number of the last one (`meshd.engines.bus_shelf.LIFE`)."""
        self.due_s: float | None = None
        """When its attempt is over, or its retry due; None where it is ready."""
        self.is_out = False
        self.is_led = is_led
        """Another of its key comes first."""
        self.is_marked = is_marked
        self.is_done = False
        self.since_s = since_s


class Group:
    """One group."""

    def __init__(self, number: int, name: str, topic: str, position: int) -> None:
        self.number = number
        self.name = name
        self.topic = topic
        self.is_for = matcher(topic)
        self.position = position
        self.pending: dict[int, Pending] = {}
        self.by_key: dict[str, list[int]] = {}
        """Sequences in `pending` with a partition key, in order."""
        self.ready: list[int] = []
        """A heap of sequences; some may be ready no more."""
        self.due: list[tuple[float, int]] = []
        """A heap of times and sequences; some may be out of date."""
        self.dead: dict[int, tuple[DeadLetter, Pending]] = {}
        """By id, with what it was."""
        self.dropped = 0
        self.expired = 0

    def add(self, place: int, one: Pending) -> None:
        self.pending[place] = one
        if key := one.event.partition_key:
            self.by_key.setdefault(key, []).append(place)

    def plan(self, place: int, one: Pending, due_s: float) -> None:
        one.due_s = due_s
        heapq.heappush(self.due, (due_s, place))

    def make_ready(self, place: int, one: Pending) -> None:
        one.is_out = one.is_led = False
        one.due_s = None
        heapq.heappush(self.ready, place)

    def finish(self, place: int) -> bool:
        """Be done with an event; return whether another can be handed out now."""
        one = self.pending.pop(place)
        key = one.event.partition_key
        if not key:
            return False
        places = self.by_key[key]
        places.remove(place)
        if not places:
            del self.by_key[key]
            return False
        if any(not self.pending[other].is_led for other in places):
            return False
        first = min(places)
        self.make_ready(first, self.pending[first])
        return True

    def next_due_s(self) -> float | None:
        while self.due:
            due_s, place = self.due[0]
            one = self.pending.get(place)
            if one is not None and one.due_s == due_s:
                return due_s
            heapq.heappop(self.due)
        return None

    def pop_ready(self) -> Iterator[tuple[int, Pending]]:
        while self.ready:
            place = heapq.heappop(self.ready)
            one = self.pending.get(place)
            if one is not None and not one.is_out and not one.is_led and one.due_s is None:
                yield place, one
