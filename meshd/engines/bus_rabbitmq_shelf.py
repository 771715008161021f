"""The shelf of a bus on RabbitMQ: each step is a command in the log (meshd.engines.bus_rabbitmq_log)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from meshd.engines.bus_rabbitmq_entry import (
    GiveBack,
    Group,
    HandOut,
    Join,
    Keep,
    Letters,
    Positions,
    Revive,
    Settle,
    Trim,
)
from meshd.engines.bus_shelf import (
    AGAIN,
    Attempt,
    HandedOut,
    Settled,
    counted_in_parts,
    kept_in_parts,
    none_unheard,
    ordinal,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.engines.bus_port import DeadLetter, Event, Position, Published, Start, Topic, Verdict
    from meshd.engines.bus_rabbitmq_log import Log
    from meshd.engines.bus_rabbitmq_replica import Replica
    from meshd.engines.bus_terms import Terms


class LogShelf:
    """`meshd.engines.bus_shelf.Replays`. Numbers of groups are this sidecar's own."""

    def __init__(self, log: Log, terms: Terms, gone_s: float) -> None:
        """`gone_s`: how long a sidecar that lost its connection has what it had."""
        self.sure_s = gone_s
        self.unheard = none_unheard()
        self._log = log
        self._terms = terms
        self._groups: list[Group] = []
        self.numbers: dict[Group, int] = {}
        self._out: dict[Group, set[Attempt]] = {}
        """Handed out here, by the log that is read now."""
        self._void: set[tuple[Group, Attempt]] = set()
        """Handed out here by a log that is gone: their places may be other events' by now."""
        self._log_id = ""

    @property
    def is_crowded(self) -> bool:
        return self._log.is_crowded

    async def keep(self, events: Sequence[Event]) -> list[Published]:
        published: list[Published] = await self._log.ask(Keep(list(events))) if events else []
        return published

    async def join(self, group: str, topic: str, *, starts_at_oldest: bool) -> int:
        one = Group(group, topic)
        await self._log.ask(Join(one, starts_at_oldest))
        return self._number(one)

    async def join_from(self, group: str, topic: str, start: Start) -> int:
        one = Group(group, topic)
        await self._log.ask(Join(one, False, start.at_ms, start.after))
        return self._number(one)

    async def kept(self, topic: str, after: int, limit: int) -> list[Event]:
        look = self._log.look
        return await kept_in_parts(lambda after, many: look(functools.partial(_kept, topic, after, many)), after, limit)

    async def behind(self, topic: str, after: int, most: int) -> int:
        look = self._log.look
        return await counted_in_parts(lambda after: look(functools.partial(_behind, topic, after)), after, most)

    async def topics(self) -> list[Topic]:
        return await self._log.look(lambda replica: replica.topics())

    def _number(self, group: Group) -> int:
        number = self.numbers.get(group)
        if number is None:
            number = self.numbers[group] = len(self._groups)
            self._groups.append(group)
            self._log.watch(frozenset(self._groups))
        return number

    async def hand_out(self, group: int, handling_s: Sequence[float]) -> HandedOut:
        one = self._groups[group]
        handed: HandedOut = await self._log.ask(HandOut(one, [int(each * 1000) for each in handling_s]))
        self._look_at_log()
        self._out.setdefault(one, set()).update(map(Attempt.of, handed.deliveries))
        return handed

    async def is_held(self, group: int, attempt: Attempt) -> bool:
        one = self._groups[group]
        return not self._is_void(one, attempt) and await self._log.look(lambda replica: replica.is_held(one, attempt))

    async def settle(
        self, group: int, attempt: Attempt, verdict: Verdict, retry_after_s: float | None, reason: str
    ) -> Settled:
        one = self._groups[group]
        if self._is_void(one, attempt):
            return Settled(counted=False)
        wait_s = self._terms.retry_s(ordinal(attempt.number)) if retry_after_s is None else retry_after_s
        wait_ms = int(wait_s * 1000) if verdict in AGAIN else 0
        settled: Settled = await self._log.ask(Settle(one, attempt.place, attempt.number, verdict, wait_ms, reason))
        self._out.get(one, set()).discard(attempt)
        return settled

    async def give_back(self, group: int, attempts: Sequence[Attempt], *, is_unseen: bool) -> None:
        one = self._groups[group]
        several = [(each.place, each.number) for each in attempts if not self._is_void(one, each)]
        if several:
            await self._log.ask(GiveBack(one, several, is_unseen))
            self._out.get(one, set()).difference_update(attempts)

    def _is_void(self, group: Group, attempt: Attempt) -> bool:
        self._look_at_log()
        if (group, attempt) in self._void:
            self._void.discard((group, attempt))
            return True
        return False

    def _look_at_log(self) -> None:
        if self._log.log_id != self._log_id:
            if self._log_id:
                self._void.update((group, one) for group, several in self._out.items() for one in several)
                self._out.clear()
            self._log_id = self._log.log_id

    async def dead_letters(self, group: str, after: int, limit: int) -> list[DeadLetter]:
        letters: list[DeadLetter] = await self._log.ask(Letters(group, after, limit))
        return letters

    async def redrive(self, group: str, ids: Sequence[int]) -> list[int]:
        groups: list[Group] = await self._log.ask(Revive(group, list(ids)))
        return [self._number(one) for one in groups]

    async def positions(self) -> list[Position]:
        positions: list[Position] = await self._log.ask(Positions())
        return positions

    async def trim(self) -> bool:
        is_more: bool = await self._log.ask(Trim())
        return is_more

    async def close(self) -> None:
        await self._log.take_leave()
        await self._log.close()


def _kept(topic: str, after: int, limit: int, replica: Replica) -> tuple[list[Event], int]:
    return replica.kept(topic, after, limit)


def _behind(topic: str, after: int, replica: Replica) -> tuple[int, int]:
    return replica.behind(topic, after)
