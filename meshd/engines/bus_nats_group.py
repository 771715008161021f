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

from meshd.engines.bus_event import sequence_text
from meshd.engines.bus_nats_journal import Journal
from meshd.engines.bus_nats_message import Letter as LetterBody
from meshd.engines.bus_nats_message import found, read_letter, written_letter
from meshd.engines.bus_nats_rows import Letter
from meshd.engines.bus_port import Event
from meshd.engines.bus_shelf import UNHEARD, Attempt, Unheard, none_unheard, ordinal
from meshd.engines.link import relayed
from meshd.engines.port import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from meshd.engines.bus_nats_journal import Packed
    from meshd.engines.bus_nats_streams import Streams
    from meshd.engines.bus_rows import Burial
    from meshd.engines.bus_terms import Clock, Terms
    from meshd.engines.nats_server import Ack
    from meshd.engines.nats_wire import Wire

log = logging.getLogger("meshd")

TRIES_MAX: Final = 100
"""Times that a change is decided anew while others come between."""
ASKED_MAX: Final = 512
"""How much is decided on one draft."""
GONE: Final = "its record is gone"

T = TypeVar("T")


class Group(Journal):
    """See the module. `changed` is called after another sidecar's entry was taken in."""

    def __init__(
        self, streams: Streams, group: str, topic: str, terms: Terms, clock: Clock, changed: Callable[[], None]
    ) -> None:
        super().__init__(streams, group, topic, terms, clock, changed)
        self.unheard = none_unheard()
        """See `meshd.engines.bus_shelf.Shelf`."""
        self.live: dict[Attempt, Wire] = {}
        """What subscribers of this sidecar were handed, and the connection over which it was begun with."""
        self.is_in_doubt = False
        """Something that was asked for has failed, and may be in the journal or come there yet: what it began was
        handed to nobody."""
        self._returning: set[Attempt] = set()
        """What was asked to be given back and is not answered."""
        self._unreturned: dict[Attempt, bool] = {}
        """What that has failed for, and whether nobody had seen it."""
        self._looked_at: list[Attempt] | None = None
        """Of that, what there was when the draft gave back what is lost; None where the draft has not."""
        self._asked: deque[tuple[Callable[[int], Any], asyncio.Future[Any]]] = deque()

    def ask(self, decide: Callable[[int], T]) -> asyncio.Future[T]:
        """Decide on a draft of the rows, given the time in milliseconds, and return once that is the truth.

        `decide` may be called more than once, and must not wait. Raises StoreError.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._asked.append((decide, future))
        if self._working is None:
            self._working = asyncio.get_running_loop().create_task(self._work())
        return future

    def ask_at_once(self, decide: Callable[[int], T], tell: Callable[[T | StoreError], None]) -> bool:
        """As `ask`, where the server's word is all that must be waited for, and return True; else do nothing.

        `tell` is called with the answer, or the error, in the moment in which it comes.
        """
        if self._working is not None or not self._is_listening:
            return False
        self._take_in()
        self._looked_at = None
        now_ms, rows, streams = self._now_ms(), self.rows, self._streams
        is_asked = False
        try:
            answer = decide(now_ms)
            if rows.is_changed and not rows.burials:  # whose bodies are written first
                packed = self._packed(now_ms)
                streams.put_at_once(
                    streams.groups,
                    self.subject,
                    packed.data,
                    packed.headers,
                    self._applied,
                    lambda ack: self._decided(ack, packed, decide, answer, tell),
                )
                is_asked = True
                streams.wire.flush()
        except StoreError:
            pass  # nothing was sent, and whoever waits asks again
        finally:
            is_changed = rows.is_changed
            if not is_asked:
                rows.undo()
        if is_asked:
            self._working = asyncio.get_running_loop().create_future()
        elif not is_changed:
            tell(answer)
        return is_asked or not is_changed

    def _decided(
        self,
        ack: Ack | StoreError,
        packed: Packed,
        decide: Callable[[int], T],
        answer: T,
        tell: Callable[[T | StoreError], None],
    ) -> None:
        if isinstance(ack, StoreError):
            self.rows.undo()
            self.is_in_doubt = True
            self._end_draft()
            tell(ack)
        elif self._is_written(packed, ack):
            self._keep()
            self._end_draft()
            tell(answer)
        else:
            # Another sidecar was faster: decide anew, as for everybody else.
            self.rows.undo()
            future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            future.add_done_callback(relayed(tell))
            self._asked.appendleft((decide, future))
            self._end_draft()

    def _end_draft(self) -> None:
        working, self._working = self._working, None
        if working is not None:
            working.set_result(None)
        if self._asked:
            self._working = asyncio.get_running_loop().create_task(self._work())
        else:
            self._take_in()
            self._tell()

    # What nobody has.

    async def give_back(self, attempts: Sequence[Attempt], *, is_unseen: bool) -> None:
        """End attempts of which nothing will be heard. Raises StoreError: then the next decision to begin does it."""
        # Not live from now on: the number of what is unseen is also that of the next attempt, which may be live soon.
        for attempt in attempts:
            self.live.pop(attempt, None)
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
            lost = out - self.live.keys() - self._returning
            seen = {one for one in lost if not self._unreturned.get(one, True)}
            self.rows.give_back(sorted(seen), is_unseen=False)
            self.rows.give_back(sorted(lost - seen), is_unseen=True)

    async def close(self) -> None:
        """Finish what was asked for, and listen no more."""
        while self._working is not None:
            await asyncio.wait((self._working,))
        if self._feed is not None:
            self._feed.stop()
            self._feed = None

    # Deciding.

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
