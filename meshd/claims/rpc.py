"""JSON-RPC answers that are given again: the same answer under the id of the new request. Pure.

MCP and A2A number each attempt anew, so an answer that quotes the first one's id answers nobody. Only the id is
replaced; every other byte stays. Of a stream only the answers are given again: what a server asks in it, or tells of
progress, was meant for the first request and would be answered twice.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from meshd.dialects.json_pairs import member, read_body
from meshd.refusal import Refused

if TYPE_CHECKING:
    from meshd.dialects.json_pairs import Pairs

_BLANK: Final = b" \t\r\n"
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')
_GAP: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINES: Final = re.compile(rb"\r\n|\n|\r")


def readdressed(body: bytes, old: bytes, new: bytes, *, is_stream: bool) -> bytes:
    """Return an answer to the request with id `old` (raw JSON) as one to the request with id `new`."""
    if is_stream:
        events = Events(old, new)
        return events.feed(body) + events.end()
    return _message(body, old, new) or body


class Events:
    """Readdresses a stream of events that comes piece by piece: what it has seen the end of, it gives again."""

    __slots__ = ("_held", "_new", "_old", "_seen")

    def __init__(self, old: bytes, new: bytes) -> None:
        self._old = old
        self._new = new
        self._held = b""
        """What came of an event that has not ended."""
        self._seen = 0
        """So much of it was searched for an end."""

    def feed(self, data: bytes) -> bytes:
        """Return the answers in the events that have ended by now."""
        held = self._held + data
        found: list[bytes] = []
        at, seen = 0, self._seen
        while True:
            gap = _GAP.search(held, seen)
            if gap is None:
                break
            found.append(_event(held[at : gap.start()], self._old, self._new))
            at = seen = gap.end()
        self._held = held[at:]
        # The first three bytes of an end may be there.
        self._seen = max(0, len(self._held) - 3)
        return b"".join(found)

    def end(self) -> bytes:
        """Return the last answer, where nothing ends it."""
        return _event(self._held, self._old, self._new)


class Splice:
    """Readdresses one long message that comes piece by piece, of which it is known where the id stands."""

    __slots__ = ("_at", "_begin", "_end", "_new")

    def __init__(self, at: int, old: bytes, new: bytes) -> None:
        self._at = 0
        """Bytes so far."""
        self._begin = at
        self._end = at + len(old)
        self._new = new

    def feed(self, data: bytes) -> bytes:
        """Return the piece, with the other id in the place of the old one."""
        at, begin = self._at, self._begin
        self._at = at + len(data)
        if self._at <= begin or at >= self._end:
            return data
        new = self._new if at <= begin else b""
        return data[: max(0, begin - at)] + new + data[max(0, self._end - at) :]

    def end(self) -> bytes:
        """Nothing is held back."""
        return b""


def place_of_id(body: bytes, old: bytes) -> int:
    """Return where the id stands in an answer to the request with id `old`; -1 where the body is none."""
    try:
        pairs = read_body(body)
    except Refused:
        return -1
    id = member(pairs, "id")
    if id is None or bytes(id) != old or member(pairs, "method") is not None:
        return -1
    return _place_of(body, pairs, "id")


def _event(event: bytes, old: bytes, new: bytes) -> bytes:
    lines = _LINES.split(event)
    data = b"\n".join(line[5:].removeprefix(b" ") for line in lines if line[:5] == b"data:")
    message = _message(data, old, new)
    if message is None:
        return b""
    names = [line for line in lines if line[:6] == b"event:"]
    return b"\n".join([*names, *(b"data: " + line for line in message.split(b"\n"))]) + b"\n\n"


def _message(body: bytes, old: bytes, new: bytes) -> bytes | None:
    """Return the answer readdressed; None where it is none to that request."""
    at = place_of_id(body, old)
    return None if at < 0 else body[:at] + new + body[at + len(old) :]


def _place_of(body: bytes, pairs: Pairs, name: str) -> int:
    """Return where the value of a member begins. The members are `body`'s, in order, so only lengths are walked."""
    at = body.index(b"{") + 1
    for key, value in pairs.items():
        string = _STRING.search(body, at)
        assert string is not None
        at = body.index(b":", string.end()) + 1
        while body[at] in _BLANK:
            at += 1
        if key == name:
            break
        at += len(bytes(value))
    return at
