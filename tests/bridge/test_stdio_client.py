"""The official MCP client, over streamable HTTP, against the official server that is started over stdio."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from mcp import MCPError
from mcp.types import ElicitResult

from tests.bridge.conftest import SERVER, client, sessions, text_of
from tests.proxy.harness import until

MODES = ("legacy", "2026-07-28")


@pytest.mark.parametrize("sandbox", ["none", "bwrap"])
@pytest.mark.parametrize("mode", MODES)
async def test_a_server_is_started_and_called(started: Any, mode: str, sandbox: str) -> None:
    made = await started(str(SERVER), sandbox=sandbox)
    async with client(made, mode) as one:
        assert "add" in [tool.name for tool in (await one.list_tools()).tools]
        assert text_of(await one.call_tool("add", {"a": 1, "b": 2})) == "3"
        steps: list[float] = []

        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            steps.append(progress)

        assert text_of(await one.call_tool("slow", {"steps": 3}, progress_callback=progressed)) == "done"
        assert steps == [0, 1, 2]


async def test_sessions_are_kept_apart(started: Any) -> None:
    made = await started(str(SERVER))
    async with client(made, "legacy") as one, client(made, "legacy") as other:
        assert text_of(await one.call_tool("keep", {"value": "mine"})) == "nothing"
        assert text_of(await other.call_tool("keep", {"value": "theirs"})) == "nothing"
        assert text_of(await one.call_tool("keep", {"value": ""})) == "mine"
        assert text_of(await one.call_tool("who", {})) != text_of(await other.call_tool("who", {}))


async def test_clients_without_sessions_share_one_copy_and_their_ids_never_meet(started: Any) -> None:
    made = await started(str(SERVER))
    async with client(made, "2026-07-28") as one, client(made, "2026-07-28") as other:
        assert text_of(await one.call_tool("who", {})) == text_of(await other.call_tool("who", {}))
        both = [(each, number) for number in range(20) for each in (one, other)]
        steps: dict[int, list[str]] = {0: [], 1: []}

        def counted(at: int) -> Any:
            async def progressed(progress: float, total: float | None, message: str | None) -> None:
                steps[at].append(f"{progress:g}/{total:g}")

            return progressed

        answers = await asyncio.gather(
            *[each.call_tool("add", {"a": number, "b": 1000 * at}) for at, (each, number) in enumerate(both)],
            one.call_tool("slow", {"steps": 2}, progress_callback=counted(0)),
            other.call_tool("slow", {"steps": 3}, progress_callback=counted(1)),
        )
        expected = [str(number + 1000 * at) for at, (_, number) in enumerate(both)]
        assert [text_of(answer) for answer in answers[:-2]] == expected
        # The SDK names progress by the request's id, and both of them count alike.
        assert steps == {0: ["0/2", "1/2"], 1: ["0/3", "1/3", "2/3"]}
    assert sessions(made).running == 1


async def test_a_server_asks_its_client(started: Any) -> None:
    made = await started(str(SERVER))
    asked: list[str] = []

    async def elicited(context: Any, params: Any) -> ElicitResult:
        asked.append(params.message)
        return ElicitResult(action="accept", content={"name": "blue"})

    async with client(made, "legacy", elicitation_callback=elicited) as one, client(made, "legacy") as other:
        await other.list_tools()
        assert text_of(await one.call_tool("ask", {})) == "blue"
    assert asked == ["Which colour?"]


async def test_rules_see_the_tool(started: Any) -> None:
    made = await started(str(SERVER), rules='rules: [{match: {tool: "ke*"}, deny: nothing is kept}]\n')
    async with client(made) as one:
        with pytest.raises(MCPError, match="nothing is kept"):
            await one.call_tool("keep", {"value": "x"})
        assert text_of(await one.call_tool("add", {"a": 1, "b": 2})) == "3"


async def test_a_crash_is_told_with_its_last_words_and_without_its_secrets(started: Any) -> None:
    made = await started(str(SERVER))
    async with client(made, "legacy") as one:
        await one.call_tool("keep", {"value": "lost"})
        with pytest.raises(MCPError) as caught:
            await one.call_tool("crash", {})
        assert "files ended with exit status 3" in caught.value.error.message
        assert "it fell over" in caught.value.error.message
        assert "verysecret" not in caught.value.error.message
        assert caught.value.error.data["reason"] == "upstream_unreachable"
        # Another copy serves the same session, having been told what the client said at its beginning.
        assert text_of(await one.call_tool("keep", {"value": "x"})) == "nothing"


async def test_a_session_that_is_not_restarted_is_over(started: Any) -> None:
    made = await started(str(SERVER), restart="never")
    async with client(made, "legacy") as one:
        with pytest.raises(MCPError, match="exit status 3"):
            await one.call_tool("crash", {})
        with pytest.raises(MCPError, match=r"[Ss]ession"):
            await one.call_tool("add", {"a": 1, "b": 2})


@pytest.mark.parametrize("mode", MODES)
async def test_a_client_that_waits_no_more(started: Any, mode: str) -> None:
    made = await started(str(SERVER))
    async with client(made, mode) as one:
        await one.list_tools()
        with pytest.raises(MCPError):
            await one.call_tool("never", {}, read_timeout_seconds=0.2)
        assert text_of(await one.call_tool("add", {"a": 1, "b": 2})) == "3"
        made.ahead_s += 6  # of a cancelled call an answer is waited for five seconds
        await until(lambda: not any(session.underway for session in sessions(made).all))
        # What was answered late has come to the client, which knows nothing of it any more.
        assert text_of(await one.call_tool("add", {"a": 2, "b": 2})) == "4"
    await until(lambda: not [one for one in sessions(made).all if one.id])
