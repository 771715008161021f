"""A server of 2024-11-05, with two endpoints, behind clients that know one: the official ones, and hostile ones."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from mcp import MCPError

from tests.bridge.conftest import client, sessions, text_of
from tests.bridge.raw import Raw
from tests.bridge.server import made as official
from tests.proxy.harness import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


def document(port: int, path: str = "/sse", rest: str = "") -> str:
    url = f"http://127.0.0.1:{port}{path}"
    return f"upstreams:\n  files: {{kind: tool, dialect: mcp, transport: sse, url: '{url}'{rest}}}\n"


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_new_clients_call_an_old_server(mesh: Any, serve: Any, mode: str) -> None:
    # The same is asked so often that it may be taken for a loop.
    more = "limits: {turns: {ladder: note}}\n"
    made = await mesh(document(await serve(official().sse_app()), path="" if mode == "legacy" else "/sse") + more)
    async with client(made, mode) as one, client(made, mode) as other:
        assert "add" in [tool.name for tool in (await one.list_tools()).tools]
        steps: list[float] = []

        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            steps.append(progress)

        assert text_of(await one.call_tool("slow", {"steps": 3}, progress_callback=progressed)) == "done"
        assert steps == [0, 1, 2]
        answers = await asyncio.gather(*[each.call_tool("add", {"a": 1, "b": 2}) for each in (one, other) * 10])
        assert {text_of(answer) for answer in answers} == {"3"}
        # One stream for each session, reused; clients without one share.
        assert sessions(made).running == (2 if mode == "legacy" else 1)


class Old:
    """A server that does what a test says, on both endpoints."""

    def __init__(self) -> None:
        self.endpoint = "/post?session=1"
        self.posted: list[Any] = []
        self.headers: list[Any] = []
        self.streams: list[web.StreamResponse] = []
        self.over = asyncio.Event()
        self.answer = True
        self.status = 202
        self.stream_status = 200
        self.content_type = "text/event-stream"

    async def stream(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(request.headers)
        response = web.StreamResponse(status=self.stream_status, headers={"content-type": self.content_type})
        response.headers["location"] = "http://127.0.0.1:1/sse"
        await response.prepare(request)
        await response.write(f"event: endpoint\ndata: {self.endpoint}\n\n".encode())
        self.streams.append(response)
        if self.stream_status == 200:
            await self.over.wait()
        return response

    async def post(self, request: web.Request) -> web.Response:
        message = await request.json()
        self.posted.append(message)
        self.headers.append(request.headers)
        if self.answer and "id" in message and self.status == 202:
            result = {"protocolVersion": "2024-11-05", "content": [{"type": "text", "text": "old"}]}
            await self.say({"jsonrpc": "2.0", "id": message["id"], "result": result})
        return web.Response(status=self.status, headers={"location": "http://127.0.0.1:1/"})

    async def say(self, value: Any) -> None:
        import json

        data = value if isinstance(value, bytes) else f"event: message\ndata: {json.dumps(value)}\n\n".encode()
        await self.streams[-1].write(data)


@pytest.fixture
async def old() -> AsyncIterator[Callable[[Old], Any]]:
    runners: list[web.AppRunner] = []
    served: list[Old] = []

    async def serve(server: Old) -> int:
        served.append(server)
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/sse", server.stream)
        app.router.add_post("/post", server.post)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        runners.append(runner)
        port: int = runner.addresses[0][1]
        return port

    yield serve
    for server in served:
        server.over.set()
    for runner in runners:
        await runner.cleanup()


async def _error(made: Any) -> str:
    async with Raw(made.port) as raw:
        _, answer, _ = await raw.post({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {}})
        assert "error" in answer, answer
        return str(answer["error"]["message"])


@pytest.mark.parametrize(
    "endpoint",
    ["http://127.0.0.1:1/post", "http://169.254.169.254/", "//other.example/post", "https://127.0.0.1/post",
     "http://user@127.0.0.1/", "file:///etc/passwd", "\\\\other\\x", "/po st", "/" + "x" * 3000, "javascript:x"],
)  # fmt: skip
async def test_messages_go_to_no_other_origin(mesh: Any, old: Any, endpoint: str) -> None:
    server = Old()
    server.endpoint = endpoint
    made = await mesh(document(await old(server)))
    told = await _error(made)
    assert "another origin" in told or "no usable address" in told
    assert not server.posted


async def test_what_is_no_stream(mesh: Any, old: Any) -> None:
    server = Old()
    made = await mesh(document(await old(server)))
    for status, content_type, why in (
        (302, "text/event-stream", "answered 302"),
        (401, "text/event-stream", "answered 401"),
        (500, "text/event-stream", "answered 500"),
        (200, "text/html", "has no stream of events"),
    ):
        server.stream_status, server.content_type = status, content_type
        made.ahead_s += 100
        assert why in await _error(made)


async def test_nobody_there(mesh: Any) -> None:
    made = await mesh(document(1))
    assert "takes no connection" in await _error(made)
    assert made.attempts[0].outcome.fault.value == "connect"


async def test_a_message_that_is_not_taken(mesh: Any, old: Any) -> None:
    server = Old()
    made = await mesh(document(await old(server)))
    async with Raw(made.port) as raw:
        await raw.open()
        for status in (307, 404, 500):
            server.status = status
            assert f"did not take the message: it answered {status}" in await raw.error()
        server.status = 202
        assert await raw.said("") == "old"


async def test_a_stream_that_breaks_off_is_opened_again_and_told_its_beginning(mesh: Any, old: Any) -> None:
    server = Old()
    made = await mesh(document(await old(server)))
    async with Raw(made.port) as raw:
        await raw.open()
        assert await raw.said("") == "old"
        server.answer = False
        asked = asyncio.ensure_future(raw.error())
        await until(lambda: len(server.posted) == 4)
        server.answer = True
        server.streams[-1]._payload_writer.transport.close()  # type: ignore[union-attr]
        assert "broke its stream of events off" in await asked
        assert await raw.said("") == "old"
    methods = [message["method"] for message in server.posted]
    assert methods[:3] == ["initialize", "notifications/initialized", "tools/call"]
    assert methods[-3:] == ["initialize", "notifications/initialized", "tools/call"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"event: message\ndata: no json\n\n", "no message of MCP"),
        (b"data: " + b"x" * (17 * 2**20), "an event of more than 16 MB"),
    ],
)
async def test_nonsense_on_the_stream(mesh: Any, old: Any, said: bytes, why: str) -> None:
    server = Old()
    made = await mesh(document(await old(server)))
    async with Raw(made.port) as raw:
        await raw.open()
        server.answer = False
        asked = asyncio.ensure_future(raw.error())
        await until(lambda: len(server.posted) == 3)
        try:
            await server.say(said)
        except ConnectionError:
            pass  # it was hung up on in the middle of it
        assert why in await asked


async def test_the_clients_fields_go_with_its_messages_and_no_others(mesh: Any, old: Any) -> None:
    server = Old()
    made = await mesh(document(await old(server)))
    async with Raw(made.port) as raw:
        raw._http.headers.update({"authorization": "Bearer mine", "x-tenant": "t", "x-meshd-workflow": "w"})
        await raw.open()
        assert await raw.said("") == "old"
    for headers in server.headers:
        assert (headers["authorization"], headers["x-tenant"]) == ("Bearer mine", "t")
        assert not [name for name in headers if name.lower().startswith(("x-meshd-", "mcp-"))]


async def test_rules_see_the_tool(mesh: Any, serve: Any) -> None:
    port = await serve(official().sse_app())
    made = await mesh(document(port) + 'rules: [{match: {tool: "ke*"}, deny: nothing is kept}]\n')
    async with client(made) as one:
        with pytest.raises(MCPError, match="nothing is kept"):
            await one.call_tool("keep", {"value": "x"})
