"""Where a call is for, before any filter is asked: its upstream by name, its dialect, and what is never let in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from meshd.call import Kind, Rpc
from meshd.dialects.a2a import asked_in
from meshd.dialects.gemini import key_in
from meshd.dialects.table import A2A_GRPC, DIALECTS, GRPC, RPC, RPC_FIELDS, dialect_at, spoken_in
from meshd.policy.addressing import INTENT
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from meshd.call import Call, Headers
    from meshd.policy.addressing import AddressBook, Located
    from meshd.wire.message import Fields, Request

# Bound once: reading a member from its enum costs 0.17 us on Python 3.11, and every call reads dozens.
_LLM: Final = Kind.LLM

PLAIN: Final = DIALECTS["plain"]
_GEMINI: Final = "gemini"
_A2A: Final = "a2a"


class Intents(Protocol):
    """Finds who serves what a call wants: see `meshd.intent.resolver`."""

    def locate(self, call: Call, request: Request, located: Located) -> Located:
        """Return the place of whoever is chosen, as if the call had named it.

        Where several are, there is none, and the call's dialect says who they are. Raises Refused.
        """
        ...


class Door(Protocol):
    """Whoever has the addresses of a policy: the proxy, and what explains it."""

    book: AddressBook
    intents: Intents | None


def arrive(door: Door, call: Call, request: Request) -> bool:
    """Set the call's upstream, target, path and dialect; return whether it asks for a tunnel. Raises Refused."""
    call.dialect = PLAIN
    is_connect = request.method == "CONNECT"
    book = door.book
    is_grpc = request.fields.is_grpc
    if is_grpc:
        call.dialect = GRPC
        located = book.locate_rpc(request, call.direction)
    else:
        located = book.locate_tunnel(request.target) if is_connect else book.locate(request, call.direction)
    name, upstream, call.path, call.run_token, call.target = located
    if upstream is None and name == INTENT and door.intents is not None:
        _, upstream, call.path, call.run_token, call.target = door.intents.locate(call, request, located)
    call.upstream = upstream
    # What is framed as gRPC is no way around an LLM's meter.
    if is_grpc and upstream is not None and upstream.dialect == _A2A:
        call.dialect = A2A_GRPC
    if upstream is not None and (not is_grpc or upstream.kind is _LLM):
        call.dialect = dialect_at(upstream.dialect, call.path)
        if not upstream.is_dialect_told:
            if request.method == "POST":
                fields = request.fields
                if not fields.spoken:
                    fields.spoken = spoken_in(fields.content_type, fields.headers)
                call.dialect = DIALECTS[fields.spoken]
            elif request.method == "GET" and asked_in(call.path):
                call.dialect = DIALECTS[_A2A]
        if upstream.dialect == _GEMINI and "?" in call.path and (key := key_in(call.path)) is not None:
            call.credentials = [*call.credentials, (b"x-goog-api-key", key)]
    is_tunnel = is_connect or bool(request.upgrade)
    if request.fields.origin and not book.is_origin_allowed(request.fields.origin):
        raise Refused(
            Reason.NOT_ALLOWED,
            "Web pages may not call through this sidecar (the request has an Origin). Call it from the agent's own "
            "process, or add the page's host to hosts_allowed in the policy.",
        )
    if is_tunnel and upstream is not None and upstream.kind is _LLM and not upstream.is_unmetered:
        raise Refused(
            Reason.NOT_ALLOWED,
            f"A tunnel to {upstream.name} cannot be metered. Point the SDK's base URL at "
            f"http://<sidecar>/{upstream.name}, or set `unmetered: true` on that upstream in the policy.",
        )
    if is_tunnel and upstream is not None and upstream.dialect in RPC:
        raise Refused(
            Reason.NOT_ALLOWED,
            f"A tunnel to {upstream.name} cannot be read, and the policy says that it speaks {upstream.dialect}: send "
            "each message by a POST.",
        )
    return is_tunnel


def check_plain(headers: Headers) -> None:
    """Raise Refused where a body is encoded: it says something else to whoever decodes it than what is judged here."""
    for name, value in headers:
        if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            raise Refused(
                Reason.MALFORMED,
                f"the request body comes with content-encoding {value[:32].decode('latin-1')!r}, which is not read "
                "here; send it as it is, without one",
            )


def read_message(call: Call, body: bytes, fields: Fields) -> None:
    """Read a JSON-RPC message: sets `call.rpc`, and `call.body` to what is to be forwarded. Raises Refused.

    A body that was taken for one because its caller accepts two types of answers, and is something else altogether,
    passes unread, as to any upstream of which the policy does not say what it speaks.
    """
    dialect: Any = call.dialect
    rpc = call.rpc = Rpc(dialect.name)
    is_told = call.upstream is not None and call.upstream.is_dialect_told
    try:
        check_plain(call.headers)
        dialect.fill(rpc, body, call.headers, call.method, call.path)
    except Refused:
        if is_told or rpc.id or rpc.method or any(name in RPC_FIELDS for name, _ in fields.headers):
            raise
        call.rpc, call.dialect, call.body = None, PLAIN, body
        return
    if not is_told:
        # The caller alone says that this is JSON-RPC: an upstream that reads it otherwise may do anything.
        rpc.is_read_only = False
    call.body = body if rpc.forwarded is None else rpc.forwarded


def too_large(bytes_max: int) -> Refused:
    """Return the refusal of a body that is over the limit."""
    return Refused(
        Reason.TOO_LARGE,
        f"The request's body is over {bytes_max} bytes; raise limits.request_body in the policy if it is meant",
    )
