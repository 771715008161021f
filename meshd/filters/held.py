"""What Budget holds for an attempt: the ticket that charges what it cost and gives the rest back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.filters.contract import Cut
from meshd.ledger.cost import charge_of

if TYPE_CHECKING:
    from meshd.call import Ask, Outcome, Usage
    from meshd.dialects.contract import Event
    from meshd.filters.bounds import Bounds
    from meshd.ledger import Ledger, Reservation
    from meshd.ledger.entry import Entry

STREAM_MARGIN: Final = 1.5
STREAM_MARGIN_TOKENS: Final = 256
"""A stream is cut where a low guess of its output passes its cap times the one plus the other. The cap that the
upstream was given is the guarantee; this catches one that ignores it, and must never cut an honest answer."""


class Held:
    """Tokens held for one attempt: in `entry` where one account gave them at once, else in `reservations`."""

    __slots__ = ("_bound", "_bounds", "_entry", "_input_bound", "_ledger", "_model", "_ran_tokens", "_reservations")

    def __init__(
        self,
        ledger: Ledger,
        entry: Entry | None,
        ask: Ask,
        bound: int,
        reservations: tuple[Reservation, ...],
        bounds: Bounds,
    ) -> None:
        self._ledger = ledger
        self._entry = entry
        self._bounds = bounds
        self._model = ask.model_sent
        self._input_bound = ask.input_bound
        self._bound = bound
        self._reservations = reservations
        self._ran_tokens = 0

    def settle(self, outcome: Outcome) -> None:
        """Charge what the attempt cost to each account, and give the rest back."""
        output_bound = self._bound - self._input_bound
        if self._ran_tokens > output_bound:
            output_bound = self._ran_tokens
        tokens, is_estimated = charge_of(outcome, self._input_bound, output_bound)
        self.pay(tokens, outcome.usage, is_estimated=is_estimated)

    def pay(self, tokens: int, usage: Usage | None, *, is_estimated: bool) -> None:
        """Charge `tokens`, and give the rest back; `usage` is what the provider has reported."""
        if is_estimated:
            self._ledger.estimated += 1
        if usage is not None and usage.input_tokens > self._input_bound and not usage.is_estimated:
            self._bounds.passed(self._model, self._input_bound, usage.input_tokens)
        entry = self._entry
        if entry is not None:
            self._entry = None
            self._ledger.pay(entry, self._bound, tokens)
        for reservation in self._reservations:
            reservation.settle(tokens)

    @property
    def bound(self) -> int:
        """The most that it can cost."""
        return self._bound


class HeldStream(Held):
    """The same for a streamed answer, which is cut where it runs past what was granted."""

    __slots__ = ("_cut_at", "_is_error")

    judges_whole = False

    def __init__(
        self,
        ledger: Ledger,
        entry: Entry | None,
        ask: Ask,
        bound: int,
        reservations: tuple[Reservation, ...],
        bounds: Bounds,
        is_error: bool,
    ) -> None:
        # Flat: a call to the class above costs as much as all of this, and most calls stream.
        self._ledger = ledger
        self._entry = entry
        self._bounds = bounds
        self._model = ask.model_sent
        self._input_bound = ask.input_bound
        self._bound = bound
        self._reservations = reservations
        self._ran_tokens = 0
        self._cut_at = int((bound - ask.input_bound) * STREAM_MARGIN) + STREAM_MARGIN_TOKENS
        self._is_error = is_error

    def on_event(self, event: Event) -> Event | Cut:
        """Let the piece pass, or cut the stream here."""
        if event.output_estimate <= self._cut_at:
            return event
        self._ran_tokens = event.output_estimate
        granted = self._bound - self._input_bound
        return Cut(
            f"the answer ran past its cap: about {event.output_estimate} tokens for {granted} granted",
            is_error=self._is_error,
        )
