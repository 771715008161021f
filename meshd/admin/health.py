"""Health for probes and metrics for Prometheus. No token: a kubelet has none, and nothing here is secret."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from meshd.admin.doors import only_queries, reply

if TYPE_CHECKING:
    from meshd.admin.view import AdminView
    from meshd.telemetry.telemetry import Telemetry


class Health:
    """The handlers of the metrics port."""

    def __init__(self, view: AdminView, telemetry: Telemetry) -> None:
        self._view = view
        self._telemetry = telemetry
        self._rendering = asyncio.Lock()

    def routes(self) -> list[web.RouteDef]:
        """Return what this port answers to."""
        return [
            web.get("/metrics", self.metrics),
            web.get("/livez", self.livez),
            web.get("/readyz", self.readyz),
            web.get("/readyz/outbound", self.readyz_outbound),
        ]

    async def metrics(self, request: web.Request) -> web.Response:
        """Render in a thread: thousands of lines take tens of milliseconds, in which calls would wait."""
        # Scrapers that pile up would take every thread there is.
        async with self._rendering:
            self._telemetry.read_sources()
            accept = ",".join(request.headers.getall("Accept", []))
            body, content_type = await asyncio.to_thread(self._telemetry.render, accept)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def livez(self, request: web.Request) -> web.Response:
        """Say only that the loop turns: a store or an upstream that is down must not restart the pod."""
        return web.Response(text="ok\n")

    async def readyz(self, request: web.Request) -> web.Response:
        """200 where every check is ok, else 503; the body lists them all."""
        only_queries(request, "verbose")
        return self._ready(outbound_only=False)

    async def readyz_outbound(self, request: web.Request) -> web.Response:
        """The same for the agent's own calls: a startup probe that does not wait for the agent."""
        only_queries(request, "verbose")
        return self._ready(outbound_only=True)

    def _ready(self, *, outbound_only: bool) -> web.Response:
        checks = list(self._view.ready(outbound_only=outbound_only))
        # Without a single check nobody has looked.
        is_ready = bool(checks) and all(check.is_ok for check in checks)
        return reply({"ready": is_ready, "checks": checks}, 200 if is_ready else 503)
