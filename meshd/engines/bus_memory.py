"""A bus in memory: the model that the other engines are tested against, and one for a sidecar that keeps nothing."""

from __future__ import annotations

import heapq
import logging
from typing import TYPE_CHECKING

import msgspec

from meshd.engines.bus_event import matcher, sequence_text
from meshd.engines.bus_front import BusFront
from meshd.engines.bus_port import DeadLetter, Delivery, Event, Position, Published, Verdict
from meshd.engines.bus_shelf import HandedOut, Settled, full
from meshd.engines.bus_terms import EVENT_BYTES, Clock, SteadyClock, Terms
from meshd.engines.port import StoreClosed, StoreFull

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from meshd.engines.bus_shelf import Attempt
    from meshd.engines.port import Ability

log = logging.getLogger("meshd")

UNHEARD = "nothing was heard of the last attempt"
CHUNK = 500


class MemoryBus(BusFront):
    """Keeps events in a dict. Nothing survives the process."""

    name = "memory"
    caution = "it keeps nothing beyond this process"

    def __init__(self, *, terms: Terms | None = None, clock: Clock | None = None) -> None:
        self.abilities: frozenset[Ability] = frozenset()
        terms = terms or Terms()
        clock = clock or SteadyClock()
        super().__init__(_Shelf(terms, clock), terms, clock)


class _Kept:
    """An event that is kept; without its event, an id that is still known."""

    __slots__ = ("at_s", "bytes", "event", "id")

    def __init__(self, event: Event, at_s: float) -> None:
        self.event: Event | None = event
        self.id = (event.source, event.id)
        self.at_s = at_s
        self.bytes = _size(event)


class _Pending:
    """An event that a group has begun with and not settled. It is READY where nothing else is said."""

    __slots__ = ("attempt", "due_s", "event", "is_done", "is_led", "is_marked", "is_out", "since_s")

    def __init__(self, event: Event, *, is_led: bool, since_s: float = 0.0, is_marked: bool = False) -> None:
        self.event = event
        self.attempt = 0
        self.due_s: float | None = None
        """When its attempt is over, or its retry due; None where it is ready."""
        self.is_out = False
        self.is_led = is_led
        """Another of its key comes first."""
        self.is_marked = is_marked
        self.is_done = False
        self.since_s = since_s


class _Group:
    def __init__(self, number: int, name: str, topic: str, position: int) -> None:
        self.number = number
        self.name = name
        self.topic = topic
        self.is_for = matcher(topic)
        self.position = position
        self.pending: dict[int, _Pending] = {}
        self.by_key: dict[str, list[int]] = {}
        """Sequences in `pending` with a partition key, in order."""
        self.ready: list[int] = []
        """A heap of sequences; some may be ready no more."""
        self.due: list[tuple[float, int]] = []
        """A heap of times and sequences; some may be out of date."""
        self.dead: dict[int, tuple[DeadLetter, bool]] = {}
        """By id, with whether it may have been handled."""
        self.dropped = 0
        self.expired = 0

    def add(self, place: int, one: _Pending) -> None:
        self.pending[place] = one
        if key := one.event.partition_key:
            self.by_key.setdefault(key, []).append(place)

    def plan(self, place: int, one: _Pending, due_s: float) -> None:
        one.due_s = due_s
        heapq.heappush(self.due, (due_s, place))

    def make_ready(self, place: int, one: _Pending) -> None:
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

    def pop_ready(self) -> Iterator[tuple[int, _Pending]]:
        while self.ready:
            place = heapq.heappop(self.ready)
            one = self.pending.get(place)
            if one is not None and not one.is_out and not one.is_led and one.due_s is None:
                yield place, one


class _Shelf:
    """`meshd.engines.bus_front.Shelf`, whose methods never wait."""

    def __init__(self, terms: Terms, clock: Clock) -> None:
        self._terms = terms
        self._clock = clock
        self._kept: dict[int, _Kept] = {}
        """By sequence, in order."""
        self._known: dict[tuple[str, str], int] = {}
        self._groups: list[_Group] = []
        self._latest = 0
        self._dead = 0
        self._bytes = 0
        self._is_closed = False
        self.is_crowded = False

    async def keep(self, events: Sequence[Event]) -> list[Published]:
        self._check()
        new = {(event.source, event.id): event for event in reversed(events)}
        size = sum(_size(event) for key, event in new.items() if key not in self._known)
        over = self._bytes + size - self._terms.keep_bytes
        self.is_crowded = over > -self._terms.keep_bytes // 8
        if size and over > 0 and self._free(over) < over:
            behind = min(self._groups, key=lambda group: group.position, default=None)
            raise full(self._terms, f"{behind.name} ({behind.topic})" if behind else "")
        return [self._keep(event) for event in events]

    def _keep(self, event: Event) -> Published:
        place = self._known.get((event.source, event.id))
        is_duplicate = place is not None
        if place is None:
            place = self._latest = self._latest + 1
            self._known[event.source, event.id] = place
            self._kept[place] = one = _Kept(event, self._clock.now_s())
            one.event = msgspec.structs.replace(event, sequence=sequence_text(place))
            self._bytes += one.bytes
        return Published(event.id, sequence_text(place), is_duplicate)

    async def join(self, group: str, topic: str, *, starts_at_oldest: bool) -> int:
        self._check()
        for one in self._groups:
            if (one.name, one.topic) == (group, topic):
                return one.number
        if len(self._groups) >= self._terms.groups_max:
            raise StoreFull(f"the bus remembers {self._terms.groups_max} groups, and takes no more")
        number = len(self._groups)
        self._groups.append(_Group(number, group, topic, 0 if starts_at_oldest else self._latest))
        return number

    async def hand_out(self, group: int, handling_s: Sequence[float]) -> HandedOut:
        self._check()
        one, now_s = self._groups[group], self._clock.now_s()
        self._fall_due(one, now_s)
        deliveries: list[Delivery] = []
        ready = one.pop_ready()
        while len(deliveries) < len(handling_s) and (found := next(ready, None)) is not None:
            deliveries.append(self._begin(one, *found, now_s + handling_s[len(deliveries)]))
        first = next(iter(self._kept), 0)
        place = max(one.position + 1, first)
        while len(deliveries) < len(handling_s) and place <= self._latest:
            kept = self._kept.get(place)
            if kept is not None and kept.event is not None and one.is_for(kept.event.topic):
                key = kept.event.partition_key
                pending = _Pending(kept.event, is_led=bool(key) and key in one.by_key)
                one.add(place, pending)
                if not pending.is_led:
                    deliveries.append(self._begin(one, place, pending, now_s + handling_s[len(deliveries)]))
            one.position = place
            place += 1
        return HandedOut(deliveries, one.next_due_s(), is_more=False)

    def _begin(self, group: _Group, place: int, one: _Pending, ends_s: float) -> Delivery:
        one.attempt += 1
        one.is_out = True
        group.plan(place, one, ends_s)
        return Delivery(one.event, one.attempt, one.is_marked, place)

    def _fall_due(self, group: _Group, now_s: float) -> None:
        while (due_s := group.next_due_s()) is not None and due_s <= now_s:
            _, place = heapq.heappop(group.due)
            one = group.pending[place]
            if one.is_out:
                self._lose(group, place, one)
            else:
                group.make_ready(place, one)

    async def settle(
        self, group: int, attempt: Attempt, verdict: Verdict, retry_after_s: float | None, reason: str
    ) -> Settled:
        self._check()
        of, place = self._groups[group], attempt.place
        one = of.pending.get(place)
        if one is None:
            return Settled(counted=False)
        counted = not one.is_done
        if not one.is_out or one.attempt != attempt.number:
            if verdict is not Verdict.SUCCESS:
                return Settled(counted=False)
            if one.is_out:
                one.is_done = True
                return Settled(counted)
            return Settled(counted, of.finish(place))
        if one.is_done or verdict is not Verdict.RETRY:
            of.dropped += counted and verdict is Verdict.DROP
            return Settled(counted, of.finish(place))
        if one.attempt >= self._terms.attempts_max:
            return Settled(counted, self._bury(of, place, one, reason))
        wait_s = self._terms.retry_s(one.attempt) if retry_after_s is None else retry_after_s
        one.is_out = False
        of.plan(place, one, self._clock.now_s() + wait_s)
        return Settled(counted, due_s=one.due_s)

    async def give_back(self, group: int, attempts: Sequence[Attempt], *, is_unseen: bool) -> None:
        self._check()
        of = self._groups[group]
        for place, number in attempts:
            one = of.pending.get(place)
            if one is None or not one.is_out or one.attempt != number:
                continue
            if is_unseen and not one.is_done:
                one.attempt -= 1
                of.make_ready(place, one)
            else:
                self._lose(of, place, one)

    def _lose(self, group: _Group, place: int, one: _Pending) -> None:
        one.is_marked = True
        if one.is_done:
            group.finish(place)
        elif one.attempt >= self._terms.attempts_max:
            self._bury(group, place, one, UNHEARD)
        else:
            group.make_ready(place, one)

    def _bury(self, group: _Group, place: int, one: _Pending, reason: str) -> bool:
        self._dead += 1
        letter = DeadLetter(self._dead, group.name, group.topic, one.event, one.attempt, reason, self._clock.now_s())
        group.dead[self._dead] = (letter, one.is_marked)
        self._bytes += _size(one.event)
        log.warning("event %d is a dead letter of the group %s (%s)", place, group.name, group.topic)
        return group.finish(place)

    async def dead_letters(self, group: str, after: int, limit: int) -> list[DeadLetter]:
        self._check()
        found = [letter for one in self._groups if one.name == group for letter, _ in one.dead.values()]
        return sorted(letter for letter in found if letter.id > after)[:limit]

    async def redrive(self, group: str, ids: Sequence[int]) -> list[int]:
        self._check()
        groups = []
        for number in ids:
            for one in self._groups:
                if one.name == group and number in one.dead:
                    self._revive(one, *one.dead.pop(number))
                    groups.append(one.number)
        return groups

    def _revive(self, group: _Group, letter: DeadLetter, is_marked: bool) -> None:
        place, key = int(letter.event.sequence), letter.event.partition_key
        is_led = any(not group.pending[other].is_led for other in group.by_key.get(key, ()))
        pending = _Pending(letter.event, is_led=is_led, since_s=self._clock.now_s(), is_marked=is_marked)
        group.add(place, pending)
        if not is_led:
            group.make_ready(place, pending)
        self._bytes -= _size(letter.event)

    async def positions(self) -> list[Position]:
        self._check()
        found = []
        for one in self._groups:
            out = sum(pending.is_out for pending in one.pending.values())
            counts = (out, len(one.pending) - out, len(one.dead), one.dropped, one.expired)
            found.append(Position(one.name, one.topic, sequence_text(one.position), *counts))
        return sorted(found)

    async def trim(self) -> bool:
        self._check()
        now_s = self._clock.now_s()
        over = self._bytes - self._terms.keep_bytes + self._terms.keep_bytes // 8
        self.is_crowded = over > 0 and self._free(over) < over
        gone_s, forgotten_s = now_s - self._terms.keep_s, now_s - max(self._terms.keep_s, self._terms.repeat_s)
        for place, one in list(self._kept.items()):
            if one.at_s > gone_s:
                break
            if one.event is not None and not self._give_up(place, one.event, gone_s):
                continue
            self._bytes -= one.bytes
            one.event, one.bytes = None, 0
            if one.at_s <= forgotten_s:
                del self._kept[place], self._known[one.id]
        for group in self._groups:
            for letter, _ in list(group.dead.values()):
                if letter.died_s <= now_s - self._terms.dead_keep_s:
                    del group.dead[letter.id]
                    self._bytes -= _size(letter.event)
        return False

    def _give_up(self, place: int, event: Event, gone_s: float) -> bool:
        holders = [(group, group.pending[place]) for group in self._groups if place in group.pending]
        if any(one.is_out or one.since_s > gone_s for _, one in holders):
            return False
        for group, _ in holders:
            group.expired += 1
            group.finish(place)
        for group in self._groups:
            group.expired += group.position < place and group.is_for(event.topic)
        return True

    def _free(self, bytes_wanted: int) -> int:
        freed, floor = 0, min((group.position for group in self._groups), default=self._latest)
        for place, one in self._kept.items():
            if freed >= bytes_wanted or place > floor:
                break
            if not any(place in group.pending for group in self._groups):
                freed += one.bytes
                one.event, one.bytes = None, 0
        self._bytes -= freed
        return freed

    async def close(self) -> None:
        self._is_closed = True

    def _check(self) -> None:
        if self._is_closed:
            raise StoreClosed("the bus in memory was closed")


def _size(event: Event) -> int:
    texts = (event.topic, event.source, event.id, event.type, event.subject, event.data_ref, event.partition_key)
    return EVENT_BYTES + len(event.data) + len(event.token) + sum(map(len, texts))
