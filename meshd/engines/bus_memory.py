"""A bus in memory: the model that the other engines are tested against, and one for a sidecar that keeps nothing."""

from __future__ import annotations

import heapq
import logging
from typing import TYPE_CHECKING

import msgspec

from meshd.engines.bus_event import matcher, sequence_text, size_of
from meshd.engines.bus_front import BusFront
from meshd.engines.bus_memory_group import Group, Kept, Pending
from meshd.engines.bus_port import DeadLetter, Delivery, Event, Position, Published, Topic, Verdict
from meshd.engines.bus_shelf import (
    AGAIN,
    UNHEARD,
    Attempt,
    HandedOut,
    Patient,
    Settled,
    Unheard,
    check_place,
    deferred,
    full,
    none_unheard,
    ordinal,
    redriven,
)
from meshd.engines.bus_terms import Clock, SteadyClock, Terms
from meshd.engines.port import Ability, StoreClosed, StoreFull

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.engines.bus_port import Start

log = logging.getLogger("meshd")

CHUNK = 500


class MemoryBus(BusFront):
    """Keeps events in a dict. Nothing survives the process."""

    name = "memory"
    caution = "it keeps nothing beyond this process"

    def __init__(self, *, terms: Terms | None = None, clock: Clock | None = None) -> None:
        self.abilities = frozenset({Ability.REPLAYS})
        terms = terms or Terms()
        clock = clock or SteadyClock()
        super().__init__(_Shelf(terms, clock), terms, clock)


class _Shelf(Patient):
    """`meshd.engines.bus_shelf.Shelf`, whose methods never wait."""

    def __init__(self, terms: Terms, clock: Clock) -> None:
        self._terms = terms
        self._clock = clock
        self._kept: dict[int, Kept] = {}
        """By sequence, in order."""
        self._back: dict[int, Event] = {}
        """What was redriven when it was kept no more, for the groups that asked for it alone."""
        self._known: dict[tuple[str, str], int] = {}
        self._groups: list[Group] = []
        self._latest = 0
        self._dead = 0
        self._bytes = 0
        self._is_closed = False
        self.is_crowded = False
        self.unheard = none_unheard()

    async def keep(self, events: Sequence[Event]) -> list[Published]:
        self._check()
        new = {(event.source, event.id): event for event in reversed(events)}
        size = sum(size_of(event) for key, event in new.items() if key not in self._known)
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
            self._kept[place] = one = Kept(event, self._clock.now_s())
            one.event = msgspec.structs.replace(event, sequence=sequence_text(place))
            self._bytes += one.bytes
        return Published(event.id, sequence_text(place), is_duplicate)

    async def join(self, group: str, topic: str, *, starts_at_oldest: bool) -> int:
        return self._join(group, topic, 0 if starts_at_oldest else self._latest)

    async def join_from(self, group: str, topic: str, start: Start) -> int:
        if start.after is not None:
            if not self._is_known(group, topic):
                behind = sum(place > start.after and one.event is not None for place, one in self._kept.items())
                check_place(start.after, self._latest, is_whole=behind == self._latest - start.after)
            return self._join(group, topic, start.after)
        at_s = start.at_s or 0.0
        first = next((place for place, one in self._kept.items() if one.at_s >= at_s), self._latest + 1)
        return self._join(group, topic, first - 1)

    def _is_known(self, group: str, topic: str) -> bool:
        return any((one.name, one.topic) == (group, topic) for one in self._groups)

    def _join(self, group: str, topic: str, position: int) -> int:
        self._check()
        for one in self._groups:
            if (one.name, one.topic) == (group, topic):
                return one.number
        if len(self._groups) >= self._terms.groups_max:
            raise StoreFull(f"the bus remembers {self._terms.groups_max} groups, and takes no more")
        number = len(self._groups)
        self._groups.append(Group(number, group, topic, position))
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
                pending = Pending(kept.event, is_led=bool(key) and key in one.by_key)
                one.add(place, pending)
                if not pending.is_led:
                    deliveries.append(self._begin(one, place, pending, now_s + handling_s[len(deliveries)]))
            one.position = place
            place += 1
        return HandedOut(deliveries, one.next_due_s(), is_more=False)

    def _begin(self, group: Group, place: int, one: Pending, ends_s: float) -> Delivery:
        one.attempt += 1
        one.is_out = True
        group.plan(place, one, ends_s)
        return Attempt(place, one.attempt).handed(one.event, is_marked=one.is_marked)

    def _fall_due(self, group: Group, now_s: float) -> None:
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
        if verdict in AGAIN and not one.is_out and one.due_s is not None and one.attempt == deferred(attempt.number):
            one.attempt += verdict is Verdict.RETRY
        elif not one.is_out or one.attempt != attempt.number:
            if verdict is not Verdict.SUCCESS:
                return Settled(counted=False)
            if one.is_out:
                one.is_done = True
                return Settled(counted)
            return Settled(counted, of.finish(place))
        elif one.is_done or verdict not in AGAIN:
            of.dropped += counted and verdict is Verdict.DROP
            return Settled(counted, of.finish(place))
        elif verdict is Verdict.DEFER:
            one.attempt = deferred(attempt.number)
        if verdict is Verdict.RETRY and ordinal(attempt.number) >= self._terms.attempts_max:
            return Settled(counted, self._bury(of, place, one, reason))
        wait_s = self._terms.retry_s(ordinal(attempt.number)) if retry_after_s is None else retry_after_s
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

    def _lose(self, group: Group, place: int, one: Pending) -> None:
        one.is_marked = True
        if one.is_done:
            group.finish(place)
        elif ordinal(one.attempt) >= self._terms.attempts_max:
            self._bury(group, place, one, UNHEARD)
            self.unheard.append(Unheard(group.name, self._dead))
        else:
            group.make_ready(place, one)

    def _bury(self, group: Group, place: int, one: Pending, reason: str) -> bool:
        self._dead += 1
        attempts, now_s = ordinal(one.attempt), self._clock.now_s()
        letter = DeadLetter(self._dead, group.name, group.topic, one.event, attempts, reason, now_s)
        group.dead[self._dead] = (letter, one)
        self._bytes += size_of(one.event)
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

    def _revive(self, group: Group, letter: DeadLetter, before: Pending) -> None:
        place, key = int(letter.event.sequence), letter.event.partition_key
        is_led = any(not group.pending[other].is_led for other in group.by_key.get(key, ()))
        pending = Pending(letter.event, is_led=is_led, since_s=self._clock.now_s(), is_marked=before.is_marked)
        pending.attempt = redriven(before.attempt)
        group.add(place, pending)
        if not is_led:
            group.make_ready(place, pending)
        kept = self._kept.get(place)
        if place in self._back or (kept is not None and kept.event is not None):
            self._bytes -= size_of(letter.event)
        else:
            self._back[place] = letter.event

    async def positions(self) -> list[Position]:
        self._check()
        found = []
        for one in self._groups:
            out = sum(pending.is_out for pending in one.pending.values())
            counts = (out, len(one.pending) - out, len(one.dead), one.dropped, one.expired)
            found.append(Position(one.name, one.topic, sequence_text(one.position), *counts))
        return sorted(found)

    async def kept(self, topic: str, after: int, limit: int) -> list[Event]:
        self._check()
        is_for = matcher(topic)
        found: list[Event] = []
        for place, one in self._kept.items():
            if place > after and one.event is not None and is_for(one.event.topic):
                if len(found) == limit:
                    break
                found.append(one.event)
        return found

    async def behind(self, topic: str, after: int, most: int) -> int:
        return len(await self.kept(topic, after, most))

    async def topics(self) -> list[Topic]:
        self._check()
        found: dict[str, Topic] = {}
        for one in self._kept.values():
            if one.event is not None:
                topic = one.event.topic
                before = found.get(topic, Topic(topic, 0, 0, ""))
                found[topic] = Topic(topic, before.events + 1, before.bytes + one.bytes, one.event.sequence)
        return sorted(found.values())

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
        for place, event in list(self._back.items()):
            if self._give_up(place, event, gone_s):
                del self._back[place]
                self._bytes -= size_of(event)
        for group in self._groups:
            for letter, _ in list(group.dead.values()):
                if letter.died_s <= now_s - self._terms.dead_keep_s:
                    del group.dead[letter.id]
                    self._bytes -= size_of(letter.event)
        return False

    def _give_up(self, place: int, event: Event, gone_s: float) -> bool:
        holders = [(group, group.pending[place]) for group in self._groups if place in group.pending]
        if any(one.is_out or one.since_s > gone_s for _, one in holders):
            return False
        for group, _ in holders:
            group.expired += 1
            group.finish(place)
        for group in self._groups if place not in self._back else ():
            group.expired += group.position < place and group.is_for(event.topic)
        return True

    def _free(self, bytes_wanted: int) -> int:
        freed, floor = 0, min((group.position for group in self._groups), default=self._latest)
        for place, event in list(self._back.items()):
            if not any(place in group.pending for group in self._groups):
                freed += size_of(event)
                del self._back[place]
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
