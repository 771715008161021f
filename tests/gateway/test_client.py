"""The official client through the gateway, against two real servers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from mcp import MCPError
from mcp.types import CreateMessageResult, ElicitResult, TextContent

from tests.gateway.conftest import connect, document, text_of
from tests.gateway.servers import Docs
from tests.proxy.harness import until

if TYPE_CHECKING:
    from tests.gateway.servers import Sums

MODES = ("legacy", "2026-07-28")


@pytest.mark.parametrize("mode", MODES)
async def test_the_tools_of_all_servers_are_listed_and_called(both: Any, docs: Docs, sums: Sums, mode: str) -> None:
    async with connect(both, mode) as one:
        names = [tool.name for tool in (await one.list_tools()).tools]
        assert names[:2] == ["docs__search", "docs__delete"]
        assert names[-2:] == ["sums__add", "sums__search"]
        assert text_of(await one.call_tool("docs__search", {"words": "cats"})) == "docs: cats"
        assert text_of(await one.call_tool("sums__search", {"words": "cats"})) == "sums: cats"
        assert text_of(await one.call_tool("sums__add", {"a": 1, "b": 2})) == "3"
    assert docs.called == [("search", "cats")]
    assert sums.called == [(1, 2)]


@pytest.mark.parametrize("mode", MODES)
async def test_a_call_is_judged_once_and_as_what_it_is(both: Any, mode: str) -> None:
    seen: list[tuple[str, str, str]] = []
    both.per_call.on_admit = lambda call: seen.append(
        (call.target.name, call.agent, call.rpc.tool if call.rpc is not None else "")
    )
    async with connect(both, mode) as one:
        await one.list_tools()
        seen.clear()
        await one.call_tool("sums__add", {"a": 1, "b": 2})
    assert [one for one in seen if one[2]] == [("sums", "agent", "add")]


async def test_a_session_of_a_client_is_one_session_at_each_server(both: Any, docs: Docs, sums: Sums) -> None:
    async with connect(both) as one:
        for _ in range(3):
            await one.list_tools()
            await one.call_tool("docs__search", {"words": "x"})
            await one.call_tool("sums__add", {"a": 1, "b": 2})
        assert docs.app.count("initialize") == sums.app.count("initialize") == 1
        async with connect(both) as other:
            await other.get_prompt("docs__summary", {"topic": "x"})
            assert (docs.app.count("initialize"), sums.app.count("initialize")) == (2, 1)
    sessions = {fields.get(b"mcp-session-id") for fields in docs.app.fields}
    assert len(sessions) == 3  # Two, and none of `initialize`.
    # The client's end of its session is the end of those that were held for it.
    await until(lambda: (docs.app.methods.count("DELETE"), sums.app.methods.count("DELETE")) == (2, 1))


async def test_a_name_that_nobody_has_listed_is_looked_for(both: Any, docs: Docs) -> None:
    async with connect(both) as one:
        assert text_of(await one.call_tool("docs__search", {"words": "x"})) == "docs: x"


@pytest.mark.parametrize("mode", MODES)
async def test_a_tool_that_no_server_has(both: Any, mode: str) -> None:
    async with connect(both, mode) as one:
        await one.list_tools()
        with pytest.raises(MCPError, match="Did you mean docs__search") as caught:
            await one.call_tool("docs__serch", {"words": "x"})
        assert caught.value.error.code == -32602
        with pytest.raises(MCPError, match="No server here has a prompt"):
            await one.get_prompt("docs__nothing")


@pytest.mark.parametrize("mode", MODES)
async def test_progress_passes(both: Any, mode: str) -> None:
    steps: list[float] = []

    async def progressed(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    async with connect(both, mode) as one:
        done = await one.call_tool("docs__count", {"steps": 3}, progress_callback=progressed)
        assert text_of(done) == "counted"
    assert steps == [0, 1, 2]


async def test_servers_ask_their_client_and_each_gets_its_own_answer(mesh: Any, serve: Any) -> None:
    first, second = Docs("first"), Docs("second")
    made = await mesh(document({"first": await serve(first.app), "second": await serve(second.app)}))

    async def elicit(context: Any, params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"name": params.message.split()[0]})

    async def sample(context: Any, params: Any) -> CreateMessageResult:
        said = params.messages[0].content.text
        return CreateMessageResult(role="assistant", content=TextContent(type="text", text=f"about {said}"), model="m")

    async with connect(made, elicitation_callback=elicit, sampling_callback=sample) as one:
        told: dict[str, str] = {}

        async def call(name: str, arguments: dict[str, Any]) -> None:
            told[name] = text_of(await one.call_tool(name, arguments))

        calls = [call(f"{server}__greet", {}) for server in ("first", "second")]
        calls += [call(f"{server}__think", {"about": server}) for server in ("first", "second")]
        await asyncio.gather(*calls)
    assert told == {
        "first__greet": "hello first",
        "second__greet": "hello second",
        "first__think": "first thought: about first",
        "second__think": "second thought: about second",
    }


@pytest.mark.parametrize("mode", MODES)
async def test_prompts_and_resources(mesh: Any, serve: Any, mode: str) -> None:
    first, second = Docs("first"), Docs("second")
    made = await mesh(document({"first": await serve(first.app), "second": await serve(second.app)}))
    async with connect(made, mode) as one:
        assert [prompt.name for prompt in (await one.list_prompts()).prompts] == ["first__summary", "second__summary"]
        prompt = await one.get_prompt("second__summary", {"topic": "cats"})
        assert prompt.messages[0].content.text == "second: summarise cats"
        uris = [str(resource.uri) for resource in (await one.list_resources()).resources]
        assert uris == ["note://today", "second+note://today"]
        for uri, said in (("note://today", "today at first"), ("second+note://today", "today at second")):
            assert (await one.read_resource(uri)).contents[0].text == said
        templates = [one.uri_template for one in (await one.list_resource_templates()).resource_templates]
        assert templates == ["first://pages/{page}", "second://pages/{page}"]
        assert (await one.read_resource("second://pages/7")).contents[0].text == "second page 7"


async def test_a_change_of_the_tools_is_heard_and_seen(both: Any) -> None:
    heard = asyncio.Event()

    async def message(said: Any) -> None:
        if getattr(said, "method", "") == "notifications/tools/list_changed":
            heard.set()

    async with connect(both, message_handler=message) as one:
        await one.list_tools()
        await one.call_tool("docs__grow", {})
        await heard.wait()
        assert "docs__grown" in [tool.name for tool in (await one.list_tools()).tools]
        assert text_of(await one.call_tool("docs__grown", {})) == "grown"


@pytest.mark.parametrize("mode", MODES)
async def test_what_is_not_allowed_is_not_seen(mesh: Any, serve: Any, docs: Docs, sums: Sums, mode: str) -> None:
    rules = """governance: {allowed_tools: [add, search]}
rules:
  - {name: r1, match: {target: sums, tool: search}, deny: not there}
  - {name: r2, match: {operation: resources/read}, deny: nothing is read}
"""
    made = await mesh(document({"docs": await serve(docs.app), "sums": await serve(sums.app)}, rules))
    async with connect(made, mode) as one:
        assert [tool.name for tool in (await one.list_tools()).tools] == ["docs__search", "sums__add"]
        assert (await one.list_resources()).resources == []
        with pytest.raises(MCPError, match="The tool delete is not allowed") as caught:
            await one.call_tool("docs__delete", {"path": "x"})
        assert caught.value.error.code == -32014
        with pytest.raises(MCPError, match="nothing is read"):
            await one.read_resource("note://today")
        assert text_of(await one.call_tool("sums__add", {"a": 1, "b": 2})) == "3"
    assert not docs.called
