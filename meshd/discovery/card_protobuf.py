"""An agent's card as gRPC carries it: only its addresses are read, everything else stays as it came. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from meshd.dialects.protobuf import joined, split
from meshd.discovery.card_addresses import Rewritten, rewritten

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.discovery.card_addresses import Place

_LENGTH: Final = 2
_WHERE: Final = "the card"


class _Shape(NamedTuple):
    """Numbers of a card's fields; 0 for what it has not."""

    listed: int
    member: str
    binding: str
    signatures: int
    url: int = 0
    preferred: int = 0


NEW: Final = _Shape(listed=3, member="supportedInterfaces", binding="protocolBinding", signatures=13)
OLD: Final = _Shape(
    listed=15, member="additionalInterfaces", binding="transport", signatures=17, url=3, preferred=14
)  # fmt: skip

_KEPT: Final = "#kept"


def rewritten_message(data: bytes, leads: Callable[[Place, str], str | None], *, is_old: bool) -> tuple[bytes, Any]:
    """Return a card with its addresses led, and without its signatures, and what `rewritten` says of it. `is_old`: it
    is 0.3's. Raises Refused(MALFORMED) for what is no protobuf message, and CardError as `rewritten` does."""
    shape = OLD if is_old else NEW
    fields = split(data, _WHERE)
    card: dict[str, Any] = {shape.member: []}
    for number, wire, value in fields:
        if wire != _LENGTH:
            continue
        if number == shape.listed:
            card[shape.member].append(_interface(value, shape))
        elif shape.url and number == shape.url:
            card["url"] = value.decode("utf-8", "replace")
        elif shape.preferred and number == shape.preferred:
            card["preferredTransport"] = value.decode("utf-8", "replace")
    found: Rewritten = rewritten(card, leads)
    gone = {shape.listed, shape.signatures, shape.url, shape.preferred}
    kept = [field for field in fields if field[0] not in gone]
    kept += [
        (shape.listed, _LENGTH, joined([(1, _LENGTH, one["url"].encode()), *one[_KEPT]]))
        for one in found.card[shape.member]
    ]
    for name, number in (("url", shape.url), ("preferredTransport", shape.preferred)):
        if number and name in found.card:
            kept.append((number, _LENGTH, found.card[name].encode()))
    return joined(kept), found


def is_signed(data: bytes, *, is_old: bool) -> bool:
    """Say whether a card has signatures."""
    number = (OLD if is_old else NEW).signatures
    return any(field[0] == number for field in split(data, _WHERE))


def _interface(data: bytes, shape: _Shape) -> dict[str, Any]:
    fields = split(data, _WHERE)
    texts = {number: value.decode("utf-8", "replace") for number, wire, value in fields if wire == _LENGTH}
    kept = [field for field in fields if field[0] != 1]
    return {"url": texts.get(1, ""), shape.binding: texts.get(2, ""), _KEPT: kept}
