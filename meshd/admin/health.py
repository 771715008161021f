"""Health for probes and metrics for Prometheus. No token: a kubelet has none, and nothing here is secret."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from meshd.admin.problem import JSON, PROBLEM_JSON, Problem, encoded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from meshd.admin.view import AdminView
    from meshd.telemetry.telemetry import Telemetry

TEXT = "text/plain; charset=utf-8"


class Answer(NamedTuple):
    """What a request is answered with; a request by HEAD gets all but the body."""

    status: int
    content_type: str
    body: bytes
    headers: Mapping[str, str] = {}


def refusal(problem: Problem) -> Answer:
    """Return the answer that a problem makes."""
    return Answer(problem.status, PROBLEM_JSON, encoded(problem.body()), problem.headers)


class Health:
    """What is answered on the metrics port, by path."""

    def __init__(self, view: AdminView, telemetry: Telemetry) -> None:
        self._view = view
        self._telemetry = telemetry
        self._rendering = asyncio.Lock()

    def routes(self) -> dict[str, Callable[[str, str], Awaitable[Answer]]]:
        """Return what this port answers to: of each path what takes a query and the Accept fields. Raises Problem."""
        return {
            "/metrics": self.metrics,
            "/livez": self.livez,
            "/readyz": self.readyz,
            "/readyz/outbound": self.readyz_outbound,
        }

    async def metrics(self, _query: str, accept: str) -> Answer:
        """Render in a thread: thousands of lines take tens of milliseconds, in which calls would wait."""
        # Scrapers that pile up would take every thread there is.
        async with self._rendering:
            self._telemetry.read_sources()
            body, content_type = await asyncio.to_thread(self._telemetry.render, accept)
        return Answer(200, content_type, body)

    async def livez(self, _query: str, _accept: str) -> Answer:
        """Say only that the loop turns: a store or an upstream that is down must not restart the pod."""
        return Answer(200, TEXT, b"ok\n")

    async def readyz(self, query: str, _accept: str) -> Answer:
        """200 where every check is ok, else 503; the body lists them all."""
        return self._ready(query, outbound_only=False)

    async def readyz_outbound(self, query: str, _accept: str) -> Answer:
        """The same for the agent's own calls: a startup probe that does not wait for the agent."""
        return self._ready(query, outbound_only=True)

    def _ready(self, query: str, *, outbound_only: bool) -> Answer:
        # What a probe asks for as `?verbose` is always told.
        if query.partition("=")[0] not in ("", "verbose") or "&" in query:
            raise Problem(400, "Unknown query field", "Known here: verbose.")
        checks = list(self._view.ready(outbound_only=outbound_only))
        # Without a single check nobody has looked.
        is_ready = bool(checks) and all(check.is_ok for check in checks)
        return Answer(200 if is_ready else 503, JSON, encoded({"ready": is_ready, "checks": checks}))
