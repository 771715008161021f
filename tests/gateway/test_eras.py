"""Clients and servers of either era, in every pairing: what the one does not know is not shown to it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.gateway.conftest import document
from tests.gateway.scripted import Raw, Scripted, fields_of, stateless, text, tool
from tests.proxy.harness import until

LIST = {"tools/list": {"tools": [tool("good")]}}
DISCOVERED = {"supportedVersions": ["2026-07-28"], "capabilities": {}, "ttlMs": 0, "cacheScope": "private"}
UNSUPPORTED = {"error": {"code": -32022, "message": "unsupported"}}


async def behind(mesh: Any, upstream: Any, server: Any, options: str = "", more: str = "") -> Any:
    return await mesh(document({"good": (await upstream(server)).port}, more, {"good": options}))


def last(server: Scripted, method: str) -> tuple[Any, Any]:
    return next(one for one in reversed(server.requests) if one[1].get("method") == method)


async def test_what_a_client_declares_is_declared_to_its_servers(mesh: Any, upstream: Any) -> None:
    server = Scripted({**LIST, "tools/call": text("done")})
    made = await behind(mesh, upstream, server)
    mine = await Raw(made).open(sampling={}, elicitation={"form": {}}, odd={"x": 1})
    await mine.call("good__good")
    _, said = last(server, "initialize")
    assert said["params"]["capabilities"] == {"sampling": {}, "elicitation": {"form": {}}, "odd": {"x": 1}}
    assert said["params"]["clientInfo"]["name"] == "raw"
    assert server.count("notifications/initialized") == 1


async def test_clients_without_sessions_share_one_and_keep_their_ids_apart(mesh: Any, upstream: Any) -> None:
    def call(said: Any) -> Any:
        return text(said["params"]["arguments"]["who"])

    server = Scripted({**LIST, "tools/call": call})
    made = await behind(mesh, upstream, server)

    async def one(who: str) -> Any:
        message = stateless("tools/call", name="good__good", arguments={"who": who})
        reply = await Raw(made).post(message, *fields_of("tools/call", "good__good"))
        assert reply.get(b"mcp-session-id") is None
        return json.loads(reply.body)

    answers = await asyncio.gather(*[one(f"c{i}") for i in range(8)])
    assert [answer["id"] for answer in answers] == [1] * 8
    # A result of 2026 must say of what type it is, and no server of 2025 says it.
    assert {answer["result"]["resultType"] for answer in answers} == {"complete"}
    assert [answer["result"]["content"][0]["text"] for answer in answers] == [f"c{i}" for i in range(8)]
    assert server.count("initialize") == 1
    assert last(server, "initialize")[1]["params"]["capabilities"] == {}
    ids = [said["id"] for _, said in server.requests if said.get("method") == "tools/call"]
    assert len(set(ids)) == 8
    request, _ = last(server, "tools/call")
    assert request.get(b"mcp-protocol-version") == b"2025-11-25"
    assert request.get(b"mcp-name") is None


async def test_a_client_with_a_session_and_a_server_without(mesh: Any, upstream: Any) -> None:
    answers = {**LIST, "initialize": UNSUPPORTED, "server/discover": DISCOVERED, "tools/call": text("done")}
    server = Scripted(answers)
    made = await behind(mesh, upstream, server)
    mine = await Raw(made).open(sampling={})
    assert await mine.tools() == ["good__good"]
    assert (await mine.call("good__good", {"a": 1}))["result"] == text("done")
    request, said = last(server, "tools/call")
    assert request.get(b"mcp-protocol-version") == b"2026-07-28"
    assert (request.get(b"mcp-method"), request.get(b"mcp-name")) == (b"tools/call", b"good")
    assert request.get(b"mcp-session-id") is None
    meta = said["params"]["_meta"]
    assert meta["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
    # Such a server asks in its result, which this client would not understand: so it is told that it cannot ask.
    assert meta["io.modelcontextprotocol/clientCapabilities"] == {}


async def test_both_without_sessions(mesh: Any, upstream: Any) -> None:
    asked = {"resultType": "input_required", "requestState": "s", "inputRequests": {"a": {"method": "roots/list"}}}
    server = Scripted({**LIST, "server/discover": DISCOVERED, "tools/call": asked})
    made = await behind(mesh, upstream, server)
    message = stateless("tools/call", name="good__good", arguments={}, odd=1)
    reply = await Raw(made).post(message, *fields_of("tools/call", "good__good"), "mcp-param-a: b")
    assert json.loads(reply.body)["result"] == asked
    request, said = last(server, "tools/call")
    assert (request.get(b"mcp-name"), request.get(b"mcp-param-a")) == (b"good", b"b")
    assert said["params"] == {**message["params"], "name": "good"}
    assert server.count("initialize") == 0


async def test_the_trace_goes_to_those_that_the_policy_names_and_the_context_to_sidecars(
    mesh: Any, upstream: Any
) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for options, is_traced, is_peer in (
        ("", False, False),
        (", sends_trace: true", True, False),
        (", peer: true", False, True),
    ):
        server = Scripted({**LIST, "tools/call": text("done")})
        made = await behind(mesh, upstream, server, options)
        mine = await Raw(made).open()
        await mine.call("good__good", {}, f"traceparent: {parent}", _meta={"odd/x": 1})
        _, said = last(server, "tools/call")
        meta = said["params"]["_meta"]
        assert meta["odd/x"] == 1
        assert ("traceparent" in meta) is is_traced
        if is_traced:
            assert meta["traceparent"].split("-")[1] == parent.split("-")[1]
        assert ("dev.meshd/context" in meta) is is_peer


async def test_a_call_that_is_cancelled_is_cancelled_where_it_runs(mesh: Any, upstream: Any) -> None:
    server = Scripted({**LIST, "tools/call": lambda said: None})
    made = await behind(mesh, upstream, server)
    mine = await Raw(made).open()
    await mine.tools()
    calling = asyncio.ensure_future(mine.post({"id": "c-1", "method": "tools/call", "params": {"name": "good__good"}}))
    await until(lambda: server.count("tools/call") == 1)
    params = {"requestId": "c-1", "reason": "enough"}
    reply = await mine.post({"method": "notifications/cancelled", "params": params}, is_request=False)
    assert reply.status == 202
    assert last(server, "notifications/cancelled")[1]["params"] == params
    # Of what nobody runs nobody is told.
    await mine.post({"method": "notifications/cancelled", "params": {"requestId": "c-2"}}, is_request=False)
    assert server.count("notifications/cancelled") == 1
    calling.cancel()


async def test_a_server_cannot_ask_in_a_session_that_many_share(mesh: Any, upstream: Any) -> None:
    asks = b'data: {"jsonrpc":"2.0","id":9,"method":"elicitation/create","params":{"message":"m"}}\n\n'

    def call(said: Any) -> bytes:
        answer = json.dumps({"jsonrpc": "2.0", "id": said["id"], "result": text("done")}).encode()
        body = asks + b"event: message\ndata: " + answer + b"\n\n"
        return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(body) + body

    server = Scripted({**LIST, "tools/call": call})
    made = await behind(mesh, upstream, server)
    message = stateless("tools/call", name="good__good", arguments={})
    reply = await Raw(made).post(message, *fields_of("tools/call", "good__good"))
    assert b"elicitation" not in reply.body
    assert json.loads(reply.body.partition(b"data: ")[2])["id"] == 1
    await until(lambda: any(said.get("error", {}).get("code") == -32601 for _, said in server.requests))
    # In a session of its own the client is asked, by an id of ours.
    mine = await Raw(made).open(elicitation={})
    reply = await mine.post({"method": "tools/call", "params": {"name": "good__good"}})
    asked = json.loads(reply.body.split(b"data: ")[1].partition(b"\n")[0])
    assert asked["id"] != 9
    assert asked["params"] == {"message": "m"}
    await mine.post({"id": asked["id"], "result": {"action": "decline"}}, is_request=False)
    _, said = server.requests[-1]
    assert said == {"jsonrpc": "2.0", "id": 9, "result": {"action": "decline"}}
    # It has been answered: nobody can answer it again.
    reply = await mine.post({"id": asked["id"], "result": {"action": "accept"}}, is_request=False)
    assert reply.get(b"x-meshd-decision") == b"refuse"


async def test_a_task_is_asked_for_where_it_runs(mesh: Any, upstream: Any) -> None:
    made_task = {"resultType": "task", "taskId": "t-1", "status": "working"}
    task = {"resultType": "complete", "taskId": "t-1", "status": "completed", "result": text("done")}
    servers = {
        name: Scripted({**LIST, "server/discover": DISCOVERED, "tools/call": made_task, "tasks/get": task})
        for name in ("one", "two")
    }
    ports = {name: (await upstream(server)).port for name, server in servers.items()}
    made = await mesh(document(ports))
    raw = Raw(made)
    message = stateless("tools/call", name="two__good", arguments={})
    extensions = {"extensions": {"io.modelcontextprotocol/tasks": {}}}
    message["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] = extensions
    reply = await raw.post(message, *fields_of("tools/call", "two__good"))
    assert json.loads(reply.body)["result"] == made_task
    reply = await raw.post(stateless("tasks/get", taskId="t-1"), *fields_of("tasks/get", "t-1"))
    assert json.loads(reply.body)["result"] == task
    assert (servers["one"].count("tasks/get"), servers["two"].count("tasks/get")) == (0, 1)


async def test_the_level_of_a_clients_log_is_told_to_a_server_without_sessions(mesh: Any, upstream: Any) -> None:
    answers = {**LIST, "initialize": UNSUPPORTED, "server/discover": DISCOVERED, "tools/call": text("done")}
    server = Scripted(answers)
    made = await behind(mesh, upstream, server)
    mine = await Raw(made).open()
    await mine.post({"method": "logging/setLevel", "params": {"level": "warning"}})
    await mine.call("good__good")
    _, said = last(server, "tools/call")
    assert said["params"]["_meta"]["io.modelcontextprotocol/logLevel"] == "warning"


async def test_a_client_without_a_session_cancels_by_hanging_up(mesh: Any, upstream: Any) -> None:
    server = Scripted({**LIST, "tools/call": lambda said: None})
    made = await behind(mesh, upstream, server)
    message = stateless("tools/call", name="good__good", arguments={})
    calling = asyncio.ensure_future(Raw(made).post(message, *fields_of("tools/call", "good__good")))
    await until(lambda: server.count("tools/call") == 1)
    _, asked = last(server, "tools/call")
    made._clients[-1].abort()
    await until(lambda: server.count("notifications/cancelled") == 1)
    _, said = last(server, "notifications/cancelled")
    assert said["params"]["requestId"] == asked["id"]
    calling.cancel()
