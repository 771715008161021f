"""What the bus on Kafka does, in the steps that every bus has (`meshd.engines.bus_shelf`)."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from meshd.engines.bus_event import sequence_text
from meshd.engines.bus_kafka_bodies import Bodies
from meshd.engines.bus_kafka_index import Found, digest_of, headers_of, partition_of
from meshd.engines.bus_kafka_journal import (
    Begin,
    Expire,
    Forget,
    GiveBack,
    Join,
    Leave,
    Revive,
    SetBack,
    Settle,
)
from meshd.engines.bus_port import DeadLetter, Delivery, Event, EventMalformed, Position, Published, Verdict
from meshd.engines.bus_rows import OUT, SET_BACK_MS
from meshd.engines.bus_shelf import Attempt, HandedOut, Patient, Settled, ordinal
from meshd.engines.port import StoreError, StoreUnable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from meshd.engines.bus_kafka_journal import Begun
    from meshd.engines.bus_kafka_log import Log
    from meshd.engines.bus_kafka_rows import Rows
    from meshd.engines.bus_kafka_wire import Headers
    from meshd.engines.bus_rows import Row
    from meshd.engines.bus_terms import Clock, Terms

log = logging.getLogger("meshd")

T = TypeVar("T")
P = ParamSpec("P")
ROWS_MAX: Final = 20_000
"""With so many events under way or waiting, a group comes to no more."""
TOGETHER_MAX: Final = 10_000
"""How many events are published together."""
OVERHEAD_BYTES: Final = 512
"""What a record takes beside what is in it, at most."""
GONE: Final = "the event is no longer in Kafka"


def _counted(
    method: Callable[Concatenate[Shelf, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Shelf, P], Coroutine[Any, Any, T]]:
    """Let `positions` wait for what was begun before it."""

    async def counted(self: Shelf, /, *args: P.args, **kwargs: P.kwargs) -> T:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.under_way.add(future)
        try:
            return await method(self, *args, **kwargs)
        finally:
            self.under_way.discard(future)
            future.set_result(None)

    return counted


class Shelf(Patient):
    """See the module."""

    is_crowded = False
    """Room is Kafka's."""

    def __init__(self, log_: Log, terms: Terms, clock: Clock) -> None:
        self.log = log_
        self.terms = terms
        self.under_way: set[asyncio.Future[None]] = set()
        self._clock = clock
        self._publishing: dict[bytes, asyncio.Future[Published]] = {}
        self.bodies = Bodies(log_)
        self.unheard = log_.unheard
        self._is_closed = False

    # Events.

    @_counted
    async def keep(self, events: Sequence[Event]) -> list[Published]:
        if len(events) > TOGETHER_MAX:
            raise StoreUnable(f"{len(events)} events are too many to be published together: at most {TOGETHER_MAX}")
        headers = [headers_of(event) for event in events]
        pairs = list(zip(events, headers, strict=True))
        for event, texts in pairs:
            self._check_size(event, texts)
        self.log.check()
        futures = [self._publish(event, texts) for event, texts in pairs]
        # What is on its way is not called back with whoever asked: others may wait for it, as for theirs.
        done = await asyncio.gather(*map(asyncio.shield, futures), return_exceptions=True)
        for one in done:
            if isinstance(one, BaseException):
                raise one
        seen: set[str] = set()
        published: list[Published] = []
        for one in done:
            assert isinstance(one, Published)
            # The second of a batch waits for the first.
            published.append(one._replace(is_duplicate=True) if one.sequence in seen else one)
            seen.add(one.sequence)
        return published

    def _check_size(self, event: Event, headers: Headers) -> None:
        size = len(event.data) + len(event.partition_key) * 3 + sum(len(text) for _, text in headers) + OVERHEAD_BYTES
        if size > self.log.record_bytes:
            raise EventMalformed(
                "data",
                f"and attributes are {size} bytes, more than max.message.bytes ({self.log.record_bytes}) of the topic",
            )

    def _publish(self, event: Event, headers: Headers) -> asyncio.Future[Published]:
        digest, partition = digest_of(event), partition_of(event, self.log.stride)
        future: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
        at_ms = self.log.now_ms()
        if (place := self.log.index.known(partition, digest, at_ms)) is not None:
            future.set_result(Published(event.id, sequence_text(place), is_duplicate=True))
            return future
        if (other := self._publishing.get(digest)) is not None:
            return asyncio.ensure_future(_as_duplicate(other))
        self._publishing[digest] = future
        future.add_done_callback(lambda _: self._publishing.pop(digest, None))

        def written(offset: int, error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
                return
            if offset >= 0:
                self.log.written(event, partition, offset, at_ms)
                if self.log.index.next[partition] > offset:
                    future.set_result(self._published(event, digest, partition, offset, at_ms))
                    return
            self.bodies.run(self._look_for(future, event, digest, partition, offset, at_ms))

        key = event.partition_key.encode() or None
        try:
            self.log.events.send(
                self.log.names.events, event.data, written, key=key, partition=partition, headers=headers, at_ms=at_ms
            )
        except (StoreError, EventMalformed) as error:
            future.set_exception(error)
        return future

    def _published(self, event: Event, digest: bytes, partition: int, offset: int, at_ms: int) -> Published:
        place = self.log.index.known(partition, digest, at_ms) or self.log.index.place(partition, offset)
        return Published(event.id, sequence_text(place), place != self.log.index.place(partition, offset))

    async def _look_for(
        self, future: asyncio.Future[Published], event: Event, digest: bytes, partition: int, offset: int, at_ms: int
    ) -> None:
        """Another sidecar wrote in between: what comes first is read."""
        try:
            if offset < 0:  # Kafka had it already, and does not say where
                ends = await self.log.ends.next(self.log.partitions())
                await self.log.catch_up(ends)
                known = self.log.index.known(partition, digest, at_ms)
                offset = -1 if known is None else self.log.index.spot(known)[1]
            else:
                await self.log.looked_at(partition, offset)
            if not future.done():
                future.set_result(self._published(event, digest, partition, offset, at_ms))
        except StoreError as error:
            if not future.done():
                future.set_exception(error)

    # Groups.

    async def join(self, group: str, topic: str, *, starts_at_oldest: bool) -> int:
        return await self.join_behind(group, topic, self._nothing if starts_at_oldest else self._everything)

    @_counted
    async def join_behind(self, group: str, topic: str, upto: Callable[[], Awaitable[dict[int, int]]]) -> int:
        """Find a group, or make one that begins behind the offsets that `upto` returns."""
        if self.log.journal.latest_ms > self.log.now_ms() + SET_BACK_MS:
            await self.log.ask(SetBack(*self.log.head()))
        known = self.log.journal.named.get((group, topic))
        if known is not None:
            return known.number
        begins = await upto()
        number = await self.log.ask(Join(*self.log.head(), group, topic, begins, self.terms.groups_max))
        return int(number)

    async def _nothing(self) -> dict[int, int]:
        return {}

    async def _everything(self) -> dict[int, int]:
        ends = await self.log.ends.next(self.log.partitions())
        return {number: end - 1 for (_, number), end in ends.items() if end}

    @_counted
    async def hand_out(self, group: int, handling_s: Sequence[float]) -> HandedOut:
        self.log.check()
        rows = self.log.journal.groups[group]
        now_ms, due_ms = self.log.now_ms(), rows.due_ms()
        lacking = len(handling_s) - len(rows.ready(len(handling_s)))
        is_due = due_ms is not None and due_ms <= now_ms
        taken, upto, is_more = Found([], {}, is_more=is_due)
        if lacking and not is_due and len(rows.rows) < ROWS_MAX:
            taken, upto, is_more = self.log.index.scan(rows, lacking)
        if lacking == len(handling_s) and not taken and not is_due:
            return HandedOut([], None if due_ms is None else due_ms / 1000, is_more)
        wait_ms = [max(1, round(one * 1000)) for one in handling_s]
        begun: Begun = await self.log.ask(Begin(*self.log.head(), group, wait_ms, taken, upto))
        deliveries = self._held(rows, await self._deliveries(rows, begun))
        due_ms = rows.due_ms()
        # Where another sidecar came first, there may be more behind that.
        is_more = is_more or not begun.are_new or len(deliveries) < len(begun.rows)
        return HandedOut(deliveries, None if due_ms is None else due_ms / 1000, is_more)

    async def _deliveries(self, rows: Rows, begun: Begun) -> list[Delivery]:
        try:
            events = await self.bodies.events([(place, row.letter) for place, row in begun.rows])
        except StoreError:
            await self._give_back(rows.number, [Attempt(place, row.attempt) for place, row in begun.rows], True)
            raise
        deliveries = []
        for (place, row), event in zip(begun.rows, events, strict=True):
            if event is None:
                last = self.log.head()[:3]
                await self.log.ask(Settle(*last, 0, rows.number, place, row.attempt, Verdict.RETRY, 0, GONE))
            else:
                deliveries.append(Attempt(place, row.attempt).handed(event, is_marked=row.is_marked))
        return deliveries

    def _held(self, rows: Rows, deliveries: list[Delivery]) -> list[Delivery]:
        """Return what is still this sidecar's, as far as it has read by now, whatever the time is here: by another's
        clock it may have been over, so that others have been handed it since, and have settled it.

        What an earlier attempt has settled meanwhile is given back as unseen, and is then done.
        """
        held: list[Delivery] = []
        done: list[tuple[int, int]] = []
        for one in deliveries:
            attempt, row = Attempt.of(one), rows.rows.get(one.place)
            if row is None or (row.state, row.attempt, row.owner) != (OUT, attempt.number, self.log.sidecar):
                continue
            if row.is_done:
                done.append(attempt)
            else:
                held.append(one)
        if done:
            self.log.write_quietly(GiveBack(*self.log.head(), rows.number, done, is_unseen=True))
        return held

    @_counted
    async def settle(
        self, group: int, attempt: Attempt, verdict: Verdict, retry_after_s: float | None, reason: str
    ) -> Settled:
        wait_s = self.terms.retry_s(ordinal(attempt.number)) if retry_after_s is None else retry_after_s
        said = Settle(*self.log.head(), group, *attempt, verdict, round(wait_s * 1000), reason)
        return await self.log.ask(said)  # type: ignore[no-any-return]

    @_counted
    async def give_back(self, group: int, attempts: Sequence[Attempt], *, is_unseen: bool) -> None:
        await self._give_back(group, attempts, is_unseen)

    async def _give_back(self, group: int, attempts: Sequence[Attempt], is_unseen: bool) -> None:
        await self.log.ask(GiveBack(*self.log.head(), group, [(one.place, one.number) for one in attempts], is_unseen))

    # Dead letters.

    @_counted
    async def dead_letters(self, group: str, after: int, limit: int) -> list[DeadLetter]:
        await self.log.barrier()
        chosen = sorted(
            ((id, rows, letter) for rows in self.log.journal.groups if rows.name == group
             for id, letter in rows.letters.items() if id > after),
            key=lambda one: one[0],
        )[:limit]  # fmt: skip
        events = await self.bodies.events([(letter.place, letter.body_at) for _, _, letter in chosen])
        return [
            DeadLetter(
                id,
                rows.name,
                rows.topic,
                event or Event("", "", sequence=sequence_text(letter.place)),
                ordinal(letter.attempts),
                letter.reason,
                letter.died_ms / 1000,
            )
            for (id, rows, letter), event in zip(chosen, events, strict=True)
        ]

    @_counted
    async def redrive(self, group: str, ids: Sequence[int]) -> list[int]:
        wanted = [id for id in ids if 0 < id < 2**63]
        return await self.log.ask(Revive(*self.log.head(), group, wanted))  # type: ignore[no-any-return]

    # What is too old.

    @_counted
    async def trim(self, within_s: float = 0.0) -> bool:
        # Closing waits for this, and a minute later is early enough.
        await self.log.barrier(within_s=within_s)
        now_ms = self.log.now_ms()
        gone_ms = now_ms - int(self.terms.keep_s * 1000)
        journal, index = self.log.journal, self.log.index
        old = index.older(gone_ms)
        removed = [place for place in old if not any(group.is_kept(place, gone_ms) for group in journal.groups)]
        expiring = {group.number: self._expired(group, removed, gone_ms) for group in journal.groups}
        floor = index.forget(removed)
        index.forget_ids(now_ms - int(max(self.terms.keep_s, self.terms.repeat_s) * 1000))
        for number, places in expiring.items():
            if places:
                await self.log.ask(Expire(*self.log.head(), number, places, floor, gone_ms))
        dead_ms = now_ms - int(self.terms.dead_keep_s * 1000)
        for group in list(journal.groups):
            too_old = [id for id, letter in group.letters.items() if letter.died_ms <= dead_ms]
            if too_old:
                await self.log.ask(Forget(*self.log.head(), group.number, too_old))
            for id, letter in list(group.letters.items()):
                # Whoever said that it died ended before it could do so.
                if not letter.body_at and letter.died_ms < now_ms - 60_000:
                    self.bodies.move(group, id)
        return False

    def _expired(self, group: Rows, removed: Sequence[int], gone_ms: int) -> list[int]:
        found = []
        # A sidecar that was just opened reads events again that were gone before the group began.
        young_ms = group.since_ms - int(self.terms.keep_s * 1000)
        for place in removed:
            entry = self.log.index.entry(place)
            is_lost = entry is not None and group.is_for(entry.topic) and entry.at_ms > young_ms
            if place in group.rows or (is_lost and group.is_beyond(place)):
                found.append(place)
        known = set(found)
        for place, row in group.rows.items():
            if place not in known and self._is_over(group, place, row, gone_ms):
                found.append(place)
        return found

    def _is_over(self, group: Rows, place: int, row: Row, gone_ms: int) -> bool:
        partition, offset = self.log.index.spot(place)
        is_read = offset < self.log.index.next[partition]
        return is_read and self.log.index.entry(place) is None and not group.is_kept(place, gone_ms)

    # Positions, and the end.

    async def positions(self) -> list[Position]:
        if self.under_way:
            await asyncio.wait(set(self.under_way))
        await self.log.barrier(with_events=True)
        return sorted(
            Position(group.name, group.topic, sequence_text(self._place(group)), *group.counts())
            for group in self.log.journal.groups
        )

    def _place(self, group: Rows) -> int:
        places = [self.log.index.place(number, group.upto.get(number, -1)) for number in range(self.log.stride)]
        return max(0, min(places) if self.log.stride == 1 else max(places))

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        await self.bodies.close()
        if any(row.owner == self.log.sidecar for group in self.log.journal.groups for row in group.rows.values()):
            try:
                await self.log.ask(Leave(*self.log.head()))
            except StoreError as error:
                log.warning("what was under way is handed out again once its time is over: %s", error)
        await self.log.close()


async def _as_duplicate(first: asyncio.Future[Published]) -> Published:
    return (await asyncio.shield(first))._replace(is_duplicate=True)
