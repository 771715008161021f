"""A real MCP server over standard input and output, by the official SDK. Run as a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys

from mcp.server.mcpserver import Context, MCPServer
from pydantic import BaseModel


class Colour(BaseModel):
    """What a person is asked for."""

    name: str


def made() -> MCPServer:
    """Return the server, not yet running."""
    server = MCPServer("tools")
    kept: dict[str, str] = {}

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @server.tool()
    def keep(value: str) -> str:
        """Remember something; return what was remembered before."""
        before = kept.get("value", "nothing")
        kept["value"] = value
        return before

    @server.tool()
    def who() -> int:
        """Return the process that serves this."""
        return os.getpid()

    @server.tool()
    async def slow(ctx: Context, steps: int) -> str:
        """Report progress at each step."""
        for step in range(steps):
            await ctx.report_progress(step, steps, f"step {step}")
        return "done"

    @server.tool()
    async def never() -> str:
        """Never answer."""
        await asyncio.Event().wait()
        return ""

    @server.tool()
    async def ask(ctx: Context) -> str:
        """Ask the client's user."""
        answer = await ctx.elicit("Which colour?", Colour)
        return answer.data.name if answer.action == "accept" else answer.action

    @server.tool()
    def crash() -> str:
        """End at once, in the middle of a call."""
        sys.stderr.write("it fell over: api_key=sk-verysecret12345678\n")
        sys.stderr.flush()
        os._exit(3)

    return server


if __name__ == "__main__":
    made().run("stdio")
