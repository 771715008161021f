"""Agents at several sidecars hear each other's events, by a bus that the sidecars share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import pytest

from meshd_sdk import Agent, Ctx, Event
from tests.end_to_end.sidecar import Sidecar
from tests.engines.kafka_mock import MockCluster
from tests.engines.servers import nats_server, redis_server, running

SYNCED = ("--appendonly", "yes", "--appendfsync", "always")


class Breaking(Protocol):
    """A server that goes, with all its connections, and comes back with all that it had acknowledged."""

    @property
    def address(self) -> str: ...
    def kill(self) -> None: ...
    async def start(self) -> None: ...


class MockBrokers:
    """librdkafka's mock cluster, which stands in for Kafka: its process stays, since it keeps nothing in a file."""

    def __init__(self) -> None:
        self.cluster = MockCluster()
        self.address = self.cluster.address

    def kill(self) -> None:
        self.cluster.set_up(is_up=False)

    async def start(self) -> None:
        self.cluster.set_up(is_up=True)


@contextlib.asynccontextmanager
async def mock_brokers(_: Path) -> AsyncIterator[MockBrokers]:
    brokers = MockBrokers()
    yield brokers
    brokers.cluster.close()


# An engine on a server gets its line here: how that is started, and what it is called.
ENGINES: dict[str, tuple[Callable[[Path], AbstractAsyncContextManager[Breaking]], str]] = {
    "redis": (lambda path: running(redis_server(path, *SYNCED)), "redis://{}/0"),
    "nats": (lambda path: running(nats_server(path)), "nats://{}"),
    "kafka mock": (mock_brokers, "kafka://{}?fetch_wait=0.01"),
}
Begun = tuple[str, str, int, bool]
"""What an agent has begun with: the sidecar's name, the order, the attempt, whether it may have been handled."""


class Shared:
    """Sidecars of one mesh on one bus."""

    def __init__(self, server: Breaking, bus: str, path: Path, sidecars: Callable[[str], Sidecar]) -> None:
        self.server = server
        self.bus = bus
        self._mesh_key = str(path / "mesh.key")
        self._sidecars = sidecars

    async def start(self, *names: str) -> list[Sidecar]:
        """Return sidecars of these names that run."""
        found = [self._sidecars(name) for name in names]
        for one in found:
            await self.start_again(one)
        return found

    async def start_again(self, sidecar: Sidecar) -> None:
        await asyncio.to_thread(sidecar.start, None, "--mesh-key", self._mesh_key, MESHD_BUS=self.bus)


@pytest.fixture(params=ENGINES)
async def shared(
    request: pytest.FixtureRequest, tmp_path: Path, sidecars: Callable[[str], Sidecar]
) -> AsyncIterator[Shared]:
    start, bus = ENGINES[request.param]
    async with start(tmp_path / "server") as server:
        yield Shared(server, bus.format(server.address), tmp_path, sidecars)


def agent(name: str, sidecar: Sidecar) -> Agent:
    assert sidecar.running is not None
    return Agent(name, api=str(sidecar.running["api"]), environ={}, grace=0)


def desk(sidecar: Sidecar, begun: asyncio.Queue[Begun], stays_at: str) -> Agent:
    """Return an agent that says what it begins with, and stays at the first attempt of one order for ever."""
    made = agent("desk", sidecar)

    @made.on("orders.*", from_oldest=True, handling_time=2.0)
    async def on_order(event: Event) -> None:
        order = event.data["order"]
        begun.put_nowait((sidecar.home.name, order, event.attempt, event.may_have_been_handled))
        if (order, event.attempt) == (stays_at, 1):
            await asyncio.Event().wait()

    return made


async def leave(lost: Agent) -> None:
    """End an agent whose sidecar is gone, and its handlers with it."""
    leaving = asyncio.ensure_future(lost.__aexit__(None, None, None))
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)


async def test_an_event_reaches_an_agent_at_another_sidecar_also_when_the_server_was_killed(shared: Shared) -> None:
    first, second = await shared.start("first", "second")
    assert f"Events are kept in {shared.bus.partition('?')[0]}\n" in first.log
    heard: asyncio.Queue[tuple[str, str, int]] = asyncio.Queue()
    listening = agent("desk", second)

    @listening.on("orders.*")
    async def on_order(ctx: Ctx, event: Event) -> None:
        heard.put_nowait((event.data["order"], ctx.workflow, event.attempt))

    async with listening, agent("shop", first) as shop:
        async with shop.workflow("order-7") as ctx:
            done = [await ctx.publish("orders.placed", {"order": f"{n}"}, key="k", id=f"o{n}") for n in range(3)]
            again = await ctx.publish("orders.placed", {"order": "0"}, key="k", id="o0")
        assert [one.is_duplicate for one in done] == [False] * 3
        assert (again.is_duplicate, again.sequence) == (True, done[0].sequence)
        assert [await heard.get() for _ in range(3)] == [(f"{n}", ctx.workflow, 1) for n in range(3)]
        # The server goes and comes back: nobody is started anew.
        shared.server.kill()
        await shared.server.start()
        async with shop.workflow("order-8") as ctx:
            await _published(ctx, "after")
        assert (await heard.get())[0] == "after"
        assert heard.empty()
    for one in (first, second):
        assert await asyncio.to_thread(one.stop) == 0
        assert "Traceback" not in one.log


async def _published(ctx: Ctx, order: str) -> None:
    """Publish until that is acknowledged; the same id is the same event."""
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(Exception):  # whatever it is called while there is no bus
                await ctx.publish("orders.placed", {"order": order}, id=order)
                return
            await asyncio.sleep(0.05)


async def test_what_the_agent_of_a_killed_sidecar_was_at_goes_to_another(shared: Shared) -> None:
    gone, stays = await shared.start("gone", "stays")
    begun: asyncio.Queue[Begun] = asyncio.Queue()
    lost = desk(gone, begun, stays_at="1")
    await lost.__aenter__()
    async with agent("shop", stays) as shop:
        await shop.ctx.publish("orders.placed", {"order": "1"})
        assert await begun.get() == ("gone", "1", 1, False)
        gone.kill()
        async with desk(stays, begun, stays_at="1"):
            assert await begun.get() == ("stays", "1", 2, True)
    await leave(lost)


async def test_a_killed_sidecar_that_is_started_again_goes_on_where_it_was(shared: Shared) -> None:
    publishing, handling = await shared.start("publishing", "handling")
    begun: asyncio.Queue[Begun] = asyncio.Queue()
    lost = desk(handling, begun, stays_at="2")
    async with agent("shop", publishing) as shop:
        await lost.__aenter__()
        # Of one key: the second is begun when the first is settled.
        for order in "12":
            await shop.ctx.publish("orders.placed", {"order": order}, key="k")
        assert await begun.get() == ("handling", "1", 1, False)
        assert await begun.get() == ("handling", "2", 1, False)
        handling.kill()
        await shop.ctx.publish("orders.placed", {"order": "3"})
        await leave(lost)
        await shared.start_again(handling)
        async with desk(handling, begun, stays_at="2"):
            got = [await begun.get(), await begun.get()]
        assert sorted(got) == [("handling", "2", 2, True), ("handling", "3", 1, False)]
    for one in (publishing, handling):
        assert await asyncio.to_thread(one.stop) == 0
        assert "Traceback" not in one.log
