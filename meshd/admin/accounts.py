"""Accounts over the admin port: shown, topped up, closed, reopened, written off.

An account's id has slashes in it, and a workflow may be called `..`: it stands in the query or in the body, never in a
path, which clients and proxies shorten as they like.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from aiohttp import web
from msgspec import Meta, Struct

from meshd.admin.doors import json_body, only_queries, page_limit, reply
from meshd.admin.problem import Problem
from meshd.admin.view import BooksAway, OrderRefused, UnknownAccount
from meshd.filters.units import microdollars

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from typing import Any

    from meshd.admin.view import AdminView, Ordered

ID_CHARACTERS_MAX = 512
ID_WANTED = "id is the name of an account, such as workflow/report-42."
TOKENS_MAX = 10**15

Tokens = Annotated[int, Meta(ge=1, le=TOKENS_MAX)]


class TopUp(Struct, forbid_unknown_fields=True):
    """Which account, and how much more it may spend: tokens, or US dollars such as "5.00"."""

    id: str
    tokens: Tokens | None = None
    dollars: str | int | float | None = None


class Close(Struct, forbid_unknown_fields=True):
    """Which account; the same for reopening one."""

    id: str


class WriteOff(Struct, forbid_unknown_fields=True):
    """Whose lease on which account counts as spent."""

    id: str
    holder: str


class Accounts:
    """The handlers below /v1/account and /v1/accounts."""

    def __init__(self, view: AdminView) -> None:
        self._view = view

    def routes(self) -> list[web.RouteDef]:
        """Return what is answered."""
        return [
            web.get("/v1/accounts", self.page),
            web.get("/v1/account", self.account),
            web.post("/v1/accounts/top-up", self.top_up),
            web.post("/v1/accounts/close", self.close),
            web.post("/v1/accounts/reopen", self.reopen),
            web.post("/v1/accounts/write-off", self.write_off),
        ]

    async def page(self, request: web.Request) -> web.Response:
        """Accounts by id: `limit` at a time, from the one that follows `after`."""
        query = only_queries(request, "limit", "after")
        limit, after = page_limit(query), query.get("after", "")
        if after and not _is_name(after):
            raise Problem(400, "Bad cursor", "after is the next_after of the page before.")
        return reply(await _answered(self._view.books.page(after=after, limit=limit)))

    async def account(self, request: web.Request) -> web.Response:
        """One account: `?id=workflow/report-42`."""
        id = _checked(only_queries(request, "id").get("id", ""))
        return reply(await _answered(self._view.books.account(id)))

    async def top_up(self, request: web.Request) -> web.Response:
        """Add to an account's limit, which holds beside whatever the policy says; before its first use too."""
        only_queries(request)
        body = await json_body(request, TopUp)
        id = _checked(body.id)
        if (body.tokens is None) == (body.dollars is None):
            raise Problem(400, "Bad amount", "Say either tokens or dollars.")
        if body.tokens is not None:
            return await _ordered(self._view.books.top_up(id, body.tokens, "tokens"))
        try:
            amount = microdollars(body.dollars)
        except ValueError as error:
            raise Problem(400, "Bad amount", f"dollars: {error}.") from None
        if not amount:
            raise Problem(400, "Bad amount", "dollars: nothing would be added.")
        return await _ordered(self._view.books.top_up(id, amount, "microdollars"))

    async def close(self, request: web.Request) -> web.Response:
        """Let an account grant nothing more; what its holders have on lease is asked back."""
        only_queries(request)
        body = await json_body(request, Close)
        return await _ordered(self._view.books.close(_checked(body.id)))

    async def reopen(self, request: web.Request) -> web.Response:
        """Undo a close, or a freeze whose reason somebody has looked at."""
        only_queries(request)
        body = await json_body(request, Close)
        return await _ordered(self._view.books.reopen(_checked(body.id)))

    async def write_off(self, request: web.Request) -> web.Response:
        """Count as spent what a holder that is gone has on lease."""
        only_queries(request)
        body = await json_body(request, WriteOff)
        id = _checked(body.id)
        if not _is_name(body.holder):
            raise Problem(400, "Bad holder", "holder is a name from the account's leases.")
        return await _ordered(self._view.books.write_off(id, body.holder))


def _is_name(text: str) -> bool:
    return 0 < len(text) <= ID_CHARACTERS_MAX and text.isprintable()


def _checked(id: str) -> str:
    if not _is_name(id):
        raise Problem(400, "Bad account", ID_WANTED)
    return id


async def _ordered(order: Awaitable[Ordered]) -> web.Response:
    return reply(await _answered(order))


async def _answered(question: Awaitable[Any]) -> Any:
    try:
        return await question
    except UnknownAccount as error:
        raise Problem(404, "Unknown account", str(error)) from None
    except OrderRefused as error:
        raise Problem(409, "Order refused", str(error)) from None
    except BooksAway as error:
        raise Problem(503, "The books cannot be reached", str(error), {"Retry-After": "1"}) from None
