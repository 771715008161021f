"""Clients of 2024-11-05 (a stream, and a POST for each message) at the gateway's one address."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.shared.exceptions import MCPError
from mcp.types import ElicitResult

from meshd.gateway import legacy
from tests.gateway.conftest import document
from tests.gateway.scripted import Raw, Scripted, text, tool
from tests.proxy.harness import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HELLO = {
    "method": "initialize",
    "params": {"protocolVersion": "2024-11-05", "capabilities": {}, "clientInfo": {"name": "old", "version": "1"}},
}


@asynccontextmanager
async def connected(made: Any, path: str = "/mcp/sse", **options: Any) -> AsyncIterator[ClientSession]:
    """Connect the official client of the older transport."""
    async with (
        sse_client(f"http://127.0.0.1:{made.port}{path}") as (read, write),
        ClientSession(read, write, **options) as session,
    ):
        await session.initialize()
        yield session


async def test_the_official_client_has_all_servers(both: Any, docs: Any) -> None:
    async def elicit(context: Any, params: Any) -> Any:
        return ElicitResult(action="accept", content={"name": params.message[:4]})

    steps: list[float] = []

    async def progress(done: float, total: float | None, message: str | None) -> None:
        steps.append(done)

    async with connected(both, elicitation_callback=elicit) as one:
        assert {"docs__search", "sums__add"} <= {tool.name for tool in (await one.list_tools()).tools}
        found, summed = await asyncio.gather(
            one.call_tool("docs__search", {"words": "a\nb"}), one.call_tool("sums__add", {"a": 1, "b": 2})
        )
        assert (found.content[0].text, summed.content[0].text) == ("docs: a\nb", "3")
        assert (await one.call_tool("docs__count", {"steps": 3}, progress_callback=progress)).content[
            0
        ].text == "counted"
        assert steps == [0, 1, 2]
        assert (await one.call_tool("docs__greet", {})).content[0].text == "hello docs"
        assert (await one.get_prompt("docs__summary", {"topic": "x"})).messages[0].content.text == "docs: summarise x"
        assert (await one.read_resource("note://today")).contents[0].text == "today at docs"
        with pytest.raises(MCPError, match="No server here has a tool"):
            await one.call_tool("nobody__has", {})
    assert docs.called == [("search", "a\nb")]
    await until(lambda: not both.proxy.gateway.clients)


async def test_a_change_is_heard_on_the_same_stream(both: Any) -> None:
    heard = asyncio.Event()

    async def message(said: Any) -> None:
        if getattr(said, "method", "") == "notifications/tools/list_changed":
            heard.set()

    async with connected(both, message_handler=message) as one:
        await one.call_tool("docs__grow", {})
        await heard.wait()


async def test_rules_judge_each_message_once(mesh: Any, serve: Any, docs: Any) -> None:
    rules = "governance: {allowed_tools: [search]}\n"
    made = await mesh(document({"docs": await serve(docs.app)}, rules))
    async with connected(made) as one:
        assert [each.name for each in (await one.list_tools()).tools] == ["docs__search"]
        await one.call_tool("docs__search", {"words": "x"})
        with pytest.raises(MCPError, match="The tool delete is not allowed"):
            await one.call_tool("docs__delete", {"path": "x"})
    await made.idle()
    sent = [each.call.rpc.tool for each in made.calls if each.call.rpc is not None and each.call.rpc.tool]
    assert (sent, docs.called) == (["search"], [("search", "x")])


class Old:
    """Such a client that writes its own bytes."""

    def __init__(self, made: Any) -> None:
        self.made = made
        self.raw = Raw(made)
        self.address = ""
        self.peer: Any = None

    async def open(self, path: str = "/mcp/sse", *fields: str) -> Old:
        self.peer = await self.made.connect()
        lines = [f"GET {path} HTTP/1.1", "host: 127.0.0.1", "accept: text/event-stream", *fields]
        self.peer.send("\r\n".join(lines).encode() + b"\r\n\r\n")
        await self.peer.reader.readuntil(b"event: endpoint\n")
        self.address = (await self.peer.reader.readline()).removeprefix(b"data: ").strip().decode()
        return self

    async def heard(self) -> Any:
        await self.peer.reader.readuntil(b"data: ")
        return json.loads(await self.peer.reader.readline())

    async def post(self, said: Any, *fields: str, address: str = "") -> Any:
        body = said if isinstance(said, bytes) else json.dumps({"jsonrpc": "2.0", "id": 1, **said}).encode()
        return await self.raw.send("POST", address or self.address, body, *fields)


@pytest.fixture
async def scripted(mesh: Any, upstream: Any) -> Any:
    server = Scripted({"tools/list": {"tools": [tool("read")]}, "tools/call": lambda _: text("done")})
    return server, await mesh(document({"docs": (await upstream(server)).port}))


@pytest.mark.parametrize("path", ["/mcp/sse", "/mcp/sse?x=1"])
async def test_messages_go_where_the_stream_says(scripted: Any, path: str) -> None:
    _, made = scripted
    one = await Old(made).open(path)
    assert one.address.partition("?")[0] == "/mcp/messages"
    reply = await one.post(HELLO)
    assert (reply.status, reply.body) == (202, b"")
    said = await one.heard()
    assert (said["id"], said["result"]["protocolVersion"]) == (1, "2024-11-05")
    one.peer.close()


async def test_a_name_of_its_own_has_it_too(scripted: Any) -> None:
    _, made = scripted
    peer = await made.connect()
    peer.send(b"GET /sse HTTP/1.1\r\nhost: mcp.mesh\r\naccept: text/event-stream\r\n\r\n")
    await peer.reader.readuntil(b"data: /messages?session_id=")
    peer.close()


async def test_who_posts_must_have_the_session(scripted: Any) -> None:
    server, made = scripted
    one = await Old(made).open()
    modern = await Raw(made).open()
    call = {"method": "tools/call", "params": {"name": "docs__read", "arguments": {}}}
    for address in (
        "/mcp/messages", "/mcp/messages?session_id=", "/mcp/messages?session_id=x", f"{one.address}x",
        f"/mcp/messages?session_id={modern.session}", f"{one.address}&session_id=x", f"/mcp/messages?{'x' * 2000}",
    ):  # fmt: skip
        assert (await one.post(call, address=address)).status == 404, address
    assert server.count("tools/call") == 0
    one.peer.close()


@pytest.mark.parametrize("field", ["origin: http://evil.example", "host: evil.example"])
async def test_web_pages_reach_neither(scripted: Any, field: str) -> None:
    server, made = scripted
    one = await Old(made).open()
    host = field if field.startswith("host") else "host: 127.0.0.1"
    more = "" if field.startswith("host") else f"{field}\r\n"
    refused = await made.fetch(f"GET /mcp/sse HTTP/1.1\r\n{host}\r\n{more}accept: text/event-stream\r\n\r\n".encode())
    assert refused.status in (403, 405, 421)
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).encode()
    head = f"POST {one.address} HTTP/1.1\r\n{host}\r\n{more}content-length: {len(body)}\r\n\r\n"
    refused = await made.fetch(head.encode() + body)
    assert refused.status != 202
    assert server.count("tools/list") == 0
    one.peer.close()


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"7", b'{"jsonrpc":"2.0"}', b"\xff", b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}']
)
async def test_nonsense_is_refused_and_the_session_lives(scripted: Any, body: bytes) -> None:
    _, made = scripted
    one = await Old(made).open()
    assert (await one.post(body)).status == 400
    await one.post({"method": "ping", "id": 9})
    assert (await one.heard())["id"] == 9
    one.peer.close()


async def test_a_client_that_hangs_up_ends_its_calls_and_its_session(scripted: Any) -> None:
    server, made = scripted
    server.answers["tools/call"] = lambda _: None  # It hangs.
    one = await Old(made).open()
    await one.post({"method": "tools/call", "params": {"name": "docs__read", "arguments": {}}})
    await until(lambda: server.count("tools/call") == 1)
    one.peer.close()
    await until(lambda: not made.proxy.gateway.clients)
    await made.idle()
    assert (await one.post({"method": "ping"})).status == 404


@pytest.mark.uncompiled
async def test_one_that_has_gone_silently_is_found(scripted: Any, monkeypatch: Any) -> None:
    _, made = scripted
    monkeypatch.setattr(legacy, "SIGN_S", 0.0)
    one = await Old(made).open()
    await one.peer.reader.readuntil(b": here\n\n")
    monkeypatch.setattr(legacy, "SILENT_S", 0.0)
    (client,) = made.proxy.gateway.clients.values()
    client.talk.stream.pause()
    await until(lambda: not made.proxy.gateway.clients)


@pytest.mark.uncompiled
async def test_what_is_under_way_is_bounded(scripted: Any, monkeypatch: Any) -> None:
    server, made = scripted
    monkeypatch.setattr(legacy, "RUNNING_MAX", 2)
    server.answers["tools/call"] = lambda _: None
    one = await Old(made).open()
    for id in (1, 2, 3):
        await one.post({"id": id, "method": "tools/call", "params": {"name": "docs__read", "arguments": {}}})
    said = await one.heard()
    assert (said["id"], said["error"]["message"]) == (3, "2 messages of this client have no answer yet")
    one.peer.close()
    await made.idle()


async def test_an_answer_that_breaks_off_is_told(scripted: Any) -> None:
    server, made = scripted
    server.answers["tools/call"] = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9\r\n\r\n: hello\n\n"
    )
    one = await Old(made).open()
    await one.post({"id": 5, "method": "tools/call", "params": {"name": "docs__read", "arguments": {}}})
    said = await one.heard()
    assert (said["id"], said["error"]["code"]) == (5, -32603)
    one.peer.close()


async def test_a_drain_lets_it_have_its_answers(scripted: Any) -> None:
    server, made = scripted
    server.answers["tools/call"] = lambda _: None
    one = await Old(made).open()
    await one.post({"id": 5, "method": "tools/call", "params": {"name": "docs__read", "arguments": {}}})
    await until(lambda: server.count("tools/call") == 1)
    made.proxy.gateway.drain()
    (client,) = made.proxy.gateway.clients.values()
    assert client.talk.is_ending
    (posted,) = client.talk.running
    posted.exchange.shut_down()
    assert (await one.heard())["id"] == 5
    await one.peer.reader.readuntil(b"\r\n0\r\n\r\n")
    one.peer.close()
