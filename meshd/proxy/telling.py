"""What an A2A agent is told of the workflow in the message itself, where it takes meshd's extension.

The token stays in its header field: whoever keeps messages would keep that too, and it is an agent's right to call on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from meshd.call import Direction
from meshd.dialects.a2a_extension import EXTENSION, declares, field_of, written
from meshd.dialects.a2a_tasks import SENDS, is_old
from meshd.refusal import Refused
from meshd_sdk.context import HEADER_DEADLINE

if TYPE_CHECKING:
    from meshd.call import Call, Headers
    from meshd.upstream import Upstream

A2A: Final = "a2a"
_INBOUND: Final = Direction.INBOUND
_TRACEPARENT: Final = b"traceparent"
_URI: Final = EXTENSION.encode()


class Declared:
    """Which agents' cards, of those that came through here, declare the extension."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: set[tuple[str, str]] = set()

    def note(self, upstream: Upstream, card: dict[str, Any]) -> None:
        """An agent has shown its card."""
        (self._known.add if declares(card) else self._known.discard)((upstream.name, upstream.url))

    def takes(self, upstream: Upstream) -> bool:
        """Say whether an agent is to be told: by the policy, else by its card."""
        if upstream.takes_extension is not None:
            return upstream.takes_extension
        return (upstream.name, upstream.url) in self._known


def tell(call: Call, declared: Declared, added: Headers, body: bytes | None) -> bytes | None:
    """Activate the extension in the fields that are `added` to a request, and return its body with the context in its
    message. Where the agent does not take the extension, nothing changes; over gRPC the fields say it all."""
    if call.upstream is None or not declared.takes(call.upstream):
        return body
    rpc: Any = call.rpc
    field = field_of(is_old=is_old(rpc.method))
    if not any(name == field and _URI in map(bytes.strip, value.split(b",")) for name, value in call.headers):
        added.append((field, _URI))
    if body is None or rpc.binding == "grpc" or rpc.method not in SENDS or call.context is None:
        return body
    try:
        return written(body, _words(call, added), is_rpc=rpc.binding == "jsonrpc")
    except Refused:
        return body  # What reads it else took it, so that it is the agent's to judge.


def _words(call: Call, added: Headers) -> bytes:
    context: Any = call.context
    said: dict[str, Any] = {"hops": context.hops + (call.direction is not _INBOUND)}
    if context.workflow:
        said["workflow"] = context.workflow
    for name, value in added:
        if name == HEADER_DEADLINE:
            said["deadline_s"] = float(value)
        elif name == _TRACEPARENT:
            said["traceparent"] = value.decode("latin-1")
    return msgspec.json.encode(said)
