"""What every request to these ports passes first, in this order: Host, Origin, token, then its route.

A web page that the operator's browser shows can reach loopback: a name that was rebound to 127.0.0.1 shows in Host,
a foreign page in Origin. Errors are problem details (RFC 9457) and tell nothing of the inside.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from aiohttp import web

from meshd.telemetry import redact

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

T = TypeVar("T")

PAGE_DEFAULT = 100
PAGE_MAX = 1000
BODY_BYTES_MAX = 4096
BODY_TIMEOUT_S = 10.0
_log = logging.getLogger("meshd.admin")


class Problem(Exception):
    """An error answer: HTTP status, a title, and what to do."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str = "",
        headers: dict[str, str] | None = None,
        *,
        type: str = "about:blank",
    ) -> None:
        super().__init__(title)
        self.status = status
        self.title = title
        self.detail = detail
        self.headers = headers or {}
        self.type = type


def reply(value: Any, status: int = 200, content_type: str = "application/json") -> web.Response:
    """Return `value` as JSON, without secrets."""
    plain = redact.anything(msgspec.to_builtins(value))
    return web.Response(body=msgspec.json.encode(plain) + b"\n", status=status, content_type=content_type)


def _problem(problem: Problem) -> web.Response:
    body: dict[str, Any] = {"type": problem.type, "status": problem.status, "title": problem.title}
    if problem.detail:
        body["detail"] = problem.detail
    answer = reply(body, problem.status, "application/problem+json")
    answer.headers.update(problem.headers)
    return answer


def host_name(field: str) -> str:
    """Return the name in a Host field in lower case, without port and brackets; empty for what is none."""
    field = field.strip().lower()
    if field.startswith("["):
        name, closing, port = field[1:].partition("]")
        if not closing or (port and not (port[0] == ":" and _is_port(port[1:]))):
            return ""
        return name if _address(name) is not None else ""
    name, colon, port = field.partition(":")
    if colon and not _is_port(port):
        return ""
    return name.rstrip(".") if name and all(char.isalnum() or char in "-._" for char in name) else ""


def _is_port(value: str) -> bool:
    return value.isascii() and value.isdecimal() and len(value) <= 5


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


class HostRule:
    """Which Host fields a port answers to."""

    __slots__ = ("_are_addresses_allowed", "_names")

    def __init__(self, names: tuple[str, ...], *, are_addresses_allowed: bool) -> None:
        self._names = frozenset(name.lower().rstrip(".").strip("[]") for name in names) | {"localhost"}
        self._are_addresses_allowed = are_addresses_allowed

    def allows(self, field: str | None) -> bool:
        """Say whether a Host field names this port.

        An address cannot be rebound, so where probes and Prometheus come by the pod's address any will do; the admin
        port takes loopback only.
        """
        name = host_name(field or "")
        if name in self._names:
            return True
        address = _address(name)
        return address is not None and (self._are_addresses_allowed or address.is_loopback)


def doors(hosts: HostRule, token: str | None) -> Any:
    """Return the middleware of a port. Without a token the port is open to whoever can reach it."""

    @web.middleware
    async def pass_doors(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            check_host(request, hosts)
            check_origin(request)
            if token is not None:
                _check_token(request, token)
            return await handler(request)
        except Problem as problem:
            return _problem(problem)
        except web.HTTPException as error:
            headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return _problem(Problem(error.status, error.reason, headers=headers))
        except (ConnectionError, TimeoutError):
            raise
        except Exception:  # noqa: BLE001
            _log.exception("an admin request failed")
            return _problem(Problem(500, "Internal error", "The log says more."))

    return pass_doors


def check_host(request: web.Request, hosts: HostRule) -> None:
    """Raise Problem(403) where a request names another host than this port's own."""
    fields = request.headers.getall("Host", [])
    if len(fields) != 1 or not hosts.allows(fields[0]):
        raise Problem(403, "Host not allowed", "This port answers to its own address only.")
    # An absolute-form target names a host of its own, and overrides Host.
    if request.raw_path[:1] != "/" and not hosts.allows(request.url.raw_authority):
        raise Problem(403, "Host not allowed", "This port answers to its own address only.")


def check_origin(request: web.Request) -> None:
    """Raise Problem(403) where a page of another origin asks."""
    origins = request.headers.getall("Origin", [])
    if origins and origins != [f"{request.scheme}://{request.headers.get('Host', '')}"]:
        raise Problem(403, "Origin not allowed", "Pages of other origins have no business here.")
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        raise Problem(403, "Origin not allowed", "Pages of other origins have no business here.")


def _check_token(request: web.Request, token: str) -> None:
    given = request.headers.getall("Authorization", [])
    scheme, _, credential = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    is_same = hmac.compare_digest(credential.strip().encode("utf-8", "replace"), token.encode())
    if scheme.lower() != "bearer" or not is_same:
        raise Problem(
            401,
            "Token needed",
            "Send `Authorization: Bearer <token>`; meshd prints the token's file at start.",
            {"WWW-Authenticate": 'Bearer realm="meshd"'},
        )


async def seal(request: web.Request, response: web.StreamResponse) -> None:
    """Put on every answer what keeps it out of caches and frames. Signal of aiohttp."""
    put_seal(response.headers)


def put_seal(headers: MutableMapping[str, str]) -> None:
    """The same of an answer that comes of no application."""
    headers["Server"] = "meshd"
    headers["Cache-Control"] = "no-store"
    headers["X-Content-Type-Options"] = "nosniff"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"


def only_queries(request: web.Request, *known: str) -> dict[str, str]:
    """Return the query's fields. Raises Problem(400) on one that is unknown or stands twice."""
    found: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in known:
            raise Problem(400, "Unknown query field", f"Known here: {', '.join(known) or 'none'}.")
        if name in found:
            raise Problem(400, "Query field given twice", f"{name} may stand once.")
        found[name] = value
    return found


def page_limit(query: dict[str, str]) -> int:
    """Return the query's `limit`. Raises Problem(400) on what is no number, or too large a one."""
    text = query.get("limit", str(PAGE_DEFAULT))
    limit = int(text) if text.isascii() and text.isdecimal() and len(text) <= 6 else 0
    if not 1 <= limit <= PAGE_MAX:
        raise Problem(400, "Bad limit", f"limit is a number from 1 to {PAGE_MAX}.")
    return limit


async def no_body(request: web.Request) -> None:
    """Raise Problem on a request that brings a body and takes none. An empty JSON object passes."""
    wanted = "This request takes no body."
    if (await _body(request, wanted)).strip() not in (b"", b"{}"):
        raise Problem(400, "Body not wanted", wanted)


async def json_body(request: web.Request, type: type[T], bytes_max: int = BODY_BYTES_MAX) -> T:
    """Return the body of a request as a `type`. Raises Problem, naming the field that is not as it should be."""
    wanted = f"A JSON object of at most {bytes_max} bytes is expected."
    body = await _body(request, wanted, bytes_max)
    try:
        return msgspec.json.decode(body, type=type)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Problem(400, "Bad body", f"{wanted} {error}") from None


async def _body(request: web.Request, wanted: str, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    # aiohttp's own limit holds for all requests of a port alike.
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.content.iter_any():
                body += piece
                if len(body) > bytes_max:
                    raise Problem(413, "Body too large", wanted, {"Connection": "close"})
            return bytes(body)
    except TimeoutError:
        raise Problem(408, "Body too slow", wanted, {"Connection": "close"}) from None
