"""Two real MCP servers of the official SDK, which count and remember what is asked of them."""

from __future__ import annotations

from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.types import SamplingMessage, TextContent
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send


class Wish(BaseModel):
    """What a person is asked for."""

    name: str


class Counted:
    """An application that notes the bodies and fields of all that comes, and may forget its sessions."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.bodies: list[bytes] = []
        self.fields: list[dict[bytes, bytes]] = []
        self.methods: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = b""

        async def noted() -> Any:
            nonlocal body
            message = await receive()
            body += message.get("body", b"")
            if message["type"] == "http.request" and not message.get("more_body"):
                self.bodies.append(body)
            return message

        self.methods.append(scope["method"])
        self.fields.append(dict(scope["headers"]))
        await self._app(scope, noted, send)

    def count(self, method: str) -> int:
        """How many messages with this method came."""
        return sum(b'"method":"%b"' % method.encode() in body.replace(b": ", b":") for body in self.bodies)


class Docs:
    """Finds words, asks its client for more, has prompts and resources."""

    def __init__(self, name: str = "docs", *, is_json: bool = False) -> None:
        self.called: list[tuple[str, Any]] = []
        self.server = server = MCPServer(name)

        @server.tool()
        def search(words: str) -> str:
            """Search the documents for words."""
            self.called.append(("search", words))
            return f"{name}: {words}"

        @server.tool()
        def delete(path: str) -> str:
            """Delete a document."""
            self.called.append(("delete", path))
            return f"{path} is gone"

        @server.tool()
        async def count(ctx: Context, steps: int) -> str:
            """Report progress at each step."""
            for step in range(steps):
                await ctx.report_progress(step, steps, f"step {step}")
            return "counted"

        @server.tool()
        async def greet(ctx: Context) -> str:
            """Ask for a name, and greet."""
            wish = await ctx.elicit(f"{name} asks: who is there?", Wish)
            return f"hello {wish.data.name}" if wish.action == "accept" else wish.action

        @server.tool()
        async def think(ctx: Context, about: str) -> str:
            """Let the client's model think."""
            message = SamplingMessage(role="user", content=TextContent(type="text", text=about))
            made = await ctx.session.create_message([message], max_tokens=10, related_request_id=ctx.request_id)
            return f"{name} thought: {made.content.text}"

        @server.tool()
        async def grow(ctx: Context) -> str:
            """Add a tool, and say so."""

            def grown() -> str:
                return "grown"

            server.add_tool(grown)
            await ctx.session.send_tool_list_changed()
            return "there is more"

        @server.prompt()
        def summary(topic: str) -> str:
            """Summarise."""
            return f"{name}: summarise {topic}"

        @server.resource("note://today")
        def today() -> str:
            """A note that both servers have."""
            return f"today at {name}"

        @server.resource(f"{name}://pages/{{page}}")
        def page(page: str) -> str:
            """A page."""
            return f"{name} page {page}"

        self.app = Counted(server.streamable_http_app(json_response=is_json))


class Sums:
    """One tool, whose name another server has too."""

    def __init__(self) -> None:
        self.called: list[Any] = []
        server = MCPServer("sums")

        @server.tool()
        def add(a: int, b: int) -> int:
            """Add two numbers."""
            self.called.append((a, b))
            return a + b

        @server.tool()
        def search(words: str) -> str:
            """Search for sums."""
            return f"sums: {words}"

        self.app = Counted(server.streamable_http_app())
