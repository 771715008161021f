"""What Budget holds for an attempt: the ticket that charges what it cost and gives the rest back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.filters.contract import Cut
from meshd.ledger.cost import charge_of

if TYPE_CHECKING:
    from meshd.call import Outcome
    from meshd.dialects.contract import Event
    from meshd.ledger import Ledger, Reservation
    from meshd.ledger.entry import Entry

STREAM_MARGIN: Final = 1.5
STREAM_MARGIN_TOKENS: Final = 256
"""A stream is cut where a low guess of its output passes its cap times the one plus the other. The cap that the
upstream was given is the guarantee; this catches one that ignores it, and must never cut an honest answer."""


class Held:
    """Tokens held for one attempt: in `entry` where one account gave them at once, else in `reservations`."""

    __slots__ = (
        "_entry",
        "_ledger",
        "_ran_tokens",
        "account",
        "bound",
        "charged",
        "input_bound",
        "is_estimated",
        "limit",
        "reservations",
    )

    def __init__(
        self,
        ledger: Ledger,
        entry: Entry | None,
        input_bound: int,
        bound: int,
        reservations: tuple[Reservation, ...] = (),
    ) -> None:
        self._ledger = ledger
        self._entry = entry
        self.input_bound = input_bound
        self.bound = bound
        self.reservations = reservations
        self._ran_tokens = 0
        self.account = ""
        self.limit = 0
        if entry is not None:
            self.account = entry.id
            self.limit = entry.whole
        self.charged = 0
        self.is_estimated = False

    def settle(self, outcome: Outcome) -> None:
        """Charge what the attempt cost to each account, and give the rest back."""
        output_bound = self.bound - self.input_bound
        if self._ran_tokens > output_bound:
            output_bound = self._ran_tokens
        tokens, is_estimated = charge_of(outcome, self.input_bound, output_bound)
        if is_estimated:
            self._ledger.estimated += 1
        self.charged = tokens
        self.is_estimated = is_estimated
        outcome.held = self
        entry = self._entry
        if entry is not None:
            self._entry = None
            self._ledger.pay(entry, self.bound, tokens)
        for reservation in self.reservations:
            reservation.settle(tokens)


class HeldStream(Held):
    """The same for a streamed answer, which is cut where it runs past what was granted."""

    __slots__ = ("_cut_at", "_is_error")

    judges_whole = False

    def __init__(
        self,
        ledger: Ledger,
        entry: Entry | None,
        input_bound: int,
        bound: int,
        reservations: tuple[Reservation, ...],
        is_error: bool,
    ) -> None:
        # Flat: a call to the class above costs as much as all of this, and most calls stream.
        self._ledger = ledger
        self._entry = entry
        self.input_bound = input_bound
        self.bound = bound
        self.reservations = reservations
        self._ran_tokens = 0
        self.account = ""
        self.limit = 0
        if entry is not None:
            self.account = entry.id
            self.limit = entry.whole
        self.charged = 0
        self.is_estimated = False
        self._cut_at = int((bound - input_bound) * STREAM_MARGIN) + STREAM_MARGIN_TOKENS
        self._is_error = is_error

    def on_event(self, event: Event) -> Event | Cut:
        """Let the piece pass, or cut the stream here."""
        if event.output_estimate <= self._cut_at:
            return event
        self._ran_tokens = event.output_estimate
        granted = self.bound - self.input_bound
        return Cut(
            f"the answer ran past its cap: about {event.output_estimate} tokens for {granted} granted",
            is_error=self._is_error,
        )
