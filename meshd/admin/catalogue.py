"""The catalogue over the admin port: what can be called, how its servers stand, what is in quarantine.

Names of tools have slashes in them: they stand in the query or in the body, never in a path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from aiohttp import web
from msgspec import Meta, Struct

from meshd.admin.approvals import KEY_FIELD, problem_of
from meshd.admin.catalogue_view import ApprovalGone, PinsAway
from meshd.admin.doors import json_body, only_queries, page_limit, reply
from meshd.admin.problem import Problem
from meshd.approvals.deciding import Declined
from meshd.refusal import Refused

if TYPE_CHECKING:
    from meshd.admin.catalogue_view import CatalogueView
    from meshd.admin.view import AdminView

SORTS: Final = ("agent", "tool", "skill", "model", "prompt", "resource")
WORDS_MAX: Final = 1000
NAME_MAX: Final = 2048


class Approve(Struct, forbid_unknown_fields=True):
    """What is approved: exactly what has this digest."""

    owner: Annotated[str, Meta(min_length=1, max_length=64)]
    name: Annotated[str, Meta(min_length=1, max_length=NAME_MAX)]
    digest: Annotated[str, Meta(min_length=64, max_length=64)]


class CatalogueApi:
    """The handlers below /v1/catalogue."""

    def __init__(self, view: AdminView) -> None:
        self._view = view

    def routes(self) -> list[web.RouteDef]:
        """Return what is answered."""
        return [
            web.get("/v1/catalogue", self.entries),
            web.get("/v1/catalogue/owners", self.owners),
            web.get("/v1/catalogue/entry", self.entry),
            web.get("/v1/catalogue/search", self.search),
            web.get("/v1/catalogue/route", self.route),
            web.post("/v1/catalogue/approve", self.approve),
        ]

    @property
    def _catalogue(self) -> CatalogueView:
        found = self._view.catalogue
        if found is None:
            raise Problem(503, "No catalogue", "This sidecar keeps no catalogue.")
        return found

    async def entries(self, request: web.Request) -> web.Response:
        """Entries, those in quarantine too: of one `owner`, of one or more `sort`s; `limit` at a time."""
        query = only_queries(request, "owner", "sort", "limit", "after")
        sorts = [one for one in query.get("sort", "").split(",") if one]
        if set(sorts) - set(SORTS):
            raise Problem(400, "Bad sort", f"sort is one of {', '.join(SORTS)}, or several with commas.")
        after = query.get("after", "0")
        if not (after.isascii() and after.isdecimal() and len(after) <= 9):
            raise Problem(400, "Bad cursor", "after is the next_after of the page before.")
        found, next_after = self._catalogue.entries(
            owner=query.get("owner", ""), sorts=sorts, limit=page_limit(query), after=int(after)
        )
        return reply({"entries": found, "next_after": str(next_after) if next_after else ""})

    async def owners(self, request: web.Request) -> web.Response:
        """Who offers something, or should, and how that stands."""
        only_queries(request)
        return reply({"owners": self._catalogue.owners()})

    async def entry(self, request: web.Request) -> web.Response:
        """All that has a name: `?owner=files&name=read_file`, with its schemas."""
        query = only_queries(request, "owner", "name")
        owner, name = query.get("owner", ""), query.get("name", "")
        found = self._catalogue.entry(owner, name)
        if not found:
            raise Problem(404, "Unknown entry", f"{_shown(owner)} has nothing of the name {_shown(name)!r}.")
        return reply({"entries": found})

    async def search(self, request: web.Request) -> web.Response:
        """What is found for the words of `q`, the best first."""
        query = only_queries(request, "q", "limit")
        words = query.get("q", "")
        if not words.strip() or len(words) > WORDS_MAX:
            raise Problem(400, "Bad search", f"q is what is wanted, in words: 1 to {WORDS_MAX} characters.")
        return reply({"matches": self._catalogue.search(words, page_limit(query))})

    async def route(self, request: web.Request) -> web.Response:
        """Whom a call for `q` would go to, and why: `?q=analyse the market&agent=planner`."""
        query = only_queries(request, "q", "agent")
        try:
            return reply(self._catalogue.route(query.get("q", ""), query.get("agent", "")))
        except Refused as refused:
            raise Problem(400, "Bad intent", refused.message) from None

    async def approve(self, request: web.Request) -> web.Response:
        """Let an entry out of quarantine, as it is now. Where the policy names approvers, as one of them."""
        only_queries(request)
        body = await json_body(request, Approve)
        by = self._approver(request)
        try:
            found = await self._catalogue.approve(body.owner, body.name, body.digest)
        except ApprovalGone as error:
            raise Problem(409, "Nothing to approve", str(error)) from None
        except PinsAway as error:
            raise Problem(503, "The store cannot be reached", str(error), {"Retry-After": "1"}) from None
        return reply({"entries": found, "by": by})

    def _approver(self, request: web.Request) -> str:
        """Return whose key the request has; empty where the policy names nobody. Raises Problem."""
        desk = self._view.desk
        if desk is None or not desk.has_approvers():
            return ""
        keys = request.headers.getall(KEY_FIELD, [])
        if len(keys) != 1 or not keys[0].strip():
            # Not 401: that is what a wrong token gets.
            raise Problem(403, "Approver's key needed", f"The policy names approvers: send your key in {KEY_FIELD}.")
        try:
            return desk.approver(keys[0].strip())
        except Declined as declined:
            raise problem_of(declined) from None


def _shown(text: str) -> str:
    return "".join(one if one.isprintable() else "?" for one in text[:80])
