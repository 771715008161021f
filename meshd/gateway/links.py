"""Links to resources in what servers answer: each under the URI by which the client can read it here. Pure.

All that is no such link stays as its server wrote it, byte for byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from meshd.dialects.json_pairs import member, read_body, read_items, read_object, text, write
from meshd.gateway.uris import WEB
from meshd.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshd.dialects.json_pairs import Pairs

    Known = Callable[[str], str]
    """Returns by which URI something is known here that its server calls by another."""

METHODS: Final = frozenset({"tools/call", "prompts/get", "resources/read", "tasks/result", "tasks/get"})
"""Whose answers may hold links."""
_MARK: Final = b'"uri"'


def linked(message: bytes, known_as: Known) -> bytes:
    """Return an answer whose links are those of the gateway; the answer itself where nothing is another."""
    if _MARK not in message:
        return message
    try:
        pairs = read_body(message)
        raw = member(pairs, "result")
        result = b"" if raw is None else _result(raw, known_as)
        return write(pairs, {"result": result}) if result else message
    except Refused:
        return message  # Its client judges what it can make of it.


def _result(raw: msgspec.Raw, known_as: Known) -> bytes:
    """Return a result with other links; empty where they are the same."""
    if bytes(raw)[:1] != b"{":
        return b""
    found, edits = read_object(raw, "the result"), {}
    for key, change in (("content", _block), ("messages", _message), ("contents", _content)):
        made = _items(found, key, change, known_as)
        if made:
            edits[key] = made
    inner = member(found, "result")
    if inner is not None and (made := _result(inner, known_as)):
        edits["result"] = made
    return write(found, edits) if edits else b""


def _items(found: Pairs, key: str, change: Callable[[msgspec.Raw, Known], bytes], known_as: Known) -> bytes:
    raw = member(found, key)
    if raw is None or bytes(raw)[:1] != b"[":
        return b""
    items = read_items(raw, key)
    made = [change(item, known_as) if bytes(item)[:1] == b"{" else b"" for item in items]
    if not any(made):
        return b""
    return b"[" + b",".join([new or bytes(old) for new, old in zip(made, items, strict=True)]) + b"]"


def _message(raw: msgspec.Raw, known_as: Known) -> bytes:
    pairs = read_object(raw, "a message")
    content = member(pairs, "content")
    if content is None:
        return b""
    made = _block(content, known_as) if bytes(content)[:1] == b"{" else _items(pairs, "content", _block, known_as)
    return write(pairs, {"content": made}) if made else b""


def _block(raw: msgspec.Raw, known_as: Known) -> bytes:
    pairs = read_object(raw, "a block")
    kind = text(pairs, "type", "a block")
    if kind == "resource_link":
        return _content(raw, known_as)
    inner = member(pairs, "resource") if kind == "resource" else None
    made = b"" if inner is None or bytes(inner)[:1] != b"{" else _content(inner, known_as)
    return write(pairs, {"resource": made}) if made else b""


def _content(raw: msgspec.Raw, known_as: Known) -> bytes:
    pairs = read_object(raw, "a resource")
    uri = text(pairs, "uri", "a resource") or ""
    # What is on the web can be had from there.
    known = uri if not uri or uri.startswith(WEB) else known_as(uri)
    return write(pairs, {"uri": msgspec.json.encode(known)}) if known != uri else b""
