"""Agent cards whose addresses lead to this sidecar, in place of past it. Pure; cards of 0.3 and of 1.0.

An interface of the agent's own stays, under the address by which the client reaches the agent here; every other one is
taken out: a client that followed it would call an agent that no policy has judged.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from meshd.discovery.cards import CardError

if TYPE_CHECKING:
    from collections.abc import Callable

GRPC: Final = "GRPC"
_JSONRPC: Final = "JSONRPC"
"""What the `url` of a card of 0.3 speaks, where it does not say."""
_ITSELF: Final = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0", "::", ""})  # noqa: S104 - nothing is bound
"""Names by which an agent calls itself that lead nobody else to it."""
_PORTS: Final = {"http": 80, "https": 443}
_CLIMBS: Final = re.compile(r"(?:/|%2f|%5c)(?:\.|%2e){1,2}(?:/|%2f|%5c|;|\Z)", re.IGNORECASE)
"""A dot segment, plain or escaped: clients resolve it, and so call another upstream than the one they are led to."""
_NAMES: Final = ("supportedInterfaces", "additionalInterfaces", "url", "preferredTransport", "signatures")
_NAMES_WITHIN: Final = ("url", "protocolBinding", "transport")


class Origin(NamedTuple):
    """Where something listens."""

    host: str
    port: int

    def is_at(self, other: Origin, own: Origin) -> bool:
        """Say whether this, in the card of the agent at `own`, is what listens at `other`."""
        if self.port != other.port:
            return False
        if self.host not in _ITSELF:
            return self.host == other.host
        return other.host == own.host or (own.host in _ITSELF and other.host in _ITSELF)


class Place(NamedTuple):
    """An interface's URL, taken apart."""

    origin: Origin
    path: str
    scheme: str
    """Empty where it has none: a gRPC target is HOST:PORT."""


def place_of(url: object, binding: str) -> Place | None:
    """Return where an interface is; None for what is no address."""
    if not isinstance(url, str) or not url or len(url) > 2048 or not url.isprintable() or " " in url or "\\" in url:
        return None
    is_grpc = binding.upper() == GRPC
    is_bare = is_grpc and ("://" not in url or url.startswith("dns:///"))
    if is_bare:
        url = "grpc://" + url.removeprefix("dns:///")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    scheme = parts.scheme.lower()
    if "@" in parts.netloc or not parts.netloc or scheme not in ("http", "https", "grpc", "grpcs"):
        return None
    if _CLIMBS.search(parts.path):
        return None
    if port is None:
        port = _PORTS.get(scheme, 443 if is_grpc else 80)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    host = (parts.hostname or "").lower().removesuffix(".")
    return Place(Origin(host, port), path, "" if is_bare else scheme)


def folded(name: str) -> str:
    """Return a member's name as its laxest readers know it: the parsers of protobuf take `supported_interfaces` for
    `supportedInterfaces`, and those of Go do not look at capitals."""
    return name.replace("_", "").lower()


_FOLDED: Final = {folded(name): name for name in _NAMES}
_FOLDED_WITHIN: Final = {folded(name): name for name in _NAMES_WITHIN}


def may_be_card(value: object) -> bool:
    """Say whether some client might find an agent's address in this, or in the result of JSON-RPC that it is."""
    if isinstance(value, list):
        return any(may_be_card(one) for one in value)
    if not isinstance(value, dict):
        return False
    return any(
        folded(name) in _FOLDED or (folded(name) == "result" and may_be_card(one)) for name, one in value.items()
    )


def _spelled(value: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return an object without what is one of the names by another spelling: who reads that would be led by it."""
    return {name: one for name, one in value.items() if names.get(folded(name), name) == name}


class Rewritten(NamedTuple):
    """A card, and what was taken out of it."""

    card: dict[str, Any]
    removed: tuple[str, ...]
    """Addresses that are not the agent's own, and that nothing here leads to."""


def rewritten(card: dict[str, Any], leads: Callable[[Place, str], str | None]) -> Rewritten:
    """Return a card with each interface under the address that `leads(place, binding)` gives it, without those for
    which it gives None. Signatures stay as they are. Raises CardError where none would be left."""
    removed: list[str] = []

    def led(url: object, binding: object) -> str | None:
        name = binding if isinstance(binding, str) and binding else _JSONRPC
        place = place_of(url, name)
        address = None if place is None else leads(place, name)
        if address is None:
            removed.append(str(url)[:256])
        return address

    card = _spelled(card, _FOLDED)
    found = dict(card)
    new = _listed(card, "supportedInterfaces", "protocolBinding", led)
    if new is not None:
        found["supportedInterfaces"] = new
    old = _listed(card, "additionalInterfaces", "transport", led)
    if old is not None:
        found["additionalInterfaces"] = old
    if "url" in card:
        _lead_main(card, found, old or [], led)
    if not (new or old or found.get("url")):
        raise CardError(
            f"it names only addresses that are not the agent's own: {', '.join(removed[:5]) or 'none at all'}. Where "
            "one is, name it in the policy, under `card.origins` of the upstream, or as an upstream of its own"
        )
    return Rewritten(found, tuple(dict.fromkeys(removed)))


def _listed(card: dict[str, Any], name: str, binding: str, led: Callable[[object, object], str | None]) -> Any:
    listed = card.get(name)
    if not isinstance(listed, list):
        return None
    return [
        {**_spelled(one, _FOLDED_WITHIN), "url": address}
        for one in listed
        if isinstance(one, dict) and (address := led(one.get("url"), one.get(binding))) is not None
    ]


def _lead_main(
    card: dict[str, Any], found: dict[str, Any], others: list[Any], led: Callable[[object, object], str | None]
) -> None:
    """Lead the address that a card of 0.3 has at its top; another interface takes its place where it has to go."""
    address = led(card["url"], card.get("preferredTransport"))
    if address is not None:
        found["url"] = address
    elif others:
        found["url"], found["preferredTransport"] = others[0]["url"], others[0].get("transport", _JSONRPC)
    else:
        found.pop("url", None)
        found.pop("preferredTransport", None)
