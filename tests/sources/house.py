"""A data plane with a catalogue, and servers that a test can change while they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mcp.server.mcpserver import MCPServer

from meshd.discovering import Discovering
from meshd.discovery.entry import Sort
from meshd.engines.memory import MemoryStore
from meshd.ledger import Ledger
from meshd.sources.tending import Tending, Terms
from tests.proxy.harness import until

if TYPE_CHECKING:
    from meshd.discovery.entry import Origin
    from meshd.engines.port import Store
    from tests.proxy.harness import Mesh

TERMS = Terms(look_s=1e6, heard_look_s=1e6, notice_gap_s=0.0, backoff_s=1e6, backoff_max_s=1e6, lease_s=180.0)
"""Nothing is asked twice unless a test says so."""


class House:
    """One sidecar's catalogue."""

    def __init__(self, mesh: Mesh, store: Store | None = None, terms: Terms = TERMS) -> None:
        self.mesh = mesh
        self.store = store if store is not None else MemoryStore()
        self.ledger = Ledger.in_memory(store=self.store)
        self.discovering = Discovering(mesh.proxy, lambda: self.ledger, telemetry=mesh.telemetry, terms=terms)

    def start(self) -> House:
        self.discovering.start(None, f"127.0.0.1:{self.mesh.port}")
        return self

    @property
    def catalogue(self) -> Any:
        return self.discovering.catalogue

    def tending(self, owner: str) -> Tending:
        return next(one for name, one in self.discovering.owners() if name == owner)

    async def looked(self, owner: str) -> Tending:
        """Wait until an owner was asked once."""
        one = self.tending(owner)
        await until(lambda: one.looks)
        return one

    async def again(self, owner: str) -> Tending:
        """Let an owner be asked anew, and wait for what comes of it."""
        one = self.tending(owner)
        looks = one.looks
        one.poke()
        await until(lambda: one.looks > looks)
        return one

    def names(self, owner: str, sort: Sort = Sort.TOOL) -> list[str]:
        return [entry.name for entry in self.catalogue.of(owner, sort)]

    def held(self, owner: str) -> list[tuple[str, str]]:
        return [(one.entry.name, one.why.value) for one in self.discovering.admitting.quarantined(owner)]

    def refused(self, owner: str, origin: Origin) -> list[str]:
        return [one.flaw.value for one in self.discovering.admitting.standings[owner, origin].refused]

    async def close(self) -> None:
        await self.discovering.close()


class Changing:
    """An MCP server by the official SDK, whose tools a test changes; it can refuse the newest revision."""

    def __init__(self, *, is_old: bool = False, is_json: bool = False) -> None:
        self.server = MCPServer("changing", instructions="Files of the house.", version="1.4.2")
        self.add("read_file", "Read a file.")
        self.add("list_files", "List files.")

        @self.server.prompt()
        def summary(path: str) -> str:
            """Sum up a file."""
            return f"sum up {path}"

        @self.server.resource("file:///readme", description="What it is.")
        def readme() -> str:
            return "hello"

        app = self.server.streamable_http_app(json_response=is_json)
        self.app = _without_newest(app) if is_old else app

    def add(self, name: str, description: str) -> None:
        def tool(path: str) -> str:
            return path

        self.server.add_tool(tool, name=name, description=description)

    def change(self, name: str, description: str) -> None:
        self.server.remove_tool(name)
        self.add(name, description)

    async def notify(self) -> None:
        """Tell everybody who listens that the tools have changed."""
        from mcp.shared.subscriptions import ToolsListChanged

        await self.server._subscriptions.publish(ToolsListChanged())


def _without_newest(app: Any) -> Any:
    """Answer as servers of before 2026-07-28 do: a revision that they do not know is a bad request."""

    async def old(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (b"mcp-protocol-version", b"2026-07-28") in scope["headers"]:
            body = b'{"jsonrpc":"2.0","id":"x","error":{"code":-32000,"message":"Bad Request: Unsupported version"}}'
            head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 400, "headers": head})
            await send({"type": "http.response.body", "body": body})
            return
        await app(scope, receive, send)

    return old
