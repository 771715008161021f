"""What Budget holds for an attempt: the ticket that charges what it cost and gives the rest back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.filters.contract import Cut
from meshd.ledger.cost import charge_of, cost_of

if TYPE_CHECKING:
    from meshd.call import Ask
    from meshd.dialects.event import Event
    from meshd.filters.bounds import Bounds
    from meshd.ledger import Ledger, Reservation
    from meshd.ledger.entry import Entry
    from meshd.outcome import Outcome
    from meshd.prices.price import Quote

STREAM_MARGIN: Final = 1.5
STREAM_MARGIN_TOKENS: Final = 256
"""A stream is cut where a low guess of its output passes its cap times the one plus the other. The cap that the
upstream was given is the guarantee; this catches one that ignores it, and must never cut an honest answer."""


class Rest:
    """What an attempt holds where one account did not give all of it at once: tokens of several, micro-dollars, or
    what was waited for."""

    __slots__ = ("_money", "_quote", "_tokens")

    def __init__(
        self, tokens: tuple[Reservation, ...], money: tuple[Reservation, ...] = (), quote: Quote | None = None
    ) -> None:
        self._tokens = tokens
        self._money = money
        self._quote = quote
        """The price of `money`; None where there is none."""

    @property
    def reservations(self) -> tuple[Reservation, ...]:
        """Those of tokens, then those of money; settled or not."""
        return (*self._tokens, *self._money)

    def settle(self, tokens: int, outcome: Outcome, input_bound: int, output_bound: int) -> None:
        """Charge each account, and say in the outcome what the attempt cost."""
        for reservation in self._tokens:
            reservation.settle(tokens)
        quote = self._quote
        if quote is not None:
            self._quote = None
            outcome.microdollars = cost = cost_of(outcome, quote, input_bound, output_bound)
            for reservation in self._money:
                reservation.settle(cost)


class Held:
    """What is held for one attempt: in `entry` where one account gave it at once, else in `rest`."""

    __slots__ = (
        "_bounds",
        "_entry",
        "_ledger",
        "_model",
        "_ran_tokens",
        "account",
        "bound",
        "charged",
        "input_bound",
        "is_estimated",
        "limit",
        "rest",
    )

    def __init__(
        self,
        ledger: Ledger,
        entry: Entry | None,
        ask: Ask,
        bound: int,
        rest: Rest | None,
        bounds: Bounds,
    ) -> None:
        self._ledger = ledger
        self._entry = entry
        self._bounds = bounds
        self._model = ask.model_sent
        self.input_bound = ask.input_bound
        self.bound = bound
        self.rest = rest
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
        usage = outcome.usage
        if usage is not None and usage.input_tokens > self.input_bound and not usage.is_estimated:
            self._bounds.passed(self._model, self.input_bound, usage.input_tokens)
        entry = self._entry
        if entry is not None:
            self._entry = None
            self._ledger.pay(entry, self.bound, tokens)
        rest = self.rest
        if rest is not None:
            rest.settle(tokens, outcome, self.input_bound, output_bound)


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
        rest: Rest | None,
        bounds: Bounds,
        is_error: bool,
    ) -> None:
        # Flat: a call to the class above costs as much as all of this, and most calls stream.
        self._ledger = ledger
        self._entry = entry
        self._bounds = bounds
        self._model = ask.model_sent
        self.input_bound = ask.input_bound
        self.bound = bound
        self.rest = rest
        self._ran_tokens = 0
        self.account = ""
        self.limit = 0
        if entry is not None:
            self.account = entry.id
            self.limit = entry.whole
        self.charged = 0
        self.is_estimated = False
        self._cut_at = int((bound - ask.input_bound) * STREAM_MARGIN) + STREAM_MARGIN_TOKENS
        self._is_error = is_error

    def on_event(self, event: Event) -> Event | Cut:
        """Let the piece pass, or cut the stream here."""
        if event.output_estimate <= self._cut_at:
            return event
        self._ran_tokens = event.output_estimate
        granted = self.bound - self.input_bound
        return Cut(
            f"the answer ran past its cap: about {event.output_estimate} tokens for {granted} granted. The upstream "
            "was sent that cap and did not keep to it: ask for more tokens, or use a model that does.",
            is_error=self._is_error,
        )
