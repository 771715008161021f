"""Which answers of MCP servers may be given again to the same question, and how one is put under another id.

What opens, tells or changes something (a session, a subscription, a task) is asked of the server alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.dialects.json_pairs import member, read_body, read_object, write
from meshd.refusal import Refused
from meshd.wire.sse import EventTooLarge, Splitter, data_of

if TYPE_CHECKING:
    from meshd.call import Rpc
    from meshd.dialects.json_pairs import Pairs

MCP: Final = "mcp"
LISTS: Final = frozenset({"tools/list", "prompts/list", "resources/list", "resources/templates/list"})
_KEPT: Final = LISTS | {"tools/call", "prompts/get", "resources/read", "completion/complete"}
_COMPLETE: Final = b'"complete"'


def is_kept(rpc: Rpc) -> bool:
    """Say whether the answer to a message may be kept."""
    return bool(rpc.id) and rpc.protocol == MCP and rpc.method in _KEPT


def question(body: bytes) -> bytes:
    """Return what is the same for two messages that ask the same: all but the id, and the token of progress."""
    try:
        said: Any = msgspec.json.decode(body)
        said.pop("id", None)
        meta = said.get("params", {}).get("_meta")
        if isinstance(meta, dict):
            meta.pop("progressToken", None)
            if not meta:
                del said["params"]["_meta"]
        return msgspec.json.encode(said, order="sorted")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, AttributeError):
        return body


def answer_in(body: bytes, *, is_stream: bool) -> bytes | None:
    """Return the message that answers, where it is a whole result; None for an error, a task, a question."""
    messages = [body]
    if is_stream:
        splitter = Splitter(max(len(body), 1))
        try:
            messages = [data_of(event) for event in (*splitter.feed(body), splitter.rest())]
        except EventTooLarge:
            return None
    for message in messages:
        try:
            pairs = read_body(message) if message.strip() else {}
            if "id" in pairs and "method" not in pairs:
                return message if _is_whole(pairs) else None
        except Refused:
            return None
    return None


def _is_whole(pairs: Pairs) -> bool:
    raw = member(pairs, "result")
    if raw is None or "error" in pairs or bytes(raw)[:1] != b"{":
        return False
    found = read_object(raw, "the result")
    kind = member(found, "resultType")
    return "task" not in found and (kind is None or bytes(kind) == _COMPLETE)


def under(message: bytes, id: bytes) -> bytes:
    """Return an answer under another id, which is raw JSON. Raises Refused for what is none."""
    return write(read_body(message), {"id": id})
