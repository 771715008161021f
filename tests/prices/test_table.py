"""The prices that ship: that they can be read, are dated, and are found by the names of models and nothing else."""

from __future__ import annotations

import re

import pytest

from meshd.prices.table import PATH, read, table, whole

ROW = 'as_of = 2026-01-02\n[x]\nsources = ["https://x.example/prices"]\n[x.models]\n"m" = '


def test_it_is_dated_and_says_where_it_is_from() -> None:
    found = table()
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", found.as_of)
    assert set(found.sources) == {"openai", "anthropic", "gemini"}
    assert all(source.startswith("https://") for sources in found.sources.values() for source in sources)
    assert found.as_of in found.prices["gpt-4o"].source


@pytest.mark.parametrize(
    ("model", "rates"),
    [
        # Read off the providers' own pages, and written here by hand: input, cached, output in dollars a million.
        ("gpt-4o-mini", (0.15, 0.075, 0.6)),
        ("gpt-4.1", (2, 0.5, 8)),
        ("gpt-6.2-astra", (8, 0.4, 40)),
        ("claude-opus-5-5", (4, 0.2, 20)),
        ("claude-haiku-4-5", (1, 0.1, 5)),
        ("gemini-2.5-pro", (1.25, 0.125, 10)),
        ("text-embedding-3-small", (0.02, 0.02, 0)),
    ],
)
def test_known_prices(model: str, rates: tuple[float, float, float]) -> None:
    price = table().find(model)
    assert price is not None
    found = (price.standard.input, price.standard.cached_input, price.standard.output)
    assert found == tuple(round(rate * 1_000_000) for rate in rates)


@pytest.mark.parametrize(
    ("model", "same"),
    [
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-5.1-codex-2025-11-13", "gpt-5.1-codex"),
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("claude-opus-4@20250514", "claude-opus-4"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku"),
        ("gpt-4-0613", "gpt-4"),
        ("models/gemini-2.5-flash", "gemini-2.5-flash"),
    ],
)
def test_a_snapshot_costs_what_its_model_does(model: str, same: str) -> None:
    assert table().find(model) is table().prices[same]


@pytest.mark.parametrize(
    "model",
    [
        "", "gpt-45", "gpt-5-turbo", "gpt-4o-audio-preview", "gpt-4o-realtime", "claude-opus-4-9", "gpt-4o\n",
        "GPT-4o", "gpt-4o-20240806-x", "ft:gpt-4o-mini-2024-07-18:acme::1", "m" * 300_000,
    ],
)  # fmt: skip
def test_another_model_has_no_price(model: str) -> None:
    """A longer name is another model: `gpt-5-pro` costs twelve times what `gpt-5` does."""
    assert table().find(model) is None


def test_a_snapshot_with_a_price_of_its_own_keeps_it() -> None:
    assert table().find("gpt-4o-2024-05-13") is not table().find("gpt-4o")


def test_nothing_in_it_costs_nothing() -> None:
    assert not [name for name, price in table().prices.items() if price.is_free]


def test_no_longer_or_dearer_rate_is_below_the_standard_one() -> None:
    for name, price in table().prices.items():
        assert price.priority >= 1000 <= price.fast, name
        assert price.standard.cached_input <= price.standard.input <= price.standard.cache_write_long, name
        assert price.long is None or price.long_above >= 100_000, name


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{ output = 1 }", "input"),
        ("{ input = -1, output = 1 }", "no price"),
        ("{ input = nan, output = 1 }", "no price"),
        ("{ input = inf, output = 1 }", "no price"),
        ("{ input = 0.0000001, output = 1 }", "no price"),
        ("{ input = 200000, output = 1 }", "no price"),
        ("{ input = 1, output = 1, priority = 0.5 }", "dearer tier"),
        ("{ input = 1, output = 1, priorty = 2 }", "unknown key priorty"),
        ("{ input = 1, output = 2, long = { above = 10, input = 1, output = 1 } }", "cannot cost less"),
        ("{ input = 1, output = 2, long = { input = 1, output = 2 } }", "above"),
    ],
)
def test_nonsense_in_it_is_named(row: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        read(ROW + row)
    assert str(info.value).startswith("m: ")


def test_a_model_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="twice"):
        read(ROW + '{ input = 1 }\n[y]\nsources = []\n[y.models]\n"m" = { input = 2 }')


def test_a_rate_is_exact() -> None:
    read_table = read(ROW + "{ input = 0.1, cached_input = 0.0375, output = 0.3 }")
    assert read_table.prices["m"].standard.all == (100_000, 37_500, 100_000, 100_000, 300_000)
    with pytest.raises(ValueError, match="no price"):
        whole(1, 10, most=9)


def test_the_file_names_no_model_twice() -> None:
    names = re.findall(r'^"([^"]+)" = ', PATH.read_text(), re.MULTILINE)
    assert len(names) == len(set(names)) == len(table().prices)
