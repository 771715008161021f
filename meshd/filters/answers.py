"""Answers that requests got, kept for the time when nobody else answers them: bounded, and never across agents.

Only the very same request gets one: the same upstream, method, path, body (members in another order are the same, and
the id of a message to an MCP server is none of it), of the same agent, tenant and key. Only what came whole is kept.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from meshd.call import OWN_PEER
from meshd.dialects.gemini import without_key
from meshd.dialects.mcp_kept import LISTS, MCP, is_kept, question

if TYPE_CHECKING:
    from meshd.call import Call, Headers
    from meshd.filters.substitution import Standing

ENTRIES_MAX: Final = 1024
BYTES_MAX: Final = 32 * 2**20
"""Of all bodies together."""
ANSWER_BYTES_MAX: Final = 2**20
"""Of one body."""
_FIELDS: Final = frozenset({b"content-type", b"content-encoding", b"content-language"})
_ANEW: Final = frozenset(
    {
        b"host", b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"content-length", b"expect",
        b"upgrade", b"user-agent", b"date", b"via", b"forwarded", b"priority", b"cache-control", b"pragma",
        b"traceparent", b"tracestate", b"baggage", b"b3", b"sentry-trace", b"x-cloud-trace-context",
        b"x-amzn-trace-id", b"x-request-id", b"request-id", b"x-correlation-id", b"correlation-id", b"idempotency-key",
        b"x-tool-call-id",
    }
)  # fmt: skip
_ANEW_BEGINNINGS: Final = (b"x-meshd-", b"x-stainless-", b"x-forwarded-", b"x-b3-", b"x-datadog-")
"""Request fields that are new with each call, or say how its bytes travel. Every other one of a tool's makes another
request of it: nobody knows by which a tool tells its users apart."""


class Kept(NamedTuple):
    """One answer."""

    status: int
    headers: Headers
    body: bytes
    stored_s: float
    """Monotonic seconds at which it came."""


class Answers:
    """The answers of one sidecar, the oldest first."""

    __slots__ = ("_kept", "bytes_kept")

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self.bytes_kept = 0

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, key: bytes, status: int, headers: Headers, body: bytes, now_s: float) -> None:
        """Keep an answer in the place of what the same request got before."""
        before = self._kept.pop(key, None)
        if before is not None:
            self.bytes_kept -= len(before.body)
        if len(body) > ANSWER_BYTES_MAX:
            return
        self._kept[key] = Kept(status, [field for field in headers if field[0] in _FIELDS], body, now_s)
        self.bytes_kept += len(body)
        while len(self._kept) > ENTRIES_MAX or self.bytes_kept > BYTES_MAX:
            _, gone = self._kept.popitem(last=False)
            self.bytes_kept -= len(gone.body)

    def find(self, key: bytes, now_s: float, age_s_max: float) -> Kept | None:
        """Return what the request got, if that is no older than `age_s_max`."""
        kept = self._kept.get(key)
        return kept if kept is not None and now_s - kept.stored_s <= age_s_max else None


def are_kept(call: Call) -> bool:
    """Say whether answers to such a call are kept: of MCP those that can be given again. What the gateway and the
    catalogue list for themselves is to be found wanting where its server is."""
    rpc: Any = call.rpc
    if rpc is None or rpc.protocol != MCP:
        return True
    return is_kept(rpc) and not (call.peer == OWN_PEER and rpc.method in LISTS)


def key_of(call: Call, origin: Standing) -> bytes:
    """Return what is the same for two calls exactly where one may have the other's answer."""
    path = origin.path
    digest = blake2b(digest_size=32)
    parts: list[bytes] = [
        part.encode("utf-8", "surrogatepass")
        for part in (
            call.policy.tenant, call.agent, call.direction._value_, origin.upstream.name, origin.dialect.name,
            origin.target.model, call.method, without_key(path) if "?" in path else path,
        )
    ]  # fmt: skip
    parts += [name + b":" + value for name, value in origin.credentials]
    if origin.ask is None:
        parts += [
            name + b":" + value
            for name, value in call.headers
            if name not in _ANEW and not name.startswith(_ANEW_BEGINNINGS)
        ]
    else:
        parts += [name + b":" + value for name, value in call.headers if name == b"cookie"]
    body = origin.body or b""
    rpc: Any = call.rpc
    parts.append(question(body) if rpc is not None and is_kept(rpc) else _canonical(body))
    for part in parts:
        # Its length goes before each, so that no two lists of parts are the same bytes.
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _canonical(body: bytes) -> bytes:
    """Return a JSON body with its members in order and without spaces; any other as it is."""
    try:
        return msgspec.json.encode(msgspec.json.decode(body), order="sorted")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return body
