"""What is removed from a bus on NATS: what is too old, what makes room, and how long an id is known.

The server removes nothing by itself: it knows of no group whether it has settled an event. Any sidecar may do this, and
two at once do what one does.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from meshd.engines.bus_event import matcher
from meshd.engines.bus_nats_listing import listed
from meshd.engines.bus_nats_message import kept_ms, read_letter
from meshd.engines.bus_rows import SET_BACK_MS
from meshd.engines.port import StoreCorrupt, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.engines.bus_nats_group import Group
    from meshd.engines.bus_nats_listing import Listed
    from meshd.engines.bus_nats_rows import Rows
    from meshd.engines.bus_nats_streams import Streams
    from meshd.engines.bus_terms import Clock, Terms

STEP: Final = 500
"""How many events are looked at in one go."""
LOOK_S: Final = 10.0
"""For how long it is believed how much is kept, where that is far from the limit and not much was added here."""
ORPHAN_S: Final = 3600.0
"""A dead letter that is so old and no group names was written by one who did not come to name it."""
CLAIM_MS: Final = 150_000
"""For how long who removes what is too old does so alone: longer than until it does so again."""
BUCKET_MS: Final = 600_000
"""How exactly it is known when what was removed had been kept."""
DELETED_MAX: Final = 64
"""Messages removed one by one that are asked for at once."""
TRIES_MAX: Final = 20
REMOVING_S: Final = 2.0
"""How long a new group waits for one that removes, and may have died at it."""

_encode = msgspec.msgpack.Encoder().encode


class Marks(msgspec.Struct, array_like=True):
    """What must be known of events that are gone. Written by compare-and-set."""

    forgotten: int = 0
    """The ids of events up to here are another event's, where they come again."""
    removed: dict[int, int] = {}
    """Places up to which events were removed, by when the last of these had been kept, rounded up."""
    set_back: list[tuple[int, int]] = []
    """Places up to which no event counts as kept later than that: the clock was set back since."""
    by: str = ""
    """The sidecar that removes what is too old, and for how long no other does."""
    until_ms: int = 0
    joined: int = 0
    """Grows with each group that wants the oldest events."""
    removing: list[str] = []
    """Sidecars that are about to remove what this says."""

    def age_ms(self, one: Listed) -> int:
        """Return when an event counts as kept."""
        return min([one.at_ms, *(at_ms for place, at_ms in self.set_back if one.place <= place)])

    @property
    def last_removed(self) -> int:
        """The last place of which the event was removed; 0 for none."""
        return max((self.forgotten, *self.removed.values()))


class Found(NamedTuple):
    """What can be removed to make room, and the first event before that which cannot, 0 for none."""

    gone: list[Listed]
    first_kept: int


class Trimming:
    """See the module. Methods raise StoreError."""

    def __init__(self, streams: Streams, terms: Terms, clock: Clock, sidecar: str) -> None:
        self.streams = streams
        self.sidecar = sidecar
        self.terms = terms
        self.clock = clock
        self.is_crowded = False
        self.joining = asyncio.Lock()
        """Held while room is made, and while a group is made."""
        self._added = 0
        """Bytes that this sidecar has published since it last looked how much is kept."""
        self._looked_s = -LOOK_S
        self._from = 0
        """Where the next step of trimming goes on, and the first event that it must leave where it is."""
        self._first_held = 0

    async def all_groups(self) -> list[Group]:
        """Return every group that there is, as it stands now."""
        raise NotImplementedError

    def now_ms(self) -> int:
        return int(self.clock.now_s() * 1000)

    # Room.

    async def is_over(self, size: int) -> bool:
        """Say whether there is no room for so many bytes more."""
        self._added += size
        is_news_old = asyncio.get_running_loop().time() - self._looked_s > LOOK_S
        if self.is_crowded or is_news_old or self._added > self.terms.keep_bytes // 64:
            return await self.over(size) > 0
        return False

    async def over(self, size: int) -> int:
        """Return by how much so many bytes are too many."""
        streams = self.streams
        events, dead = await asyncio.gather(streams.info(streams.events), streams.info(streams.dead))
        self._added = 0
        self._looked_s = asyncio.get_running_loop().time()
        over = events.state.bytes + dead.state.bytes + size - self.terms.keep_bytes
        self.is_crowded = over > -self.terms.keep_bytes // 8
        return over

    async def free(self, wanted: int) -> int:
        """Remove the oldest events that every group has settled; return how many bytes that gave back."""
        async with self.joining:
            for _ in range(TRIES_MAX):
                _, last = await self.marks()
                groups = await self.all_groups()
                found = await self._free(wanted, groups)
                # A group that was made meanwhile, and wants the oldest, has written there: then all is looked at anew.
                if not found.gone or await self._remove(found.gone, found.first_kept, last):
                    self._looked_s = -LOOK_S
                    return sum(one.bytes for one in found.gone)
        raise self._busy()

    async def _free(self, wanted: int, groups: Sequence[Group]) -> Found:
        state = (await self.streams.info(self.streams.events)).state
        floor = min((group.rows.position for group in groups), default=state.last_seq)
        gone: list[Listed] = []
        freed, place, first_kept = 0, state.first_seq, 0
        while freed < wanted:
            some = [one for one in await listed(self.streams, place, STEP) if one.place <= floor]
            for one in some:
                if freed >= wanted:
                    break
                if any(one.place in group.rows.rows for group in groups):
                    first_kept = first_kept or one.place
                else:
                    freed += one.bytes
                    gone.append(one)
            if len(some) < STEP:
                break
            place = some[-1].place + 1
        return Found(gone, first_kept)

    async def _remove(self, gone: Sequence[Listed], first_kept: int, expected: int | None = None) -> bool:
        """Remove events, and note when they had been kept: so long their ids are known.

        `expected`: the marks that there must be now; where there are others, nothing is removed.
        """
        if not gone:
            return True
        at_ms = -(-max(one.at_ms for one in gone) // BUCKET_MS) * BUCKET_MS
        last = gone[-1].place

        def note(marks: Marks) -> None:
            marks.removed[at_ms] = max(last, marks.removed.get(at_ms, 0))
            if expected is not None and self.sidecar not in marks.removing:
                marks.removing.append(self.sidecar)

        if await self._mark(note, expected) is None:
            return False
        below = last + 1 if not first_kept or first_kept > last else first_kept
        await self.streams.purge(self.streams.events, below)
        single = [one.place for one in gone if first_kept and one.place > first_kept]
        for at in range(0, len(single), DELETED_MAX):
            some = single[at : at + DELETED_MAX]
            await asyncio.gather(*(self.streams.delete(self.streams.events, place) for place in some))
        if expected is not None:
            await self._mark(self._stop_removing)
        return True

    def _stop_removing(self, marks: Marks) -> None:
        if self.sidecar in marks.removing:
            marks.removing.remove(self.sidecar)

    async def tell_joined(self) -> None:
        """Say that there is a group that wants the oldest events: those that go have gone before this returns."""

        def tell(marks: Marks) -> None:
            marks.joined += 1

        marks = await self._mark(tell)
        ends_s = asyncio.get_running_loop().time() + REMOVING_S
        while marks is not None and marks.removing:
            if asyncio.get_running_loop().time() > ends_s:
                await self._mark(lambda marks: marks.removing.clear())  # they have died at it
                return
            await asyncio.sleep(0.01)
            marks, _ = await self.marks()

    # Age.

    async def trim(self) -> bool:
        """Let go of some of what is too old; return whether there is more."""
        now_ms = self.now_ms()
        over = await self.over(0) + self.terms.keep_bytes // 8
        if over > 0:
            self.is_crowded = await self.free(over) < over
        gone_ms = now_ms - int(self.terms.keep_s * 1000)
        marks = await self._claimed(now_ms)
        if marks is None:
            return False
        some = await listed(self.streams, self._from or 1, STEP)
        old = [one for one in some if marks.age_ms(one) <= gone_ms]
        held: set[int] = set()
        if old:
            held = await self._expire([one._replace(at_ms=marks.age_ms(one)) for one in old], gone_ms)
        is_more = len(old) == STEP
        self._from = some[-1].place + 1 if is_more else 0
        self._first_held = self._first_held if is_more else 0
        if not is_more and await self._is_letter_old(now_ms):
            await self._trim_letters(now_ms, gone_ms, held)
        await self._forget(now_ms - int(max(self.terms.keep_s, self.terms.repeat_s) * 1000))
        return is_more

    async def _claimed(self, now_ms: int) -> Marks | None:
        """Return the marks where it is this sidecar that removes what is too old: two would count it twice."""

        def claim(marks: Marks) -> None:
            is_free = not 0 < marks.until_ms - now_ms <= CLAIM_MS
            if is_free or marks.by == self.sidecar:
                marks.by, marks.until_ms = self.sidecar, now_ms + CLAIM_MS

        marks = await self._mark(claim)
        return marks if marks is not None and marks.by == self.sidecar else None

    async def _expire(self, old: list[Listed], gone_ms: int) -> set[int]:
        """Give up events for every group; return those that somebody is at."""
        groups = await self.all_groups()
        held = {one.place for one in old if any(group.rows.is_kept(one.place, gone_ms) for group in groups)}
        gone = [one for one in old if one.place not in held]
        if held:
            self._first_held = self._first_held or min(held)
        floor = self._first_held - 1 if self._first_held else old[-1].place
        for group in groups:
            is_for = matcher(group.rows.topic)
            places = [one.place for one in gone if is_for(one.topic)]
            if any(place > group.rows.position or place in group.rows.rows for place in places):
                await _change(group, lambda rows, places=places: rows.expire(places, min(floor, places[-1])))  # type: ignore[misc]
        await self._remove(gone, self._first_held)
        return held

    async def _trim_letters(self, now_ms: int, gone_ms: int, held: set[int]) -> None:
        """Let go of dead letters that are too old, and of what was redriven and is too old by now."""
        dead_ms = now_ms - int(self.terms.dead_keep_s * 1000)
        groups = await self.all_groups()

        def give_up(rows: Rows) -> None:
            redriven = [
                place
                for place, row in rows.rows.items()
                if row.letter and place not in held and not rows.is_kept(place, gone_ms)
            ]
            rows.expire(redriven, 0)
            for number in [number for number, letter in rows.letters.items() if letter.died_ms <= dead_ms]:
                rows.put_letter(number, None)
                rows.spent.append(number)

        for group in groups:
            if group.rows.letters or any(row.letter for row in group.rows.rows.values()):
                await _change(group, give_up)
        needed = {number for group in groups for number in group.rows.letters}
        needed |= {row.letter for group in groups for row in group.rows.rows.values()}
        await self._sweep(needed)

    async def _sweep(self, needed: set[int]) -> None:
        """Remove what nobody names: left by one who died before it was named, or before it was removed."""
        streams = self.streams
        state = (await streams.info(streams.dead)).state
        for place in range(state.first_seq, min(state.last_seq + 1, state.first_seq + STEP)):
            if place in needed:
                continue
            stored = await streams.get(streams.dead, seq=place)
            if stored is not None:
                if stored.age_s < ORPHAN_S:
                    return
                await streams.delete(streams.dead, place)

    async def _is_letter_old(self, now_ms: int) -> bool:
        """Say whether the first dead letter is old enough for anything to be given up."""
        streams = self.streams
        state = (await streams.info(streams.dead)).state
        stored = await streams.get(streams.dead, seq=state.first_seq) if state.messages else None
        letter = None if stored is None else read_letter(stored.data)
        if letter is None:
            return bool(state.messages)
        return letter.died_ms <= now_ms - int(min(self.terms.dead_keep_s, self.terms.keep_s) * 1000)

    # What is known of what is gone.

    async def is_forgotten(self, place: int) -> bool:
        """Say whether the id of an event that the server knows counts as known no more."""
        marks, _ = await self.marks()
        if place > marks.forgotten:
            return False
        return await self.streams.get(self.streams.events, seq=place) is None

    async def _forget(self, forgotten_ms: int) -> None:
        marks, _ = await self.marks()
        if not any(at_ms <= forgotten_ms for at_ms in marks.removed):
            return

        def forget(marks: Marks) -> None:
            for at_ms in [at_ms for at_ms in marks.removed if at_ms <= forgotten_ms]:
                marks.forgotten = max(marks.forgotten, marks.removed.pop(at_ms))

        await self._mark(forget)

    async def look_at_clock(self) -> None:
        """Where the clock was set back since the last event was kept, nothing is kept for longer for that."""
        last = await self.streams.get(self.streams.events, last_by_subj=f"{self.streams.topics}>")
        now_ms = self.now_ms()
        if last is None or (kept_ms(last.hdrs) or 0) <= now_ms + SET_BACK_MS:
            return

        def set_back(marks: Marks) -> None:
            marks.set_back = [(place, at_ms) for place, at_ms in marks.set_back if at_ms < now_ms]
            marks.set_back.append((last.seq, now_ms))
            late = [marks.removed.pop(at_ms) for at_ms in list(marks.removed) if at_ms > now_ms]
            if late:
                marks.removed[now_ms] = max(late)

        await self._mark(set_back)

    async def marks(self) -> tuple[Marks, int]:
        stored = await self.streams.get(self.streams.groups, last_by_subj=self.streams.marks)
        if stored is None:
            return Marks(), 0
        try:
            return msgspec.msgpack.decode(stored.data, type=Marks), stored.seq
        except msgspec.MsgspecError:
            raise StoreCorrupt(
                f"what stands under {self.streams.marks} in {self.streams.where} cannot be read"
            ) from None

    async def _mark(self, change: Callable[[Marks], None], expected: int | None = None) -> Marks | None:
        """Change the marks and return them; None where there are others than the `expected` ones."""
        streams = self.streams
        for _ in range(TRIES_MAX):
            marks, last = await self.marks()
            if expected not in (None, last):
                return None
            before = _encode(marks)
            change(marks)
            if _encode(marks) == before:
                return marks
            headers = b"Nats-Rollup: sub\r\n"
            if (await streams.put(streams.groups, streams.marks, _encode(marks), headers, expected=last)).seq:
                return marks
        raise self._busy()

    def _busy(self) -> StoreError:
        return StoreError(f"{self.streams.where} is busy: others changed its marks {TRIES_MAX} times meanwhile")


async def _change(group: Group, change: Callable[[Rows], None]) -> None:
    await group.ask(lambda _: change(group.rows))
    group.tell()
