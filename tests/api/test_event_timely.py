"""An event that a sidecar has taken and not handed over when its time is over: others have it, and nobody else."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from google.protobuf.duration_pb2 import Duration

from meshd.api.pushing import Pushing
from meshd.engines.bus_memory import MemoryBus
from meshd.engines.bus_port import Event, Verdict
from meshd_sdk.v1 import events_pb2, events_pb2_grpc
from meshd_sdk.v1 import events_pb2 as ev
from tests.api.house import house
from tests.api.test_session_events import ALONE, publish, subscribe
from tests.engines.buses import Hands
from tests.proxy.harness import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshd.engines.bus_port import Subscription

pytestmark = pytest.mark.both_loops


def stand_once(mesh: Any, clock: Hands) -> None:
    """Let the sidecar stand still for longer than an event may be handled, the next time that it has taken one."""
    wall_clock = mesh.wall_clock

    def stand() -> float:
        mesh.wall_clock = wall_clock
        clock.move(61.0)
        return wall_clock()  # type: ignore[no-any-return]

    mesh.wall_clock = stand


async def goes_elsewhere(mesh: Any, clock: Hands, other: Subscription, publish: Callable[[str], Any]) -> None:
    """Publish `late`, which goes to another while the sidecar stands, and then `next`."""
    taking = asyncio.ensure_future(other.next())
    await asyncio.sleep(0)
    stand_once(mesh, clock)
    await publish("late")
    async with asyncio.timeout(20):
        delivery = await taking
    assert delivery.event.id == "late"
    assert await other.settle(delivery, Verdict.SUCCESS)
    await publish("next")


async def waits(bus: MemoryBus) -> None:
    """Return when somebody waits for events."""
    await until(lambda: any(line._waiting for line in bus._lines.values()))


@pytest.mark.parametrize("way", ["stream of gRPC", "server-sent events"])
async def test_a_stream_is_not_handed_what_others_have(tmp_path: Path, way: str) -> None:
    clock = Hands()
    bus = MemoryBus(clock=clock)
    async with house(tmp_path) as one, aiohttp.ClientSession() as client:
        one.mesh.bus = bus
        if way == "stream of gRPC":
            asked = ev.SubscribeRequest(topic="t", group="g", handling_time=Duration(seconds=60))
            stream = events_pb2_grpc.EventServiceStub(one.channel).Subscribe(asked)
            first = asyncio.ensure_future(stream.read())
        else:
            url = f"http://{one.address}/v1/events/t?group=g&handling_time=60s"
            first = asyncio.ensure_future(first_event(client, url))
        await waits(bus)
        other = await bus.subscribe("t", "g", handling_s=600.0)
        await goes_elsewhere(one.mesh, clock, other, lambda id: bus.publish([Event("t", "ann", id=id)]))
        async with asyncio.timeout(20):
            found = await first
        assert found.event.id == "next"
        assert found.attempt == 1
    await bus.close()


async def first_event(client: aiohttp.ClientSession, url: str) -> ev.SubscribeResponse:
    async with client.get(url) as reply:
        async for line in reply.content:
            if line.startswith(b"data:"):
                told = json.loads(line[5:])
                return ev.SubscribeResponse(attempt=told["attempt"], event=events_pb2.Event(id=told["event"]["id"]))
    raise AssertionError("the stream ended")


async def test_a_session_is_not_handed_what_others_have(door: Any) -> None:
    clock = Hands()
    bus = MemoryBus(clock=clock)
    one = await door(ALONE, bus)
    b = await one.peer("b")
    await subscribe(b, "t", group="g", handling_time=Duration(seconds=60))
    await waits(bus)
    other = await bus.subscribe("t", "g", handling_s=600.0)
    await goes_elsewhere(one.mesh, clock, other, lambda id: bus.publish([Event("t", "a", id=id)]))
    assert (await b.next("event")).event.id == "next"


async def test_a_session_that_is_resumed_too_late_is_not_handed_what_others_have(door: Any) -> None:
    clock = Hands()
    bus = MemoryBus(clock=clock)
    one = await door(ALONE, bus)
    a, b = await one.peer("a"), await one.peer("b", credit=1)
    await subscribe(b, "t", group="g", handling_time=Duration(seconds=60))
    other = await bus.subscribe("t", "g", handling_s=600.0)
    await publish(a, "t", id="late")
    (session,) = [each for each in one.service._by_digest.values() if each.name == "b"]
    await until(lambda: session.events._handed and not session._unsent)
    b.break_off()  # it was written, and never received
    await until(lambda: session.wire is None)
    clock.move(61.0)
    delivery = await other.next()
    assert (delivery.event.id, delivery.attempt) == ("late", 2)
    assert await other.settle(delivery, Verdict.SUCCESS)
    again = await one.peer("b", session=b.welcome.session, received=b.received, credit=1)
    await publish(a, "t", id="next")
    # Nor does it cost the agent its credit.
    assert (await again.next("event")).event.id == "next"
    assert session.seq == again.received, "every frame came, one of them empty"


POLICY = """
agent: manager
upstreams:
  worker: {{url: "http://127.0.0.1:{port}/base", kind: agent}}
subscriptions:
  - {{topic: t, to: worker, path: /hook, handling_time: 60s, group: g}}
"""


async def test_nobody_is_called_with_what_others_have(door: Any, upstream: Any) -> None:
    got: list[Any] = []

    async def answer(peer: Any) -> None:
        while True:
            got.append(await peer.request())
            peer.reply(b"done", status=b"200 OK")

    clock = Hands()
    bus = MemoryBus(clock=clock)
    taker = await upstream(answer)
    one = await door(POLICY.format(port=taker.port), bus)
    pushing = Pushing(one.mesh)
    pushing.take(one.mesh.policy)
    await waits(bus)
    other = await bus.subscribe("t", "g", handling_s=600.0)
    await goes_elsewhere(one.mesh, clock, other, lambda id: bus.publish([Event("t", "manager", id=id)]))
    await until(lambda: got)
    assert [each.get(b"ce-id") for each in got] == [b"next"]
    await pushing.end(0)
