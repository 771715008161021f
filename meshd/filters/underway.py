"""What Budget holds for work that goes on at the provider when its call has been answered.

A response that runs in the background is answered at once, and what it has cost stands in the reply to a later call
that reads it. Until then its tokens stay held; if nobody asks, or too much is under way, its bound is what it has
cost. Only this process knows of it: after a restart, or read through another sidecar, it counts at its bound too, as
everything does that was in flight.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from meshd.filters.held import Held

if TYPE_CHECKING:
    from meshd.call import Ask, Call
    from meshd.dialects.event import Event
    from meshd.filters.bounds import Bounds
    from meshd.filters.held import Rest
    from meshd.ledger import Ledger
    from meshd.ledger.entry import Entry
    from meshd.outcome import Outcome

UNDERWAY_MAX: Final = 1024
"""Works that are known at a time; beyond them the oldest is charged at its bound."""
UNDERWAY_S_MAX: Final = 12 * 3600.0
"""The longest that a provider takes (OpenAI's slowest `completion_window` is 8 hours), and half as much again."""
_ID_CHARACTERS_MAX: Final = 256


class Underway:
    """The works that are held, by upstream and id, the oldest first."""

    __slots__ = ("_works",)

    def __init__(self) -> None:
        self._works: OrderedDict[tuple[str, str], Begun] = OrderedDict()

    def __len__(self) -> int:
        return len(self._works)

    def keep(self, begun: Begun, id: str, now_s: float) -> bool:
        """Hold a work until its end is read; return whether it is held, for one of its id may be already."""
        key = (begun.upstream, id)
        if key in self._works or len(id) > _ID_CHARACTERS_MAX:
            return False
        self.expire(now_s)
        while len(self._works) >= UNDERWAY_MAX:
            self._give_up()
        begun.since_s = now_s
        self._works[key] = begun
        return True

    def expire(self, now_s: float) -> None:
        """Charge at its bound what has been held for too long."""
        while self._works and next(iter(self._works.values())).since_s + UNDERWAY_S_MAX < now_s:
            self._give_up()

    def _give_up(self) -> None:
        _, begun = self._works.popitem(last=False)
        if begun.outcome is not None:
            begun.charge(begun.outcome)

    def read_by(self, call: Call) -> Reading | None:
        """Return the ticket of a call that reads a work which is held here; None for every other."""
        self.expire(call.now_s)
        collects = getattr(call.dialect, "collects", None)
        id = collects(call.method, call.path) if collects is not None else ""
        begun = self._works.get((call.target.name, id)) if id else None
        if begun is None:
            return None
        call.earlier = begun.ask
        return Reading(self, begun, id)

    def end(self, begun: Begun, id: str, outcome: Outcome) -> None:
        """Charge what a work has cost, once: several calls may have read its end. Its bound where nobody says."""
        if self._works.get((begun.upstream, id)) is begun:
            del self._works[begun.upstream, id]
            begun.charge(outcome)


class Begun(Held):
    """The ticket of a call whose reply may come before its work is done."""

    __slots__ = ("_id", "_underway", "ask", "outcome", "since_s", "upstream")

    judges_whole = False

    def __init__(
        self,
        underway: Underway,
        call: Call,
        ask: Ask,
        ledger: Ledger,
        entry: Entry | None,
        bound: int,
        rest: Rest | None,
        bounds: Bounds,
    ) -> None:
        super().__init__(ledger, entry, ask, bound, rest, bounds)
        self._underway = underway
        self._id = ""
        self.ask = ask
        self.upstream = call.target.name
        self.since_s = 0.0
        self.outcome: Outcome | None = None
        """Of the call that began it: without another word, the work is charged by this one."""

    def on_event(self, event: Event) -> Event:
        """Note what goes on. Nothing is cut: the work would not stop with its stream."""
        self._id = "" if event.ended else event.begun
        return event

    def settle(self, outcome: Outcome) -> None:
        """Hold on to the tokens where the work goes on, else settle as every call."""
        is_begun = self._id and outcome.usage is None and outcome.is_forwarded and 200 <= outcome.status < 300
        self.outcome = outcome
        outcome.held = self
        if not is_begun or not self._underway.keep(self, self._id, outcome.now_s):
            super().settle(outcome)

    def charge(self, outcome: Outcome) -> None:
        """End what is held, by what a later call has read."""
        super().settle(outcome)


class Reading:
    """The ticket of a call that reads a work: settles it where the reply says that it is over."""

    __slots__ = ("_begun", "_id", "_is_over", "_underway")

    judges_whole = False

    def __init__(self, underway: Underway, begun: Begun, id: str) -> None:
        self._underway = underway
        self._begun = begun
        self._id = id
        self._is_over = False

    def on_event(self, event: Event) -> Event:
        """Note whether it is over: only what the provider says of this very work counts."""
        self._is_over = self._is_over or event.ended == self._id
        return event

    def settle(self, outcome: Outcome) -> None:
        """Charge the work what it has cost."""
        if not self._is_over or not 200 <= outcome.status < 300:
            return
        self._underway.end(self._begun, self._id, outcome)
