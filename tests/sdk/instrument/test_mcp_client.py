"""The official MCP client against a real MCP server, an upstream of kind tool."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from mcp.client.client import Client

from meshd_sdk import using
from tests.sdk.instrument.world import World

pytestmark = pytest.mark.usefixtures("instrumented")
MODES = pytest.mark.parametrize("mode", ["auto", "legacy"])


async def echo(client: Client, text: str) -> str:
    found = await client.call_tool("echo", {"text": text})
    return str(found.content[0].text)  # type: ignore[union-attr]


@MODES
def test_a_session_of_an_answer_belongs_to_its_workflow(world: World, mode: str) -> None:
    async def act(_: Any) -> str:
        async with Client(f"{world.url}/tool/mcp", mode=mode) as client:
            return await echo(client, "hello")

    workflow, answer = world.tell(act)
    assert answer == "hello"
    spans = world.spans(workflow, "tool", 2)
    assert {(one["meshd.evidence"], one["meshd.hops"], one["meshd.agent"]) for one in spans} == {("token", 1, "writer")}


@MODES
async def test_a_session_that_many_answers_share_charges_each_its_own(world: World, mode: str) -> None:
    opened = [await asyncio.to_thread(world.opened) for _ in range(3)]

    async with Client(f"{world.url}/tool/mcp", mode=mode) as client:

        async def one(number: int) -> str:
            with using(opened[number][1]):
                return await echo(client, str(number))

        await echo(client, "the first call lists the tools too")
        # At once, after it was opened outside of any call, and again one after another.
        assert await asyncio.gather(*map(one, range(3))) == ["0", "1", "2"]
        for number in range(3):
            assert await one(number) == str(number)
    for workflow, _ in opened:
        await asyncio.to_thread(world.is_charged, workflow, "tool", 2)


async def test_the_tool_is_not_told_the_token_in_header_or_body(world: World) -> None:
    _, now = await asyncio.to_thread(world.opened)
    headers, bodies = len(world.tool.seen.headers), len(world.tool.seen.bodies)
    with using(now):
        async with Client(f"{world.url}/tool/mcp") as client:
            await echo(client, "hello")
    assert len(world.tool.seen.headers) > headers
    said = json.dumps(world.tool.seen.headers[headers:]) + str(world.tool.seen.bodies[bodies:])
    assert now.token not in said
    assert "x-meshd" not in said


async def test_a_tool_server_called_directly_is_told_nothing(world: World) -> None:
    _, now = await asyncio.to_thread(world.opened)
    headers = len(world.tool.seen.headers)
    with using(now):
        async with Client(f"{world.tool.url}/mcp") as client:
            assert await echo(client, "hello") == "hello"
    seen = [name for one in world.tool.seen.headers[headers:] for name in one]
    assert seen
    assert [name for name in seen if name.startswith(("x-meshd", "trace", "baggage"))] == []
