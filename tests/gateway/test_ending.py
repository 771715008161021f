"""Sessions that end: none is left behind at a server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from meshd.gateway.gateway import IDLE_S
from tests.gateway.scripted import Raw, Scripted, text, tool
from tests.gateway.test_streams import HEAD, behind, listening
from tests.proxy.harness import until

GOOD = {"tools/list": {"tools": [tool("good")]}, "tools/call": text("done")}


def ended(server: Scripted) -> list[Any]:
    return [request.get(b"mcp-session-id") for request, _ in server.requests if request.method == b"DELETE"]


async def test_a_session_that_ends_while_one_is_opened_for_it(mesh: Any, upstream: Any) -> None:
    waiting: list[Any] = []

    class Slow(Scripted):
        async def _answer(self, peer: Any, request: Any, said: Any) -> None:
            if said.get("method") == "initialize":
                waiting.append(asyncio.get_running_loop().create_future())
                await waiting[-1]
            await super()._answer(peer, request, said)

    server = Slow(GOOD)
    made = await behind(mesh, upstream, good=server)
    mine = await Raw(made).open()
    asked = asyncio.ensure_future(mine.call("good__good"))
    await until(lambda: waiting)
    assert (await mine.send("DELETE", "/mcp", b"", f"mcp-session-id: {mine.session}")).status == 200
    waiting[0].set_result(None)
    assert "error" in await asked
    await until(lambda: ended(server) == [b"s-1"])
    assert len(waiting) == 1


async def test_sessions_that_nobody_uses_end(mesh: Any, upstream: Any) -> None:
    server = Scripted({**GOOD, "GET": HEAD})
    made = await behind(mesh, upstream, good=server)
    gone, listens = await Raw(made).open(), await Raw(made).open()
    await gone.call("good__good")
    await listens.call("good__good")
    client = await listening(listens)
    await until(lambda: made.proxy.gateway.clients[listens.session].streams)
    gateway = made.proxy.gateway
    gateway.expire(made.proxy.clock() + IDLE_S - 60)
    assert len(gateway.clients) == 2
    gateway.expire(made.proxy.clock() + IDLE_S + 60)
    assert list(gateway.clients) == [listens.session]
    await until(lambda: ended(server) == [b"s-1"])
    assert json.loads((await gone.post({"method": "ping"})).body)["error"]["code"] == -32001
    client.close()
