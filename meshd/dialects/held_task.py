"""A call that waits for a person, as its protocol shows it: a task. What MCP and A2A have in common of it. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshd.dialects.json_pairs import read_object, write
from meshd.wire.sse import EventTooLarge, Splitter, data_of

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX: Final = "meshd-"
"""Of the ids of our tasks. What looks like one and is none goes on to the upstream, as every other id does."""
POLL_MS: Final = 2000
APPROVAL_KEY: Final = "meshd/approval"
"""Of the approval's id, in what a task says of itself."""


class Stage(Enum):
    """Where a held call stands."""

    WAITING = "waiting"
    """Nobody has decided."""
    RUNNING = "running"
    """It was allowed, and is being carried out."""
    ENDED = "ended"
    """There is an answer."""
    DENIED = "denied"
    """A person said no, or nobody said anything in time."""
    CANCELLED = "cancelled"
    FAILED = "failed"
    """It could not be carried out, or nobody knows whether it was."""


class HeldTask(NamedTuple):
    """What a caller is shown of a call that is held."""

    id: str
    approval: str
    stage: Stage
    words: str
    asked_s: float
    changed_s: float
    ttl_s: float
    """Times are unix seconds; the last is from `asked_s` on."""
    answer: bytes = b""
    """Once it ENDED: a JSON object with the `result` or the `error` that came back."""
    context_id: str = ""
    """Of A2A."""


def moment(unix_s: float) -> str:
    """Return a time as ISO 8601 writes it."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def rpc_answer(id: bytes, result: Any) -> bytes:
    """Return the JSON-RPC message that answers the request `id`."""
    return b'{"jsonrpc":"2.0","id":' + (id or b"null") + b',"result":' + msgspec.json.encode(result) + b"}"


def rpc_error(id: bytes, code: int, message: str) -> bytes:
    """Return a JSON-RPC error."""
    error = msgspec.json.encode({"code": code, "message": message})
    return b'{"jsonrpc":"2.0","id":' + (id or b"null") + b',"error":' + error + b"}"


def messages_in(body: bytes, *, is_stream: bool) -> list[dict[str, Any]]:
    """Return the JSON-RPC answers in a reply's body; none where it is no such thing."""
    found = []
    for raw in events_in(body) if is_stream else [body]:
        message = decoded(raw)
        if isinstance(message, dict) and ("result" in message or "error" in message):
            found.append(message)
    return found


def request_for(body: bytes, ours: str, theirs: str) -> bytes:
    """Return a request that names the upstream's task in the place of ours; every other byte stays."""
    pairs = read_object(body, "the request body")
    params = bytes(pairs["params"]).replace(msgspec.json.encode(ours), msgspec.json.encode(theirs))
    return write(pairs, {"params": params})


def decoded(raw: bytes) -> Any:
    """Return what JSON says; None where it is none."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def events_in(body: bytes) -> list[bytes]:
    """Return what the events of a stream say; nothing where one is too long."""
    splitter = Splitter()
    try:
        return [data_of(raw) for raw in splitter.feed(body)] + [data_of(splitter.rest())]
    except EventTooLarge:
        return []


def renamed(value: Any, named: Callable[[str], str]) -> Any:
    """Return JSON with each `taskId` in it as `named` makes it."""
    if isinstance(value, dict):
        return {
            key: named(item) if key == "taskId" and isinstance(item, str) else renamed(item, named)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [renamed(item, named) for item in value]
    return value
