"""The admin API: what is in force, what was spent, what is open; reload and drain."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from meshd.admin.accounts import Accounts
from meshd.admin.approvals import Approvals
from meshd.admin.calls import Calls
from meshd.admin.catalogue import CatalogueApi
from meshd.admin.doors import no_body, only_queries, reply
from meshd.admin.events import EventsApi
from meshd.admin.problem import Problem
from meshd.admin.prompts import PromptsApi

if TYPE_CHECKING:
    from meshd.admin.view import AdminView
    from meshd.telemetry.telemetry import Telemetry


class Api:
    """The handlers of the admin port."""

    def __init__(self, view: AdminView, telemetry: Telemetry) -> None:
        self._view = view
        self._telemetry = telemetry
        self._reloading = asyncio.Lock()

    def routes(self) -> list[web.RouteDef]:
        """Return what this port answers to."""
        return [
            web.get("/v1/policy", self.policy),
            web.get("/v1/breakers", self.breakers),
            web.get("/v1/status", self.status),
            web.post("/v1/reload", self.reload),
            web.post("/v1/drain", self.drain),
            *Accounts(self._view).routes(),
            *Calls(self._view).routes(),
            *Approvals(self._view).routes(),
            *CatalogueApi(self._view).routes(),
            *EventsApi(self._view).routes(),
            *PromptsApi(self._view).routes(),
        ]

    async def policy(self, request: web.Request) -> web.Response:
        """The document in force, its rules with their hits, and why the newest was not taken."""
        only_queries(request)
        found = self._view.policy()
        if found is None:
            raise Problem(503, "No policy yet", "No document has been taken since the start.")
        return reply(found)

    async def breakers(self, request: web.Request) -> web.Response:
        """Every breaker and its state."""
        only_queries(request)
        return reply({"breakers": list(self._view.breakers())})

    async def status(self, request: web.Request) -> web.Response:
        """The process, and what happened since its start."""
        only_queries(request)
        return reply({"status": self._view.status(), "totals": self._telemetry.totals()})

    async def reload(self, request: web.Request) -> web.Response:
        """Read the policy anew: 200 where it was taken, 422 with the problems where the old one stays."""
        only_queries(request)
        await no_body(request)
        # One after the other: the second must see what the first has done.
        async with self._reloading:
            result = await self._view.reload()
        return reply(result, 200 if result.is_taken else 422)

    async def drain(self, request: web.Request) -> web.Response:
        """Begin to drain: 202, since what runs is still finishing."""
        only_queries(request)
        await no_body(request)
        self._view.drain()
        return reply({"is_draining": True}, 202)
