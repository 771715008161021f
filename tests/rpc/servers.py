"""A real MCP server and a real A2A agent, by the official SDKs, on loopback in the test's own loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import a2a.client  # noqa: F401 - before its layer for 0.3, which else takes the client of 1.0 for its own
import uvicorn
from a2a.helpers import new_text_message
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types import AgentCapabilities, AgentCard, AgentInterface
from mcp.server.mcpserver import Context, MCPServer
from starlette.applications import Starlette

if TYPE_CHECKING:
    from a2a.server.events import EventQueue


class Server:
    """An ASGI application that is served until `close`."""

    def __init__(self, app: Any) -> None:
        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="auto", ws="none")
        self._server = uvicorn.Server(config)
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        self.port = 0

    async def start(self) -> Server:
        self._task = asyncio.get_running_loop().create_task(self._server.serve())
        while not self._server.started:
            await asyncio.sleep(0)
            assert not self._task.done(), "the server did not start"
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        await self._task


class Tools:
    """An MCP server of three tools, which remembers what was called."""

    def __init__(self, *, is_json: bool = False) -> None:
        self.called: list[tuple[str, Any]] = []
        server = MCPServer("tools")

        @server.tool()
        def add(a: int, b: int) -> int:
            """Add two numbers."""
            self.called.append(("add", (a, b)))
            return a + b

        @server.tool()
        def delete(name: str) -> str:
            """Delete something."""
            self.called.append(("delete", name))
            return f"{name} is gone"

        @server.tool()
        async def slow(ctx: Context, steps: int) -> str:
            """Report progress at each step."""
            for step in range(steps):
                await ctx.report_progress(step, steps, f"step {step}")
            self.called.append(("slow", steps))
            return "done"

        self.app = server.streamable_http_app(json_response=is_json)


class Echo(AgentExecutor):
    """An A2A agent that answers with what it was told, and remembers it."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        self.told.append(context.get_user_input())
        await event_queue.enqueue_event(new_text_message(f"you said {self.told[-1]}"))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        raise AssertionError("nothing is cancelled here")


def card(base: str, binding: str = "JSONRPC", version: str = "1.0") -> AgentCard:
    """Return the card of the agent as it is called at `base`."""
    return AgentCard(
        name="echo",
        description="Says what it was told.",
        version="1",
        capabilities=AgentCapabilities(streaming=True),
        supported_interfaces=[AgentInterface(url=base, protocol_binding=binding, protocol_version=version)],
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
    )


def agent(echo: Echo) -> Any:
    """Return the agent as an ASGI application: JSON-RPC at `/`, 0.3 too, and REST below it."""
    handler = DefaultRequestHandler(
        agent_executor=echo, task_store=InMemoryTaskStore(), agent_card=card("http://here/")
    )
    routes = [*create_jsonrpc_routes(handler, "/", enable_v0_3_compat=True), *create_rest_routes(handler)]
    return Starlette(routes=routes)
