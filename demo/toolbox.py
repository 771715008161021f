"""Two MCP servers of the official SDK in one process: notes about customers, and a calendar.

    python -m demo.toolbox

They share no code with meshd. Each has its endpoint below its own name: `/notes/mcp`, `/calendar/mcp`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import uvicorn
from mcp.server.mcpserver import MCPServer
from starlette.applications import Starlette

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def notes() -> MCPServer:
    """Return the server of notes, which remembers what it was told."""
    server, kept = MCPServer("notes"), dict[str, str]()

    @server.tool()
    def write_note(customer: str, text: str) -> str:
        """Write down something about a customer."""
        kept[customer] = text
        return f"noted about {customer}: {text}"

    @server.tool()
    def read_note(customer: str) -> str:
        """Read what was written down about a customer."""
        return kept.get(customer, "nothing")

    @server.tool()
    def erase_notes() -> str:
        """Erase all notes about all customers for ever."""
        kept.clear()
        return "erased"

    return server


def calendar() -> MCPServer:
    """Return the server of a calendar in which every day is free."""
    server = MCPServer("calendar")

    @server.tool()
    def free_days(month: str) -> str:
        """List the days of a month on which nothing is planned."""
        return f"every day of {month}"

    @server.tool()
    def plan_meeting(day: str, person: str) -> str:
        """Plan a meeting with somebody on a day."""
        return f"{day}: {person}"

    return server


def application() -> Starlette:
    """Return both as one application."""
    servers = {"notes": notes(), "calendar": calendar()}
    apps = [server.streamable_http_app(streamable_http_path=f"/{name}/mcp") for name, server in servers.items()]

    @asynccontextmanager
    async def running(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for app in apps:
                await stack.enter_async_context(app.router.lifespan_context(app))
            yield

    return Starlette(routes=[route for app in apps for route in app.routes], lifespan=running)


async def _main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application(), log_level="warning", timeout_graceful_shutdown=1))
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    print(json.dumps({"event": "ready", "port": listener.getsockname()[1]}), flush=True)
    await serving


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
