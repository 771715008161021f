"""An event's handler makes a call that a person must allow, with real daemons: it waits, and is carried out once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from meshd_sdk import Agent, Ctx, Event
from tests.end_to_end.test_approvals import ANA, Tool, decide, document, listed
from tests.engines.servers import nats_server, redis_server, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.end_to_end.sidecar import Sidecar

SERVERS = {"redis": (redis_server, "redis://{}/0"), "nats": (nats_server, "nats://{}")}


@pytest.fixture
def tool() -> Iterator[Tool]:
    made = Tool()
    made.answer = b'"done"'
    yield made
    made.close()


@pytest.fixture(params=["sqlite", *SERVERS])
async def bus(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    if request.param not in SERVERS:
        yield "sqlite:"
        return
    server, url = SERVERS[request.param]
    async with running(server(tmp_path / "server")) as one:
        yield url.format(one.address)


async def soon(is_so: Callable[[], Any]) -> Any:
    async with asyncio.timeout(30):
        while not (found := await asyncio.to_thread(is_so)):
            await asyncio.sleep(0.02)
    return found


@pytest.mark.parametrize("asks", ["a call", "the agent itself"])
async def test_a_person_takes_a_while(sidecars: Callable[[str], Sidecar], bus: str, tool: Tool, asks: str) -> None:
    sidecar = sidecars("one")
    text = document(tool, "hold: 0s").replace("agent: researcher", "agent: clerk")
    await asyncio.to_thread(sidecar.start, text, MESHD_BUS=bus, MESHD_API="127.0.0.1:0")
    assert sidecar.running is not None
    agent = Agent("clerk", api=str(sidecar.running["api"]), environ={}, grace=0)
    attempts: list[tuple[int, bool]] = []
    done: list[str] = []

    # What the agent asks about itself it waits for as long as its event may be handled, less a quarter.
    @agent.on("order.placed", handling_time=300 if asks == "a call" else 4.0)
    async def refund(ctx: Ctx, event: Event) -> None:
        attempts.append((event.attempt, event.may_have_been_handled))
        if asks == "a call":
            await ctx.call("billing/refunds", {"order": event["order"]})
        else:
            await ctx.ask_approval("refund", {"order": event["order"]})
        done.append(event["order"])

    async with agent, agent.workflow("w1") as ctx:
        await ctx.publish("order.placed", {"order": "7"}, key="k")
        (asked,) = await soon(lambda: listed(sidecar, "pending"))
        await soon(lambda: sidecar.metric("meshd_events_settled_total", result="deferred"))
        await ctx.publish("order.placed", {"order": "8"}, key="k")
        (group,) = await soon(lambda: [one for one in groups(sidecar) if one["waiting"] or one["lag"]])
        assert (group["under_way"], group["dead"]) == (0, 0)
        assert attempts == [(1, False)]
        assert tool.asked == []
        assert (await asyncio.to_thread(decide, sidecar, asked["id"], "approve", ANA))[0] == 200
        await soon(lambda: done)
        # The next of its key was waiting, and asks for itself.
        (other,) = await soon(lambda: listed(sidecar, "pending"))
        assert (done, attempts[:2]) == (["7"], [(1, False)] * 2)
        assert (await asyncio.to_thread(decide, sidecar, other["id"], "deny", ANA, {"reason": "not this one"}))[
            0
        ] == 200
        await soon(lambda: len(attempts) > 3)
    assert done == ["7"]
    assert len(tool.asked) == (asks == "a call")
    assert [one["id"] for one in listed(sidecar, "used")] == [asked["id"]]
    assert "Traceback" not in sidecar.log


def groups(sidecar: Sidecar) -> list[dict[str, Any]]:
    return list(sidecar.admin("/v1/events/groups")["groups"])
