"""What was decided of calls, over the admin port: by the id that replies and refusals carry."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from aiohttp import web

from meshd.admin.doors import only_queries, page_limit, reply
from meshd.admin.problem import Problem

if TYPE_CHECKING:
    from meshd.admin.view import AdminView

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


class Calls:
    """The handlers below /v1/calls."""

    def __init__(self, view: AdminView) -> None:
        self._view = view

    def routes(self) -> list[web.RouteDef]:
        """Return what is answered."""
        return [web.get("/v1/calls", self.calls), web.get("/v1/calls/{id}", self.call)]

    async def calls(self, request: web.Request) -> web.Response:
        """The last calls, the newest first; with `refused=1` those that were refused."""
        query = only_queries(request, "limit", "refused")
        if query.get("refused", "0") not in ("0", "1"):
            raise Problem(400, "Bad refused", "refused is 1, or is left out.")
        return reply(self._view.calls(is_refused=query.get("refused") == "1", limit=page_limit(query)))

    async def call(self, request: web.Request) -> web.Response:
        """One call: what was reserved, charged and refused."""
        only_queries(request)
        id = request.match_info["id"]
        if _ID.match(id) is None:
            raise Problem(400, "Bad call", "The id of a call stands in x-meshd-call of its reply.")
        found = self._view.call(id)
        if found is None:
            raise Problem(404, "Unknown call", "This sidecar did not see it, or has forgotten it since.")
        return reply(found)
