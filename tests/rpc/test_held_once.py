"""Held calls that became tasks, where policies, callers and sidecars change in between: each goes out once, for its own
caller, and what is kept of it is let go."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from meshd.approvals.held_calls import PIECES, SPACE
from meshd.approvals.keys import hash_of, new_key
from meshd.approvals.state import State
from meshd.engines.memory import MemoryStore
from meshd.mesh_key import MeshKeys
from meshd_sdk import context as codec
from tests.proxy.harness import until
from tests.rpc.asking import ANA, WORKFLOW, decide, document, pending
from tests.rpc.test_held_messages import MESSAGE, PARAMS, Agent, Silent, asked, over, rpc

if TYPE_CHECKING:
    from tests.proxy.harness import Mesh

SAID: Any = {"result": {"message": {"messageId": "r", "role": "ROLE_AGENT", "parts": [{"text": "done"}]}}}


def state_in(answer: Any) -> str:
    return str(answer["result"]["status"]["state"]).removeprefix("TASK_STATE_")


def words_in(result: Any) -> str:
    return str(result["status"]["message"]["parts"][0]["text"])


def without_rule(port: int) -> str:
    return document("echo", port, "agent", "a2a").partition("rules:")[0]


def kept_in(store: MemoryStore, space: str) -> list[bytes]:
    return [record.value for record in store._spaces.get(space, {}).values()]


async def later(mesh: Mesh, seconds: float) -> None:
    """Let a sidecar's carrying see the clock that far ahead."""
    assert mesh.carrying is not None
    assert mesh.desk is not None
    clock = mesh.desk.clock
    mesh.carrying._clock = lambda: clock() + seconds


async def test_once_though_nobody_asks_for_it_any_more(mesh: Any, upstream: Any, tmp_path: Any) -> None:
    agent = Silent()
    port = (await upstream(agent)).port
    store, key_file = MemoryStore(), tmp_path / "mesh.key"
    first = await mesh(document("echo", port, "agent", "a2a"), store=store, key_file=key_file)
    id = await asked(first)
    await decide(first)
    first.proxy.swap(first.load(without_rule(port)))
    assert state_in(await rpc(first, "GetTask", {"id": id})) == "WORKING"
    await until(lambda: agent.count == 1)
    await first.carrying.close()
    second = await mesh(without_rule(port), store=store, key_file=key_file)
    await later(second, 60.0)
    for _ in range(3):
        assert state_in(await rpc(second, "GetTask", {"id": id})) in ("WORKING", "FAILED")
    assert agent.count == 1


async def test_what_is_another_call_by_now_fails_and_asks_nobody(mesh: Any, upstream: Any) -> None:
    agent = Agent()
    port = (await upstream(agent)).port
    text = document("echo", port, "agent", "a2a")
    made = await mesh(text, store=MemoryStore())
    id = await asked(made)
    await decide(made)
    ben = f'approvers: {{ben: {{key: "sha256:{hash_of(new_key())}"}}, '
    made.proxy.swap(made.load(text.replace("approvers: {", ben)))
    result = await over(made, id)
    assert result["status"]["state"] == "TASK_STATE_FAILED"
    assert "make it again" in words_in(result)
    assert not await pending(made)
    assert not agent.asked


async def test_the_same_message_again_takes_what_was_allowed(mesh: Any, upstream: Any) -> None:
    agent = Agent(SAID)
    made = await mesh(document("echo", (await upstream(agent)).port, "agent", "a2a"), store=MemoryStore())
    id = await asked(made)
    await decide(made)
    assert (await rpc(made, "SendMessage", PARAMS))["result"]["message"]["parts"] == [{"text": "done"}]
    result = await over(made, id)
    assert result["status"]["state"] == "TASK_STATE_FAILED"
    assert "made again" in words_in(result)
    assert len(agent.asked) == 1


async def test_many_who_ask_at_two_sidecars_have_it_carried_out_once(mesh: Any, upstream: Any, tmp_path: Any) -> None:
    agent = Agent(SAID, SAID)
    text = document("echo", (await upstream(agent)).port, "agent", "a2a")
    store, key_file = MemoryStore(), tmp_path / "mesh.key"
    sidecars = [await mesh(text, store=store, key_file=key_file) for _ in range(2)]
    id = await asked(sidecars[0])
    await decide(sidecars[0])
    answers = await asyncio.gather(*(rpc(sidecars[at % 2], "GetTask", {"id": id}) for at in range(12)))
    assert {state_in(one) for one in answers} <= {"WORKING", "COMPLETED"}
    for one in sidecars:
        assert (await over(one, id))["status"]["message"]["parts"] == [{"text": "done"}]
        assert not await pending(one)
    assert len(agent.asked) == 1


async def test_one_who_took_over_from_one_that_lives_does_no_harm(mesh: Any, upstream: Any, tmp_path: Any) -> None:
    gate = asyncio.Event()

    async def slow(peer: Any) -> None:
        asked = json.loads((await peer.request()).body)
        await gate.wait()
        peer.reply(
            json.dumps({"jsonrpc": "2.0", "id": asked["id"], **SAID}).encode(), b"content-type: application/json"
        )

    serving = await upstream(slow)
    text = document("echo", serving.port, "agent", "a2a")
    store, key_file = MemoryStore(), tmp_path / "mesh.key"
    first, second = [await mesh(text, store=store, key_file=key_file) for _ in range(2)]
    id = await asked(first)
    await decide(first)
    known = (await second.carrying.held.read(id.removeprefix("meshd-")[:14])) if second.carrying else None
    assert known is not None
    polling = asyncio.ensure_future(rpc(first, "GetTask", {"id": id}))
    await until(lambda: serving.received)
    # As if the first had stood still since before it used the approval.
    kept = await second.carrying.held.read(known.call.id)
    await second.carrying.carry_out(kept, kept.call.path, [], lambda answer: (answer.body, ""), 5.0)
    assert not await pending(second)
    gate.set()
    await polling
    assert (await over(second, id))["status"]["message"]["parts"] == [{"text": "done"}]
    assert serving.received.count(b"POST ") == 1


# ---------------------------------------------------------------------- whose it is


async def test_another_workflow_of_the_same_agent_has_no_part_in_it(mesh: Any, upstream: Any) -> None:
    unknown = {"error": {"code": -32001, "message": "no such task"}}
    agent = Agent(unknown, unknown)
    made = await mesh(document("echo", (await upstream(agent)).port, "agent", "a2a", "hold: 0s"), store=MemoryStore())
    id = await asked(made)
    other = {"x-meshd-workflow": "w2"}
    assert await rpc(made, "GetTask", {"id": id}, **other) == {"jsonrpc": "2.0", "id": 7, **unknown}
    assert (await rpc(made, "CancelTask", {"id": id}, **other))["error"]["code"] == -32013
    assert state_in(await rpc(made, "GetTask", {"id": id})) == "AUTH_REQUIRED"
    assert [one["params"]["id"] for one in agent.asked] == [id]


async def test_another_tenants_agent_of_that_name_is_another(mesh: Any, upstream: Any, tmp_path: Any) -> None:
    unknown = {"error": {"code": -32001, "message": "no such task"}}
    agent = Agent(unknown)
    text = document("echo", (await upstream(agent)).port, "agent", "a2a", "hold: 0s")
    store, key_file = MemoryStore(), tmp_path / "mesh.key"
    first = await mesh("tenant: one\n" + text, store=store, key_file=key_file)
    second = await mesh("tenant: two\n" + text, store=store, key_file=key_file)
    id = await asked(first)
    assert await rpc(second, "GetTask", {"id": id}) == {"jsonrpc": "2.0", "id": 7, **unknown}
    await decide(first)
    # What was allowed to the one is asked anew for the other.
    theirs = await asked(second)
    (waiting,) = await pending(second)
    assert waiting.id in theirs
    assert waiting.id not in id
    assert len(agent.asked) == 1


async def test_a_key_in_the_query_is_not_written_down(mesh: Any, upstream: Any) -> None:
    agent = Agent(SAID)
    made = await mesh(document("echo", (await upstream(agent)).port, "agent", "a2a"), store=(store := MemoryStore()))

    async def post(method: str, params: Any, query: str) -> Any:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            body = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
            url = f"http://127.0.0.1:{made.port}/echo/rpc?{query}"
            return (await http.post(url, json=body, headers=WORKFLOW)).json()["result"]

    secret = "v=2&api_key=hunter2-hunter2"
    id = (await post("SendMessage", PARAMS, secret))["task"]["id"]
    assert not [value for space in store._spaces for value in kept_in(store, space) if b"hunter2" in value]
    await decide(made)
    while (result := await post("GetTask", {"id": id}, secret))["status"]["state"] != "TASK_STATE_COMPLETED":
        assert result["status"]["state"] == "TASK_STATE_WORKING"
    (head,) = agent.heads
    assert head.target == f"/rpc?{secret}".encode()


# ---------------------------------------------------------------------- what is kept


async def test_what_is_sent_is_let_go_once_it_is_not_needed(mesh: Any, upstream: Any) -> None:
    agent = Agent(SAID)
    made = await mesh(document("echo", (await upstream(agent)).port, "agent", "a2a"), store=(store := MemoryStore()))
    long = {**PARAMS, "message": {**MESSAGE, "messageId": "long", "parts": [{"text": "x" * 300_000}]}}
    first = (await rpc(made, "SendMessage", long))["result"]["task"]["id"]
    assert len(kept_in(store, PIECES)) == 3
    await rpc(made, "CancelTask", {"id": first})
    await until(lambda: not kept_in(store, PIECES))
    await rpc(made, "SendMessage", long)
    assert len(kept_in(store, PIECES)) == 3
    await decide(made, is_allowed=False)
    await until(lambda: not kept_in(store, PIECES))
    assert not agent.asked


async def test_what_was_carried_out_leaves_its_answer_alone(mesh: Any, upstream: Any) -> None:
    agent = Agent(SAID)
    made = await mesh(document("echo", (await upstream(agent)).port, "agent", "a2a"), store=(store := MemoryStore()))
    id = await asked(made)
    (before,) = kept_in(store, SPACE)
    await decide(made)
    await over(made, id)
    (after,) = kept_in(store, SPACE)
    assert b'"token"' in before
    assert b'"token"' not in after
    (piece,) = kept_in(store, PIECES)
    assert b"done" in piece
    held = made.carrying.held
    approval = id.removeprefix("meshd-")[:14]
    # What a crash left of an answer that was never named goes with the rest.
    await held._write_pieces(approval, "answer", b"y" * 200_000)
    await held.forget(approval)
    assert not kept_in(store, SPACE)
    assert not kept_in(store, PIECES)


# ---------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    "answer",
    [
        {"result": 5},
        {"result": {}},
        {"result": {"id": "T1"}},
        {"result": {"task": {"id": 7, "status": {"state": "TASK_STATE_WORKING"}}}},
        {"result": {"task": {"id": "", "status": {"state": "TASK_STATE_WORKING"}}}},
        {"result": {"taskId": "T1", "status": 3}},
        {"result": {"artifactUpdate": {"taskId": "T1", "append": True, "artifact": {"artifactId": "a", "parts": 3}}}},
        {"error": 5},
    ],
)
async def test_an_answer_that_is_none_fails_the_task(mesh: Any, upstream: Any, answer: Any) -> None:
    agent = Agent(answer)
    made = await mesh(document("echo", (await upstream(agent)).port, "agent", "a2a"), store=MemoryStore())
    id = await asked(made)
    await decide(made)
    assert (await over(made, id))["status"]["state"] == "TASK_STATE_FAILED"
    assert len(agent.asked) == 1


async def test_a_fault_of_ours_fails_the_task(mesh: Any, upstream: Any) -> None:
    made = await mesh(document("echo", (await upstream(Agent())).port, "agent", "a2a"), store=MemoryStore())
    id = await asked(made)
    await decide(made)

    async def broken(*_: Any) -> Any:
        raise RuntimeError("nobody foresaw this")

    made.carrying.send = broken
    assert (await over(made, id))["status"]["state"] == "TASK_STATE_FAILED"


async def test_a_drain_waits_for_nobody_who_decides_about_a_foreign_task(mesh: Any, upstream: Any) -> None:
    made = await mesh(document("echo", (await upstream(Agent())).port, "agent", "a2a"), store=MemoryStore())
    asking = asyncio.ensure_future(rpc(made, "CancelTask", {"id": "meshd-of-somebody-else"}))
    while not await pending(made):
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        assert await made.proxy.drain(60)
    assert (await asking)["error"]["code"] == -32603
    assert made.desk is not None
    assert len(await made.desk.list(State.PENDING, 10)) == 1


async def test_what_comes_from_other_sidecars_is_held_and_never_a_task(mesh: Any, upstream: Any) -> None:
    agent = Agent(SAID, {"error": {"code": -32001, "message": "no such task"}})
    port = (await upstream(agent)).port
    text = document("echo", port, "agent", "a2a", "hold: 0s")
    made = await mesh(text, store=MemoryStore(), app=f"http://127.0.0.1:{port}")
    outbound = await asked(made)
    assert made.desk is not None
    await made.desk.cancel(outbound.removeprefix("meshd-")[:14], "not this one")

    async def post(method: str, params: Any, **fields: str) -> Any:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            body = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
            headers = {"accept": "application/json, text/event-stream", "a2a-version": "1.0", **fields}
            return (await http.post(f"http://127.0.0.1:{made.inbound_port}/", json=body, headers=headers)).json()

    keys = MeshKeys(made.home / "mesh.key")
    peer = codec.Context("w9", "caller", path=("caller",), account="workflow/w9")
    token = codec.mint(peer, keys.ring, audience=codec.Audience.PEER, expires_s=2**31, nonce=bytes(8)).decode()
    told = await post("SendMessage", PARAMS, **{"x-meshd-context": token})
    assert told["error"]["code"] == -32013, told
    # Another agent that sends the same in the same workflow is asked about by itself.
    other = codec.Context("w9", "intern", path=("intern",), account="workflow/w9")
    theirs = codec.mint(other, keys.ring, audience=codec.Audience.PEER, expires_s=2**31, nonce=bytes(8)).decode()
    assert (await post("SendMessage", PARAMS, **{"x-meshd-context": theirs}))["error"]["code"] == -32013
    first, second = sorted(await pending(made), key=lambda one: one.asked_s)
    await made.desk.decide(first.id, ANA, approver="", is_allowed=True, reason="")
    assert (await post("SendMessage", PARAMS, **{"x-meshd-context": theirs}))["error"]["code"] == -32013
    assert not agent.asked
    assert "result" in await post("SendMessage", PARAMS, **{"x-meshd-context": token})
    assert [one.id for one in await pending(made)] == [second.id]
    # An id that was given to the agent beside it says nothing to those who come in.
    await made.desk.cancel(second.id, "enough")
    outbound = await asked(made)
    assert (await post("GetTask", {"id": outbound}, **{"x-meshd-context": token}))["error"]["code"] in (-32001, -32013)
