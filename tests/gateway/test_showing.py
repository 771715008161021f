"""Three tools in the place of many."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mcp import MCPError

from tests.gateway.conftest import connect, document, text_of
from tests.gateway.scripted import Raw, Scripted, text, tool

TOPICS = ("weather", "invoices", "flights", "recipes", "music", "stocks", "maps", "mail")
MODES = ("legacy", "2026-07-28")


def many() -> Scripted:
    tools = [
        tool(f"{verb}_{topic}", description=f"{verb.capitalize()} {topic} " + "and say all there is to say. " * 20)
        for topic in TOPICS
        for verb in ("find", "list", "delete")
    ]

    def call(said: Any) -> Any:
        return text(f"{said['params']['name']} {json.dumps(said['params'].get('arguments'))}")

    return Scripted({"tools/list": {"tools": tools}, "tools/call": call})


async def start(mesh: Any, upstream: Any, more: str) -> tuple[Any, Scripted]:
    server = many()
    return await mesh(document({"many": (await upstream(server)).port}, more)), server


@pytest.mark.parametrize("mode", MODES)
async def test_what_is_wanted_is_found_described_and_called(mesh: Any, upstream: Any, mode: str) -> None:
    made, _ = await start(mesh, upstream, "mcp: {disclosure: search}\n")
    seen: list[Any] = []
    async with connect(made, mode) as one:
        assert [t.name for t in (await one.list_tools()).tools] == ["find_tools", "describe_tools", "call_tool"]
        found = await one.call_tool("find_tools", {"words": "what is the weather", "limit": 3})
        best = json.loads(text_of(found))["tools"]
        assert len(best) <= 3
        assert "weather" in best[0]["name"]
        described = json.loads(text_of(await one.call_tool("describe_tools", {"names": [best[0]["name"]]})))
        assert described["tools"][0]["inputSchema"] == {"type": "object"}
        made.per_call.on_admit = lambda call: seen.append((call.target.name, call.rpc.tool, call.rpc.arguments))
        called = await one.call_tool("call_tool", {"name": "many__find_weather", "arguments": {"b": 1, "a": 2}})
        assert text_of(called) == 'find_weather {"b": 1, "a": 2}'
    # The rules have judged the tool itself, with its arguments.
    assert ("many", "find_weather", b'{"a":2,"b":1}') in seen
    assert made.proxy.gateway.saved_tokens > 2000


async def test_a_later_leg_is_judged_by_what_it_brings(mesh: Any, upstream: Any) -> None:
    made, _ = await start(mesh, upstream, "mcp: {disclosure: search}\n")
    mine = await Raw(made).open()
    seen: list[bytes] = []
    await mine.tools()
    made.per_call.on_admit = lambda call: seen.append(call.rpc.arguments)
    more = {"inputResponses": {"sure": {"action": "accept"}}, "requestState": "s"}
    await mine.call("many__find_mail", {"a": 1}, **more)
    await mine.call("call_tool", {"name": "many__find_mail", "arguments": {"a": 1}}, **more)
    assert b"inputResponses" in seen[0]
    assert seen[0] == seen[1]


async def test_auto_counts_what_the_caller_may_call(mesh: Any, upstream: Any) -> None:
    made, _ = await start(mesh, upstream, "mcp: {disclosure: auto, above: 10}\n")
    assert len(await (await Raw(made).open()).tools()) == 3
    more = "mcp: {disclosure: auto, above: 10}\ngovernance: {allowed_tools: [find_*]}\n"
    made, _ = await start(mesh, upstream, more)
    assert len(await (await Raw(made).open()).tools()) == len(TOPICS)
    assert made.proxy.gateway.saved_tokens == 0


async def test_nothing_is_found_or_called_that_is_not_allowed(mesh: Any, upstream: Any) -> None:
    more = "mcp: {disclosure: search}\ngovernance: {allowed_tools: [find_*, list_*]}\n"
    made, server = await start(mesh, upstream, more)
    async with connect(made) as one:
        found = json.loads(text_of(await one.call_tool("find_tools", {"words": "delete mail", "limit": 20})))
        assert found["tools"]
        assert not any("delete" in tool["name"] for tool in found["tools"])
        with pytest.raises(MCPError, match="There is no tool"):
            await one.call_tool("describe_tools", {"names": ["many__delete_mail"]})
        with pytest.raises(MCPError, match="The tool delete_mail is not allowed"):
            await one.call_tool("call_tool", {"name": "many__delete_mail", "arguments": {}})
    assert server.count("tools/call") == 0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("find_tools", {}),
        ("find_tools", {"words": 7}),
        ("find_tools", {"words": "x", "limit": 0}),
        ("find_tools", {"words": "x", "limit": True}),
        ("describe_tools", {}),
        ("describe_tools", {"names": []}),
        ("describe_tools", {"names": ["nobody"]}),
        ("describe_tools", {"names": [7]}),
        ("call_tool", {}),
        ("call_tool", {"name": "nobody", "arguments": {}}),
        ("call_tool", {"name": "call_tool", "arguments": {"name": "call_tool"}}),
    ],
)
async def test_nonsense_is_refused_with_words(mesh: Any, upstream: Any, name: str, arguments: Any) -> None:
    servers = {one: (await upstream(many())).port for one in ("many", "more")}
    made = await mesh(document(servers, "mcp: {disclosure: search}\n"))
    mine = await Raw(made).open()
    answer = await mine.call(name, arguments)
    assert answer["error"]["code"] == -32602
    assert answer["error"]["message"]
