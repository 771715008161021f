"""By what a call is known again, and what it says: keys, scopes and fingerprints. Pure.

A key is whatever its caller chose: the header of the IETF's draft (draft-ietf-httpapi-idempotency-key-header), a
structured string (RFC 8941) or, as many send it, bare. It never means anything outside of its scope: the same key of
another tenant, agent or operation is another claim.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final

from meshd.call import Direction, Evidence
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshd.call import Call, Headers

KEY_HEADER: Final = b"idempotency-key"
RETRY_COUNT: Final = b"x-stainless-retry-count"
TOOL_CALL: Final = b"x-tool-call-id"
KEY_CHARACTERS_MAX: Final = 255
CANONICAL_BYTES_MAX: Final = 65_536
"""Longer bodies are compared byte for byte: to read them takes longer than a call may wait for the loop."""
RETRIES_MAX: Final = 1000
_TELLING: Final = frozenset(
    {b"x-amz-target", b"soapaction", b"x-http-method", b"x-http-method-override", b"x-method-override"}
)
"""Fields that say which operation it is."""

_INBOUND: Final = Direction.INBOUND
_PROVEN: Final = frozenset({Evidence.TOKEN, Evidence.RUN_ADDRESS, Evidence.NAMED})
_PRINTABLE: Final = re.compile(rb"[\x20-\x7e]+")
_QUOTED: Final = re.compile(rb'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_ESCAPED: Final = re.compile(rb'\\(["\\])')
_BOUNDARY: Final = re.compile(rb'boundary="?([^";,\s]{1,70})"?')


def value_of(headers: Headers, name: bytes) -> bytes | None:
    """Return the first value of a field, None where there is none."""
    for field, value in headers:
        if field == name:
            return value
    return None


def key_in(headers: Headers) -> str:
    """Return the key that a caller's header or gRPC metadata names; empty where there is none.

    Raises Refused(MALFORMED) for what is no key: saying nothing would carry the call out twice.
    """
    values = [value for name, value in headers if name == KEY_HEADER]
    if not values:
        return ""
    if len(values) > 1:
        raise _bad("stands more than once in the request: which one holds cannot be told")
    return read_key(values[0])


def read_key(value: bytes) -> str:
    """Return a key as it is meant: what stands between the quotes of a structured string, or a bare value whole."""
    value = value.strip(b" \t")
    if value[:1] == b'"':
        quoted = _QUOTED.fullmatch(value)
        if quoted is None:
            raise _bad('begins with a quote and is no structured string ("...", RFC 8941)')
        value = _ESCAPED.sub(rb"\1", quoted[1])
    if not value:
        raise _bad("is empty")
    if len(value) > KEY_CHARACTERS_MAX:
        raise _bad(f"has {len(value)} characters, and {KEY_CHARACTERS_MAX} are allowed")
    if not _PRINTABLE.fullmatch(value):
        raise _bad("has characters that are not printable ASCII")
    return value.decode("ascii")


def checked(key: str, where: str) -> str:
    """Return a key that stands in a body. Raises Refused(MALFORMED) as `key_in` does."""
    if len(key) > KEY_CHARACTERS_MAX or not key.isprintable():
        raise Refused(
            Reason.MALFORMED, f"The {where} is no key: 1 to {KEY_CHARACTERS_MAX} printable characters are allowed."
        )
    return key


def retry_count_in(headers: Headers) -> int:
    """Return how often an official client has tried before, -1 where it does not say so in digits."""
    value = value_of(headers, RETRY_COUNT)
    if value is None or not value.isdigit() or len(value) > 4:
        return -1
    return min(int(value), RETRIES_MAX)


def _bad(what: str) -> Refused:
    return Refused(
        Reason.MALFORMED,
        f"The Idempotency-Key {what}. Send one key of 1 to {KEY_CHARACTERS_MAX} printable characters, such as a UUID.",
    )


# ---------------------------------------------------------------------- scope


def caller_of(call: Call) -> str:
    """Return who calls, as far as that is proven: keys of one caller are nothing to another."""
    if call.direction is not _INBOUND:
        return call.agent
    context = call.context
    path = context.path if context is not None else ()
    if call.evidence is Evidence.TOKEN and path:
        return "/".join(path)
    secret = hashlib.sha256(b"\n".join(value for _, value in call.credentials)).hexdigest()
    return f"?{call.peer.rpartition(':')[0] or call.peer}?{secret}"


def principal_of(call: Call) -> str:
    """Return whose call it is, by name: the agent's, or, of one that comes in, the one's before it; with its tenant."""
    path = call.context.path if call.context is not None and call.direction is _INBOUND else ()
    agent = f"{path[-1]} > {call.agent}" if path else call.agent
    return f"{call.policy.tenant}/{agent}" if call.policy.tenant else agent


def workflow_of(call: Call) -> str:
    """Return the call's workflow where that is proven, empty where it is inferred: a retry may be tied to another."""
    context = call.context
    return context.workflow if context is not None and call.evidence in _PROVEN else ""


def operation_of(call: Call) -> str:
    """Return what is to be done: the operation of an LLM, a method of JSON-RPC and its tool, or a method of HTTP; the
    latter two with their path, since one upstream may serve several agents."""
    if call.ask is not None:
        return str(call.ask.operation)
    rpc: Any = getattr(call, "rpc", None)
    if rpc is not None:
        return f"{rpc.method} {rpc.tool} {call.path.partition('?')[0]}"
    return f"{call.method} {call.path.partition('?')[0]}"


def identity_of(call: Call, sort: str, key: str) -> str:
    """Return the name of a claim in the store. `sort` says where its key came from."""
    parts = (call.policy.tenant, call.direction.value, caller_of(call), call.target.name, operation_of(call), sort, key)
    return digest(part.encode("utf-8", "surrogatepass") for part in parts).hex()[:40]


def derived_key(call: Call, tool_call: str) -> str:
    """Return the key of a call that names the model's tool call which it carries out: workflow, edge, id, arguments."""
    rpc: Any = getattr(call, "rpc", None)
    arguments = (b"", rpc.arguments) if rpc is not None else canonical(call)
    path = call.path.encode("utf-8", "surrogatepass")
    return digest((workflow_of(call).encode(), path, tool_call.encode(), *arguments)).hex()


# ---------------------------------------------------------------------- what it says


def fingerprint_of(call: Call) -> bytes:
    """Return a digest of what the call says: its method, its path, its body, and the operation where that stands in a
    field. What carries it does not count."""
    rpc: Any = getattr(call, "rpc", None)
    if rpc is not None:
        # The id of JSON-RPC and `_meta` are new with every attempt.
        return digest((rpc.method.encode(), rpc.tool.encode(), rpc.arguments))
    told = [name + b":" + value for name, value in call.headers if name in _TELLING]
    return digest((call.method.encode(), call.path.encode("utf-8", "surrogatepass"), *canonical(call), *told))


def digest(parts: Iterable[bytes]) -> bytes:
    """Return a SHA-256 over parts, of which none can pass for another's beginning."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(b"%d:" % len(part))
        hashed.update(part)
    return hashed.digest()


def canonical(call: Call) -> tuple[bytes, bytes]:
    """Return how the body was read and what it then is, so that bodies which say the same are the same."""
    body = call.body or b""
    content_type = value_of(call.headers, b"content-type") or b""
    if content_type[:10] == b"multipart/":
        boundary = _BOUNDARY.search(content_type)
        if boundary is None:
            return b"", body
        # Clients choose a new one for each attempt. Only where it parts something: elsewhere its letters are content.
        return b"form", (b"\r\n" + body).replace(b"\r\n--" + boundary[1], b"\r\n--")
    if len(body) > CANONICAL_BYTES_MAX or body.lstrip()[:1] not in (b"{", b"["):
        return b"", body
    try:
        # Numbers stay as they are written: two amounts that a float cannot tell apart are two amounts.
        read = json.loads(body, parse_float=_number, parse_int=_number, object_pairs_hook=_members)
        return b"json", json.dumps(read, sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, RecursionError):
        return b"", body


def _number(text: str) -> dict[str, str]:
    return {"\x00number": text}


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs) or any(name[:1] == "\x00" for name in members):
        raise ValueError("two readers may see two bodies in it, or it looks as a number does here")
    return members
