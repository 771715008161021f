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
        events = (_event(event, old, new) for event in _GAP.split(body))
        return b"".join(event for event in events if event)
    return _message(body, old, new) or body


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
    try:
        pairs = read_body(body)
    except Refused:
        return None
    id = member(pairs, "id")
    if id is None or bytes(id) != old or member(pairs, "method") is not None:
        return None
    at = _place_of(body, pairs, "id")
    return body[:at] + new + body[at + len(old) :]


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
