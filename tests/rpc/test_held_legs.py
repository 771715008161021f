"""MCP 2026-07-28 without the tasks extension: a call that must wait is made again by its client, with a sealed state,
and its user is shown where people decide."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import ElicitRequestURLParams, ElicitResult

from meshd.dialects.mcp import LEGS_MAX
from meshd.dialects.mcp_tasks import CAPABILITIES
from meshd.engines.memory import MemoryStore
from tests.rpc.asking import ANA, WORKFLOW, decide, document, pending
from tests.rpc.servers import Tools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.proxy.harness import Mesh

PAGE = "https://approvals.example.com/decide/{id}"


def asking(port: int, rule: str = "hold: 0s", page: str = PAGE, agent: str = "researcher") -> str:
    return document("tools", port, "tool", "mcp", rule, agent) + (f'approvals: {{page: "{page}"}}\n' if page else "")


@asynccontextmanager
async def client(mesh: Mesh, elicit: Callable[..., Any] | None = None) -> AsyncIterator[Client]:
    async with httpx2.AsyncClient(headers=WORKFLOW, trust_env=False, timeout=30) as http:
        transport = streamable_http_client(f"http://127.0.0.1:{mesh.port}/tools/mcp", http_client=http)
        async with Client(transport, mode="2026-07-28", elicitation_callback=elicit) as made:
            yield made


class User:
    """Who is shown addresses, and says what was scripted; `then` runs before the answer."""

    def __init__(self, action: str, then: Callable[[], Any] | None = None) -> None:
        self.shown: list[ElicitRequestURLParams] = []
        self._action, self._then = action, then

    async def __call__(self, context: Any, params: Any) -> ElicitResult:
        self.shown.append(params)
        if self._then is not None:
            await self._then()
        return ElicitResult(action=self._action)  # type: ignore[arg-type]


async def test_a_user_is_shown_where_people_decide(mesh: Any, serve: Any, tools: Tools) -> None:
    made = await mesh(asking(await serve(tools.app)), store=MemoryStore())
    user = User("accept", lambda: decide(made))
    async with client(made, user) as one:
        result = await one.call_tool("add", {"a": 1, "b": 2})
    assert result.content[0].text == "3"  # type: ignore[union-attr]
    (shown,) = user.shown
    assert made.desk is not None
    (used,) = await made.desk.list(None, 10)
    assert shown.url == PAGE.replace("{id}", used.id)
    assert ANA not in shown.url + shown.message
    assert tools.called == [("add", (1, 2))]


async def test_what_a_client_answers_allows_nothing(mesh: Any, serve: Any, tools: Tools) -> None:
    made = await mesh(asking(await serve(tools.app)), store=MemoryStore())
    user = User("accept")
    async with client(made, user) as one:
        result = await one.call_tool("add", {"a": 1, "b": 2})
    # It cannot go on for ever: its client would raise in the end, so the model is told.
    assert result.is_error
    assert "nobody has decided yet" in result.content[0].text  # type: ignore[union-attr]
    assert len(user.shown) == 1, "a user is asked once"
    assert len(await pending(made)) == 1
    assert not tools.called


@pytest.mark.parametrize("action", ["decline", "cancel"])
async def test_whoever_does_not_want_to_be_shown_is_not_held(mesh: Any, serve: Any, tools: Tools, action: str) -> None:
    made = await mesh(asking(await serve(tools.app), rule="expires: 1h"), store=MemoryStore())
    user = User(action)
    async with client(made, user) as one:
        result = await one.call_tool("add", {"a": 1, "b": 2})
    assert result.is_error
    assert "nobody has decided yet" in result.content[0].text  # type: ignore[union-attr]
    assert len(await pending(made)) == 1
    assert not tools.called


async def test_without_a_page_a_client_calls_again_by_itself(mesh: Any, serve: Any, tools: Tools) -> None:
    made = await mesh(asking(await serve(tools.app), page=""), store=MemoryStore())
    legs: list[int] = []

    async def seen(request: Any) -> None:
        legs.append(1)
        if len(legs) == 4:
            await decide(made)

    user = User("accept")
    async with httpx2.AsyncClient(
        headers=WORKFLOW, trust_env=False, timeout=30, event_hooks={"request": [seen]}
    ) as http:
        transport = streamable_http_client(f"http://127.0.0.1:{made.port}/tools/mcp", http_client=http)
        async with Client(transport, mode="2026-07-28", elicitation_callback=user) as one:
            legs.clear()
            result = await one.call_tool("add", {"a": 1, "b": 2})
    assert result.content[0].text == "3"  # type: ignore[union-attr]
    assert len(legs) >= 4
    assert not user.shown
    assert tools.called == [("add", (1, 2))]


# ---------------------------------------------------------------------- raw


URLS: Any = {CAPABILITIES: {"elicitation": {"url": {}}}}


async def call(mesh: Mesh, arguments: Any, *, tool: str = "add", meta: Any = URLS, **more: Any) -> Any:
    params = {"name": tool, "arguments": arguments, "_meta": meta, **more}
    headers = {**WORKFLOW, "mcp-protocol-version": "2026-07-28", "accept": "application/json, text/event-stream"}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        return (await http.post(f"http://127.0.0.1:{mesh.port}/tools/mcp", json=body, headers=headers)).json()


async def test_a_state_is_of_one_call_and_for_its_time(mesh: Any, tmp_path: Any) -> None:
    store, key_file = MemoryStore(), tmp_path / "mesh.key"
    made = await mesh(asking(9), store=store, key_file=key_file)
    other = await mesh(asking(9, agent="intern"), store=store, key_file=key_file)
    first = (await call(made, {"a": 1}))["result"]
    assert (first["resultType"], next(iter(first["inputRequests"].values()))["params"]["mode"]) == (
        "input_required",
        "url",
    )
    state = first["requestState"]
    again = (await call(made, {"a": 1}, requestState=state))["result"]
    assert (again["resultType"], "inputRequests" in again) == ("input_required", False)
    assert again["requestState"] != state
    parts = state.split(".")
    forged = [state[:-1] + ("A" if state[-1] != "A" else "B")]
    for at, value in ((1, "7"), (2, str(int(parts[2]) + 9)), (3, "zzzz-zzzz-zzzz")):
        forged.append(".".join([*parts[:at], value, *parts[at + 1 :]]))
    for bad in forged:
        assert_refused(await call(made, {"a": 1}, requestState=bad), "altered")
    # Of the same call alone: other arguments, another tool, another agent.
    assert_refused(await call(made, {"a": 2}, requestState=state), "another's")
    assert_refused(await call(made, {"a": 1}, tool="delete", requestState=state), "another's")
    assert_refused(await call(other, {"a": 1}, requestState=state), "another's")
    assert made.desk is not None
    made.desk.clock = lambda: float(parts[2])
    assert_refused(await call(made, {"a": 1}, requestState=state), "expired")


def assert_refused(answer: Any, words: str) -> None:
    assert answer["error"]["code"] == -32602
    assert words in answer["error"]["message"]


@pytest.mark.parametrize(
    "declared",
    [
        {},
        {"elicitation": {}},
        {"elicitation": {"form": {}}},
        {"elicitation": {"url": True}},
        {"elicitation": []},
        [],
        7,
    ],
)
async def test_a_client_that_shows_no_addresses_is_asked_to_show_none(mesh: Any, declared: Any) -> None:
    made = await mesh(asking(9), store=MemoryStore())
    result = (await call(made, {"a": 1}, meta={CAPABILITIES: declared}))["result"]
    assert result["resultType"] == "input_required"
    assert "inputRequests" not in result


async def test_legs_end(mesh: Any) -> None:
    made = await mesh(asking(9), store=MemoryStore())
    result = (await call(made, {"a": 1}))["result"]
    for leg in range(1, LEGS_MAX + 1):
        assert result["requestState"].startswith(f"meshd.{leg}.")
        result = (await call(made, {"a": 1}, requestState=result["requestState"]))["result"]
    assert (result["resultType"], result["isError"]) == ("complete", True)
    assert len(await pending(made)) == 1
