"""What every request to the admin port passes first, in this order: Host, Origin, token, then its route."""

from __future__ import annotations

import asyncio
import hmac
import logging
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from aiohttp import web

from meshd.admin.hosts import judge_origin
from meshd.admin.problem import JSON, PROBLEM_JSON, SEAL, Problem, encoded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from meshd.admin.hosts import HostRule

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

T = TypeVar("T")

PAGE_DEFAULT = 100
PAGE_MAX = 1000
BODY_BYTES_MAX = 4096
BODY_TIMEOUT_S = 10.0
_log = logging.getLogger("meshd.admin")


def reply(value: Any, status: int = 200, content_type: str = JSON) -> web.Response:
    """Return `value` as JSON, without secrets."""
    return web.Response(body=encoded(value), status=status, content_type=content_type)


def _problem(problem: Problem) -> web.Response:
    answer = reply(problem.body(), problem.status, PROBLEM_JSON)
    answer.headers.update(problem.headers)
    return answer


def doors(hosts: HostRule, token: str) -> Any:
    """Return the middleware of the port."""

    @web.middleware
    async def pass_doors(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            check_host(request, hosts)
            check_origin(request)
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
    hosts.judge(fields, None)  # before aiohttp makes an address of it, which fails where it is no name
    if request.raw_path[:1] != "/":
        hosts.judge(fields, request.url.raw_authority)


def check_origin(request: web.Request) -> None:
    """Raise Problem(403) where a page of another origin asks."""
    own = f"{request.scheme}://{request.headers.get('Host', '')}"
    judge_origin(own, request.headers.getall("Origin", []), request.headers.getall("Sec-Fetch-Site", []))


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
    headers.update(SEAL)


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
