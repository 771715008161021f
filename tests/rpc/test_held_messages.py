"""A2A messages that a person decides, answered with a task: by the official client, and by raw requests."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from a2a.client import ClientConfig, ClientFactory
from a2a.helpers import new_text_message
from a2a.types import CancelTaskRequest, GetTaskRequest, Role, SendMessageRequest, Task
from a2a.utils.errors import A2AError

from meshd.approvals.state import State
from meshd.engines.memory import MemoryStore
from tests.proxy.harness import until
from tests.rpc.asking import ANA, WORKFLOW, decide, document, pending, state_of
from tests.rpc.servers import card

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.proxy.harness import Mesh, Peer
    from tests.rpc.servers import Echo

VERSIONS = ("1.0", "0.3")
TOKEN = "Bearer the-callers-own"


@asynccontextmanager
async def client(mesh: Mesh, version: str, *, is_polling: bool = True, **fields: str) -> AsyncIterator[Any]:
    headers = {**WORKFLOW, "authorization": TOKEN, **fields}
    async with httpx.AsyncClient(trust_env=False, headers=headers, timeout=30) as http:
        config = ClientConfig(streaming=False, polling=is_polling, httpx_client=http)
        yield ClientFactory(config).create(card(f"http://127.0.0.1:{mesh.port}/echo/", "JSONRPC", version))


async def send(one: Any, text: str = "hello") -> Any:
    request = SendMessageRequest(message=new_text_message(text, role=Role.ROLE_USER))
    (said,) = [response async for response in one.send_message(request)]
    return said


async def sent(one: Any, text: str = "hello") -> Task:
    said = await send(one, text)
    assert said.HasField("task"), said
    task: Task = said.task
    return task


async def ended(one: Any, id: str) -> Task:
    """Ask for a task until it is over: once, unless the machine is slow."""
    while True:
        task: Task = await one.get_task(GetTaskRequest(id=id))
        if state_of(task) not in ("AUTH_REQUIRED", "WORKING"):
            return task


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_message_becomes_a_task_until_it_is_decided(
    mesh: Any, agent_port: int, echo: Echo, version: str
) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a"), store=MemoryStore())
    async with client(made, version) as one:
        task = await sent(one)
        (asked,) = await pending(made)
        assert state_of(task) == "AUTH_REQUIRED"
        assert asked.id in task.id
        assert asked.id in task.status.message.parts[0].text
        assert ANA not in task.status.message.parts[0].text
        assert task.metadata["meshd/approval"] == asked.id
        again = await one.get_task(GetTaskRequest(id=task.id))
        assert (again.id, state_of(again)) == (task.id, "AUTH_REQUIRED")
        assert not echo.told
        await decide(made)
        assert not echo.told
        over = await ended(one, task.id)
        assert (over.id, state_of(over)) == (task.id, "COMPLETED")
        assert over.status.message.parts[0].text == "you said hello"
        # It is there for whoever asks again, and was carried out once.
        assert (await ended(one, task.id)).status.message == over.status.message
        assert echo.told == ["hello"]
    assert made.desk is not None
    (used,) = await made.desk.list(State.USED, 10)
    assert used.id == asked.id
    assert not await pending(made)


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_is_denied_is_rejected(mesh: Any, agent_port: int, echo: Echo, version: str) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a"), store=MemoryStore())
    async with client(made, version) as one:
        task = await sent(one)
        await decide(made, is_allowed=False)
        over = await one.get_task(GetTaskRequest(id=task.id))
        assert state_of(over) == "REJECTED"
        assert "not on a Friday" in over.status.message.parts[0].text
        assert not echo.told


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_caller_cancels_what_nobody_has_decided(mesh: Any, agent_port: int, echo: Echo, version: str) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a"), store=MemoryStore())
    async with client(made, version) as one:
        task = await sent(one)
        assert state_of(await one.cancel_task(CancelTaskRequest(id=task.id))) == "CANCELED"
        assert state_of(await one.get_task(GetTaskRequest(id=task.id))) == "CANCELED"
        assert not await pending(made)
        assert not echo.told
        # What was carried out is not cancelled any more.
        second = await sent(one, "another")
        await decide(made)
        await ended(one, second.id)
        with pytest.raises(A2AError):
            await one.cancel_task(CancelTaskRequest(id=second.id))
        assert echo.told == ["another"]


async def test_whoever_waits_is_held_for_a_moment_and_told_of_a_task(mesh: Any, agent_port: int, echo: Echo) -> None:
    made = await mesh(document("echo", agent_port, "agent", "a2a", "hold: 0s"), store=MemoryStore())
    async with client(made, "1.0", is_polling=False) as one:
        assert state_of(await sent(one)) == "AUTH_REQUIRED"
        # The same message again is the same question, and the same task.
        again = await sent(one)
        (asked,) = await pending(made)
        assert asked.id in again.id
        assert not echo.told


async def test_a_task_is_its_callers_alone(mesh: Any, agent_port: int, echo: Echo, tmp_path: Any) -> None:
    store, key_file = MemoryStore(), tmp_path / "mesh.key"
    made = await mesh(document("echo", agent_port, "agent", "a2a"), store=store, key_file=key_file)
    other = await mesh(
        document("echo", agent_port, "agent", "a2a", "hold: 0s", agent="intern"), store=store, key_file=key_file
    )
    async with client(made, "1.0") as one, client(other, "1.0") as stranger:
        task = await sent(one)
        forged = [task.id[:-1] + ("0" if task.id[-1] != "0" else "1"), task.id[:-1], task.id + "0", task.id.upper()]
        forged += ["meshd-", "meshd-zzzz-zzzz-zzzz-" + "0" * 32, "meshd-\u00e9", "no-such-task"]
        for asking, ids in ((one, forged), (stranger, [task.id])):
            for id in ids:
                # The agent itself says that it knows no such task.
                with pytest.raises(A2AError, match="not found"):
                    await asking.get_task(GetTaskRequest(id=id))
        with pytest.raises(A2AError, match="needs a person's approval"):
            await stranger.cancel_task(CancelTaskRequest(id=task.id))
        assert state_of(await one.get_task(GetTaskRequest(id=task.id))) == "AUTH_REQUIRED"
        assert not echo.told


# ---------------------------------------------------------------------- against an agent that is scripted


class Agent:
    """An agent that answers with what it was given, and remembers what it was sent."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[Any] = []
        self.heads: list[Any] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            asked = json.loads(request.body)
            self.asked.append(asked)
            self.heads.append(request)
            answer = self.answers.pop(0)
            if isinstance(answer, bytes):
                peer.reply(answer, b"content-type: text/html", status=b"500 Oops")
            else:
                message = {"jsonrpc": "2.0", "id": asked["id"], **answer}
                peer.reply(json.dumps(message).encode(), b"content-type: application/json")


async def rpc(mesh: Mesh, method: str, params: Any, **fields: str) -> Any:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        body = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
        headers = {**WORKFLOW, **fields}
        answer = await http.post(f"http://127.0.0.1:{mesh.port}/echo/", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.json()["id"] == 7
        return answer.json()


MESSAGE = {"role": "ROLE_USER", "messageId": "m1", "contextId": "c1", "parts": [{"text": "hello"}]}
PARAMS = {"message": MESSAGE, "configuration": {"returnImmediately": True}}


async def asked(mesh: Mesh, **fields: str) -> str:
    task = (await rpc(mesh, "SendMessage", PARAMS, **fields))["result"]["task"]
    assert (task["status"]["state"], task["contextId"]) == ("TASK_STATE_AUTH_REQUIRED", "c1")
    return str(task["id"])


async def over(mesh: Mesh, id: str) -> Any:
    while True:
        result = (await rpc(mesh, "GetTask", {"id": id}))["result"]
        if result["status"]["state"] not in ("TASK_STATE_AUTH_REQUIRED", "TASK_STATE_WORKING"):
            return result


async def test_the_call_goes_out_as_it_came_and_with_the_credentials_of_who_asks(mesh: Any, upstream: Any) -> None:
    agent = Agent({"result": {"message": {"messageId": "r", "role": "ROLE_AGENT", "parts": [{"text": "done"}]}}})
    made = await mesh(document("echo", (await upstream(agent)).port, "agent", "a2a"), store=(store := MemoryStore()))
    fields = {"x-amount": "50", "x-secret-token": "sk-proj-0123456789abcdefghijklmnop"}
    id = await asked(made, authorization="Bearer old", **fields)
    kept = b"".join([record.value for space in store._spaces.values() for record in space.values()])
    assert b"Bearer old" not in kept
    await decide(made)
    body = {"jsonrpc": "2.0", "id": 7, "method": "GetTask", "params": {"id": id}}
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        headers = {**WORKFLOW, **fields, "x-amount": "5000", "authorization": "Bearer new"}
        await http.post(f"http://127.0.0.1:{made.port}/echo/", json=body, headers=headers)
    result = await over(made, id)
    assert result["status"]["message"]["parts"] == [{"text": "done"}]
    (head,) = agent.heads
    assert agent.asked == [{"jsonrpc": "2.0", "id": 7, "method": "SendMessage", "params": PARAMS}]
    assert (head.get(b"authorization"), head.get(b"x-amount")) == (b"Bearer new", b"50")


async def test_an_agents_own_task_goes_on_under_the_id_that_its_caller_knows(mesh: Any, upstream: Any) -> None:
    def own(state: str) -> dict[str, Any]:
        status = {"state": f"TASK_STATE_{state}", "message": {"messageId": "s", "taskId": "T1", "parts": []}}
        return {"id": "T1", "contextId": "c1", "status": status}

    agent = Agent(
        {"result": {"task": own("WORKING")}},
        {"result": own("INPUT_REQUIRED")},
        {"result": {"task": own("WORKING")}},
        {"result": own("COMPLETED")},
        {"error": {"code": -32002, "message": "too late"}},
    )
    port = (await upstream(agent)).port
    made = await mesh(document("echo", port, "agent", "a2a", "hold: 0s"), store=MemoryStore())
    id = await asked(made)
    await decide(made)
    first = await over(made, id)
    assert (first["id"], first["status"]["state"]) == (id, "TASK_STATE_INPUT_REQUIRED")
    assert first["status"]["message"]["taskId"] == id
    # What goes on with it is a message of its own, which asks anew and is for the agent's task.
    more = {"message": {**MESSAGE, "messageId": "m2", "taskId": id, "parts": [{"text": "more"}]}}
    refused = await rpc(made, "SendMessage", more)
    assert "task" not in refused.get("result", {})
    await decide(made)
    assert (await rpc(made, "SendMessage", more))["result"]["task"]["id"] == "T1"
    assert (await over(made, id))["status"]["state"] == "TASK_STATE_COMPLETED"
    assert (await rpc(made, "CancelTask", {"id": id}))["error"]["code"] == -32013
    await decide(made)
    assert (await rpc(made, "CancelTask", {"id": id}))["error"]["code"] == -32002
    assert [one["method"] for one in agent.asked] == [
        "SendMessage", "GetTask", "SendMessage", "GetTask", "CancelTask",
    ]  # fmt: skip
    assert agent.asked[1]["params"]["id"] == agent.asked[4]["params"]["id"] == "T1"
    assert agent.asked[2]["params"]["message"]["taskId"] == "T1"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"error": {"code": -32603, "message": "the agent is unwell"}}, "the agent is unwell"),
        (b"<html>", "no message of A2A"),
        ({"result": {"task": {"id": "T1", "contextId": "c", "status": {"state": "TASK_STATE_FAILED"}}}}, ""),
    ],
    ids=["error", "html", "task"],
)
async def test_what_fails_at_the_agent_fails_in_the_task(mesh: Any, upstream: Any, answer: Any, words: str) -> None:
    agent = Agent(answer)
    port = (await upstream(agent)).port
    made = await mesh(document("echo", port, "agent", "a2a"), store=MemoryStore())
    id = await asked(made)
    await decide(made)
    result = await over(made, id)
    assert (result["id"], result["status"]["state"]) == (id, "TASK_STATE_FAILED")
    assert words in json.dumps(result)
    await over(made, id)
    assert len(agent.asked) == 1


async def test_a_message_that_goes_on_with_a_task_is_held_as_before(mesh: Any, upstream: Any) -> None:
    agent = Agent()
    made = await mesh(document("echo", (await upstream(agent)).port, "agent", "a2a", "hold: 0s"), store=MemoryStore())
    told = await rpc(made, "SendMessage", {"message": {**MESSAGE, "taskId": "T9"}})
    assert told["error"]["code"] == -32013
    assert not agent.asked


async def test_another_sidecar_over_the_same_store_goes_on(mesh: Any, upstream: Any, tmp_path: Any) -> None:
    agent = Agent({"result": {"message": {"messageId": "r", "role": "ROLE_AGENT", "parts": [{"text": "done"}]}}})
    text = document("echo", (await upstream(agent)).port, "agent", "a2a")
    store, key_file = MemoryStore(), tmp_path / "mesh.key"
    first = await mesh(text, store=store, key_file=key_file)
    id = await asked(first)
    second = await mesh(text, store=store, key_file=key_file)
    assert (await rpc(second, "GetTask", {"id": id}))["result"]["id"] == id
    await decide(second)
    assert (await over(second, id))["status"]["message"]["parts"] == [{"text": "done"}]
    assert (await over(first, id))["status"]["message"]["parts"] == [{"text": "done"}]
    assert len(agent.asked) == 1


async def test_what_a_sidecar_left_half_done_is_not_done_again(mesh: Any, upstream: Any, tmp_path: Any) -> None:
    agent = Silent()
    text = document("echo", (await upstream(agent)).port, "agent", "a2a")
    store, key_file = MemoryStore(), tmp_path / "mesh.key"
    first = await mesh(text, store=store, key_file=key_file)
    id = await asked(first)
    await decide(first)
    assert (await rpc(first, "GetTask", {"id": id}))["result"]["status"]["state"] == "TASK_STATE_WORKING"
    await until(lambda: agent.count == 1)
    assert first.carrying is not None
    await first.carrying.close()
    second = await mesh(text, store=store, key_file=key_file)
    assert (await rpc(second, "GetTask", {"id": id}))["result"]["status"]["state"] == "TASK_STATE_WORKING"
    assert second.carrying is not None
    second.carrying._clock = lambda: first.desk.clock() + 60.0
    lost = (await rpc(second, "GetTask", {"id": id}))["result"]["status"]
    assert lost["state"] == "TASK_STATE_FAILED"
    assert "nobody knows" in lost["message"]["parts"][0]["text"]
    assert agent.count == 1


class Silent:
    """An agent that takes a message and never answers."""

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, peer: Peer) -> None:
        await peer.request()
        self.count += 1
        await peer.closed()
