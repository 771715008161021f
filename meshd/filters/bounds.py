"""What Budget does to a bound of the input: lower it by counting, raise it for a model that passed its bound.

The byte bound costs nothing and is four times too many on English. So it is tried first, and only where an account
cannot cover it is the request counted, and tried again. Where a provider reports more input than was bounded, the
bounds of that model are no bounds: from then on they are multiplied (guarantees, part 1, rule 10).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.tokens.encodings import BYTES, COUNT, KEPT, RAISED_BYTES, RAISED_WINDOW, WINDOW, encoding_of

if TYPE_CHECKING:
    from meshd.call import Ask, Call
    from meshd.tokens.counter import Counter

MODELS_MAX: Final = 256
"""Models whose raised bounds are remembered; whoever reports for more is a fault of its own."""
_RAISED: Final = {BYTES: RAISED_BYTES, WINDOW: RAISED_WINDOW}
CLASSES: Final = (125, 150, 200, 400, 800, 1_600)
"""By how much a bound is multiplied, in per cent. The last is also for reports that are absurd: one of them must not
refuse every later call of its model for good."""


class Bounds:
    """One for the process. On the loop's thread only."""

    __slots__ = ("_counter", "counted", "raised", "uncounted")

    def __init__(self, counter: Counter | None = None) -> None:
        """Without a `counter` nothing is counted."""
        self._counter = counter
        self.raised: dict[str, int] = {}
        """Per cent of its bounds, by model, for those that passed theirs since the start of the process."""
        self.counted = 0
        """Requests whose bound was lowered by counting."""
        self.uncounted = 0
        """Requests that were to be counted, and kept their bound."""

    def raise_for(self, ask: Ask) -> None:
        """Raise the bound of a model that has passed its bound before, once for each request."""
        percent = self.raised.get(ask.model_sent)
        if percent is None or ask.bound_by not in _RAISED:
            return
        ask.input_bound = -(-ask.input_bound * percent // 100)
        ask.bound_by = _RAISED[ask.bound_by]

    def passed(self, model: str, input_bound: int, reported: int) -> None:
        """A provider reported more input than was bounded: remember it for the model's next requests."""
        known = self.raised.get(model, 100)
        if model not in self.raised and len(self.raised) >= MODELS_MAX:
            return
        needed = -(-known * reported // max(input_bound, 1))
        self.raised[model] = next((one for one in CLASSES if one >= needed), CLASSES[-1])

    def can_count(self, call: Call) -> bool:
        """Say whether a count may lower the bound of a call: one of bytes, of a model whose tokens can be counted."""
        ask = call.ask
        if self._counter is None or ask is None or ask.bound_by not in (BYTES, RAISED_BYTES):
            return False
        return hasattr(call.dialect, "texts") and bool(encoding_of(ask.model_sent))

    async def count(self, call: Call) -> bool:
        """Count a call's texts, off the loop; return whether that lowered its bound. Never raises it."""
        counter, ask = self._counter, call.ask
        if counter is None or ask is None:
            return False
        encoding, texts = encoding_of(ask.model_sent), call.dialect.texts
        tokens = await counter.total(encoding, lambda: texts(ask), ask.input_bound)
        if tokens is not None:
            tokens = -(-tokens * self.raised.get(ask.model_sent, 100) // 100)
        if tokens is None or tokens >= ask.input_bound:
            self.uncounted += 1
            ask.bound_by = KEPT
            return False
        self.counted += 1
        ask.input_bound = tokens
        ask.bound_by = COUNT
        return True
