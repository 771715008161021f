"""What an MCP server lists at its own address, without what of it is in quarantine.

Whoever asks for meshd itself (the catalogue, the gateway) is told everything: what is in quarantine is found out there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from meshd.dialects.json_pairs import read_body, read_items, read_object, text, write
from meshd.discovery.card_addresses import folded
from meshd.gateway.messages import with_data
from meshd.proxy.answer import AnswerError, content_type_of
from meshd.proxy.onward import ALTERED, Onward
from meshd.refusal import Refused
from meshd.wire.sse import EventTooLarge, Splitter, data_of

if TYPE_CHECKING:
    import msgspec

    from meshd.call import Call, Headers
    from meshd.proxy.exchange import Exchange

_LISTS: Final = {
    "tools": ("tool", "name"),
    "prompts": ("prompt", "name"),
    "resources": ("resource", "uri"),
    "resourcetemplates": ("resource", "uritemplate"),
}
"""Members of a result, as their laxest readers spell them: the sort of what stands there, and what names it."""
_EVENTS: Final = b"text/event-stream"

Names = frozenset[tuple[str, str]]
"""The sort (tool, prompt, resource) and the name of each thing in quarantine."""


class Listed:
    """Stands in `Call.passage` of a call that may be answered with a list."""

    __slots__ = ("_bytes_max", "_is_list", "_names")

    sized = None
    """See `Passage`: nothing is measured here."""

    def __init__(self, names: Names, call: Call, *, is_list: bool) -> None:
        """`is_list`: the call asks for a list; else it listens to what may be one that was asked for before."""
        self._names = names
        self._bytes_max: int = call.policy.limits.reply_body_bytes_max
        self._is_list = is_list

    def prepare(self, exchange: Exchange) -> None:
        """Nothing of the request is another."""

    def is_forgotten(self) -> bool:
        """Sessions are the client's own."""
        return False

    def given_up(self) -> None:
        """Nobody else has to know."""

    def reply_fields(self, fields: Headers) -> Headers:
        """See `Passage`: they stay."""
        return fields

    def stood_in(self, message: bytes) -> bytes:
        """Return what stands in for the answer. Raises Refused where it cannot be read."""
        return without(message, self._names)

    def onward(self, headers: Headers) -> Onward | None:
        """Return what the answer goes through. Raises AnswerError where nobody here can read it."""
        is_stream = content_type_of(headers).lower().startswith(_EVENTS)
        if not (is_stream or self._is_list):
            return None
        if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in headers):
            raise AnswerError("it is compressed, though it was asked not to be")
        return ListedStream(self._names, self._bytes_max) if is_stream else ListedWhole(self._names, self._bytes_max)


class ListedWhole(Onward):
    """A plain answer, which is held until it is whole."""

    __slots__ = ("_bytes_max", "_names", "_pieces", "_size")

    is_held = True
    is_rewritten = True

    def __init__(self, names: Names, bytes_max: int) -> None:
        self._names = names
        self._bytes_max = bytes_max
        self._pieces: list[bytes] = []
        self._size = 0

    def data(self, data: bytes) -> bytes:
        self._size += len(data)
        if self._size > self._bytes_max:
            raise AnswerError(f"it is over {self._bytes_max} bytes")
        self._pieces.append(data)
        return b""

    def fields(self, headers: Headers) -> Headers:
        return [field for field in headers if field[0] not in ALTERED]

    def end(self) -> bytes:
        body = b"".join(self._pieces)
        try:
            return without(body, self._names) if body.strip() else body
        except Refused as refused:
            raise AnswerError(refused.message) from None


class ListedStream(Onward):
    """A stream of events: one that cannot be read is left out."""

    __slots__ = ("_names", "_splitter")

    is_rewritten = True

    def __init__(self, names: Names, event_bytes_max: int) -> None:
        self._names = names
        self._splitter = Splitter(event_bytes_max)

    def data(self, data: bytes) -> bytes:
        try:
            return b"".join([self._event(event) for event in self._splitter.feed(data)])
        except EventTooLarge as error:
            raise AnswerError(str(error)) from None

    def end(self) -> bytes:
        rest = self._splitter.rest()
        return self._event(rest) if rest else b""

    def _event(self, event: bytes) -> bytes:
        body = data_of(event)
        if not body.strip():
            return event
        try:
            made = without(body, self._names)
        except Refused:
            return b""
        return event if made is body else with_data(event, made)


def without(message: bytes, names: Names) -> bytes:
    """Return a message without what it lists of `names`; the message itself where it lists none of it.

    Raises Refused where it cannot be read in one way only.
    """
    pairs = read_body(message)
    edits: dict[str, bytes] = {}
    for key, raw in pairs.items():
        if folded(key) == "result" and bytes(raw)[:1] == b"{":
            result = read_object(raw, "the result")
            kept = _kept(result, names)
            if kept:
                edits[key] = write(result, kept)
    return write(pairs, edits) if edits else message


def _kept(result: dict[str, msgspec.Raw], names: Names) -> dict[str, bytes]:
    edits: dict[str, bytes] = {}
    for key, raw in result.items():
        sort, name = _LISTS.get(folded(key), ("", ""))
        if not sort or bytes(raw)[:1] != b"[":
            continue
        items = read_items(raw, key)
        kept = [bytes(item) for item in items if not _is_held(item, sort, name, names)]
        if len(kept) != len(items):
            edits[key] = b"[" + b",".join(kept) + b"]"
    return edits


def _is_held(item: msgspec.Raw, sort: str, name: str, names: Names) -> bool:
    if bytes(item)[:1] != b"{":
        return False
    pairs = read_object(item, "a definition")
    return any(
        folded(key) == name and bytes(raw)[:1] == b'"' and (sort, text(pairs, key, "a definition")) in names
        for key, raw in pairs.items()
    )
