"""Agents at two sidecars that answer each other's events are stopped as those that call each other are."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from meshd_sdk import Agent, Ctx, Event
from tests.end_to_end.test_shared_bus import SYNCED
from tests.engines.servers import Server, redis_server, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.end_to_end.sidecar import Sidecar

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "indigo", "juniper")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with running(redis_server(tmp_path / "server", *SYNCED)) as one:
        yield one


class Pair:
    """Two agents: what each hears it answers, until one of its publications is refused."""

    def __init__(self, apis: list[str], *, says: Callable[[int], Any]) -> None:
        self.heard: list[tuple[str, str, int]] = []
        self.refused: asyncio.Queue[Exception] = asyncio.Queue()
        self.agents = [self._agent("ping", "pong", apis[0], says), self._agent("pong", "ping", apis[1], says)]

    def _agent(self, name: str, other: str, api: str, says: Callable[[int], Any]) -> Agent:
        made = Agent(name, api=api, environ={}, grace=0)

        @made.on(f"to.{name}")
        async def heard(ctx: Ctx, event: Event) -> None:
            self.heard.append((name, ctx.workflow, ctx.hops))
            try:
                await ctx.publish(f"to.{other}", says(len(self.heard)))
            except Exception as error:  # noqa: BLE001 - which one it is, is what is asked
                await self.refused.put(error)

        return made


async def stopped(sidecars: Any, server: Server, tmp_path: Path, document: str, says: Callable[[int], Any]) -> Any:
    """Let the two begin, and return them with why they were stopped."""
    apis = []
    for name in ("first", "second"):
        one = sidecars(name)
        arguments = ("--bus", f"redis://{server.address}/0", "--mesh-key", str(tmp_path / "mesh.key"))
        await asyncio.to_thread(one.start, document, *arguments)
        apis.append(str(one.running["api"]))
    pair = Pair(apis, says=says)
    async with pair.agents[0] as ping, pair.agents[1], ping.workflow("runaway") as ctx:
        await ctx.publish("to.pong", says(0))
        async with asyncio.timeout(60):
            error = await pair.refused.get()
    return pair, error


async def test_hops_stop_events_that_say_something_new_each_time(
    sidecars: Callable[[str], Sidecar], server: Server, tmp_path: Path
) -> None:
    document = "agent: main\nlimits: {hops: 6, turns: {reentry: 99}}\n"
    pair, error = await stopped(sidecars, server, tmp_path, document, lambda n: f"{WORDS[n]} {WORDS[-n]}")
    assert error.reason == "hop_limit"
    assert [hops for _, _, hops in pair.heard] == [1, 2, 3, 4, 5, 6]
    assert {workflow for _, workflow, _ in pair.heard} == {"runaway"}
    assert [name for name, _, _ in pair.heard] == ["pong", "ping"] * 3


async def test_turns_stop_events_that_go_in_circles(
    sidecars: Callable[[str], Sidecar], server: Server, tmp_path: Path
) -> None:
    document = "agent: main\nlimits: {hops: 100}\n"
    pair, error = await stopped(sidecars, server, tmp_path, document, lambda n: "what do you mean?")
    assert error.reason in ("loop", "max_turns")
    # Within three periods, as calls are.
    assert len(pair.heard) <= 8


async def test_a_rule_keeps_an_agent_from_what_it_may_not_handle(
    sidecars: Callable[[str], Sidecar], server: Server, tmp_path: Path
) -> None:
    rule = "{name: no-pong, match: {kind: event, agent: ping, operation: 'PUBLISH to.pong'}, deny: pong is asleep}"
    document = f"agent: main\nrules:\n  - {rule}\n"
    one = sidecars("only")
    arguments = ("--bus", f"redis://{server.address}/0")
    await asyncio.to_thread(one.start, document, *arguments)
    assert one.running is not None
    async with Agent("ping", api=str(one.running["api"]), environ={}, grace=0) as ping, ping.workflow("w") as ctx:
        with pytest.raises(Exception, match="pong is asleep") as caught:
            await ctx.publish("to.pong", 1)
        assert caught.value.reason == "not_allowed"  # type: ignore[attr-defined]
        await ctx.publish("to.other", 1)
