"""What the bus on NATS does, in the steps that every bus has (`meshd.engines.bus_shelf`)."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

from meshd.engines.bus_event import sequence_text
from meshd.engines.bus_nats_group import Group
from meshd.engines.bus_nats_handing import Known
from meshd.engines.bus_nats_message import own, read_letter, told_letter
from meshd.engines.bus_nats_publish import Publishing
from meshd.engines.bus_nats_reader import Reader
from meshd.engines.bus_port import Position, Verdict
from meshd.engines.bus_shelf import none_unheard, ordinal
from meshd.engines.nats_keys import decoded
from meshd.engines.port import StoreClosed, StoreError, StoreFull, StoreUnable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from meshd.engines.bus_nats_message import Found
    from meshd.engines.bus_nats_streams import Streams
    from meshd.engines.bus_port import DeadLetter, Event
    from meshd.engines.bus_rows import Row
    from meshd.engines.bus_shelf import Attempt, HandedOut, Settled
    from meshd.engines.bus_terms import Clock, Terms

log = logging.getLogger("meshd")

T = TypeVar("T")
LETTERS_MAX: Final = 64
"""Dead letters whose bodies are asked for at once."""
INSIST_S: Final = 30.0
"""How long SUCCESS waits for a server that is away."""
TRIES_MAX: Final = 5
"""How often it is said to one that is there and has not taken it."""

Out = set[tuple[int, int, "Row"]]
"""What subscribers have: the numbers of the groups, places and rows."""


class Shelf(Publishing):
    """See the module. `stir` is called with the number of a group for which there may be something; a sidecar that does
    not answer twice, `absent_s` apart, has lost what it had."""

    def __init__(
        self,
        streams: Streams,
        terms: Terms,
        clock: Clock,
        sidecar: str,
        stir: Callable[[int], None],
        absent_s: float,
    ) -> None:
        super().__init__(streams, terms, clock, sidecar)
        self.sure_s = absent_s
        self.unheard = none_unheard()
        self._stir = stir
        self._known: dict[str, Known] = {}
        """By the subject of the journal."""
        self._numbers: list[Known] = []
        self._restored = asyncio.Event()
        self._under_way: set[asyncio.Future[Any]] = set()
        self._is_closed = False

    # Groups.

    def expect(self, event: Event, place: int) -> None:
        one: Found | None = None
        for known in self._numbers:
            if known.reader is not None:
                is_for = known.is_for(event.topic)
                if known.reader.is_next(place):
                    one = one or own(event, place, self.now_ms())
                    known.reader.note(one, is_for=is_for)
                if is_for:
                    known.reader.expected = max(known.reader.expected, place)
                    self._came(known.number)

    async def join(self, group: str, topic: str, *, starts_at_oldest: bool) -> int:
        return await self.join_at(group, topic, _oldest if starts_at_oldest else None)

    async def join_at(self, group: str, topic: str, begins: Callable[[], Awaitable[int]] | None) -> int:
        """Join; `begins` returns behind which place a new group begins, and may raise what speaks against it.

        Without it, that is the last one.
        """
        self.check()
        known = self._know(group, topic)
        async with self.joining:
            if not await known.group.catch_up():
                await self._make(known.group, begins)
        if known.reader is None:
            await known.group.ask(lambda now_ms: known.group.rows.set_back(now_ms))
            known.reader = Reader(self.streams, topic, self._label(group, topic), lambda: self._came(known.number))
        return known.number

    def _came(self, number: int) -> None:
        """Something came for a group: what comes with it is begun with as one."""
        if self.streams.is_connected:
            self.streams.wire.at_end(number, self._stir)
        else:
            self._stir(number)

    async def _make(self, group: Group, begins: Callable[[], Awaitable[int]] | None) -> None:
        info = await self.streams.info(self.streams.groups, subjects_filter=f"{self.streams.journals}>")
        if len(info.state.subjects or {}) >= self.terms.groups_max:
            raise StoreFull(f"the bus remembers {self.terms.groups_max} groups, and takes no more")
        if begins is None:
            await group.make((await self.streams.info(self.streams.events)).state.last_seq)
        else:
            await group.make(await begins())
            await self.tell_joined()
        await group.catch_up()

    def _know(self, group: str, topic: str) -> Known:
        subject = self.streams.journal(group, topic)
        known = self._known.get(subject)
        if known is None:
            number = len(self._numbers)
            one = Group(self.streams, group, topic, self.terms, self.clock, lambda: self._stir(number))
            one.unheard = self.unheard
            known = self._known[subject] = Known(
                number, one, topic, self.streams, self.clock, self.terms.keep_s, self.sidecar
            )
            self._numbers.append(known)
        return known

    def _label(self, group: str, topic: str) -> str:
        """Return how the group is called among the stream's consumers: to be read, and no other's."""
        words = f"{group}_{topic.replace('*', 'any').replace('>', 'all')}"
        text = re.sub(r"[^A-Za-z0-9_-]", "-", words)[:120]
        return f"{text}-{hashlib.blake2b(f'{group} {topic}'.encode(), digest_size=3).hexdigest()}-{self.sidecar}"

    async def all_groups(self) -> list[Group]:
        """Return every group that there is, as it stands now."""
        groups = await self._named(None)
        there = await asyncio.gather(*(group.catch_up() for group in groups))
        return [group for group, is_there in zip(groups, there, strict=True) if is_there]

    async def _named(self, name: str | None) -> list[Group]:
        """Return the groups of a name, or all."""
        streams = self.streams
        groups: list[Group] = []
        offset, total = 0, 1
        while offset < total:
            info = await streams.info(streams.groups, subjects_filter=f"{streams.journals}>", offset=offset)
            subjects = sorted(info.state.subjects or {})
            for subject in subjects:
                group, _, topic = subject.removeprefix(streams.journals).partition(".")
                names = decoded(group), decoded(topic)
                if names[0] and names[1] and name in (None, names[0]):
                    groups.append(self._know(names[0], names[1]).group)
            offset, total = offset + len(subjects), info.total if subjects else 0
        return groups

    # Attempts.

    async def hand_out(self, group: int, handling_s: Sequence[float]) -> HandedOut:
        self.check()
        return await self._counted(self._numbers[group].hand_out(handling_s))

    def hand_out_at_once(
        self, group: int, handling_s: Sequence[float], tell: Callable[[HandedOut | StoreError], None]
    ) -> bool:
        """`meshd.engines.bus_shelf.AtOnce`."""
        if self._is_closed:
            return False
        done = self._begun()

        def told(handed: HandedOut | StoreError) -> None:
            self._ended(done)
            tell(handed)

        if self._numbers[group].hand_out_at_once(handling_s, told):
            return True
        self._ended(done)
        return False

    async def is_held(self, group: int, attempt: Attempt) -> bool:
        self.check()
        one = self._numbers[group].group
        await one.catch_up()
        is_out = await one.ask(lambda _: one.rows.is_out(attempt, self.sidecar))
        # Since it was begun with over another connection, a sidecar may have found nobody here, and end it whenever it
        # finds that again.
        return is_out and one.live.get(attempt) is self.streams.wire

    async def settle(
        self, group: int, attempt: Attempt, verdict: Verdict, retry_after_s: float | None, reason: str
    ) -> Settled:
        self.check()
        one = self._numbers[group].group
        wait_ms = int((self.terms.retry_s(ordinal(attempt.number)) if retry_after_s is None else retry_after_s) * 1000)

        async def settle() -> Settled:
            return await one.ask(lambda now_ms: one.rows.settle(attempt, verdict, wait_ms, reason, now_ms))

        settled = await self._counted(self._insistently(settle) if verdict is Verdict.SUCCESS else settle())
        one.live.pop(attempt, None)
        return settled

    async def _insistently(self, settle: Callable[[], Awaitable[Settled]]) -> Settled:
        """Say SUCCESS again where the connection was lost: said twice it is what it was, and not said it is undone.

        It counted where it did the second time, or where nobody knows whether the first one has been written.
        """
        is_in_doubt = False
        tries = 0
        ends_s = asyncio.get_running_loop().time() + INSIST_S
        while True:
            restored = self._restored
            try:
                settled = await settle()
            except (StoreClosed, StoreUnable, StoreFull):
                raise
            except StoreError as error:
                is_in_doubt, tries = True, tries + 1
                if self.streams.is_connected:
                    if tries > TRIES_MAX:
                        raise
                    continue
                if self._is_closed:
                    raise  # nobody waits for a connection any more
                try:
                    async with asyncio.timeout_at(ends_s):
                        await restored.wait()
                except TimeoutError:
                    raise error from None
            else:
                return settled._replace(counted=settled.counted or is_in_doubt)

    async def give_back(self, group: int, attempts: Sequence[Attempt], *, is_unseen: bool) -> None:
        self.check()
        await self._counted(self._numbers[group].group.give_back(attempts, is_unseen=is_unseen))

    # What there is.

    async def dead_letters(self, group: str, after: int, limit: int) -> list[DeadLetter]:
        self.check()
        groups = await self._named(group)
        await asyncio.gather(*(one.catch_up() for one in groups))
        numbers = sorted(number for one in groups for number in one.rows.letters if number > after)[: max(0, limit)]
        letters: list[DeadLetter] = []
        for at in range(0, len(numbers), LETTERS_MAX):
            some = numbers[at : at + LETTERS_MAX]
            found = await asyncio.gather(*(self.streams.get(self.streams.dead, seq=number) for number in some))
            for number, stored in zip(some, found, strict=True):
                letter = None if stored is None else read_letter(stored.data)
                if letter is not None:  # one whose body was removed by hand is gone
                    letters.append(told_letter(number, letter))
        return letters

    async def redrive(self, group: str, ids: Sequence[int]) -> list[int]:
        self.check()
        numbers = []
        for one in await self._named(group):
            await one.catch_up()
            revived = await one.ask(lambda now_ms, one=one: sum(one.rows.revive(id, now_ms) for id in ids))  # type: ignore[misc]
            numbers += [self._known[one.subject].number] * revived
        return numbers

    async def trim(self) -> bool:
        self.check()
        return await self._counted(super().trim())

    async def positions(self) -> list[Position]:
        self.check()
        # What was begun before comes first.
        if self._under_way:
            await asyncio.wait(set(self._under_way))
        found = []
        for one in await self.all_groups():
            rows = one.rows
            found.append(Position(rows.group, rows.topic, sequence_text(rows.position), *rows.counts()))
        return sorted(found)

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self.restored()
        if self._under_way:
            await asyncio.wait(set(self._under_way))
        for known in self._numbers:
            group = known.group
            if group.rows.out.get(self.sidecar):
                try:
                    await group.ask(lambda _, group=group: group.rows.lose_all(self.sidecar))  # type: ignore[misc]
                except StoreError as error:
                    log.warning("what was under way here is handed out again once others see that it ended: %s", error)
            await group.close()
            if known.reader is not None:
                known.reader.stop()

    def restored(self) -> None:
        """There is a connection again: whoever waits looks anew."""
        before, self._restored = self._restored, asyncio.Event()
        before.set()
        for known in self._numbers:
            self._stir(known.number)

    def out_elsewhere(self) -> dict[str, Out]:
        """Return what subscribers of other sidecars have, by sidecar."""
        found: dict[str, Out] = {}
        for known in self._numbers:
            rows = known.group.rows
            for sidecar in rows.out.keys() - {self.sidecar}:
                places = rows.out[sidecar]
                found.setdefault(sidecar, set()).update((known.number, place, rows.rows[place]) for place in places)
        return found

    async def lose(self, out: Out) -> None:
        """End attempts of sidecars that are gone, as far as they are as they were."""
        for number in sorted({number for number, _, _ in out}):
            group, some = self._numbers[number].group, [(place, row) for at, place, row in out if at == number]
            await group.ask(lambda _, group=group, some=some: group.rows.lose(some))  # type: ignore[misc]
            self._stir(number)

    async def _counted(self, work: Awaitable[T]) -> T:
        """Do something that `positions` waits for."""
        done = self._begun()
        try:
            return await work
        finally:
            self._ended(done)

    def _begun(self) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._under_way.add(done)
        return done

    def _ended(self, done: asyncio.Future[None]) -> None:
        self._under_way.discard(done)
        done.set_result(None)

    def check(self) -> None:
        if self._is_closed:
            raise StoreClosed(f"{self.streams.where} was closed")


async def _oldest() -> int:
    return 0
