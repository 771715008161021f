"""A daemon in any state that a test wants, with a real ledger, and a client of its two ports."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from meshd.admin.view import BreakerDump, Check, PolicyDump, ReloadResult, RuleDump, StatusDump
from meshd.engines.memory import MemoryStore
from meshd.ledger import Ledger
from meshd.prompts.desk import PromptDesk
from meshd.prompts.registry import Registry
from meshd.prompts.terms import PromptTerms
from meshd.telemetry.telemetry import Telemetry
from meshd.view_books import LedgerBooks
from meshd.view_calls import call_of, calls_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import aiohttp

    from meshd.admin.server import Servers
    from meshd.admin.view import CallDump, CallsPage
    from meshd.approvals.desk import Desk

ANY_PORT = ("127.0.0.1", 0)


class Daemon:
    """A daemon that is in any state a test wants."""

    def __init__(self) -> None:
        self.checks = [Check("policy", True), Check("store", True), Check("drain", True)]
        self.outbound = [Check("policy", True)]
        self.document: PolicyDump | None = PolicyDump(
            source="policies/strict.yaml",
            digest="ab" * 32,
            agent="researcher",
            rules=[RuleDump("budget", 3), RuleDump("never", 0, is_shadow=True)],
            never_matched=["never"],
            reload_error="policies/strict.yaml:3:1: https://user:hush-hush@example.test is not known",
        )
        self.store = MemoryStore()
        self.ledger = Ledger.in_memory(store=self.store)
        self.books = LedgerBooks(lambda: self.ledger)
        self.telemetry = Telemetry(version="1.2.3")
        self.desk: Desk | None = None
        self.catalogue = None
        self.registry = Registry(lambda: self.store)
        self.terms = PromptTerms()
        self.prompts = PromptDesk(self.registry, lambda: (self.terms, "acme"))
        self.result = ReloadResult(True, "cd" * 32)
        self.is_draining = False
        self.reloads_running = 0
        self.reloads = 0

    def ready(self, *, outbound_only: bool = False) -> Sequence[Check]:
        return self.outbound if outbound_only else self.checks

    def policy(self) -> PolicyDump | None:
        return self.document

    def call(self, id: str) -> CallDump | None:
        return call_of(self.telemetry.provenance, [], id)

    def calls(self, *, is_refused: bool, limit: int) -> CallsPage:
        return calls_of(self.telemetry.provenance, [], is_refused=is_refused, limit=limit)

    def breakers(self) -> Sequence[BreakerDump]:
        return [BreakerDump("openai", "gpt-4o", "9f86d081", "open", 12.5)]

    def status(self) -> StatusDump:
        return StatusDump("1.2.3", "researcher", 12.5, 3, 0, 1, self.is_draining)

    async def reload(self) -> ReloadResult:
        self.reloads_running += 1
        assert self.reloads_running == 1
        await asyncio.sleep(0)
        self.reloads_running -= 1
        self.reloads += 1
        return self.result

    def drain(self) -> None:
        self.is_draining = True


class Ports:
    """Both ports, and a client."""

    def __init__(self, daemon: Daemon, servers: Servers, session: aiohttp.ClientSession) -> None:
        self.daemon = daemon
        self.servers = servers
        self._session = session
        assert servers.token_path is not None
        self.token = servers.token_path.read_text().strip()

    async def admin(
        self, path: str, method: str = "GET", *, token: str | None = None, **more: Any
    ) -> tuple[int, Any, str]:
        headers = {"Authorization": f"Bearer {self.token if token is None else token}", **more.pop("headers", {})}
        return await self._ask(self.servers.admin_port, path, method, headers, **more)

    async def metrics(self, path: str, method: str = "GET", **more: Any) -> tuple[int, Any, str]:
        return await self._ask(self.servers.metrics_port, path, method, more.pop("headers", {}), **more)

    async def _ask(
        self, port: int, path: str, method: str, headers: dict[str, str], **more: Any
    ) -> tuple[int, Any, str]:
        sent = {key: value for key, value in headers.items() if value}
        async with self._session.request(method, f"http://127.0.0.1:{port}{path}", headers=sent, **more) as reply:
            text = await reply.text()
            assert reply.headers["Cache-Control"] == "no-store"
            assert reply.headers["Server"] == "meshd"
            assert "Access-Control-Allow-Origin" not in reply.headers
            kind = reply.content_type
            return reply.status, json.loads(text) if kind.endswith("json") and text else text, kind
