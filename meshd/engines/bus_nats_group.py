"""One group, as this sidecar knows it: its rows, the journal that they come from, and whoever wants to change them.

What is asked is answered in turns: all that was asked meanwhile is decided on one draft of the rows, and written as one
entry, where the journal's last entry is the one that this sidecar knows. Where another sidecar was faster, the draft is
undone, its entry taken in, and all is decided anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from meshd.engines.bus_event import sequence_text
from meshd.engines.bus_nats_message import Letter as LetterBody
from meshd.engines.bus_nats_message import found, read_letter, written_letter
from meshd.engines.bus_nats_rows import FORMAT, Entry, Letter, Rows
from meshd.engines.bus_port import Event
from meshd.engines.bus_shelf import UNHEARD, Attempt, Unheard, none_unheard, ordinal
from meshd.engines.nats_consumer import Consumer
from meshd.engines.port import StoreCorrupt, StoreError, StoreNewer, StoreUnable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.engines.bus_nats_streams import Streams
    from meshd.engines.bus_rows import Burial
    from meshd.engines.bus_terms import Clock, Terms
    from meshd.engines.nats_consumer import Numbers
    from meshd.engines.nats_wire import Message, Wire

log = logging.getLogger("meshd")

TRIES_MAX: Final = 100
"""Times that a change is decided anew while others come between."""
ASKED_MAX: Final = 512
"""How much is decided on one draft."""
JOURNAL_BYTES: Final = 256 * 1024
"""A journal this much longer than what it says is written anew as a whole."""
GONE: Final = "its record is gone"

T = TypeVar("T")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Entry).decode


class Group:
    """See the module. `changed` is called after another sidecar's entry was taken in."""

    def __init__(
        self, streams: Streams, group: str, topic: str, terms: Terms, clock: Clock, changed: Callable[[], None]
    ) -> None:
        self.rows = Rows(group, topic, terms)
        self.unheard = none_unheard()
        """See `meshd.engines.bus_shelf.Shelf`."""
        self.live: set[Attempt] = set()
        """What subscribers of this sidecar were handed."""
        self.is_in_doubt = False
        """Something that was asked for has failed, and may be in the journal or come there yet: what it began was
        handed to nobody."""
        self._returning: set[Attempt] = set()
        """What was asked to be given back and is not answered."""
        self._unreturned: dict[Attempt, bool] = {}
        """What that has failed for, and whether nobody had seen it."""
        self._looked_at: list[Attempt] | None = None
        """Of that, what there was when the draft gave back what is lost; None where the draft has not."""
        self.subject = streams.journal(group, topic)
        self._streams = streams
        self._terms = terms
        self._clock = clock
        self._changed = changed
        self._applied = 0
        """The last entry that was taken in."""
        self._bytes = 0
        """Of the journal, and of its last whole entry."""
        self._whole_bytes = 0
        self._heard: deque[tuple[int, bytes]] = deque()
        self._asked: deque[tuple[Callable[[int], Any], asyncio.Future[Any]]] = deque()
        self._working: asyncio.Task[None] | None = None
        self._feed: Consumer | None = None
        self._news = asyncio.Event()
        self._opening = asyncio.Lock()
        self._wrong: StoreError | None = None

    def ask(self, decide: Callable[[int], T]) -> asyncio.Future[T]:
        """Decide on a draft of the rows, given the time in milliseconds, and return once that is the truth.

        `decide` may be called more than once, and must not wait. Raises StoreError.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._asked.append((decide, future))
        if self._working is None:
            self._working = asyncio.get_running_loop().create_task(self._work())
        return future

    async def catch_up(self) -> bool:
        """Take in what there is by now; return whether there is such a group at all. Raises StoreError."""
        async with self._opening:
            last = await self._streams.get(self._streams.groups, last_by_subj=self.subject)
            if last is None:
                return False
            await self._listen()
            await self._wait_for(last.seq)
            return True

    async def make(self, position: int) -> None:
        """Begin its journal, where there is none. Raises StoreError."""
        entry = Entry(FORMAT, self.rows.group, self.rows.topic, True, self._now_ms(), position, 0, 0, {}, {})
        await self._streams.put(self._streams.groups, self.subject, _encode(entry), b"", expected=0)

    def tell(self) -> None:
        """Say that something was changed that whoever waits may want."""
        self._changed()

    # What nobody has.

    async def give_back(self, attempts: Sequence[Attempt], *, is_unseen: bool) -> None:
        """End attempts of which nothing will be heard. Raises StoreError: then the next decision to begin does it."""
        # Not live from now on: the number of what is unseen is also that of the next attempt, which may be live soon.
        self.live.difference_update(attempts)
        self._returning.update(attempts)
        try:
            await self.ask(lambda _: self.rows.give_back(attempts, is_unseen=is_unseen))
        except StoreError:
            self._unreturned.update(dict.fromkeys(attempts, is_unseen))
            raise
        finally:
            self._returning.difference_update(attempts)

    def give_back_lost(self, sidecar: str) -> None:
        """As a part of deciding what to begin: where there is a doubt, give back what this `sidecar` has out and none
        of its subscribers has. Nothing may be on its way to a subscriber meanwhile."""
        if self.is_in_doubt or self._unreturned:
            self._looked_at = list(self._unreturned)
            out = {Attempt(place, self.rows.rows[place].attempt) for place in self.rows.out.get(sidecar, ())}
            lost = out - self.live - self._returning
            seen = {one for one in lost if not self._unreturned.get(one, True)}
            self.rows.give_back(sorted(seen), is_unseen=False)
            self.rows.give_back(sorted(lost - seen), is_unseen=True)

    async def close(self) -> None:
        """Finish what was asked for, and listen no more."""
        if self._working is not None:
            await asyncio.wait((self._working,))
        if self._feed is not None:
            self._feed.stop()
            self._feed = None

    # Deciding.

    def _now_ms(self) -> int:
        return int(self._clock.now_s() * 1000)

    async def _work(self) -> None:
        try:
            while self._asked:
                asked = [self._asked.popleft() for _ in range(min(len(self._asked), ASKED_MAX))]
                try:
                    answers = await self._decide([decide for decide, _ in asked])
                except StoreError as error:
                    self.is_in_doubt = True
                    for _, future in asked:
                        if not future.done():
                            future.set_exception(type(error)(*error.args))
                else:
                    for (_, future), answer in zip(asked, answers, strict=True):
                        if not future.done():
                            future.set_result(answer)
        finally:
            self._working = None
        self._take_in()
        self._tell()

    async def _decide(self, asked: list[Callable[[int], Any]]) -> list[Any]:
        rows = self.rows
        for _ in range(TRIES_MAX):
            await self._listen()
            self._take_in()
            self._looked_at = None
            now_ms = self._now_ms()
            try:
                answers = [decide(now_ms) for decide in asked]
                if not rows.is_changed:
                    return answers
                unheard = [await self._bury(burial, now_ms) for burial in rows.burials]
                rows.burials.clear()
                last = await self._write(now_ms)
            except BaseException:
                rows.undo()
                raise
            if not last:
                self._keep()
                self.unheard += [Unheard(rows.group, letter) for letter in unheard if letter]
                return answers
            rows.undo()
            await self._wait_for(last)
        raise StoreError(f"{self._streams.where} is busy: others changed the same group {TRIES_MAX} times meanwhile")

    def _keep(self) -> None:
        """Make the draft, which was written, the truth."""
        self.rows.keep()
        spent, self.rows.spent = self.rows.spent, []
        for number in spent:
            self._streams.forget(self._streams.dead, number)
        if self._looked_at is not None:
            # The entry in doubt was taken in before this one, or will never be in the journal: the server refuses it.
            # A draft that another sidecar was faster than, or that changes nothing, decides no such thing.
            self.is_in_doubt = False
            for attempt in self._looked_at:
                self._unreturned.pop(attempt, None)

    async def _write(self, now_ms: int) -> int:
        """Write the draft's entry; return 0, or the last one of the journal where that is another than we know."""
        streams = self._streams
        is_whole = self._bytes > JOURNAL_BYTES + 2 * self._whole_bytes
        data = _encode(self.rows.entry(now_ms, is_whole=is_whole))
        headers = b"Nats-Rollup: sub\r\n" if is_whole else b""
        if len(data) > streams.room(headers) - 64:
            raise StoreUnable(
                f"the group {self.rows.group} ({self.rows.topic}) has begun with more events than a message of "
                f"{streams.where} can name: raise its max_payload"
            )
        ack = await streams.put(streams.groups, self.subject, data, headers, expected=self._applied)
        if not ack.seq:
            stored = await streams.get(streams.groups, last_by_subj=self.subject)
            if stored is None:
                raise StoreError(f"the group {self.rows.group} ({self.rows.topic}) was removed")
            return stored.seq
        self._note(ack.seq, len(data), is_whole=is_whole)
        return 0

    def _note(self, sequence: int, size: int, *, is_whole: bool) -> None:
        self._applied = sequence
        if is_whole:
            self._whole_bytes = self._bytes = size
        else:
            self._bytes += size

    # The journal.

    async def _listen(self) -> None:
        """Hear of every entry, over the connection that there is. Raises StoreError."""
        wire = self._streams.wire
        self._check()
        if self._feed is not None and self._feed.wire is wire:
            await self._feed.is_ready
            return
        if self._feed is not None:
            self._feed.stop()
        config = {"filter_subject": self.subject, "deliver_policy": "by_start_sequence"}
        config |= {"opt_start_seq": self._applied + 1}  # type: ignore[dict-item]
        self._feed = feed = Consumer(wire, self._streams.groups, config, self._arrived, self._lost)
        self._heard.clear()
        try:
            await feed.start(self._streams.where)
            last = await self._streams.get(self._streams.groups, last_by_subj=self.subject)
            if last is not None:
                await self._wait_for(last.seq)
        except BaseException:
            feed.stop()
            self._feed = None
            raise

    def _lost(self, wire: Wire, why: str) -> None:
        self._streams.lost(wire, StoreError(f"{self._streams.where}: {why}"))

    def _arrived(self, message: Message, told: Numbers | None) -> None:
        if told is None:
            # One is missing: listen anew from where we are.
            if self._feed is not None:
                self._feed.stop()
                self._feed = None
            self._changed()
        else:
            self._heard.append((told.sequence, message.data))
        if self._working is None:
            self._take_in()
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _take_in(self) -> None:
        """Apply what was heard. There must be no draft."""
        is_other = False
        while self._heard:
            sequence, data = self._heard.popleft()
            if sequence <= self._applied:
                continue
            try:
                entry = _decode(data)
            except msgspec.MsgspecError:
                entry = None
            if entry is None or entry.format > FORMAT:
                kind = StoreCorrupt if entry is None else StoreNewer
                what = "cannot be read" if entry is None else "is a newer meshd's"
                self._wrong = kind(
                    f"entry {sequence} of the journal of the group {self.rows.group} ({self.rows.topic}) in "
                    f"{self._streams.where} {what}"
                )
                return
            self.rows.apply(entry)
            self._note(sequence, len(data), is_whole=entry.is_whole)
            is_other = True
        if is_other:
            self._changed()

    async def _wait_for(self, sequence: int) -> None:
        """Wait until an entry was taken in, whoever does that. Raises StoreError."""
        try:
            async with asyncio.timeout(self._streams.timeout_s):
                while True:
                    if not self.rows.is_changed:
                        self._take_in()
                    self._check()
                    if self._applied >= sequence:
                        return
                    await self._news.wait()
        except TimeoutError:
            raise StoreError(f"{self._streams.where} did not bring a journal in time") from None

    def _check(self) -> None:
        if self._wrong is not None:
            raise type(self._wrong)(*self._wrong.args)

    # Dead letters.

    async def _bury(self, burial: Burial, now_ms: int) -> int:
        """Write the body of a dead letter, once, however often this is tried, and name it in the draft. Return it, or 0
        where a handler knows of it."""
        streams, row = self._streams, burial.row
        event, _ = await self.event(burial.place, row.letter)
        letter = LetterBody(
            self.rows.group, self.rows.topic, event, burial.place, ordinal(row.attempt), burial.reason, now_ms
        )
        headers, data = written_letter(letter, f"{row.letter}")
        ack = await streams.put(streams.dead, streams.letters(self.rows.group), data, headers)
        self.rows.put_letter(ack.seq, Letter(burial.place, row.key, row.is_marked, now_ms, row.attempt))
        log.warning("event %d is a dead letter of the group %s (%s)", burial.place, self.rows.group, self.rows.topic)
        return ack.seq if burial.reason is UNHEARD else 0

    async def event(self, place: int, letter: int) -> tuple[Event, str]:
        """Return the event of a place, or of a dead letter, and why it cannot be handed out. Raises StoreError."""
        streams = self._streams
        if letter:
            stored = await streams.get(streams.dead, seq=letter)
            body = None if stored is None else read_letter(stored.data)
            if body is not None:
                return body.event, "" if body.event.source else body.reason
        else:
            stored = await streams.get(streams.events, seq=place)
            if stored is not None:
                one = found(streams.topics, stored.subject, stored.hdrs, stored.data, place)
                return one.event, one.why
        return Event("gone", "", sequence=sequence_text(place)), GONE
