"""The log of a bus on RabbitMQ, as one sidecar writes and reads it.

What is asked makes an entry; its answer is what carrying it out has given, once it is read back: what is read from a
stream is written by as many servers as the stream says. What waits while an entry is under way makes the next one.

Whoever asks something twice over two connections might have it done twice. So each connection has an epoch, and its
first entry says so: in the log, nothing counts that its sidecar sent over an older one and that comes later. When that
first entry has been read back, what has not been answered is known not to be in the log, and to never be. What must not
be lost (verdicts, what is given back) is then said again, and who waits for events asks anew.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import sqlite3
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from meshd.engines import bus_rabbitmq_server as server
from meshd.engines.bus_rabbitmq_entry import (
    TYPE,
    Claim,
    Entry,
    Gone,
    Hello,
    Keep,
    Letters,
    encode,
    numbers_of,
)
from meshd.engines.bus_rabbitmq_item import Item, asked_anew
from meshd.engines.bus_rabbitmq_pair import Pair
from meshd.engines.bus_rabbitmq_reading import Reader
from meshd.engines.bus_shelf import HandedOut
from meshd.engines.link import Link, Look, answered_within, in_doubt, told
from meshd.engines.port import StoreClosed, StoreError, StoreFull
from meshd.engines.url import CONNECT_TIMEOUT_S, TIMEOUT_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiormq.abc import DeliveredMessage

    from meshd.engines.bus_rabbitmq_entry import Applied, Command, Group, Outcome
    from meshd.engines.bus_rabbitmq_replica import Replica
    from meshd.engines.bus_rabbitmq_server import Sizes
    from meshd.engines.bus_terms import Clock, Terms
    from meshd.engines.url import StoreUrl

log = logging.getLogger("meshd")

T = TypeVar("T")
FLYING_MAX: Final = 4
"""Entries that are under way at once; what is asked meanwhile makes the next one."""
COMMANDS_MAX: Final = 256
ENTRY_BYTES: Final = 2**20
"""An entry takes no further command beyond this."""
KEPT_BYTES_MAX: Final = 15 * 2**20
"""Of what is published at once: RabbitMQ 4 takes messages of 16 MiB, as it is set up by default."""
COPY_AGAIN_S: Final = 60.0
"""How long until a copy of the state is tried again."""
GONE_AFTER_S: Final = 5.0
"""How long a sidecar that lost its connection may take to make another before what it had goes to others."""


class Log:
    """See the module. It belongs to the loop on which it was opened."""

    def __init__(
        self,
        url: StoreUrl,
        where: str,
        terms: Terms,
        clock: Clock,
        applied: Callable[[Applied], None],
        gone_s: float,
        sizes: Sizes,
    ) -> None:
        """`applied` is told what reading on has changed; `gone_s` as GONE_AFTER_S."""
        self.sidecar = secrets.token_hex(8)
        self._url = url
        self._where = where
        self._terms = terms
        self._clock = clock
        self._applied = applied
        self._gone_s = gone_s
        self._sizes = sizes
        self._names = server.Names(url)
        self._timeout_s = url.seconds("timeout", TIMEOUT_S)
        self.link: Link[Pair] = Link(where, self._dial, timeout_s=url.seconds("connect_timeout", CONNECT_TIMEOUT_S))
        self._epoch = 0
        self._number = 0
        self._pair: Pair | None = None
        """The connection over which entries may be sent: its first one has been read back."""
        self._newest: Pair | None = None
        self._ready = asyncio.Event()
        self._queue: deque[Item] = deque()
        self._flying: dict[tuple[int, int], tuple[list[Item], float]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending: asyncio.Task[None] | None = None
        self._copying: asyncio.Task[None] | None = None
        self._looking: Look | None = None
        self._reader = Reader(terms, self.sidecar, where, self._read_on, self._lost)
        self._why = StoreError(f"{where} is not connected")
        self._is_ending = self._is_closing = False
        """Nobody waits for a connection any more; nothing is asked any more."""
        self.log_id = ""

    async def open(self) -> None:
        """Connect, and read the log up to here. Raises StoreError."""
        await self.link.open()
        await self._ready.wait()
        if self._pair is None:
            raise type(self._why)(str(self._why))

    @property
    def is_crowded(self) -> bool:
        """Less than an eighth of what may be kept is free."""
        return self._reader.is_crowded

    def watch(self, groups: frozenset[Group]) -> None:
        """Say of which groups there are subscribers here."""
        self._reader.watched = groups

    # What is asked.

    async def ask(self, command: Command) -> Any:
        """Write a command, and return what carrying it out gave. Raises StoreError."""
        if self._is_closing or (self._is_ending and self._pair is None):
            raise StoreClosed(f"{self._where} was closed")
        item = Item(command, asyncio.get_running_loop().time() + self._timeout_s, is_ending=self._is_ending)
        if isinstance(command, Keep) and len(item.raw) > KEPT_BYTES_MAX:
            raise StoreFull(f"{self._where} takes at most {KEPT_BYTES_MAX} bytes of events at once: publish fewer")
        if not self.link.is_up:
            self._told_away(item)
        elif isinstance(command, Keep) and self._pair is not None and self._pair.is_blocked:
            raise self._full()
        else:
            self._queue.append(item)
            self._pump()
        return await item.future

    async def look(self, read: Callable[[Replica], T]) -> T:
        """Look at the tables, as they are read up to here. Raises StoreError."""
        await self.ask(Letters("", 0, 0))
        return await self._reader.look(read)

    def _told_away(self, item: Item) -> None:
        if item.is_lasting:
            self._queue.append(item)
        if not item.is_patient:
            try:
                self.link.current()
            except StoreError as error:
                item.fail(error)

    def _full(self) -> StoreFull:
        return StoreFull(f"{self._where} takes no events until it has memory and disk again (an alarm of the server)")

    def _pump(self) -> None:
        if self._looking is None and (self._queue or self._flying):
            every_s = self._timeout_s / 4
            self._looking = Look(every_s, every_s, self._look)
        if self._sending is None and self._can_send():
            self._sending = self._begin(self._send())

    def _can_send(self) -> bool:
        pair = self._pair
        is_free = bool(self._queue) and len(self._flying) < FLYING_MAX
        return is_free and pair is not None and pair.is_open and not pair.is_blocked

    async def _send(self) -> None:
        try:
            # Whoever asks in the same turn of the loop is in the same entry.
            await asyncio.sleep(0)
            while self._can_send() and (pair := self._pair) is not None:
                items, size = [self._queue.popleft()], 0
                size = len(items[0].raw)
                while self._queue and len(items) < COMMANDS_MAX and size + len(self._queue[0].raw) < ENTRY_BYTES:
                    size += len(self._queue[0].raw)
                    items.append(self._queue.popleft())
                await self._write(pair, items)
        finally:
            self._sending = None

    async def _write(self, pair: Pair, items: list[Item]) -> None:
        self._number += 1
        commands: Any = [msgspec.Raw(item.raw) for item in items]
        entry = Entry(self.sidecar, pair.epoch, self._number, self._now_ms(), commands)
        self._flying[pair.epoch, self._number] = items, asyncio.get_running_loop().time()
        try:
            await pair.publish(self._names.log, encode(entry))
        except (StoreError, OSError) as error:
            self._lost(pair, error if isinstance(error, StoreError) else StoreError(f"{self._where}: {error}"))

    def _look(self) -> None:
        """Tell those who have waited for too long, and see whether the server is still there."""
        self._looking = None
        now_s = asyncio.get_running_loop().time()
        is_blocked = self._pair is not None and self._pair.is_blocked
        late = StoreError(f"{self._where} did not answer within {self._timeout_s:g} s")
        for item in self._all():
            if (is_blocked or self._is_ending) and item.due_s <= now_s and not item.is_patient:
                item.fail(in_doubt(self._full() if is_blocked else late))
        self._queue = deque(item for item in self._queue if item.is_lasting or not item.future.done())
        sent_s = min((at_s for _, at_s in self._flying.values()), default=now_s)
        if self._pair is not None and not is_blocked and max(sent_s, self._reader.heard_s) + self._timeout_s <= now_s:
            self._lost(self._pair, late)
        self._pump()

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)

    # The connection.

    async def _dial(self) -> Pair:
        self._epoch += 1
        pair = Pair(self._url, self._where, self._epoch, self._names, self._sizes)
        self._newest = pair
        try:
            await pair.open(lambda error: self._lost(pair, error), self.sidecar)
            pair.take_time(self._clock)
            await pair.hear_gone(self._heard_gone)
            hello = Hello(numbers_of(self._terms), self._reader.latest)
            pair.hello = encode(Entry(self.sidecar, pair.epoch, 0, self._now_ms(), [hello]))
            await pair.publish(self._names.log, pair.hello)
        except BaseException as error:
            is_blocked = pair.is_blocked
            pair.abort(StoreError(f"{self._where} cannot be used"))
            if isinstance(error, (TimeoutError, asyncio.CancelledError)) and is_blocked:
                raise self._full() from None
            raise
        # The state may be large, and takes what time it takes.
        self._begin(self._begin_to_read(pair))
        return pair

    async def _begin_to_read(self, pair: Pair) -> None:
        try:
            await self._reader.begin(pair)
        except (StoreError, OSError) as error:  # TimeoutError, too
            self._lost(pair, error if isinstance(error, StoreError) else told(error, self._where, self._timeout_s))

    def _lost(self, pair: Pair, error: StoreError) -> None:
        if pair is self._newest:
            self._pair, self._why = None, error
        pair.abort(error)
        if not self._is_closing:
            self.link.lost(pair, error)
        if not self.link.is_up:
            self._ready.set()  # who opens it is told
        for items, _ in self._flying.values():
            for item in items:
                if not item.is_patient:
                    item.fail(in_doubt(error))
        for item in self._queue:
            if not item.is_patient:
                item.fail(type(error)(str(error)))
        self._queue = deque(item for item in self._queue if item.is_lasting)

    def _begin(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # What is read.

    def _read_on(self, pair: Pair, applied: Applied) -> None:
        for outcome in applied.outcomes:
            self._answer(pair, outcome)
        self._applied(applied)
        if self._copying is None and self._pair is not None and self._reader.wants_copy(self._sizes.copy_bytes):
            self._copying = self._begin(self._copy(self._pair))
        self._pump()

    async def _copy(self, pair: Pair) -> None:
        """Make a copy of the state, unless another does."""
        try:
            name = self._names.copy(secrets.token_hex(8))
            left = await self.ask(Claim(name))
            if left is not None:
                if left:
                    await pair.delete(left)
                copied = await self._reader.copy(pair, name)
                if older := await self.ask(copied):
                    await pair.delete(older)
        except (StoreError, OSError, sqlite3.Error) as error:
            log.warning("%s: no copy of the bus's state was made: %s", self._where, error)
            await asyncio.sleep(COPY_AGAIN_S)
        finally:
            self._copying = None

    def _answer(self, pair: Pair, outcome: Outcome) -> None:
        if outcome.number == 0:
            if outcome.epoch == pair.epoch and not outcome.is_void:
                self._settle_past(pair)
            return
        items, _ = self._flying.pop((outcome.epoch, outcome.number), ([], 0.0))
        if outcome.is_void:
            self._again(items)
            if outcome.epoch == pair.epoch:
                self._lost(pair, StoreError(f"{self._where} was out of reach for so long that others took over"))
            return
        # A log that has lost its end is read anew, and of what was answered before nobody waits to hear again.
        for item, result in zip(items, outcome.results, strict=bool(items)):
            if outcome.epoch < pair.epoch and isinstance(result, HandedOut):
                self._queue.extend(asked_anew(item, result))
            else:
                item.answer(result)

    def _settle_past(self, pair: Pair) -> None:
        """What was sent over older connections and is not answered by now never will be."""
        void = [key for key in self._flying if key[0] < pair.epoch]
        for key in reversed(void):
            self._again(self._flying.pop(key)[0])
        self._pair = pair
        if self.log_id and self.log_id != self._reader.log_id:
            log.warning("%s was made anew: its groups begin with the oldest event that is there", self._where)
        self.log_id = self._reader.log_id
        self._ready.set()

    def _again(self, items: list[Item]) -> None:
        for item in reversed(items):
            if item.is_lasting:
                self._queue.appendleft(item)
            else:
                item.fail(StoreError(f"{self._where} lost the connection before this was written"))

    # Others that are gone.

    def _heard_gone(self, pair: Pair, delivered: DeliveredMessage) -> None:
        self._begin(self._see_off(pair, delivered))

    async def _see_off(self, pair: Pair, delivered: DeliveredMessage) -> None:
        """Say that a sidecar is gone, unless it comes back by then."""
        *_, sidecar, epoch = (delivered.header.properties.message_id or "").rsplit(".", 2)
        is_word = (delivered.header.properties.message_type or "").startswith(TYPE) and epoch.isdigit()
        if is_word and sidecar != self.sidecar:
            await asyncio.sleep(self._gone_s)
            try:
                if await self._reader.is_known(sidecar, int(epoch)):
                    await self.ask(Gone(sidecar, int(epoch)))
            except StoreError:
                return  # another hears of it, or this one again
        try:
            await pair.acknowledge_gone(server.tag_of(delivered))
        except (StoreError, OSError) as error:
            log.debug("a word of a sidecar that is gone stays: %s", error)

    # The end.

    async def take_leave(self) -> None:
        """Say that what this sidecar has goes to others."""
        pair = self._pair
        if pair is None or self._is_closing:
            return
        try:
            async with answered_within(self._timeout_s):
                await self.ask(Gone(self.sidecar, pair.epoch))
                await pair.revoke_will()
        except (StoreError, TimeoutError, OSError) as error:
            log.debug("no leave was taken of %s: %s", self._where, error)

    def stop_waiting(self) -> None:
        """From now on let nobody wait for a connection, and nothing be handed out whose taker does so no more."""
        self._is_ending = True
        for item in self._all():
            item.is_patient = False
        if not self.link.is_up or self._pair is None or self._pair.is_blocked:
            self._fail_all(StoreClosed(f"{self._where} was closed"))
            self._queue = deque(item for item in self._queue if item.is_lasting)

    def _all(self) -> list[Item]:
        """Return what is not answered."""
        return [*self._queue, *(one for items, _ in self._flying.values() for one in items)]

    def _fail_all(self, error: StoreError) -> None:
        for item in self._all():
            item.fail(error)

    async def close(self) -> None:
        """Let go of everything. Closing twice is fine."""
        if self._is_closing:
            return
        self._is_ending = self._is_closing = True
        pair, self._pair, self._newest = self._newest, None, None
        if pair is not None and pair.is_open:
            await pair.close()
        await self.link.close()
        self._fail_all(StoreClosed(f"{self._where} was closed"))
        if self._looking is not None:
            self._looking.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reader.close()
