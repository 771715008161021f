"""One JSON-RPC message of MCP: what it says, and the same with other ids. Pure.

Values stay raw, so that what nobody here knows passes as it came. Ids, tokens of progress and ids of subscriptions are
the client's own on its side and numbers of ours on the server's: two clients that both count from 1 never meet.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from meshd.dialects.json_pairs import Pairs, write

SUBSCRIPTION: Final = "io.modelcontextprotocol/subscriptionId"
"""In `_meta` of what comes of a `subscriptions/listen` (2026-07-28): the id of that request."""
LISTEN: Final = "subscriptions/listen"
PROGRESS: Final = "notifications/progress"
CANCELLED: Final = "notifications/cancelled"
INITIALIZE: Final = "initialize"
INITIALIZED: Final = "notifications/initialized"
PING: Final = "ping"
NO_ANSWER: Final = -32001
MESSAGES_MAX: Final = 1000
"""Of a batch, which servers of 2025-03-26 may send."""

_map = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items = msgspec.json.Decoder(list[msgspec.Raw])
_text = msgspec.json.Decoder(str)
_LINE_ENDS: Final = re.compile(rb"[\r\n]+")
_NUMBER: Final = re.compile(rb"[0-9]{1,15}\Z")


class Nonsense(Exception):
    """It is no message; the text says why."""


class Message:
    """One message of a server."""

    __slots__ = ("id", "method", "pairs")

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        id = pairs.get("id")
        self.id = b"" if id is None else bytes(id)
        """Raw JSON; empty for a notification."""
        self.method = ""
        """Empty for a reply."""
        if "method" in pairs:
            try:
                self.method = _text.decode(pairs["method"])
            except (msgspec.MsgspecError, UnicodeDecodeError):
                raise Nonsense("its method is no text") from None
        elif not self.id or ("result" in pairs) == ("error" in pairs):
            raise Nonsense("it has neither a method nor an id with one result or error")

    @property
    def number(self) -> int:
        """The number of ours that it answers; -1 where it is none."""
        return int(self.id) if _NUMBER.match(self.id) else -1

    def encoded(self, edits: dict[str, bytes] | None = None) -> bytes:
        """Return it on one line."""
        return one_line(write(self.pairs, edits or {}))

    def concerns(self) -> tuple[int, str]:
        """Return the number of ours that a notification or request names, and where: -1 and empty where it does not."""
        params = members(self.pairs.get("params"))
        if self.method == PROGRESS:
            token = bytes(params.get("progressToken", b""))
            return (int(token), "progressToken") if _NUMBER.match(token) else (-1, "")
        said = bytes(members(params.get("_meta")).get(SUBSCRIPTION, b""))
        return (int(said), SUBSCRIPTION) if _NUMBER.match(said) else (-1, "")

    def restored(self, where: str, value: bytes) -> bytes:
        """Return a notification with the client's own value in the place that `concerns` has named."""
        params = members(self.pairs.get("params"))
        if where == "progressToken":
            return self.encoded({"params": write(params, {where: value})})
        meta = write(members(params.get("_meta")), {where: value})
        return self.encoded({"params": write(params, {"_meta": meta})})

    def answered(self, id: bytes, method: str) -> bytes:
        """Return a reply under the client's own id."""
        edits = {"id": id}
        if method == LISTEN:
            result = members(self.pairs.get("result"))
            meta = members(result.get("_meta"))
            if SUBSCRIPTION in meta:
                edits["result"] = write(result, {"_meta": write(meta, {SUBSCRIPTION: id})})
        return self.encoded(edits)


def read(raw: bytes) -> list[Message]:
    """Return the messages that a line or an event holds: one, or those of a batch. Raises Nonsense."""
    try:
        raw.decode()
        if raw.lstrip()[:1] == b"[":
            items = _items.decode(raw)
            if len(items) > MESSAGES_MAX:
                raise Nonsense(f"a batch of more than {MESSAGES_MAX} messages")
            return [Message(_map.decode(item)) for item in items]
        return [Message(_map.decode(raw))]
    except UnicodeDecodeError:
        raise Nonsense("it is not UTF-8") from None
    except RecursionError:
        raise Nonsense("it is nested too deeply") from None
    except msgspec.MsgspecError as error:
        raise Nonsense(f"it is no JSON-RPC message ({str(error)[:120]})") from None


def members(raw: msgspec.Raw | None) -> Pairs:
    """Return the members of an object; none where it is something else."""
    if raw is None:
        return {}
    try:
        return _map.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}


def one_line(message: bytes) -> bytes:
    """Return JSON without line ends, which can only stand between its values: none may stand in a text unescaped."""
    return _LINE_ENDS.sub(b" ", message) if b"\n" in message or b"\r" in message else message


def numbered(body: bytes, number: int, progress_token: bytes) -> bytes:
    """Return a client's request under a number of ours."""
    pairs = _map.decode(body)
    edits = {"id": b"%d" % number}
    if progress_token:
        params = members(pairs.get("params"))
        meta = members(params.get("_meta"))
        if "progressToken" in meta:
            edits["params"] = write(params, {"_meta": write(meta, {"progressToken": edits["id"]})})
    return one_line(write(pairs, edits))


def param(body: bytes, name: str) -> bytes:
    """Return a parameter of a message as raw JSON; empty where it has none."""
    return bytes(members(_map.decode(body).get("params")).get(name, b""))


def id_of(body: bytes) -> bytes:
    """Return the raw id of a message; empty where it has none."""
    return bytes(_map.decode(body).get("id", b""))


def cancelled(body: bytes, number: int) -> bytes:
    """Return a client's `notifications/cancelled` for the request of this number."""
    pairs = _map.decode(body)
    params = write(members(pairs.get("params")), {"requestId": b"%d" % number})
    return one_line(write(pairs, {"params": params}))


def cancel(number: int, reason: str) -> bytes:
    """Return our own."""
    params = {"requestId": number, "reason": reason}
    return msgspec.json.encode({"jsonrpc": "2.0", "method": CANCELLED, "params": params})


def error(id: bytes, message: str, code: int = NO_ANSWER) -> bytes:
    """Return an error under a raw id."""
    said = msgspec.json.encode({"code": code, "message": message})
    return b'{"jsonrpc":"2.0","id":' + (id or b"null") + b',"error":' + said + b"}"


def empty_result(id: bytes) -> bytes:
    """Return the answer to a ping."""
    return b'{"jsonrpc":"2.0","id":' + id + b',"result":{}}'
