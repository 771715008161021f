"""Two servers with the same resources: a client reaches both, lists to links, by the official client."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mcp.server.mcpserver import MCPServer
from mcp.types import (
    CallToolResult,
    Completion,
    EmbeddedResource,
    ResourceLink,
    ResourceTemplateReference,
    TextResourceContents,
)

from tests.gateway.conftest import connect, document
from tests.gateway.scripted import Raw, Scripted

MODES = ["legacy", "2026-07-28"]


def notes(name: str) -> Any:
    """Return an application with the same resources as every other one of its kind."""
    server = MCPServer(name)

    @server.resource("note://today")
    def today() -> str:
        return f"today at {name}"

    @server.resource("note://pages/{page}")
    def page(page: str) -> str:
        return f"{name} page {page}"

    @server.tool()
    def link() -> CallToolResult:
        """Name what there is."""
        inner = TextResourceContents(uri="note://today", text="it")
        links = [
            ResourceLink(type="resource_link", uri=uri, name="x")
            for uri in ("note://today", "note://pages/7", "note://unlisted/1", "https://example.com/")
        ]
        return CallToolResult(content=[*links, EmbeddedResource(type="resource", resource=inner)])

    @server.completion()
    async def complete(ref: Any, argument: Any, context: Any) -> Completion:
        return Completion(values=[f"{name} {ref.uri} {argument.value}"])

    return server.streamable_http_app()


@pytest.mark.parametrize("mode", MODES)
async def test_both_are_listed_read_completed_and_linked(mesh: Any, serve: Any, mode: str) -> None:
    made = await mesh(document({name: await serve(notes(name)) for name in ("docs", "mail")}))
    async with connect(made, mode) as one:
        assert [str(each.uri) for each in (await one.list_resources()).resources] == [
            "note://today",
            "mail+note://today",
        ]
        templates = [each.uri_template for each in (await one.list_resource_templates()).resource_templates]
        assert templates == ["note://pages/{page}", "mail+note://pages/{page}"]
        for name, mark in (("docs", ""), ("mail", "mail+")):
            for uri, said in (("note://today", f"today at {name}"), ("note://pages/7", f"{name} page 7")):
                (read,) = (await one.read_resource(mark + uri)).contents
                assert (str(read.uri), read.text) == (mark + uri, said)
            ref = ResourceTemplateReference(type="ref/resource", uri=f"{mark}note://pages/{{page}}")
            completed = await one.complete(ref, {"name": "page", "value": "7"})
            assert completed.completion.values == [f"{name} note://pages/{{page}} 7"]
            *links, embedded = (await one.call_tool(f"{name}__link", {})).content
            uris = [str(each.uri) for each in links]
            # Nobody lists the third: its link says whose it is. The fourth is had from the web.
            assert uris == [
                f"{mark}note://today",
                f"{mark}note://pages/7",
                f"{name}+note://unlisted/1",
                "https://example.com/",
            ]
            assert str(embedded.resource.uri) == f"{mark}note://today"
            assert (await one.read_resource(uris[1])).contents[0].text == f"{name} page 7"


async def test_what_is_said_of_a_resource_names_it_as_its_client_knows_it(mesh: Any, upstream: Any) -> None:
    listed = {"resources": [{"uri": "x://1", "name": "one"}]}
    event = b'data: {"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":"x://1"}}\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(event)
    answers = {"resources/list": listed, "resources/subscribe": {}, "resources/unsubscribe": {}}
    ports, servers = {}, {}
    for name in ("docs", "mail"):
        servers[name] = Scripted({**answers, "GET": head + event if name == "mail" else b""})
        ports[name] = (await upstream(servers[name])).port
    made = await mesh(document(ports))
    client = await Raw(made).open()
    await client.post({"method": "resources/list"})
    for method in ("resources/subscribe", "resources/unsubscribe"):
        reply = await client.post({"method": method, "params": {"uri": "mail+x://1"}})
        assert json.loads(reply.body)["result"] == {}
        assert [said["params"] for _, said in servers["mail"].requests if said.get("method") == method] == [
            {"uri": "x://1"}
        ]
        assert servers["docs"].count(method) == 0
    peer = await made.connect()
    peer.send(
        f"GET /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: text/event-stream\r\nmcp-session-id: {client.session}\r\n"
        "mcp-protocol-version: 2025-11-25\r\n\r\n".encode()
    )
    heard = await peer.reader.readuntil(b"x://1")
    assert heard.endswith(b"mail+x://1")
    peer.close()


async def test_rules_name_what_a_server_calls_its_resource(mesh: Any, serve: Any) -> None:
    rules = "rules: [{match: {target: mail, operation: resources/read}, deny: no letters}]\n"
    made = await mesh(document({name: await serve(notes(name)) for name in ("docs", "mail")}, rules))
    async with connect(made) as one:
        assert [str(each.uri) for each in (await one.list_resources()).resources] == ["note://today"]
        for uri in ("mail+note://today", "mail+note://unlisted"):
            with pytest.raises(Exception, match="no letters"):
                await one.read_resource(uri)


async def test_nonsense_is_nobodys(mesh: Any, serve: Any) -> None:
    made = await mesh(document({name: await serve(notes(name)) for name in ("docs", "mail")}))
    client = await Raw(made).open()
    for uri in ("", "mail+", "+note://today", "nobody+note://today", "mail +note://today", "Mail+note://today", 7):
        reply = json.loads((await client.post({"method": "resources/read", "params": {"uri": uri}})).body)
        assert reply["error"]["code"] in (-32602, -32700), uri
