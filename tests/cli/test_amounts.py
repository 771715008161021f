"""Amounts on a command line: read exactly, or refused with words that help."""

from __future__ import annotations

import click
import pytest

from meshd.admin import accounts as admin
from meshd.cli.amounts import TOKENS_MAX, Amount, Dollars, Tokens
from meshd.filters.units import COUNT_MAX, MONEY_MICRODOLLARS_MAX


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("50000", {"tokens": 50_000}), ("50k", {"tokens": 50_000}), ("2M", {"tokens": 2_000_000}),
        (" 1 ", {"tokens": 1}),
        ("$5", {"dollars": "$5"}), ("$0.25", {"dollars": "$0.25"}), ("5usd", {"dollars": "5"}),
        ("5.000001 USD", {"dollars": "5.000001"}),
    ],
)  # fmt: skip
def test_amounts_are_tokens_or_dollars(text: str, body: dict[str, object]) -> None:
    assert Amount().convert(text, None, None) == body


@pytest.mark.parametrize(
    "text",
    [
        "", "0", "-5", "+5", "1e3", "5.5", "5.5k", "k", "5kk", "NaN", "inf", "10" * 30, "٣", "$", "$0", "$0.000", "$-5",
        "$5k", "$1e3", "$0.0000001", "$9999999999", "usd", "5 dollars", "5 eur", "$$5", "\x00", "5\n5", "£5",
    ],
)  # fmt: skip
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Amount().convert(text, None, None)


def test_an_amount_that_a_shell_has_eaten_is_explained() -> None:
    with pytest.raises(click.BadParameter, match="a shell takes"):
        Amount().convert("", None, None)


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1000000000000001", "2000000000M", "0" * 19 + "1" + "0" * 30, "9" * 500, "5g"]
)
def test_tokens_that_nobody_can_mean_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="not a whole number of tokens from 1 to 1,000,000,000,000,000,"):
        Tokens().convert(text, None, None)


def test_the_most_is_what_an_account_takes() -> None:
    """More would be refused by the admin API, in words about JSON."""
    assert Tokens().convert("1000000000M", None, None) == COUNT_MAX == TOKENS_MAX == admin.TOKENS_MAX
    assert Dollars().convert("100000000", None, None) == MONEY_MICRODOLLARS_MAX
    with pytest.raises(click.BadParameter, match=r"from 0\.000001 to 100,000,000,"):
        Dollars().convert("100000000.01", None, None)
