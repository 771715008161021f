"""The card of an A2A agent: who it is, and its skills (`meshd.discovery.cards`).

It is fetched as section 8.2 of the specification has it (a well-known address); those of before 0.3 stood under another
name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshd.dialects.a2a import CARD_PATHS
from meshd.discovery.cards import CARD_BYTES_MAX, CardError, entries_of, read_card
from meshd.discovery.entry import Origin
from meshd.sources.asking import Asking, Failed, Look

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.proxy.proxy import Proxy


class AgentCards:
    """The card of one upstream."""

    origin = Origin.A2A

    def __init__(self, proxy: Proxy, upstream: str, *, timeout_s: float | None = None) -> None:
        self._asking = Asking(proxy, upstream) if timeout_s is None else Asking(proxy, upstream, timeout_s=timeout_s)

    async def look(self) -> Look:
        """See `Source.look`."""
        self._asking.begin()
        status = 0
        for path in CARD_PATHS:
            answered = await self._asking.send("GET", path, [(b"accept", b"application/json")])
            status = answered.status
            if status == 200:
                return _look(answered.body, self._asking.upstream)
            if status not in (404, 405):
                break
        raise Failed(f"there is no card at {CARD_PATHS[0]}: status {status}", "status")

    async def listen(self, changed: Callable[[], None]) -> None:
        """Cards tell nobody that they changed."""

    async def close(self) -> None:
        """Nothing is open."""


def _look(body: bytes, owner: str) -> Look:
    try:
        card = read_card(body)
        if not isinstance(card.get("supportedInterfaces"), list) and not isinstance(card.get("url"), str):
            raise CardError("the card has neither supportedInterfaces (1.0) nor a url (0.3)")
        entries = entries_of(card, owner)
    except CardError as error:
        raise Failed(str(error), "too_large" if len(body) > CARD_BYTES_MAX else "malformed") from None
    return Look(entries, entries[0].description, entries[0].version)
