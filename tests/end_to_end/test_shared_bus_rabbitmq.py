"""Agents at two sidecars hear each other's events, by a RabbitMQ that the sidecars share."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meshd_sdk import Agent, Event
from tests.end_to_end.sidecar import Sidecar
from tests.engines.places import RABBITMQ, rabbitmq_remove, require


@pytest.fixture
def bus() -> Iterator[str]:
    require("rabbitmq", RABBITMQ)
    prefix = f"meshd_test_{secrets.token_hex(6)}"
    yield f"amqp://guest:guest@{RABBITMQ}?prefix={prefix}&timeout=10&connect_timeout=20"
    rabbitmq_remove(prefix)


def start(sidecar: Sidecar, bus: str, tmp_path: Path) -> str:
    """Start a sidecar on the bus, and return where its agents find it."""
    sidecar.start(None, "--bus", bus, "--mesh-key", str(tmp_path / "mesh.key"))
    assert f"Events are kept in amqp://{RABBITMQ}\n" in sidecar.log
    assert sidecar.running is not None
    return str(sidecar.running["api"])


async def test_agents_at_two_sidecars(sidecars: Callable[[str], Sidecar], bus: str, tmp_path: Path) -> None:
    gone, stays = sidecars("gone"), sidecars("stays")
    apis = [await asyncio.to_thread(start, one, bus, tmp_path) for one in (gone, stays)]
    begun: asyncio.Queue[tuple[str, Event, str]] = asyncio.Queue()
    end = asyncio.Event()

    def desk(api: str) -> Agent:
        made = Agent("desk", api=api, environ={}, grace=0)

        @made.on("orders.*", handling_time=600.0)
        async def on_order(event: Event) -> None:
            await begun.put((api, event, event.data["order"]))
            if event.data["order"] == "stuck" and event.attempt == 1:
                await end.wait()

        return made

    lost = desk(apis[0])
    await lost.__aenter__()
    async with Agent("shop", api=apis[1], environ={}, grace=0) as shop, shop.workflow("w") as ctx:
        done = [await ctx.publish("orders.placed", {"order": f"{n}"}, key="k", id=f"o{n}") for n in range(3)]
        again = await ctx.publish("orders.placed", {"order": "0"}, key="k", id="o0")
        assert (again.is_duplicate, again.sequence) == (True, done[0].sequence)
        for number in range(3):
            api, event, order = await begun.get()
            assert (api, event.id, order) == (apis[0], f"o{number}", f"{number}")
        await ctx.publish("orders.placed", {"order": "stuck"}, key="k")
        await ctx.publish("orders.placed", {"order": "next"}, key="k")
        _, event, _ = await begun.get()
        assert (event.attempt, event.may_have_been_handled) == (1, False)
        async with desk(apis[1]):
            gone.kill()
            # Long before its handling time is over: the other sidecar hears that the connection is gone.
            api, event, order = await begun.get()
            assert (api, event.attempt, event.may_have_been_handled, order) == (apis[1], 2, True, "stuck")
            assert (await begun.get())[2] == "next"
    end.set()
    with contextlib.suppress(Exception):
        async with asyncio.timeout(1):
            await lost.__aexit__(None, None, None)
