"""What a call can cost and did cost: exact, rounded up, and never less than the usage says."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.call import Ask, Usage
from meshd.prices.billed import Billed
from meshd.prices.price import RATE_MAX, TIMES_ONE, Price, Quote, Rates, dearest, quoted, times_of

MINI = Price(Rates(150_000, 75_000, 150_000, 150_000, 600_000))
"""$0.15 in, $0.075 cached, $0.60 out."""
CLAUDE = Price(Rates(3_000_000, 300_000, 3_750_000, 6_000_000, 15_000_000))
TIERED = Price(Rates(1_000_000, 100_000, 1_000_000, 1_000_000, 5_000_000), priority=2500, fast=6000)
LONG = Price(
    Rates(1_250_000, 125_000, 1_250_000, 1_250_000, 10_000_000),
    long_above=200_000,
    long=Rates(2_500_000, 250_000, 2_500_000, 2_500_000, 15_000_000),
)


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        (Usage(1_000_000, 1_000_000), 750_000),
        (Usage(1, 0), 1),
        (Usage(0, 1), 1),
        (Usage(0, 0), 0),
        (Usage(7, 0), 2),
        (Usage(1_000_000, 0, cached_tokens=1_000_000), 75_000),
        (Usage(1_000_000, 0, cached_tokens=400_000), 120_000),
    ],
)
def test_a_usage_costs_its_tokens_rounded_up(usage: Usage, cost: int) -> None:
    assert Quote(MINI).charge(usage) == cost


@pytest.mark.parametrize(
    "usage",
    [
        Usage(-5, -5),
        Usage(10, 10, cached_tokens=-100),
        Usage(10, 10, cached_tokens=10**9),
        Usage(10, 10, billed=Billed(-1)),
        Usage(10, 10, billed=Billed(10**9, 10**9)),
        Usage(10, 10, 10, billed=Billed(10, -1)),
    ],
)
def test_an_absurd_usage_is_never_negative_nor_above_its_tokens_at_their_dearest(usage: Usage) -> None:
    cost = Quote(CLAUDE).charge(usage)
    assert 0 <= cost <= Quote(CLAUDE).most(max(usage.input_tokens, 0), max(usage.output_tokens, 0))


def test_what_is_put_into_a_cache_costs_more() -> None:
    quote = Quote(CLAUDE, is_long_kept=False)
    assert quote.charge(Usage(1_000_000, 0, billed=Billed(1_000_000))) == 3_750_000
    assert quote.charge(Usage(1_000_000, 0, billed=Billed(1_000_000, 400_000))) == 600_000 * 15 // 4 + 400_000 * 6
    assert quote.charge(Usage(1_000_000, 0, 250_000, billed=Billed(250_000))) == 1_500_000 + 75_000 + 937_500
    unsaid = Quote(CLAUDE, is_long_kept=True)
    assert unsaid.charge(Usage(1_000_000, 0, billed=Billed(1_000_000))) == 6_000_000, "the dearer where nobody says"


@pytest.mark.parametrize(
    ("tier", "times"),
    [
        ("", 2500), ("auto", 2500), ("priority", 2500), ("anything", 2500), ("default", 1000), ("flex", 1000),
        ("batch", 1000), ("standard_only", 1000), ("fast", 6000),
    ],
)  # fmt: skip
def test_the_dearer_tier_holds_unless_the_request_says_otherwise(tier: str, times: int) -> None:
    assert times_of(TIERED, tier) == times
    assert Quote(TIERED, tier).most(1000, 0) == times


def test_the_answer_says_which_tier_it_was() -> None:
    quote = Quote(TIERED)
    assert quote.charge(Usage(1000, 0)) == 2500
    assert quote.charge(Usage(1000, 0, billed=Billed(tier="default"))) == 1000
    assert Quote(TIERED, "default").charge(Usage(1000, 0, billed=Billed(tier="priority"))) == 2500


def test_a_long_input_costs_more_whole() -> None:
    quote = Quote(LONG)
    assert quote.charge(Usage(200_000, 10)) == 250_000 + 100
    assert quote.charge(Usage(200_001, 10)) == 500_003 + 150
    assert quote.most(200_001, 10) == quote.charge(Usage(200_001, 10))


def test_a_bound_of_input_and_output_together_is_priced_at_the_dearer() -> None:
    embeddings = Ask("embeddings", "m", input_bound=10, has_output=False)
    assert quoted(MINI, embeddings, b"{}").most(1_000_000, 0) == 600_000


@pytest.mark.parametrize(
    ("body", "rate"),
    [
        (b'{"messages": []}', 3_750_000),
        (b'{"cache_control": {"type": "ephemeral"}}', 3_750_000),
        (b'{"cache_control": {"type": "ephemeral", "ttl": "1h"}}', 6_000_000),
        (b'{"cache_control": {"\\u0074tl": "1h"}}', 6_000_000),
        (b'{"prompt_cache_retention": "24h"}', 6_000_000),
        (None, 6_000_000),
    ],
)
def test_input_is_bounded_by_what_its_request_lets_it_cost(body: bytes | None, rate: int) -> None:
    assert quoted(CLAUDE, Ask("chat", "m"), body).most(1_000_000, 0) == rate


def test_a_price_of_zero_is_one() -> None:
    free = Price(Rates(0, 0, 0, 0, 0))
    assert free.is_free
    assert Quote(free).most(10**9, 10**9) == Quote(free).charge(Usage(10**9, 10**9)) == 0
    assert Quote(free).cap(0, 10, 1, 4096) == 4096
    assert not Price(Rates(0, 0, 0, 0, 1)).is_free


@pytest.mark.parametrize(
    "arguments",
    [
        {"long": Rates(0, 0, 0, 0, 0), "long_above": 5},
        {"priority": 999},
        {"fast": 0},
    ],
)
def test_what_would_undercharge_is_no_price(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"cannot cost less|at least as much"):
        Price(MINI.standard, **arguments)  # type: ignore[arg-type]


RATE = st.integers(0, RATE_MAX)
TOKENS = st.integers(0, 10**9)


@st.composite
def prices(draw: st.DrawFn) -> Price:
    standard = [draw(RATE) for _ in range(5)]
    long = [draw(st.integers(rate, RATE_MAX)) for rate in standard] if draw(st.booleans()) else None
    return Price(
        Rates(*standard),
        long_above=draw(st.integers(1, 10**6)),
        long=None if long is None else Rates(*long),
        priority=draw(st.integers(TIMES_ONE, 10 * TIMES_ONE)),
        fast=draw(st.integers(TIMES_ONE, 10 * TIMES_ONE)),
    )


@st.composite
def usages(draw: st.DrawFn, tier: str) -> Usage:
    """A usage as an honest answer of the tier reports it."""
    given_tokens, made = draw(TOKENS), draw(TOKENS)
    cached = draw(st.integers(0, given_tokens))
    written = draw(st.integers(0, given_tokens - cached))
    long = draw(st.one_of(st.just(-1), st.integers(0, written)))
    said = draw(st.sampled_from(["", tier, "default"])) if tier != "fast" else draw(st.sampled_from(["", "fast"]))
    return Usage(given_tokens, made, cached, billed=Billed(written, long, said))


@given(st.data(), prices(), st.sampled_from(["", "default", "priority", "fast"]), TOKENS, TOKENS)
def test_what_is_charged_lies_between_the_exact_cost_and_what_was_reserved(
    data: st.DataObject, price: Price, tier: str, more_in: int, more_out: int
) -> None:
    """Never less than the tokens at their rates; and within the bound, never more than was held."""
    usage = data.draw(usages(tier))
    quote = Quote(price, tier)
    rates = price.long if price.long is not None and usage.input_tokens > price.long_above else price.standard
    assert rates is not None
    written = usage.billed.cache_write_tokens
    long = written if usage.billed.cache_write_long_tokens < 0 else usage.billed.cache_write_long_tokens
    plain = usage.input_tokens - usage.cached_tokens - written
    exact = Fraction(
        plain * rates.input
        + usage.cached_tokens * rates.cached_input
        + (written - long) * rates.cache_write
        + long * rates.cache_write_long
        + usage.output_tokens * rates.output,
        1_000_000,
    ) * Fraction(times_of(price, usage.billed.tier or tier), 1000)
    cost = quote.charge(usage)
    assert cost >= exact > cost - 1
    assert cost <= quote.most(usage.input_tokens + more_in, usage.output_tokens + more_out)


@given(prices(), st.integers(0, 10**6), st.integers(1, 128), st.integers(0, 10**6), st.integers(0, 10**14))
def test_a_clamped_cap_fits_and_the_next_one_does_not(
    price: Price, given_tokens: int, choices: int, cap: int, amount: int
) -> None:
    quote = Quote(price)
    found = quote.cap(amount, given_tokens, choices, cap)
    assert 0 <= found <= cap
    if quote.most(given_tokens, 0) <= amount:
        assert quote.most(given_tokens, choices * found) <= amount
    if found < cap and price.standard.output:
        assert quote.most(given_tokens, choices * (found + 1)) > amount


SEVERAL = [MINI, CLAUDE, TIERED, LONG]


@given(st.integers(0, 10**6), st.integers(0, 10**5), st.integers(0, 10**6), st.sampled_from(["", "default", "fast"]))
def test_the_dearest_of_several_prices_is_below_none_of_them(given_: int, made: int, cached: int, tier: str) -> None:
    usage = Usage(given_, made, min(cached, given_), billed=Billed(tier=tier))
    quote = Quote(dearest(SEVERAL), tier)
    assert all(Quote(price, tier).charge(usage) <= quote.charge(usage) for price in SEVERAL)
    assert all(Quote(price, tier).most(given_, made) <= quote.most(given_, made) for price in SEVERAL)
    assert quote.charge(usage) <= quote.most(given_, made)


def test_one_price_is_its_own_dearest() -> None:
    assert dearest([LONG]) is LONG
    assert dearest([MINI, MINI]).standard.all == MINI.standard.all
    assert dearest([MINI, MINI]).long is None
