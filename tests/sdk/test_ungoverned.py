"""Agents of one process, without a sidecar, by the program's own wish."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from meshd_sdk import Agent, CallFailed, Ctx, Drop, NoSidecar, Retry, current
from tests.ports import free_port
from tests.sdk.conftest import soon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@pytest.fixture
def alone() -> Callable[..., Agent]:
    """Make agents for whom nothing listens."""
    port = free_port()
    return lambda name: Agent(name, api=f"127.0.0.1:{port}", without="run", environ={})


async def test_agents_of_one_process_call_one_another(alone: Callable[..., Agent]) -> None:
    asker, other = alone("asker"), alone("other")

    @other.tool
    async def add(ctx: Ctx, a: int, b: int = 1) -> Any:
        async with ctx.step("add") as step:
            step.note("no trace")
        assert not ctx.is_governed
        assert current() is ctx.current
        return [a + b, ctx.workflow, ctx.token, await ctx.balance()]

    @other.tool
    async def count() -> AsyncIterator[int]:
        yield 1
        yield 2

    @other.tool
    async def fails() -> None:
        raise ZeroDivisionError

    async with asker, other, asker.workflow("alone-1", tokens=10) as ctx:
        assert await ctx.call("other/add", {"a": 1}) == [2, "alone-1", "", []]
        assert [piece async for piece in ctx.stream("other/count")] == [1, 2]
        async with ctx.delegate(5) as part:
            assert (await part.call("other/add", {"a": 2}))[0] == 3
        with pytest.raises(CallFailed, match="expected an integer"):
            await ctx.call("other/add", {"a": "x"})
        with pytest.raises(CallFailed, match="ZeroDivisionError"):
            await ctx.call("other/fails")
        with pytest.raises(NoSidecar, match="openai is not in this process"):
            await ctx.call("openai/v1/models")
        assert await ctx.report_usage("local", 5) == (0, False)
        await ctx.note("gone")


async def test_events_reach_the_handlers_of_the_process(alone: Callable[..., Agent]) -> None:
    one, two, seen = alone("one"), alone("two"), []

    @one.on("task.*")
    @two.on("task.assigned", group="g")
    async def handle(event: Any) -> None:
        seen.append((event.topic, event.data, event.attempt, event.source))
        if event.data == "drop":
            raise Drop
        if event.data == "again" and event.attempt < 3:
            raise Retry(after=0)

    async with one, two:
        first = await one.ctx.publish("task.assigned", "a", id="x")
        assert (await one.ctx.publish("task.assigned", "a", id="x")).is_duplicate
        assert not first.is_duplicate
        await one.ctx.publish("task.done", "drop")
        await one.ctx.publish("task.done", "again")
        await soon(lambda: ("task.done", "again", 3, "one") in seen)
    assert seen.count(("task.assigned", "a", 1, "one")) == 2
    assert seen.count(("task.done", "drop", 1, "one")) == 1


async def test_a_name_is_there_once(alone: Callable[..., Agent]) -> None:
    async with alone("same"):
        with pytest.raises(ValueError, match="in this process already"):
            async with alone("same"):
                pass
    async with alone("same"):
        pass


async def test_what_runs_is_finished(alone: Callable[..., Agent]) -> None:
    agent, began, done = alone("slow"), asyncio.Event(), []

    @agent.on("x")
    async def handle() -> None:
        began.set()
        await asyncio.sleep(0.02)
        done.append(1)

    async with agent:
        await agent.ctx.publish("x")
        await began.wait()
    assert done == [1]
