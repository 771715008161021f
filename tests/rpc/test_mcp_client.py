"""The official MCP client, over streamable HTTP through the data plane, against a real server."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from mcp import Client, MCPError

from meshd.refusal import TABLE, Reason, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from meshd.call import Call
    from tests.proxy.harness import Mesh
    from tests.rpc.servers import Tools

TOLD = (Reason.LOOP, Reason.MAX_TURNS, Reason.APPROVAL_DENIED, Reason.APPROVAL_PENDING)
AS_ERROR = (
    Reason.NOT_ALLOWED, Reason.BUDGET_EXHAUSTED, Reason.BUDGET_BUSY, Reason.CIRCUIT_OPEN, Reason.STORE_UNAVAILABLE,
    Reason.HOP_LIMIT, Reason.DEADLINE, Reason.OVERLOADED,
)  # fmt: skip
MODES = ("legacy", "2026-07-28")


def document(port: int, rules: str = "", extra: str = ", dialect: mcp") -> str:
    return f'upstreams:\n  tools: {{url: "http://127.0.0.1:{port}", kind: tool{extra}}}\n{rules}'


@asynccontextmanager
async def client(mesh: Mesh, mode: Any = "auto", **options: Any) -> AsyncIterator[Client]:
    async with Client(f"http://127.0.0.1:{mesh.port}/tools/mcp", mode=mode, **options) as made:
        yield made


def text_of(result: Any) -> str:
    return str(result.content[0].text)


@pytest.mark.parametrize("mode", MODES)
async def test_a_session_passes(mesh: Any, serve: Any, tools: Tools, mode: str) -> None:
    seen: list[Any] = []
    made = await mesh(document(await serve(tools.app)))
    made.per_call.on_admit = lambda call: seen.append(call.rpc) if call.rpc is not None else None
    async with client(made, mode) as one:
        assert [tool.name for tool in (await one.list_tools()).tools] == ["add", "delete", "slow"]
        assert text_of(await one.call_tool("add", {"b": 2, "a": 1})) == "3"
        steps: list[float] = []

        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            steps.append(progress)

        assert text_of(await one.call_tool("slow", {"steps": 3}, progress_callback=progressed)) == "done"
        assert steps == [0, 1, 2]
    call = next(rpc for rpc in seen if rpc.tool == "add")
    assert (call.method, call.arguments, call.is_read_only) == ("tools/call", b'{"a":1,"b":2}', False)
    assert call.is_stream
    assert call.is_json_taken
    assert next(rpc for rpc in seen if rpc.tool == "slow").progress_token
    assert next(rpc for rpc in seen if rpc.method == "tools/list").is_read_only


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("reason", [*TOLD, *AS_ERROR], ids=lambda reason: reason.value)
async def test_what_the_application_sees_of_a_refusal(
    mesh: Any, serve: Any, tools: Tools, mode: str, reason: Reason
) -> None:
    made = await mesh(document(await serve(tools.app)))
    is_refusing = True

    def refuse(call: Call) -> None:
        if is_refusing and call.rpc is not None and call.rpc.tool:
            raise Refused(reason, f"This is why: {reason.value}")

    made.per_call.on_admit = refuse
    async with client(made, mode) as one:
        await one.list_tools()
        if reason in TOLD:
            result = await one.call_tool("add", {"a": 1, "b": 2})
            assert result.is_error
            assert text_of(result) == f"This is why: {reason.value}"
            assert result.meta is not None
            said = result.meta["meshd/refusal"]
            assert said["jsonrpc"] == TABLE[reason].jsonrpc
        else:
            with pytest.raises(MCPError) as caught:
                await one.call_tool("add", {"a": 1, "b": 2})
            assert caught.value.error.code == TABLE[reason].jsonrpc
            assert caught.value.error.message == f"This is why: {reason.value}"
            said = caught.value.error.data
        assert said["reason"] == reason.value
        assert said["call"]
        assert "workflow" in said
        assert said["retryable"] is TABLE[reason].is_retryable
        assert not tools.called
        # The session is what it was: the next call works.
        is_refusing = False
        assert text_of(await one.call_tool("add", {"a": 1, "b": 2})) == "3"


async def test_a_model_that_was_told_gets_an_error(mesh: Any, serve: Any, tools: Tools) -> None:
    made = await mesh(document(await serve(tools.app)))

    def refuse(call: Call) -> None:
        if call.rpc is not None and call.rpc.tool:
            refused = Refused(Reason.LOOP, "again")
            refused.is_repeated = True
            raise refused

    made.per_call.on_admit = refuse
    async with client(made) as one:
        with pytest.raises(MCPError) as caught:
            await one.call_tool("add", {"a": 1, "b": 2})
        assert caught.value.error.code == -32012


@pytest.mark.parametrize("mode", MODES)
async def test_rules_match_the_tool_and_the_method(mesh: Any, serve: Any, tools: Tools, mode: str) -> None:
    rules = """rules:
  - {name: r1, match: {tool: "del*"}, deny: nothing is deleted}
  - {name: r2, match: {operation: prompts/list}, deny: no prompts}
"""
    made = await mesh(document(await serve(tools.app), rules))
    async with client(made, mode) as one:
        with pytest.raises(MCPError) as caught:
            await one.call_tool("delete", {"name": "x"})
        assert caught.value.error.code == -32014
        assert "nothing is deleted" in caught.value.error.message
        with pytest.raises(MCPError, match="no prompts"):
            await one.list_prompts()
        assert text_of(await one.call_tool("add", {"a": 1, "b": 2})) == "3"
    assert tools.called == [("add", (1, 2))]
    assert made.proxy.policy.hits()["r1"] == 1


async def test_the_allowed_tools_are_those_that_are_called(mesh: Any, serve: Any, tools: Tools) -> None:
    made = await mesh(document(await serve(tools.app), "governance: {allowed_tools: [add]}\n"))
    async with client(made) as one:
        assert len((await one.list_tools()).tools) == 3
        assert text_of(await one.call_tool("add", {"a": 1, "b": 2})) == "3"
        with pytest.raises(MCPError, match=r"The tool delete is not allowed\. Allowed: add"):
            await one.call_tool("delete", {"name": "x"})
    assert tools.called == [("add", (1, 2))]


async def test_what_is_recognised_by_itself_is_judged_by_the_upstreams_name(
    mesh: Any, serve: Any, tools: Tools
) -> None:
    made = await mesh(document(await serve(tools.app), "governance: {allowed_tools: [tools]}\n", extra=""))
    seen: list[Any] = []
    made.per_call.on_admit = lambda call: seen.append(call.rpc) if call.rpc is not None else None
    async with client(made) as one:
        assert text_of(await one.call_tool("add", {"a": 1, "b": 2})) == "3"
        made.per_call.on_admit = lambda call: _refuse(call)
        result = await one.call_tool("add", {"a": 1, "b": 2})
        assert result.is_error
    assert "tools/call" in {rpc.method for rpc in seen}
    # The caller alone says what it is: nothing is lifted by that.
    assert not any(rpc.is_read_only for rpc in seen)


def _refuse(call: Call) -> None:
    if call.rpc is not None:
        raise Refused(Reason.LOOP, "enough")


async def test_a_server_that_answers_in_json(mesh: Any, serve: Any) -> None:
    from tests.rpc.servers import Tools

    tools = Tools(is_json=True)
    made = await mesh(document(await serve(tools.app)))
    async with client(made) as one:
        assert text_of(await one.call_tool("add", {"a": 1, "b": 2})) == "3"


@pytest.mark.parametrize("mode", MODES)
async def test_refused_from_the_first_message_on(mesh: Any, serve: Any, tools: Tools, mode: str) -> None:
    made = await mesh(document(await serve(tools.app), "rules: [{deny: closed today}]\n"))
    with pytest.raises((MCPError, ExceptionGroup)) as caught:
        async with client(made, mode) as one:
            await one.list_tools()
    assert "closed today" in str(_innermost(caught.value))


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
