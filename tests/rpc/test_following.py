"""Whoever subscribes to a held task is told of it until it is over: the decision, and what the agent answered."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from a2a.helpers import new_text_message
from a2a.types import CancelTaskRequest, Role, SendMessageConfiguration, SendMessageRequest

from meshd.engines.memory import MemoryStore
from tests.proxy.harness import get, post, turns, until
from tests.rpc.asking import decide, document, pending, state_of
from tests.rpc.test_held_streams import VERSIONS, Subscription, client, said

if TYPE_CHECKING:
    from tests.rpc.servers import Echo


async def held(one: Any, text: str = "hello") -> str:
    """Send a message that waits for a person, and return its task."""
    request = SendMessageRequest(
        message=new_text_message(text, role=Role.ROLE_USER),
        configuration=SendMessageConfiguration(return_immediately=True),
    )
    one._config.streaming = False
    (event,) = [event async for event in one.send_message(request)]
    one._config.streaming = True
    assert state_of(event.task) == "AUTH_REQUIRED"
    return str(event.task.id)


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_decision_and_the_answer_are_told(mesh: Any, agent_port: int, echo: Echo, version: str) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a"), store=MemoryStore())
    async with client(made, version) as one:
        id = await held(one)
        following, other = Subscription(one, id), Subscription(one, id)
        assert state_of((await following.first()).task) == "AUTH_REQUIRED"
        await other.first()
        await turns()
        assert (len(following.events), echo.told) == (1, [])
        await decide(made)
        events = await following.over()
        assert said(events) == ["WORKING", "COMPLETED"]
        assert {event.status_update.task_id for event in events} == {id}
        assert events[-1].status_update.status.message.parts[0].text == "you said hello"
        assert said(await other.over())[-1] == "COMPLETED"
        assert echo.told == ["hello"]  # once, however many follow it


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_no_and_a_cancel_are_told(mesh: Any, agent_port: int, echo: Echo, version: str) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a"), store=MemoryStore())
    async with client(made, version) as one:
        denied = Subscription(one, await held(one, "a"))
        await denied.first()
        await decide(made, is_allowed=False)
        (event,) = await denied.over()
        assert said([event]) == ["REJECTED"]
        assert "not on a Friday" in event.status_update.status.message.parts[0].text
        id = await held(one, "b")
        cancelled = Subscription(one, id)
        await cancelled.first()
        await one.cancel_task(CancelTaskRequest(id=id))
        assert said(await cancelled.over()) == ["CANCELED"]
        # What is over is told once.
        again = Subscription(one, id)
        assert await again.over() == []
        assert state_of(again.events[0].task) == "CANCELED"
        assert echo.told == []


async def test_who_hangs_up_leaves_nothing_behind_and_a_drain_ends_it(mesh: Any, agent_port: int) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a"), store=MemoryStore())
    async with client(made) as one:
        id = await held(one)
        gone, stays = Subscription(one, id), Subscription(one, id)
        await gone.first()
        await stays.first()
        await until(lambda: len(made.desk.line) == 2)
        gone.leave()
        await until(lambda: len(made.desk.line) == 1)
        assert await made.proxy.drain(30.0)
        assert await stays.over() == []
        assert len(made.desk.line) == 0
        assert await pending(made)


@pytest.mark.parametrize("id", ["meshd-", "meshd-x", "meshd-k7x2-m9qr-tzab-" + "0" * 32, "", 5, None, ["meshd-"]])
async def test_what_is_no_task_of_ours_goes_on_to_the_agent(mesh: Any, agent_port: int, id: Any) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a"), store=MemoryStore())
    asked = {"jsonrpc": "2.0", "id": 1, "method": "SubscribeToTask", "params": {"id": id}}
    fields = ("content-type: application/json", "a2a-version: 1.0", "accept: text/event-stream")
    reply = await made.fetch(post("/echo/", json.dumps(asked).encode(), *fields))
    assert reply.status in (200, 202, 400)
    assert b"AUTH_REQUIRED" not in reply.body
    assert (await made.fetch(get("/echo/.well-known/agent-card.json"))).status in (200, 404)
    await asyncio.sleep(0)
