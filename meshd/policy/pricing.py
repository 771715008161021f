"""What a model costs under a policy: the upstream's prices, then the document's, then the table that ships."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.policy.matching import GlobSet
from meshd.prices.price import TIMES_ONE, Price, Rates
from meshd.prices.table import table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshd.policy.model import Document, LongSection, PriceSection

Listed = tuple[tuple[GlobSet, Price], ...]


class PriceBook:
    """Prices by upstream and model. Asked once for each plan, so it remembers nothing."""

    __slots__ = ("_by_upstream", "_every")

    def __init__(self, every: Listed = (), by_upstream: Mapping[str, Listed] | None = None) -> None:
        self._every = every
        self._by_upstream = dict(by_upstream or {})

    def find(self, upstream: str, model: str) -> Price | None:
        """Return the price of a model on an upstream; None where nobody has said it."""
        for listed in (self._by_upstream.get(upstream, ()), self._every):
            for globs, price in listed:
                if globs.fits(model):
                    return price
        return table().find(model)


def price_book(document: Document) -> PriceBook:
    """Make the prices of a document. Raises ValueError where one cannot be: see `price_of`."""
    by_upstream = {
        name: _listed(section.prices, f"upstreams.{name}.prices")
        for name, section in (document.upstreams or {}).items()
        if section.prices
    }
    return PriceBook(_listed(document.prices, "prices"), by_upstream)


def _listed(sections: Mapping[str, PriceSection], where: str) -> Listed:
    return tuple((GlobSet((glob,)), price_of(section, f"{where} of the policy")) for glob, section in sections.items())


def price_of(section: PriceSection, source: str) -> Price:
    """Make one price. Raises ValueError where a long input would be cheaper than a short one."""
    long = section.long
    return Price(
        _rates(section),
        long_above=0 if long is None else long.above,
        long=None if long is None else _rates(long),
        priority=TIMES_ONE if section.priority is None else section.priority,
        source=source,
    )


def _rates(section: PriceSection | LongSection) -> Rates:
    given = section.input
    written = given if section.cache_write is None else section.cache_write
    return Rates(
        given,
        given if section.cached_input is None else section.cached_input,
        written,
        written if section.cache_write_long is None else section.cache_write_long,
        section.output,
    )
