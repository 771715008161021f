"""Whole results of which their clients were shown a part: kept for a while, in this process, for who called.

An id says nothing, cannot be guessed, and is of no use to anybody else: to another client, agent or workflow there is
no such result.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from meshd.call import Evidence
from meshd.dialects.counting import BYTES_PER_TOKEN
from meshd.dialects.json_pairs import RawJson, member, read_items, read_object, text
from meshd.gateway.clipping import BLOCKS_MAX, text_of, tokens_of
from meshd.gateway.messages import encode
from meshd.gateway.names import READ
from meshd.telemetry.metrics import TOKEN_BUCKETS
from meshd.telemetry.series import Histogram, label
from meshd.telemetry.sources import ResultReading

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from meshd.call import Call
    from meshd.dialects.json_pairs import Pairs
    from meshd.gateway.client import Client

URI: Final = "mesh://result/"
PART_TOKENS_MIN: Final = 64
"""Of what `read_result` returns at once, whatever the limit."""


class Owner(NamedTuple):
    """Who may read a result: the call for it and the one that reads it have the same."""

    agent: str
    workflow: str
    """Empty where nothing proves it: what is inferred of one call need not be of the next."""
    session: str
    peer: str


def owner_of(call: Call, client: Client) -> Owner:
    """Return who makes a call."""
    is_known = call.context is not None and not call.evidence.is_inferred and call.evidence is not Evidence.NONE
    workflow = call.context.workflow if call.context is not None and is_known else ""
    return Owner(call.agent, workflow, client.id, call.peer)


class Kept(NamedTuple):
    """A whole result."""

    owner: Owner
    body: bytes
    """The `result` of the answer, as its server wrote it."""
    expires_s: float
    tokens_max: int
    """Of it that is shown at once."""


class _OfServer:
    """What is counted of one server's results."""

    __slots__ = ("bytes", "clipped", "left_out", "tokens")

    def __init__(self) -> None:
        self.tokens = Histogram(TOKEN_BUCKETS)
        self.bytes = self.clipped = self.left_out = 0


class Results:
    """The results that are kept, and how large those were that came."""

    def __init__(self, clock: Callable[[], float], later: Callable[[float, Callable[[], None]], object]) -> None:
        """`clock` returns monotonic seconds; `later` calls a function after so many."""
        self._clock = clock
        self._later = later
        self._mark = secrets.token_urlsafe(6)
        """Begins each id: those of another sidecar behind this one are its own to answer."""
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._bytes = 0
        self._is_swept = False
        self._servers: dict[str, _OfServer] = {}

    def count(self, server: str, size: int) -> None:
        """Count a result of so many bytes."""
        self._of(server).bytes += size
        self._of(server).tokens.observe(tokens_of(size))

    def count_clipped(self, server: str, left_out: int) -> None:
        """Count one of which so many tokens were left out."""
        of = self._of(server)
        of.clipped += 1
        of.left_out += left_out

    def _of(self, server: str) -> _OfServer:
        found = self._servers.get(server)
        if found is None:
            found = self._servers[server] = _OfServer()
        return found

    def reading(self) -> ResultReading:
        """Return the counts, for a scrape."""
        servers = [(label(name), of) for name, of in self._servers.items()]
        return ResultReading(
            tokens=tuple([(name, of.tokens) for name, of in servers]),
            bytes=tuple([(name, of.bytes) for name, of in servers]),
            clipped=tuple([(name, of.clipped) for name, of in servers if of.clipped]),
            left_out=tuple([(name, of.left_out) for name, of in servers if of.clipped]),
            kept=len(self._kept),
            kept_bytes=self._bytes,
        )

    # ------------------------------------------------------------------ what is kept

    def put(self, owner: Owner, body: bytes, *, kept_s: float, bytes_max: int, tokens_max: int) -> str:
        """Keep a result; return its id, empty where it alone is over `bytes_max`. The oldest make room for it."""
        if len(body) > bytes_max:
            return ""
        while self._kept and self._bytes + len(body) > bytes_max:
            self._drop(next(iter(self._kept)))
        id = self._mark + secrets.token_urlsafe(16)
        self._kept[id] = Kept(owner, body, self._clock() + kept_s, tokens_max)
        self._bytes += len(body)
        if not self._is_swept:
            self._is_swept = True
            self._later(kept_s, self._sweep)
        return id

    def is_ours(self, id: str) -> bool:
        """Say whether an id is one that this sidecar has given out, or looks so."""
        return id.startswith(self._mark)

    def get(self, id: str, owner: Owner) -> Kept | None:
        """Return a result; None where it is not kept, not any more, or another's."""
        kept = self._kept.get(id)
        return kept if kept is not None and kept.owner == owner and self._clock() < kept.expires_s else None

    def forget(self, session: str) -> None:
        """The client of a session has gone."""
        for id in [id for id, kept in self._kept.items() if kept.owner.session == session]:
            self._drop(id)

    def _drop(self, id: str) -> None:
        self._bytes -= len(self._kept.pop(id).body)

    def _sweep(self) -> None:
        """Let go of what nobody may read any more."""
        now_s = self._clock()
        for id in [id for id, kept in self._kept.items() if kept.expires_s <= now_s]:
            self._drop(id)
        self._is_swept = bool(self._kept)
        if self._kept:
            soonest_s = min([kept.expires_s for kept in self._kept.values()])
            self._later(max(soonest_s - now_s, 1.0), self._sweep)


def definition() -> bytes:
    """Return the tool by which a model reads on, for clients that show it no resources."""
    return encode(
        {
            "name": READ,
            "description": "Read on in a tool's result that was cut: its text says the id, and from where.",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "id": {"type": "string"},
                    "from": {"type": "integer", "minimum": 0, "default": 0, "description": "In characters"},
                },
                "required": ["id"],
            },
            "annotations": {"readOnlyHint": True},
        }
    )


def part_of(kept: Kept, id: str, start: int) -> bytes:
    """Return a result with the text from a character on, as far as the limit goes. Raises Refused."""
    said = text_of(read_object(kept.body, "the result"))
    size = max(kept.tokens_max, PART_TOKENS_MIN) * BYTES_PER_TOKEN
    # A character takes a byte at least, so no more than this is looked at.
    shown = said[start : start + size].encode()[:size].decode("utf-8", "ignore")
    end = start + len(shown)
    if end < len(said):
        note = f'[meshd: {len(said) - end:,} characters are left. Go on with {READ} {{"id": "{id}", "from": {end}}}]'
    else:
        note = "[meshd: this is the end of the result]"
    blocks = [{"type": "text", "text": one} for one in (shown, note) if one]
    return encode({"content": blocks, "resultType": "complete"})


def contents_of(kept: Kept, uri: str) -> list[bytes]:
    """Return a whole result as the contents of a resource, each raw. Raises Refused."""
    result = read_object(kept.body, "the result")
    raw, structured = member(result, "content"), member(result, "structuredContent")
    of_uri = b'{"uri":' + encode(uri)
    blocks = read_items(raw, "the content") if raw is not None else []
    found = [_content(of_uri, one) for one in blocks[:BLOCKS_MAX]]
    if len(blocks) > BLOCKS_MAX:
        found.append(_as_json(of_uri, b"[" + b",".join(blocks[BLOCKS_MAX:]) + b"]"))
    if structured is not None:
        found.append(_as_json(of_uri, structured))
    return found


def _content(of_uri: bytes, raw: msgspec.Raw) -> bytes:
    block: Pairs = read_object(raw, "a block of the content")
    kind = text(block, "type", "a block")
    said, data, resource = member(block, "text"), member(block, "data"), member(block, "resource")
    if kind == "text" and said is not None:
        return of_uri + b',"mimeType":"text/plain","text":' + bytes(said) + b"}"
    if kind in ("image", "audio") and data is not None:
        mime = member(block, "mimeType")
        of_mime = b"" if mime is None else b',"mimeType":' + bytes(mime)
        return of_uri + of_mime + b',"blob":' + bytes(data) + b"}"
    if kind == "resource" and resource is not None:
        return bytes(resource)
    return _as_json(of_uri, raw)


def _as_json(of_uri: bytes, raw: RawJson) -> bytes:
    return of_uri + b',"mimeType":"application/json","text":' + encode(bytes(raw).decode()) + b"}"
