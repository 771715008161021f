"""MCP tool calls that a person decides, answered with a task: by the official client with the tasks extension, and by
raw requests."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import httpx
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.extension import ClientExtension, ResultClaim
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult, Request, RequestParams, Result

from meshd.dialects.mcp_tasks import CAPABILITIES, EXTENSION
from meshd.engines.memory import MemoryStore
from tests.proxy.harness import until
from tests.rpc.asking import WORKFLOW, decide, document, pending
from tests.rpc.servers import Tools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tests.proxy.harness import Mesh, Peer


class Created(Result):
    """What a call is answered with in its result's place."""

    result_type: Literal["task"] = "task"
    task_id: str
    status: str
    status_message: str
    ttl_ms: int
    poll_interval_ms: int


class Shown(Result):
    """What `tasks/get` answers."""

    result_type: str
    task_id: str
    status: str
    status_message: str | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class Named(RequestParams):
    task_id: str


class Get(Request[Named, Literal["tasks/get"]]):
    method: Literal["tasks/get"] = "tasks/get"
    params: Named
    name_param = "taskId"


class TasksExtension(ClientExtension):
    """The tasks extension as a client has it: it asks for the task until that is over."""

    identifier = EXTENSION

    def __init__(self) -> None:
        self.created: list[Created] = []
        self.seen: list[Shown] = []

    def claims(self) -> Sequence[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Created, resolve=self._resolve)]

    async def _resolve(self, made: Created, context: Any) -> CallToolResult:
        self.created.append(made)
        while True:
            shown = await context.session.send_request(Get(params=Named(task_id=made.task_id)), Shown)
            self.seen.append(shown)
            if shown.status == "completed":
                return CallToolResult.model_validate(shown.result)
            if shown.status != "working":
                raise MCPError(code=-1, message=f"{shown.status}: {shown.error}")
            await asyncio.sleep(0)


@asynccontextmanager
async def client(mesh: Mesh, extension: TasksExtension | None) -> AsyncIterator[Client]:
    async with httpx2.AsyncClient(headers=WORKFLOW, trust_env=False, timeout=30) as http:
        transport = streamable_http_client(f"http://127.0.0.1:{mesh.port}/tools/mcp", http_client=http)
        extensions = [] if extension is None else [extension]
        async with Client(transport, mode="2026-07-28", extensions=extensions) as made:
            yield made


@pytest.mark.parametrize("is_json", [False, True], ids=["sse", "json"])
async def test_a_tool_call_becomes_a_task(mesh: Any, serve: Any, is_json: bool) -> None:
    tools = Tools(is_json=is_json)
    text = document("tools", await serve(tools.app), "tool", "mcp", "hold: 0s")
    made = await mesh(text, store=MemoryStore())
    extension = TasksExtension()
    async with client(made, extension) as one:
        calling = asyncio.ensure_future(one.call_tool("add", {"a": 1, "b": 2}))
        await until(lambda: len(extension.seen) > 2 or calling.done())
        assert {shown.status for shown in extension.seen} == {"working"}
        (asked,) = await pending(made)
        (task,) = extension.created
        assert asked.id in task.task_id
        assert asked.id in task.status_message
        assert not tools.called
        await decide(made)
        result = await calling
        assert result.content[0].text == "3"  # type: ignore[union-attr]
        assert tools.called == [("add", (1, 2))]
        # Denied: the model is told, as without a task.
        calling = asyncio.ensure_future(one.call_tool("delete", {"name": "all"}))
        await until(lambda: len(extension.created) == 2 or calling.done())
        await decide(made, is_allowed=False)
        result = await calling
        assert result.is_error
        assert "not on a Friday" in result.content[0].text  # type: ignore[union-attr]
        assert len(tools.called) == 1


async def test_a_client_without_the_extension_is_never_given_a_task(mesh: Any, serve: Any, tools: Tools) -> None:
    text = document("tools", await serve(tools.app), "tool", "mcp", "hold: 0s")
    made = await mesh(text, store=MemoryStore())
    async with client(made, None) as one:
        result = await one.call_tool("add", {"a": 1, "b": 2})
        assert result.is_error
        assert "needs a person's approval" in result.content[0].text  # type: ignore[union-attr]
        assert not tools.called


# ---------------------------------------------------------------------- raw


class Server:
    """A server that answers with what it was given, and remembers what it was sent."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[Any] = []
        self.heads: list[Any] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            asked = json.loads(request.body)
            self.asked.append(asked)
            self.heads.append(request)
            message = {"jsonrpc": "2.0", "id": asked["id"], **self.answers.pop(0)}
            peer.reply(json.dumps(message).encode(), b"content-type: application/json")


META: Any = {CAPABILITIES: {"extensions": {EXTENSION: {}}}}
ADD: Any = {"name": "add", "arguments": {"a": 1}, "_meta": META}


async def rpc(mesh: Mesh, method: str, params: Any, *, name: str = "", version: str = "2026-07-28") -> Any:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        name = name or params.get("taskId") or params["name"]
        headers = {**WORKFLOW, "mcp-protocol-version": version, "mcp-method": method, "mcp-name": name}
        headers["accept"] = "application/json, text/event-stream"
        body = {"jsonrpc": "2.0", "id": "i", "method": method, "params": params}
        answer = await http.post(f"http://127.0.0.1:{mesh.port}/tools/mcp", json=body, headers=headers)
        return answer.json()


async def asked(mesh: Mesh) -> str:
    result = (await rpc(mesh, "tools/call", ADD))["result"]
    assert (result["resultType"], result["status"]) == ("task", "working")
    assert result["ttlMs"] > 0
    assert result["pollIntervalMs"] > 0
    assert result["createdAt"].endswith("Z")
    return str(result["taskId"])


async def get(mesh: Mesh, id: str, meta: Any = META) -> Any:
    return await rpc(mesh, "tasks/get", {"taskId": id, "_meta": meta})


async def over(mesh: Mesh, id: str) -> Any:
    while True:
        result = (await get(mesh, id))["result"]
        assert result["resultType"] == "complete"
        if result["status"] != "working":
            return result


async def server_of(mesh: Any, upstream: Any, *answers: Any) -> tuple[Server, Any]:
    server = Server(*answers)
    text = document("tools", (await upstream(server)).port, "tool", "mcp", "hold: 0s")
    return server, await mesh(text, store=MemoryStore())


CONTENT = {"content": [{"type": "text", "text": "3"}], "vendor/own": {"kept": 1}}


async def test_the_call_goes_out_as_it_came(mesh: Any, upstream: Any) -> None:
    server, made = await server_of(mesh, upstream, {"result": CONTENT})
    id = await asked(made)
    await decide(made)
    result = await over(made, id)
    assert (result["status"], result["result"]) == ("completed", CONTENT)
    (head,) = server.heads
    assert server.asked == [{"jsonrpc": "2.0", "id": "i", "method": "tools/call", "params": ADD}]
    assert (head.get(b"mcp-method"), head.get(b"mcp-name")) == (b"tools/call", b"add")
    assert head.get(b"mcp-protocol-version") == b"2026-07-28"
    assert (await over(made, id))["result"] == CONTENT
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        ({"error": {"code": -32602, "message": "no such tool"}}, "failed", "no such tool"),
        ({"result": {**CONTENT, "isError": True}}, "completed", '"isError": true'),
        ({"result": {"resultType": "input_required", "requestState": "s"}}, "failed", "asks for more"),
    ],
    ids=["error", "tool error", "input required"],
)
async def test_what_a_server_answers_is_told_in_its_place(
    mesh: Any, upstream: Any, answer: Any, status: str, words: str
) -> None:
    server, made = await server_of(mesh, upstream, answer)
    id = await asked(made)
    await decide(made)
    result = await over(made, id)
    assert result["status"] == status
    assert words in json.dumps(result)
    assert len(server.asked) == 1


async def test_a_servers_own_task_goes_on_under_the_id_that_its_client_knows(mesh: Any, upstream: Any) -> None:
    own = {"taskId": "S1", "createdAt": "x", "lastUpdatedAt": "x", "ttlMs": None}
    server, made = await server_of(
        mesh,
        upstream,
        {"result": {**own, "resultType": "task", "status": "working"}},
        {"result": {**own, "resultType": "complete", "status": "completed", "result": CONTENT}},
    )
    id = await asked(made)
    await decide(made)
    result = await over(made, id)
    assert (result["taskId"], result["status"], result["result"]) == (id, "completed", CONTENT)
    assert [one["method"] for one in server.asked] == ["tools/call", "tasks/get"]
    assert server.asked[1]["params"]["taskId"] == "S1"
    assert server.heads[1].get(b"mcp-name") == b"S1"


async def test_a_client_cancels_what_nobody_has_decided(mesh: Any, upstream: Any) -> None:
    server, made = await server_of(mesh, upstream)
    id = await asked(made)
    for method in ("tasks/update", "tasks/cancel"):
        params = {"taskId": id, "_meta": META, "inputResponses": {"ok": {"action": "accept"}}}
        assert (await rpc(made, method, params))["result"] == {"resultType": "complete"}
        assert (await get(made, id))["result"]["status"] == ("working" if method == "tasks/update" else "cancelled")
    assert not await pending(made)
    assert not server.asked


async def test_what_is_not_a_task_of_this_client_goes_to_the_server(mesh: Any, upstream: Any) -> None:
    known = {"error": {"code": -32602, "message": "the server knows no such task"}}
    server, made = await server_of(mesh, upstream, known, known, known)
    id = await asked(made)
    foreign_ids = [id[:-1] + ("1" if id[-1] == "0" else "0"), "meshd-", "S1"]
    for foreign in foreign_ids:
        assert await get(made, foreign) == {"jsonrpc": "2.0", "id": "i", **known}
    assert [one["params"]["taskId"] for one in server.asked] == [
        id[:-1] + ("1" if id[-1] == "0" else "0"),
        "meshd-",
        "S1",
    ]
    # Header and body must name the same task, and the extension must be declared each time.
    assert (await rpc(made, "tasks/get", {"taskId": id, "_meta": META}, name="S1"))["error"]["code"] == -32020
    assert (await get(made, id, {}))["error"]["code"] == -32021
    undeclared: tuple[Any, ...] = (None, 7, [], {}, {"extensions": 3}, {"extensions": {EXTENSION: 1}})
    for bad in undeclared:
        assert (await get(made, id, {CAPABILITIES: bad}))["error"]["code"] == -32021
    assert (await rpc(made, "tasks/get", {"taskId": 7, "_meta": META}, name="7"))["error"]["code"] == -32700
    assert len(server.asked) == 3


@pytest.mark.parametrize("version", ["2025-11-25", "2025-06-18"])
async def test_an_older_client_is_never_given_a_task(mesh: Any, upstream: Any, version: str) -> None:
    server, made = await server_of(mesh, upstream)
    result = (await rpc(made, "tools/call", ADD, version=version))["result"]
    assert result["isError"]
    assert "resultType" not in result
    assert not server.asked
