"""What a model's tokens cost, what one call can cost at most, and what it did cost: pure, in whole numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.prices.billed import Billed

if TYPE_CHECKING:
    from meshd.call import Ask, Usage

PICO: Final = 1_000_000
"""Pico-dollars in a micro-dollar; and what a rate of one dollar for a million tokens is, in pico-dollars a token."""
TIMES_ONE: Final = 1000
"""A multiple of a rate is in thousandths: 2500 is two and a half times."""
RATE_MAX: Final = 100_000 * PICO
TIMES_MAX: Final = 100 * TIMES_ONE

# What a request or an answer may call the tier that costs no more than the standard one. Anything else, and silence,
# may be the dearer one: a project's own setting decides where a request says nothing.
_STANDARD: Final = frozenset({"default", "standard", "standard_only", "flex", "batch", "scale"})
_FAST: Final = "fast"
# A request must say so where its input is to be kept for longer: by `ttl` (Anthropic), or by a member that begins with
# `prompt_cache` (OpenAI). JSON may spell a letter of either as an escape.
_KEPT_LONG: Final = (b'"ttl"', b"prompt_cache", b"\\u006", b"\\u007")
_NOTHING_SAID: Final = Billed()


class Rates:
    """Pico-dollars a token, by what the token is."""

    __slots__ = ("cache_write", "cache_write_long", "cached_input", "input", "input_most", "output")

    def __init__(self, input: int, cached_input: int, cache_write: int, cache_write_long: int, output: int) -> None:
        self.input = input
        self.cached_input = cached_input
        """Input that the provider had in its cache."""
        self.cache_write = cache_write
        """Input that the provider put into its cache."""
        self.cache_write_long = cache_write_long
        """The same, to be kept for longer (Anthropic: an hour in place of five minutes)."""
        self.output = output
        self.input_most = max(input, cached_input, cache_write)
        """What a token of the input can cost where nothing is kept for longer."""

    @property
    def all(self) -> tuple[int, int, int, int, int]:
        """Every rate, as the constructor takes them."""
        return (self.input, self.cached_input, self.cache_write, self.cache_write_long, self.output)


class Price:
    """What one model costs. Made once for each model and policy, shared by its calls."""

    __slots__ = ("fast", "is_free", "long", "long_above", "priority", "source", "standard")

    def __init__(
        self,
        standard: Rates,
        *,
        long_above: int = 0,
        long: Rates | None = None,
        priority: int = TIMES_ONE,
        fast: int = TIMES_ONE,
        source: str = "",
    ) -> None:
        """Raise ValueError where a longer input would be cheaper, or a dearer tier cheaper than the standard one."""
        if long is not None and any(more < less for more, less in zip(long.all, standard.all, strict=True)):
            raise ValueError("a long input cannot cost less a token than a short one")
        if priority < TIMES_ONE or fast < TIMES_ONE:
            raise ValueError("a dearer tier costs at least as much as the standard one")
        self.standard = standard
        self.long_above = long_above
        """Input tokens above which the whole call is charged by `long`."""
        self.long = long
        self.priority = priority
        """Thousandths of the rates that hold where the provider serves a call with priority."""
        self.fast = fast
        """The same for a mode that only the request itself can switch on."""
        self.is_free = not any(standard.all) and (long is None or not any(long.all))
        self.source = source
        """Where it stands, for people: the table and its date, or the policy."""


def dearest(prices: list[Price]) -> Price:
    """Return a price that none of them is above: for a call that any of their models may serve."""
    if len(prices) == 1:
        return prices[0]
    above = [price.long_above for price in prices if price.long is not None]
    return Price(
        _most([price.standard for price in prices]),
        long_above=min(above, default=0),
        long=_most([price.long or price.standard for price in prices]) if above else None,
        priority=max([price.priority for price in prices]),
        fast=max([price.fast for price in prices]),
        source="the dearest of " + ", ".join(dict.fromkeys([price.source for price in prices])),
    )


def _most(rates: list[Rates]) -> Rates:
    return Rates(
        max([one.input for one in rates]),
        max([one.cached_input for one in rates]),
        max([one.cache_write for one in rates]),
        max([one.cache_write_long for one in rates]),
        max([one.output for one in rates]),
    )


class Quote:
    """The price of one call: what its request says of tiers and caches is taken in.

    `most` bounds `charge` wherever usage stays within its bounds and the answer is of the tier that was asked for.
    """

    __slots__ = ("_is_long_kept", "_is_mixed", "_times", "price")

    def __init__(self, price: Price, tier: str = "", *, is_long_kept: bool = True, is_mixed: bool = False) -> None:
        """`tier` is what the request asks for, empty for nothing; `is_long_kept`: it may have caches kept for long.

        `is_mixed`: the bound of the input is one of the output too, since the request has no cap of it to be set.
        """
        self.price = price
        self._times = times_of(price, tier)
        self._is_long_kept = is_long_kept
        self._is_mixed = is_mixed

    @property
    def is_free(self) -> bool:
        """It costs nothing, whatever it is."""
        return self.price.is_free

    def most(self, input_tokens: int, output_tokens: int) -> int:
        """Return the micro-dollars that a call of so many tokens can cost."""
        rates = self._rates(input_tokens)
        input_rate = self._input_most(rates)
        if self._is_mixed:
            input_rate = max(input_rate, rates.output)
        return _micro((input_tokens * input_rate + output_tokens * rates.output) * self._times)

    def cap(self, microdollars: int, input_tokens: int, choices: int, cap: int) -> int:
        """Return the largest output cap up to `cap`, in tokens for each of `choices`, that fits into an amount."""
        rates = self._rates(input_tokens)
        if rates.output == 0:
            return cap
        pico = microdollars * PICO * TIMES_ONE // self._times - input_tokens * self._input_most(rates)
        return max(0, min(cap, pico // (choices * rates.output)))

    def charge(self, usage: Usage) -> int:
        """Return the micro-dollars that a usage costs. What a report does not say costs the most that it can be."""
        given, made = max(usage.input_tokens, 0), max(usage.output_tokens, 0)
        rates = self._rates(given)
        cached = min(max(usage.cached_tokens, 0), given)
        billed: Billed = usage.billed if usage.billed is not None else _NOTHING_SAID
        written = min(max(billed.cache_write_tokens, 0), given - cached)
        if billed.cache_write_long_tokens >= 0:
            long_written = min(billed.cache_write_long_tokens, written)
        else:
            long_written = written if self._is_long_kept else 0
        pico = (
            (given - cached - written) * rates.input
            + cached * rates.cached_input
            + (written - long_written) * rates.cache_write
            + long_written * rates.cache_write_long
            + made * rates.output
        )
        return _micro(pico * (times_of(self.price, billed.tier) if billed.tier else self._times))

    def _rates(self, input_tokens: int) -> Rates:
        price = self.price
        if price.long is not None and input_tokens > price.long_above:
            return price.long
        return price.standard

    def _input_most(self, rates: Rates) -> int:
        return max(rates.input_most, rates.cache_write_long) if self._is_long_kept else rates.input_most


def quoted(price: Price, ask: Ask, body: bytes | None) -> Quote:
    """Return the price of a call. `body` is its request's; one that was not read may say anything."""
    standard = price.standard
    is_long_kept = standard.cache_write_long > standard.cache_write and (
        body is None or any(mark in body for mark in _KEPT_LONG)
    )
    return Quote(price, ask.tier, is_long_kept=is_long_kept, is_mixed=not ask.has_output)


def times_of(price: Price, tier: str) -> int:
    """Return the thousandths of the rates that a tier costs; the dearer ones hold unless it says otherwise."""
    if tier in _STANDARD:
        return TIMES_ONE
    return max(price.fast, price.priority) if tier == _FAST else price.priority


def _micro(pico_times: int) -> int:
    """Return micro-dollars for thousandths of pico-dollars, rounded up: nothing that costs is free."""
    return -(-pico_times // (PICO * TIMES_ONE))
