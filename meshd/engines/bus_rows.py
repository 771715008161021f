"""How far one group has come where its journal says so: its rows, what is due and what waits behind what.

Pure: no clock, no server. A row stands for an event that the group has begun with and not settled. Every sidecar does
the same to its rows, in the order of the journal, so nothing here may depend on anything but what is handed in. What a
journal says, and how it is written, is the driver's (meshd.engines.bus_nats_rows, meshd.engines.bus_kafka_rows). Times
are Unix milliseconds. Of one key all rows but one, or none, are BLOCKED.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, Protocol, TypeVar

from meshd.engines.bus_port import Verdict
from meshd.engines.bus_shelf import AGAIN, UNHEARD, Attempt, Settled, deferred, ordinal, redriven

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self

READY, BLOCKED, OUT, WAITING = range(4)
SET_BACK_MS: Final = 10_000
"""By how much a clock must be behind for it to have been set back: those of two sidecars are never quite the same."""


class Row(NamedTuple):
    """An event of a group."""

    state: int
    key: bytes
    """Digest of the partition key; empty for none."""
    due_ms: int = 0
    """When its attempt is over, or its retry due."""
    wait_ms: int = 0
    """How long that was from when it was said."""
    attempt: int = 0
    """Number of the last one (`meshd.engines.bus_shelf.LIFE`)."""
    is_marked: bool = False
    is_done: bool = False
    since_ms: int = 0
    """When it was redriven."""
    owner: str = ""
    """The sidecar whose subscriber has it."""
    letter: int = 0
    """By what the driver finds the body of the dead letter that it was; 0 where the body is its event's."""


class Burial(NamedTuple):
    """An event that becomes a dead letter, once that has a number."""

    place: int
    row: Row
    reason: str


class Buried(Protocol):
    """A dead letter of a group: a NamedTuple that has these fields, and what else its driver writes down."""

    @property
    def place(self) -> int: ...
    @property
    def key(self) -> bytes: ...
    @property
    def attempts(self) -> int: ...
    @property
    def is_marked(self) -> bool: ...
    @property
    def died_ms(self) -> int: ...
    def _replace(self, *, died_ms: int) -> Self: ...


L = TypeVar("L", bound=Buried)


class GroupRows(Generic[L]):
    """See the module. `attempts_max`: after so many attempts an event is a dead letter."""

    def __init__(self, attempts_max: int) -> None:
        self.attempts_max = attempts_max
        self.dropped = 0
        self.expired = 0
        self.rows: dict[int, Row] = {}
        self.letters: dict[int, L] = {}
        self.burials: list[Burial] = []
        self.out: dict[str, set[int]] = {}
        """By sidecar, what its subscribers have."""
        self._held: dict[bytes, int] = {}
        """Rows by key."""
        self._leading: dict[bytes, int] = {}
        """Of these, those that are not BLOCKED."""
        self._blocked: dict[bytes, list[int]] = {}
        """Heaps of places, and below two of what is ready and due; some may be out of date."""
        self._ready: list[int] = []
        self._due: list[tuple[int, int]] = []

    # What is written. A driver may take note of it.

    def put(self, place: int, row: Row | None) -> None:
        """Write a row, or remove it."""
        old = self.rows.get(place)
        if old is not None:
            if old.key:
                _count(self._held, old.key, -1)
                _count(self._leading, old.key, -(old.state != BLOCKED))
            if old.state == OUT:
                places = self.out[old.owner]
                places.discard(place)
                if not places:
                    del self.out[old.owner]
        if row is None:
            self.rows.pop(place, None)
            return
        self.rows[place] = row
        if row.key:
            _count(self._held, row.key, 1)
            _count(self._leading, row.key, row.state != BLOCKED)
        if row.state == READY:
            heapq.heappush(self._ready, place)
        elif row.state == BLOCKED:
            heapq.heappush(self._blocked.setdefault(row.key, []), place)
        else:
            heapq.heappush(self._due, (row.due_ms, place))
            if row.state == OUT:
                self.out.setdefault(row.owner, set()).add(place)

    def put_letter(self, number: int, letter: L | None) -> None:
        """Write a dead letter, or remove it."""
        if letter is None:
            self.letters.pop(number, None)
        else:
            self.letters[number] = letter

    # What is next.

    def ready(self, many: int) -> list[int]:
        """Return up to so many places that are ready, the oldest first."""
        found: list[int] = []
        while self._ready and len(found) < many:
            place = heapq.heappop(self._ready)
            row = self.rows.get(place)
            if row is not None and row.state == READY and (not found or found[-1] != place):
                found.append(place)
        for place in found:
            heapq.heappush(self._ready, place)
        return found

    def due_ms(self) -> int | None:
        """Return when the next retry, or the next handler's end, is due; None where nothing is."""
        while self._due:
            due_ms, place = self._due[0]
            row = self.rows.get(place)
            if row is not None and row.state in (OUT, WAITING) and row.due_ms == due_ms:
                return due_ms
            heapq.heappop(self._due)
        return None

    def is_held(self, key: bytes) -> bool:
        """Say whether an event of a key that the group comes to must wait behind another."""
        return bool(key) and key in self._held

    def is_out(self, attempt: tuple[int, int], owner: str) -> bool:
        """Say whether an attempt, by place and number, is under way, and this sidecar's."""
        row = self.rows.get(attempt[0])
        return row is not None and (row.state, row.attempt, row.owner, row.is_done) == (OUT, attempt[1], owner, False)

    def is_kept(self, place: int, gone_ms: int) -> bool:
        """Say whether an event stays although it is too old: somebody is at it, or asked for it again."""
        row = self.rows.get(place)
        return row is not None and (row.state == OUT or row.since_ms > gone_ms)

    def counts(self) -> tuple[int, int, int, int, int]:
        """Return what `Position` counts."""
        out = sum(map(len, self.out.values()))
        return out, len(self.rows) - out, len(self.letters), self.dropped, self.expired

    # What is done to rows. Each is one decision.

    def take_in(self, place: int, key: bytes) -> bool:
        """Make the row of an event that the group comes to; return whether it is ready."""
        is_held = self.is_held(key)
        self.put(place, Row(BLOCKED if is_held else READY, key))
        return not is_held

    def begin_new(self, place: int, key: bytes, end_ms: int, owner: str) -> Row | None:
        """Come to an event, and begin its first attempt; return None where it must wait behind another."""
        if self.is_held(key):
            self.put(place, Row(BLOCKED, key))
            return None
        row = Row(OUT, key, end_ms, attempt=1, owner=owner)
        self.put(place, row)
        return row

    def fall_due(self, now_ms: int) -> None:
        """Make ready what has waited, and lose what took too long."""
        while (due_ms := self.due_ms()) is not None and due_ms <= now_ms:
            _, place = heapq.heappop(self._due)
            row = self.rows[place]
            if row.state == OUT:
                self._lose(place, row)
            else:
                self.put(place, _ready(row))

    def begin(self, place: int, end_ms: int, owner: str, *, wait_ms: int = 0) -> Row:
        """Begin the next attempt at what is ready; with `wait_ms`, its end is moved where the clock is set back."""
        row = self.rows[place]
        row = row._replace(state=OUT, due_ms=end_ms, wait_ms=wait_ms, attempt=row.attempt + 1, owner=owner)
        self.put(place, row)
        return row

    def settle(self, attempt: Attempt, verdict: Verdict, wait_ms: int, reason: str, now_ms: int) -> Settled:
        """End an attempt; `wait_ms`: until it is tried again, where that is what follows."""
        place, row = attempt.place, self.rows.get(attempt.place)
        if row is None:
            return Settled(counted=False)
        counted = not row.is_done
        if verdict in AGAIN and row.state == WAITING and row.attempt == deferred(attempt.number):
            row = row._replace(attempt=row.attempt + (verdict is Verdict.RETRY))
        elif row.state != OUT or row.attempt != attempt.number:
            if verdict is not Verdict.SUCCESS:
                return Settled(counted=False)
            if row.state == OUT:
                if counted:
                    self.put(place, row._replace(is_done=True))
                return Settled(counted)
            return Settled(counted, self.finish(place))
        elif row.is_done or verdict not in AGAIN:
            self.dropped += counted and verdict is Verdict.DROP
            return Settled(counted, self.finish(place))
        elif verdict is Verdict.DEFER:
            row = row._replace(attempt=deferred(attempt.number))
        self.put(place, row._replace(state=WAITING, due_ms=now_ms + wait_ms, wait_ms=wait_ms, owner=""))
        if verdict is Verdict.RETRY and ordinal(attempt.number) >= self.attempts_max:
            return Settled(counted, self.bury(place, reason))
        return Settled(counted, due_s=(now_ms + wait_ms) / 1000)

    def give_back(self, attempts: Iterable[tuple[int, int]], *, is_unseen: bool) -> None:
        """End attempts, by place and number, of which nothing will be heard; unseen ones were not even begun."""
        for place, number in attempts:
            row = self.rows.get(place)
            if row is None or row.state != OUT or row.attempt != number:
                continue
            if is_unseen and not row.is_done:
                self.put(place, _ready(row._replace(attempt=row.attempt - 1)))
            else:
                self._lose(place, row)

    def lose_all(self, owner: str) -> None:
        """End all attempts of a sidecar that is gone."""
        for place in sorted(self.out.get(owner, ())):
            self._lose(place, self.rows[place])

    def lose(self, attempts: Iterable[tuple[int, Row]]) -> None:
        """End attempts, by place and row, of which nothing will be heard, where their rows are as they were."""
        for place, row in sorted(attempts):
            if self.rows.get(place) == row:
                self._lose(place, row)

    def bury(self, place: int, reason: str) -> bool:
        """Make a dead letter of an event; return whether another can be handed out now."""
        self.burials.append(Burial(place, self.rows[place], reason))
        return self.finish(place)

    def finish(self, place: int) -> bool:
        """Be done with an event; return whether another can be handed out now."""
        row = self.rows[place]
        self.put(place, None)
        if not row.key or row.key in self._leading:
            return False
        for first in self._first_blocked(row.key):
            self.put(first, _ready(self.rows[first]))
            return True
        return False

    def revive(self, number: int, now_ms: int, *, goes_on: bool = True) -> bool:
        """Begin anew with a dead letter; return whether there is one. Attempts have numbers of their own, unless they
        are not to go on."""
        letter = self.letters.get(number)
        if letter is None:
            return False
        state = BLOCKED if letter.key and letter.key in self._leading else READY
        attempt, body = redriven(letter.attempts) if goes_on else 0, self.body_of(number, letter)
        row = Row(state, letter.key, attempt=attempt, is_marked=letter.is_marked, since_ms=now_ms, letter=body)
        self.put_letter(number, None)
        self.put(letter.place, row)
        return True

    def body_of(self, number: int, letter: L) -> int:
        """Return by what the driver finds the body of a dead letter: its number, where nothing else is said."""
        return number

    def set_back(self, now_ms: int) -> None:
        """The clock was set back meanwhile: nothing waits or is kept for longer than it would have been."""
        for place, row in list(self.rows.items()):
            is_moved = row.state == WAITING or (row.state == OUT and row.wait_ms)
            due_ms = min(row.due_ms, now_ms + row.wait_ms) if is_moved else row.due_ms
            if due_ms != row.due_ms or row.since_ms > now_ms:
                self.put(place, row._replace(due_ms=due_ms, since_ms=min(row.since_ms, now_ms)))
        for number, letter in list(self.letters.items()):
            if letter.died_ms > now_ms:
                self.put_letter(number, letter._replace(died_ms=now_ms))

    def _lose(self, place: int, row: Row) -> None:
        row = row._replace(is_marked=True)
        if row.is_done:
            self.finish(place)
            return
        self.put(place, _ready(row))
        if ordinal(row.attempt) >= self.attempts_max:
            self.bury(place, UNHEARD)

    def _first_blocked(self, key: bytes) -> Iterator[int]:
        heap = self._blocked.get(key)
        while heap:
            place = heapq.heappop(heap)
            row = self.rows.get(place)
            if row is not None and row.state == BLOCKED and row.key == key:
                yield place
        self._blocked.pop(key, None)


def _ready(row: Row) -> Row:
    return row._replace(state=READY, due_ms=0, owner="")


def _count(counts: dict[bytes, int], key: bytes, change: int) -> None:
    if change:
        number = counts.get(key, 0) + change
        if number:
            counts[key] = number
        else:
            del counts[key]
