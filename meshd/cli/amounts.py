"""Amounts as they stand on a command line: tokens, or US dollars."""

from __future__ import annotations

import click

TOKENS_MAX = 10**15
"""As the policy and the admin API have it: what an account holds at most."""
DIGITS_MAX = 20


class Tokens(click.ParamType[int]):
    """A number of tokens: 50000, 50k or 2M."""

    name = "tokens"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return it; fail with words for whoever typed it."""
        text = str(value).strip()
        factor = {"k": 1000, "m": 1_000_000}.get(text[-1:].lower(), 1)
        digits = text[:-1] if factor > 1 else text
        is_number = digits.isascii() and digits.isdigit() and len(digits) <= DIGITS_MAX
        tokens = int(digits) * factor if is_number else 0
        if not 0 < tokens <= TOKENS_MAX:
            said = f"{text[:40]!r} is not a whole number of tokens from 1 to {TOKENS_MAX:,}"
            self.fail(f"{said}, for example 50000, 50k or 2M", param, ctx)
        return tokens


class Dollars(click.ParamType[int]):
    """US dollars, as micro-dollars: 5, 0.25 or $5.00."""

    name = "dollars"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return it; fail with words for whoever typed it."""
        from meshd.filters.units import microdollars

        try:
            amount = microdollars(str(value).strip())
        except ValueError:
            amount = 0
        if not amount:
            said = f"{str(value)[:40]!r} is not an amount of US dollars from 0.000001 to 100,000,000"
            self.fail(f"{said}, for example 5, 0.25 or $5.00", param, ctx)
        return amount


class Amount(click.ParamType[dict[str, object]]):
    """Tokens or dollars, as the admin API takes them: `{"tokens": 50000}` or `{"dollars": "5.00"}`."""

    name = "amount"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, object]:
        """Return it; fail with words for whoever typed it."""
        if isinstance(value, dict):
            return value
        text = str(value).strip()
        if not text:
            self.fail("it is empty: a shell takes $5 for a variable of its own, so write '$5' or 5usd", param, ctx)
        is_suffixed = text.lower().endswith("usd")
        if not is_suffixed and not text.startswith("$"):
            return {"tokens": Tokens().convert(text, param, ctx)}
        dollars = text[:-3].rstrip() if is_suffixed else text
        Dollars().convert(dollars, param, ctx)
        return {"dollars": dollars}
