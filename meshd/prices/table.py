"""The prices that ship: `table.toml`, read when somebody first asks for one.

A name in the table stands for itself and for its dated snapshots (`gpt-4o-2024-08-06`, `claude-sonnet-4-5@20250929`),
never for a longer name of another model: `gpt-5-pro` costs twelve times what `gpt-5` does.
"""

from __future__ import annotations

import re
import tomllib
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from meshd.prices.price import PICO, RATE_MAX, TIMES_MAX, TIMES_ONE, Price, Rates

PATH: Final = Path(__file__).with_name("table.toml")
NAME_CHARACTERS_MAX: Final = 256
_SNAPSHOT: Final = re.compile(r"[-@](?:\d{4}-\d{2}-\d{2}|\d{8}|\d{3,4}|latest|v\d{1,2})\Z")
_KEYS: Final = frozenset(
    {"input", "cached_input", "cache_write", "cache_write_long", "output", "priority", "fast", "long"}
)


class Table:
    """Prices by a model's name, with the day as of which they were gathered."""

    __slots__ = ("as_of", "prices", "sources")

    def __init__(self, as_of: str, sources: dict[str, tuple[str, ...]], prices: dict[str, Price]) -> None:
        self.as_of = as_of
        """Year, month and day."""
        self.sources = sources
        """By provider: the pages that its prices are from."""
        self.prices = prices

    def find(self, model: str) -> Price | None:
        """Return the price of a model; None where the table does not know it."""
        if len(model) > NAME_CHARACTERS_MAX:
            return None
        name = model.removeprefix("models/")
        found = self.prices.get(name)
        if found is None and (snapshot := _SNAPSHOT.search(name)) is not None:
            found = self.prices.get(name[: snapshot.start()])
        return found


@lru_cache(maxsize=1)
def table() -> Table:
    """Return the table that ships."""
    return read(PATH.read_text(encoding="utf-8"))


def read(text: str) -> Table:
    """Read a table. Raises ValueError where a row says what cannot be."""
    document = tomllib.loads(text, parse_float=Decimal)
    as_of = str(document.pop("as_of"))
    sources: dict[str, tuple[str, ...]] = {}
    prices: dict[str, Price] = {}
    for provider, section in document.items():
        sources[provider] = tuple(section["sources"])
        for name, row in section["models"].items():
            if name in prices:
                raise ValueError(f"{name} is in the table twice")
            prices[name] = _price(name, row, f"{provider}'s list as of {as_of}")
    return Table(as_of, sources, prices)


def _price(name: str, row: dict[str, Any], source: str) -> Price:
    if not _KEYS.issuperset(row):
        raise ValueError(f"{name}: unknown key {min(row.keys() - _KEYS)}")
    try:
        long = row.get("long")
        return Price(
            rates_of(row),
            long_above=0 if long is None else long["above"],
            long=None if long is None else rates_of({**row, **long}),
            priority=whole(row.get("priority", 1), TIMES_ONE, TIMES_MAX),
            fast=whole(row.get("fast", 1), TIMES_ONE, TIMES_MAX),
            source=source,
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from error


def rates_of(row: dict[str, Any]) -> Rates:
    """Return the rates of a row in dollars for a million tokens: what it does not say costs as plain input does."""
    given = whole(row["input"])
    written = whole(row["cache_write"]) if "cache_write" in row else given
    return Rates(
        given,
        whole(row["cached_input"]) if "cached_input" in row else given,
        written,
        whole(row["cache_write_long"]) if "cache_write_long" in row else written,
        whole(row.get("output", 0)),
    )


def whole(value: int | Decimal, factor: int = PICO, most: int = RATE_MAX) -> int:
    """Return a number times `factor` as a whole one. Raises ValueError where that would round, or is out of range."""
    number = Decimal(value) * factor
    if not number.is_finite() or number != number.to_integral_value() or not 0 <= number <= most:
        raise ValueError(f"{value} is no price")
    return int(number)
