"""The embedded bus: one SQLite file, held alone (meshd.engines.sqlite_file). What is done to it is in bus_sqlite_shelf.

`fast` leaves the sync to the operating system: what is acknowledged survives a killed process, and not a power cut.
`durable` syncs before it acknowledges, once for all that wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, TypeVarTuple, Unpack

from meshd.engines.bus_front import BusFront
from meshd.engines.bus_shelf import HandedOut, Patient, Settled, counted_in_parts, kept_in_parts
from meshd.engines.bus_sqlite_replay import ReplayingShelf
from meshd.engines.bus_sqlite_shelf import FORMAT
from meshd.engines.bus_terms import Clock, SteadyClock, Terms
from meshd.engines.port import Ability
from meshd.engines.sqlite_file import SqliteFile

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from meshd.engines.bus_port import DeadLetter, Event, Position, Published, Start, Topic, Verdict
    from meshd.engines.bus_shelf import Attempt, Unheard

Arguments = TypeVarTuple("Arguments")
Outcome = TypeVar("Outcome")

INSTEAD = "give this sidecar a state directory of its own (MESHD_HOME), or a file (--bus sqlite:///path/bus.db)"


class SqliteBus(BusFront):
    """One file of events. The constructor opens it, and blocks while it does.

    Raises StoreError or one of its kinds: StoreNewer, StoreCorrupt, StoreLocked, StoreReadOnly, StoreFull.
    """

    name = "sqlite"

    def __init__(
        self,
        path: Path,
        *,
        is_durable: bool = False,
        terms: Terms | None = None,
        clock: Clock | None = None,
        busy_timeout_s: float = 1.0,
    ) -> None:
        terms = terms or Terms()
        clock = clock or SteadyClock()
        self.abilities = frozenset({Ability.REPLAYS, Ability.DURABLE} if is_durable else {Ability.REPLAYS})
        self.caution = "" if is_durable else "a power cut may take the last events with it (sqlite:?mode=durable)"
        shelf = ReplayingShelf(terms)
        file = SqliteFile(
            path,
            FORMAT,
            thread="meshd-bus",
            opened=lambda connection: shelf.open(connection, _ms(clock.now_s())),
            ended=lambda fault: shelf.start_over() if fault is not None else None,
            busy_timeout_s=busy_timeout_s,
            is_synced=is_durable,
            is_alone=True,
            instead=INSTEAD,
        )
        file.start()
        super().__init__(_Thread(file, shelf, clock), terms, clock)


class _Thread(Patient):
    """The shelf, asked through its file's thread."""

    def __init__(self, file: SqliteFile, shelf: ReplayingShelf, clock: Clock) -> None:
        self._file = file
        self._shelf = shelf
        self._clock = clock

    @property
    def is_crowded(self) -> bool:
        return self._shelf.is_crowded

    @property
    def unheard(self) -> deque[Unheard]:
        return self._shelf.unheard

    async def keep(self, events: Sequence[Event]) -> list[Published]:
        return await self._ask(self._shelf.keep, tuple(events), _ms(self._clock.now_s()))

    async def join(self, group: str, topic: str, *, starts_at_oldest: bool) -> int:
        return await self._ask(self._shelf.join, group, topic, starts_at_oldest)

    async def hand_out(self, group: int, handling_s: Sequence[float]) -> HandedOut:
        now_ms = _ms(self._clock.now_s())
        ends_ms = tuple(now_ms + _ms(one) for one in handling_s)
        deliveries, due_ms, is_more = await self._ask(self._shelf.hand_out, group, ends_ms, now_ms)
        return HandedOut(deliveries, None if due_ms is None else due_ms / 1000, is_more)

    async def settle(
        self, group: int, attempt: Attempt, verdict: Verdict, retry_after_s: float | None, reason: str
    ) -> Settled:
        wait_ms = None if retry_after_s is None else _ms(retry_after_s)
        now_ms = _ms(self._clock.now_s())
        return await self._ask(self._shelf.settle, group, attempt, verdict, wait_ms, reason, now_ms)

    async def give_back(self, group: int, attempts: Sequence[Attempt], *, is_unseen: bool) -> None:
        await self._ask(self._shelf.give_back, group, tuple(attempts), is_unseen, _ms(self._clock.now_s()))

    async def dead_letters(self, group: str, after: int, limit: int) -> list[DeadLetter]:
        return await self._ask(self._shelf.dead_letters, group, after, limit)

    async def redrive(self, group: str, ids: Sequence[int]) -> list[int]:
        return await self._ask(self._shelf.redrive, group, tuple(ids), _ms(self._clock.now_s()))

    async def positions(self) -> list[Position]:
        return await self._ask(self._shelf.positions)

    async def join_from(self, group: str, topic: str, start: Start) -> int:
        return await self._ask(self._shelf.join_from, group, topic, start.at_ms, start.after or 0)

    async def kept(self, topic: str, after: int, limit: int) -> list[Event]:
        return await kept_in_parts(lambda after, many: self._ask(self._shelf.kept, topic, after, many), after, limit)

    async def behind(self, topic: str, after: int, most: int) -> int:
        return await counted_in_parts(lambda after: self._ask(self._shelf.behind, topic, after), after, most)

    async def topics(self) -> list[Topic]:
        return await self._ask(self._shelf.topics)

    async def trim(self) -> bool:
        return await self._ask(self._shelf.trim, _ms(self._clock.now_s()))

    async def close(self) -> None:
        await self._file.close()

    async def _ask(self, run: Callable[[Unpack[Arguments]], Outcome], *arguments: *Arguments) -> Outcome:
        outcome: Outcome = await self._file.ask(run, arguments, is_write=True)
        return outcome


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
