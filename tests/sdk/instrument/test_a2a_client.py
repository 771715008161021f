"""The official A2A client against a real A2A agent, an upstream of kind agent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from a2a.client import Client, ClientConfig, ClientFactory
from a2a.helpers import get_stream_response_text, new_text_message
from a2a.types.a2a_pb2 import Role, SendMessageRequest

from meshd_sdk import using
from tests.sdk.instrument.others import Peer
from tests.sdk.instrument.world import World

pytestmark = pytest.mark.usefixtures("instrumented")


def client_of(base: str, streams: bool) -> Client:
    return ClientFactory(ClientConfig(streaming=streams)).create(Peer.card(f"{base}/rpc"))


async def send(client: Client, text: str, task: Any = None) -> list[Any]:
    ids = {} if task is None else {"task_id": task.id, "context_id": task.context_id}
    message = new_text_message(text, role=Role.ROLE_USER, **ids)
    return [event async for event in client.send_message(SendMessageRequest(message=message))]


@pytest.mark.parametrize("streams", [True, False])
def test_an_agent_asked_for_an_answer_is_in_its_workflow_one_hop_on(world: World, streams: bool) -> None:
    async def act(_: Any) -> str:
        async with client_of(f"{world.url}/peer", streams) as client:
            (event,) = await send(client, "where are you?")
            return get_stream_response_text(event)

    workflow, answer = world.tell(act)
    assert answer == workflow, "the agent itself has the context, and its executor too"
    was = world.peer.turns.was[-1]
    assert was is not None
    context = world.read(was.token)
    assert (context.agent, context.hops, context.path) == ("peer", 2, ("researcher", "writer"))
    world.is_charged(workflow, "peer")


async def test_turns_of_one_task_from_two_workflows_do_not_mix(world: World) -> None:
    (first, now), (second, later) = [await asyncio.to_thread(world.opened) for _ in range(2)]
    async with client_of(f"{world.url}/peer", True) as client:
        with using(now):
            events = await send(client, "open")
        task = events[0].task
        with using(later):
            await send(client, "go on", task)
    assert [one.workflow for one in world.peer.turns.was[-2:] if one] == [first, second]


async def test_an_agent_called_directly_is_told_nothing_in_headers_or_message(world: World) -> None:
    _, now = await asyncio.to_thread(world.opened)
    headers, bodies = len(world.peer.seen.headers), len(world.peer.seen.bodies)
    with using(now):
        async with client_of(world.peer.url, True) as client:
            (event,) = await send(client, "where are you?")
    assert get_stream_response_text(event) == "none"
    assert [name for name in world.peer.seen.headers[headers] if name.startswith(("x-meshd", "trace"))] == []
    assert now.token not in str(world.peer.seen.bodies[bodies:])
