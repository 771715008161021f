"""A server that meshd starts stands behind the gateway as every other one."""

from __future__ import annotations

from typing import Any

import pytest

from meshd.gateway import opening
from meshd.sources.mcp_server import McpServer
from tests.bridge.conftest import SERVER, SERVER_OF_2025, started
from tests.bridge.server import made as official
from tests.gateway.conftest import connect, text_of

__all__ = ["started"]


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_a_server_over_stdio(started: Any, mode: str) -> None:
    made = await started(str(SERVER))
    async with connect(made, mode) as one:
        assert "files__add" in [tool.name for tool in (await one.list_tools()).tools]
        assert text_of(await one.call_tool("files__add", {"a": 1, "b": 2})) == "3"
        steps: list[float] = []

        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            steps.append(progress)

        done = await one.call_tool("files__slow", {"steps": 3}, progress_callback=progressed)
        assert (text_of(done), steps) == ("done", [0, 1, 2])


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_a_server_that_knows_2025_alone(started: Any, mode: str) -> None:
    made = await started(str(SERVER_OF_2025))
    async with connect(made, mode) as one, connect(made, mode) as other:
        for each, words in ((one, "bees"), (other, "tides")):
            assert [tool.name for tool in (await each.list_tools()).tools] == ["files__find"]
            assert text_of(await each.call_tool("files__find", {"words": words})) == f"found {words}"
        steps: list[float] = []

        async def progressed(progress: float, total: float | None, message: str | None) -> None:
            steps.append(progress)

        done = await one.call_tool("files__find", {"words": "ants"}, progress_callback=progressed)
        assert (text_of(done), steps) == ("found ants", [1])


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_a_server_of_two_endpoints(mesh: Any, serve: Any, mode: str) -> None:
    url = f"http://127.0.0.1:{await serve(official().sse_app())}/sse"
    made = await mesh(f"upstreams:\n  files: {{kind: tool, dialect: mcp, transport: sse, url: '{url}'}}\n")
    async with connect(made, mode) as one:
        assert "files__add" in [tool.name for tool in (await one.list_tools()).tools]
        assert text_of(await one.call_tool("files__add", {"a": 1, "b": 2})) == "3"


async def test_each_client_has_a_copy_of_its_own(started: Any) -> None:
    made = await started(str(SERVER))
    async with connect(made) as one, connect(made) as other:
        assert text_of(await one.call_tool("files__keep", {"value": "mine"})) == "nothing"
        assert text_of(await other.call_tool("files__keep", {"value": "theirs"})) == "nothing"
        assert text_of(await one.call_tool("files__keep", {"value": ""})) == "mine"


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_a_server_may_take_the_time_to_start_that_the_policy_gives_it(
    started: Any, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(opening, "OPEN_S", 0.001)  # No program starts as fast.
    made = await started(str(SERVER_OF_2025))
    async with connect(made, mode) as one:
        assert text_of(await one.call_tool("files__find", {"words": "bees"})) == "found bees"


async def test_who_asks_for_the_catalogue_waits_for_a_server_to_start(started: Any) -> None:
    made = await started(str(SERVER_OF_2025))
    found = await McpServer(made.proxy, "files", timeout_s=0.001).look()
    assert [entry.name for entry in found.entries] == ["find"]
