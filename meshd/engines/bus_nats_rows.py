"""What the journal of a group on NATS says of its rows: drafts, and the entries that come of them.

Whoever changes rows does so on a draft: from it comes the entry of the journal that says so to all sidecars (`entry`),
and it becomes the truth (`keep`) or is undone (`undo`), as the server decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from meshd.engines.bus_rows import SET_BACK_MS, GroupRows, Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshd.engines.bus_terms import Terms

FORMAT: Final = 1


class Letter(NamedTuple):
    """A dead letter of a group; the rest of it is in the stream of dead letters."""

    place: int
    key: bytes
    is_marked: bool
    died_ms: int
    attempts: int = 0
    """Number of the last one."""


class Entry(msgspec.Struct, array_like=True):
    """One entry of a group's journal: what has changed, or, where it `is_whole`, all there is."""

    format: int
    group: str
    topic: str
    is_whole: bool
    latest_ms: int
    position: int
    dropped: int
    expired: int
    rows: dict[int, Row | None]
    letters: dict[int, Letter | None]


class Rows(GroupRows[Letter]):
    """See the module."""

    def __init__(self, group: str, topic: str, terms: Terms) -> None:
        super().__init__(terms.attempts_max)
        self.group = group
        self.topic = topic
        self.position = 0
        """Every event up to here is in a row or settled."""
        self.latest_ms = 0
        self.spent: list[int] = []
        """Dead letters whose bodies nobody needs any more."""
        self._before: dict[int, Row | None] = {}
        self._letters_before: dict[int, Letter | None] = {}
        self._told_before = self._told()

    # The draft.

    @property
    def is_changed(self) -> bool:
        return bool(self._before or self._letters_before) or self._told() != self._told_before

    def entry(self, now_ms: int, *, is_whole: bool) -> Entry:
        """Return what the draft changes, or all there is."""
        rows: dict[int, Row | None] = {}
        letters: dict[int, Letter | None] = {}
        if is_whole:
            rows.update(self.rows)
            letters.update(self.letters)
        else:
            rows.update((place, self.rows.get(place)) for place in self._before)
            letters.update((number, self.letters.get(number)) for number in self._letters_before)
        self.latest_ms = max(self.latest_ms, now_ms)
        counts = self.position, self.dropped, self.expired
        return Entry(FORMAT, self.group, self.topic, is_whole, self.latest_ms, *counts, rows, letters)

    def keep(self) -> None:
        """Make the draft the truth."""
        self._before.clear()
        self._letters_before.clear()
        self._told_before = self._told()

    def undo(self) -> None:
        """Forget the draft."""
        for place, row in self._before.items():
            super().put(place, row)
        for number, letter in self._letters_before.items():
            super().put_letter(number, letter)
        self.position, self.dropped, self.expired = self._told_before
        self.burials.clear()
        self.spent.clear()
        self.keep()

    def apply(self, entry: Entry) -> None:
        """Take over what the journal says. There must be no draft."""
        if entry.is_whole:
            for place in [place for place in self.rows if place not in entry.rows]:
                super().put(place, None)
            self.letters.clear()
        for place, row in entry.rows.items():
            super().put(place, row)
        for number, letter in entry.letters.items():
            super().put_letter(number, letter)
        self.position, self.dropped, self.expired = entry.position, entry.dropped, entry.expired
        self.latest_ms = entry.latest_ms
        self.keep()

    def _told(self) -> tuple[int, int, int]:
        return self.position, self.dropped, self.expired

    def put(self, place: int, row: Row | None) -> None:
        self._before.setdefault(place, self.rows.get(place))
        super().put(place, row)

    def put_letter(self, number: int, letter: Letter | None) -> None:
        self._letters_before.setdefault(number, self.letters.get(number))
        super().put_letter(number, letter)

    # What is done to rows.

    def begin_new(self, place: int, key: bytes, end_ms: int, owner: str) -> Row | None:
        """Also come to that event, which is beyond the position."""
        self.position = place
        return super().begin_new(place, key, end_ms, owner)

    def finish(self, place: int) -> bool:
        if letter := self.rows[place].letter:
            self.spent.append(letter)
        return super().finish(place)

    def expire(self, places: Sequence[int], floor: int) -> None:
        """Give up events that are too old and are the group's; `floor`: all up to there are gone for everybody."""
        for place in places:
            if place in self.rows:
                self.finish(place)
                self.expired += 1
            elif place > self.position:
                self.expired += 1
        self.position = max(self.position, floor)

    def set_back(self, now_ms: int) -> None:
        """Where the clock was set back since the journal's last entry, do as `GroupRows.set_back` says."""
        if self.latest_ms > now_ms + SET_BACK_MS:
            super().set_back(now_ms)
            self.latest_ms = now_ms
