"""Amounts as they stand on a command line: tokens, or US dollars."""

from __future__ import annotations

import click

TOKENS_MAX = 2**53


class Tokens(click.ParamType[int]):
    """A number of tokens: 50000, 50k or 2M."""

    name = "tokens"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return it; fail with words for whoever typed it."""
        text = str(value).strip()
        factor = {"k": 1000, "m": 1_000_000}.get(text[-1:].lower(), 1)
        digits = text[:-1] if factor > 1 else text
        if not digits.isascii() or not digits.isdigit() or not 0 < int(digits[:20]) * factor <= TOKENS_MAX:
            self.fail(f"{text!r} is not a number of tokens, for example 50000, 50k or 2M", param, ctx)
        return int(digits) * factor


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
            self.fail(f"{str(value)!r} is not an amount of US dollars, for example 5, 0.25 or $5.00", param, ctx)
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
