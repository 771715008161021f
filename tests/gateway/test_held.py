"""A call that a person decides, answered with a task, through the gateway."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from meshd.engines.memory import MemoryStore
from tests.gateway.scripted import Raw, Scripted, text, tool
from tests.gateway.servers import Counted
from tests.gateway.test_legacy import connected
from tests.proxy.harness import until
from tests.rpc.asking import WORKFLOW, decide, document, pending
from tests.rpc.servers import Tools
from tests.rpc.test_held_tools import Get, Named, Shown, TasksExtension


async def test_a_call_that_is_held_is_asked_for_as_a_task(mesh: Any, serve: Any) -> None:
    tools = Tools(is_json=True)
    app = Counted(tools.app)
    made = await mesh(document("tools", await serve(app), "tool", "mcp", "hold: 0s"), store=MemoryStore())
    extension = TasksExtension()
    fields = WORKFLOW | {"authorization": "Bearer of-the-client", "x-api-key": "of-the-client"}
    async with httpx2.AsyncClient(headers=fields, trust_env=False, timeout=30) as http:
        transport = streamable_http_client(f"http://127.0.0.1:{made.port}/mcp", http_client=http)
        async with Client(transport, mode="2026-07-28", extensions=[extension]) as one:
            calling = asyncio.ensure_future(one.call_tool("tools__add", {"a": 1, "b": 2}))
            await until(lambda: len(extension.seen) > 2 or calling.done())
            assert {shown.status for shown in extension.seen} == {"working"}
            assert not tools.called
            await decide(made)
            assert (await calling).content[0].text == "3"
            assert tools.called == [("add", (1, 2))]
            # A task that nobody holds is none.
            calling = asyncio.ensure_future(one.call_tool("tools__delete", {"name": "all"}))
            await until(lambda: len(extension.created) == 2 or calling.done())
            await decide(made, is_allowed=False)
            assert (await calling).is_error
            for task in ("meshd-none", extension.created[0].task_id[:-1] + "x"):
                with pytest.raises(MCPError, match="There is no task"):
                    await one.session.send_request(Get(params=Named(task_id=task)), Shown)
    assert len(tools.called) == 1
    assert not [value for one in app.fields for value in one.values() if b"of-the-client" in value]


@pytest.mark.parametrize(("path", "name"), [("/mcp", "tools__good"), ("/tools/mcp", "good")])
async def test_what_a_client_cancels_is_not_sent_once_it_is_allowed(
    mesh: Any, upstream: Any, path: str, name: str
) -> None:
    server = Scripted({"tools/list": {"tools": [tool("good")]}, "tools/call": text("done")})
    made = await mesh(document("tools", (await upstream(server)).port, "tool", "mcp", "hold: 20s"), store=MemoryStore())
    mine, other = await Raw(made).open(), await Raw(made).open()
    if path != "/mcp":
        mine.session, other.session = "s-1", "s-2"
    asked = {"id": "c-1", "method": "tools/call", "params": {"name": name, "arguments": {}}}
    calling = asyncio.ensure_future(mine.post(asked, path=path))
    while not await pending(made):
        await asyncio.sleep(0)
    # Its connection stays open, and neither another request nor another session is cancelled.
    for one, id in ((mine, "c-2"), (other, "c-1"), (mine, "c-1")):
        assert not calling.done()
        cancelled = {"method": "notifications/cancelled", "params": {"requestId": id}}
        await one.post(cancelled, is_request=False, path=path)
    reply = json.loads((await calling).body)
    assert (reply["id"], reply["error"]["message"]) == ("c-1", "Its client has cancelled this request")
    await decide(made)
    assert server.count("tools/call") == 0
    # What was allowed waits for who makes the same call again.
    again = await mine.post(asked, path=path)
    assert json.loads(again.body)["result"] == text("done")
    assert server.count("tools/call") == 1


async def test_what_a_client_of_2024_cancels_is_not_sent_either(mesh: Any, upstream: Any) -> None:
    server = Scripted({"tools/list": {"tools": [tool("good")]}, "tools/call": text("done")})
    made = await mesh(document("tools", (await upstream(server)).port, "tool", "mcp", "hold: 20s"), store=MemoryStore())
    async with connected(made) as one:
        calling = asyncio.ensure_future(one.call_tool("tools__good", {}))
        while not await pending(made):
            await asyncio.sleep(0)
        calling.cancel()
        await until(lambda: not any(live.call.rpc and live.call.rpc.tool for live in made.proxy.live))
        await decide(made)
        assert server.count("tools/call") == 0
        assert (await one.call_tool("tools__good", {})).content[0].text == "done"
