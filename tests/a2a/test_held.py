"""Messages that a person must allow, over REST and gRPC of 1.0: the official clients are given a task and follow it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from a2a.types import (
    CancelTaskRequest,
    GetTaskRequest,
    SubscribeToTaskRequest,
    TaskState,
    a2a_pb2,
)
from a2a.utils.errors import A2AError, TaskNotCancelableError
from google.protobuf.json_format import MessageToDict, ParseDict

from meshd.dialects.a2a_answer_fields import ANSWERS, STATES
from meshd.dialects.a2a_card_fields import CARD
from meshd.dialects.protobuf import decoded
from meshd.dialects.protobuf_writing import encoded
from meshd.engines.memory import MemoryStore
from tests.a2a.talking import card_at, client_of, document, message, only, said
from tests.dialects.test_protobuf import check
from tests.proxy.harness import until
from tests.rpc.asking import ANA, decide, pending, state_of

if TYPE_CHECKING:
    from meshd.approvals.record import Approval

BINDINGS = ("HTTP+JSON", "GRPC", "JSONRPC")


@pytest.fixture(params=BINDINGS)
def binding(request: Any) -> str:
    return str(request.param)


async def asking(mesh: Any, agent: Any, binding: str, version: str = "1.0", rule: str = "hold: 0s") -> tuple[Any, Any]:
    """Return a sidecar that asks people about every message, and the card that it shows."""
    from meshd.approvals.keys import hash_of

    rules = (
        f'approvers: {{ana: {{key: "sha256:{hash_of(ANA)}"}}}}\n'
        f"rules: [{{name: careful, match: {{operation: ['Send*', 'message/*']}}, approval: {{{rule}}}}}]\n"
    )
    made = await mesh(document(agent, rules), store=MemoryStore())
    made.proxy.cards.port = made.port
    return made, only(await card_at(f"http://127.0.0.1:{made.port}/echo"), binding, version)


async def over(client: Any, id: str) -> Any:
    while state_of(task := await client.get_task(GetTaskRequest(id=id))) in ("WORKING", "AUTH_REQUIRED"):
        await asyncio.sleep(0)
    return task


async def test_a_message_becomes_a_task_until_it_was_carried_out(mesh: Any, agent: Any, binding: str) -> None:
    made, card = await asking(mesh, agent, binding)
    async with client_of(card) as client:
        (event,) = await said(client, message("hello"))
        task = event.task
        (asked,) = await pending(made)
        assert state_of(task) == "AUTH_REQUIRED"
        assert asked.id in task.id
        assert asked.id in task.status.message.parts[0].text
        assert task.metadata["meshd/approval"] == asked.id
        assert state_of(await client.get_task(GetTaskRequest(id=task.id))) == "AUTH_REQUIRED"
        assert agent.worker.told == []
        await decide(made)
        done = await over(client, task.id)
        assert (state_of(done), done.id) == ("COMPLETED", task.id)
        assert done.artifacts[0].parts[0].text == "you said hello"
        assert done.status.message.parts[0].text == "done"
        assert {one.task_id for one in done.history} <= {task.id, ""}
        assert (agent.worker.told, (await shown(made, asked)).state.value) == (["hello"], "used")
        # Again, and as a message: what is answered with a message is a task too.
        (event,) = await said(client, message("message hello"))
        await decide(made)
        done = await over(client, event.task.id)
        assert (state_of(done), done.status.message.parts[0].text) == ("COMPLETED", "you said message hello")
        assert agent.worker.told == ["hello", "message hello"]


async def shown(made: Any, asked: Approval) -> Approval:
    found: Approval = await made.desk.show(asked.id)
    return found


async def test_a_subscriber_is_told_until_it_is_over(mesh: Any, agent: Any, binding: str) -> None:
    made, card = await asking(mesh, agent, binding)
    async with client_of(card, is_streaming=True) as client:
        client._config.streaming = False
        (event,) = await said(client, message("hello"))
        client._config.streaming = True
        id, events = event.task.id, []

        async def follow() -> None:
            async for one in client.subscribe(SubscribeToTaskRequest(id=id)):
                events.append(one)  # noqa: PERF401 - looked at while it is read

        following = asyncio.ensure_future(follow())
        await until(lambda: events or following.done())
        assert state_of(events[0].task) == "AUTH_REQUIRED"
        await decide(made)
        await following
        kinds = [one.WhichOneof("payload") for one in events]
        assert kinds == ["task", "status_update", "artifact_update", "status_update"]
        assert [TaskState.Name(one.status_update.status.state) for one in (events[1], events[3])] == [
            "TASK_STATE_WORKING",
            "TASK_STATE_COMPLETED",
        ]
        assert events[2].artifact_update.artifact.parts[0].text == "you said hello"
        assert {events[1].status_update.task_id, events[2].artifact_update.task_id} == {id}
        assert agent.worker.told == ["hello"]


@pytest.mark.parametrize("binding", ["HTTP+JSON", "GRPC"])
async def test_a_stream_is_of_its_task(mesh: Any, agent: Any, binding: str) -> None:
    made, card = await asking(mesh, agent, binding)
    async with client_of(card, is_streaming=True) as client:
        events: list[Any] = []

        async def send() -> None:
            async for one in client.send_message(message("hello")):
                events.append(one)  # noqa: PERF401 - looked at while it is read

        sending = asyncio.ensure_future(send())
        await until(lambda: events or sending.done())
        assert state_of(events[0].task) == "AUTH_REQUIRED"
        await decide(made)
        await sending
        assert [one.WhichOneof("payload") for one in events][1:] == [
            "status_update",
            "artifact_update",
            "status_update",
        ]
        assert agent.worker.told == ["hello"]


async def test_no_is_told_and_a_caller_takes_it_back(mesh: Any, agent: Any, binding: str) -> None:
    made, card = await asking(mesh, agent, binding)
    async with client_of(card) as client:
        (event,) = await said(client, message("hello"))
        await decide(made, is_allowed=False)
        denied = await client.get_task(GetTaskRequest(id=event.task.id))
        assert state_of(denied) == "REJECTED"
        assert "not on a Friday" in denied.status.message.parts[0].text
        (event,) = await said(client, message("another"))
        id = event.task.id
        assert state_of(await client.cancel_task(CancelTaskRequest(id=id))) == "CANCELED"
        assert not await pending(made)
        (event,) = await said(client, message("a third"))
        await decide(made)
        await over(client, event.task.id)
        with pytest.raises(TaskNotCancelableError):
            await client.cancel_task(CancelTaskRequest(id=event.task.id))
        assert agent.worker.told == ["a third"]


async def test_an_agents_own_task_goes_on_under_the_id_that_its_caller_knows(
    mesh: Any, agent: Any, binding: str
) -> None:
    made, card = await asking(mesh, agent, binding)
    async with client_of(card) as client:
        (event,) = await said(client, message("ask me"))
        id = event.task.id
        await decide(made)
        while state_of(task := await client.get_task(GetTaskRequest(id=id))) in ("WORKING", "AUTH_REQUIRED"):
            await asyncio.sleep(0)
        assert (state_of(task), task.id) == ("INPUT_REQUIRED", id)
        assert task.status.message.parts[0].text == "what exactly?"
        again = await client.get_task(GetTaskRequest(id=id))
        assert (again.id, state_of(again)) == (id, "INPUT_REQUIRED")


@pytest.mark.parametrize("id", ["meshd-", "meshd-x", "meshd-k7x2-m9qr-tzab-" + "0" * 32, "meshd-\u00e9", "x" * 600])
async def test_what_is_no_task_of_ours_is_the_agents_to_judge(mesh: Any, agent: Any, binding: str, id: str) -> None:
    _, card = await asking(mesh, agent, binding)
    async with client_of(card) as client:
        with pytest.raises(A2AError):
            await client.get_task(GetTaskRequest(id=id))


@pytest.mark.parametrize("binding", ["HTTP+JSON", "GRPC"])
async def test_the_older_version_is_held_and_refused_as_before(mesh: Any, agent: Any, binding: str) -> None:
    made, card = await asking(mesh, agent, binding, "0.3", "hold: 20s")
    async with client_of(card) as client:
        sending = asyncio.ensure_future(said(client, message("hello")))
        await until(lambda: made.desk.pending)
        await decide(made)
        assert (await sending)[-1].task.artifacts[0].parts[0].text == "you said hello"


# ---------------------------------------------------------------------- the tables


def test_the_table_of_a_card_is_that_of_the_official_descriptor() -> None:
    check(CARD, a2a_pb2.AgentCard.DESCRIPTOR)
    # With maps of every sort: what is written is what was read.
    card = ParseDict(
        {
            "name": "n", "securitySchemes": {
                "o": {"oauth2SecurityScheme": {"flows": {"authorizationCode": {"scopes": {"a": "b", "c": ""}}}}},
                "k": {"apiKeySecurityScheme": {"name": "x"}},
            },
            "securityRequirements": [{"schemes": {"o": {"list": ["a", "c"]}, "k": {}}}],
        },
        a2a_pb2.AgentCard(),
    )  # fmt: skip
    read = decoded(card.SerializeToString(), CARD, "the card")
    assert read == MessageToDict(card)
    assert a2a_pb2.AgentCard.FromString(encoded(read, CARD)) == card


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (ANSWERS["SendMessage"], a2a_pb2.SendMessageResponse),
        (ANSWERS["SendStreamingMessage"], a2a_pb2.StreamResponse),
        (ANSWERS["GetTask"], a2a_pb2.Task),
    ],
)
def test_the_tables_are_those_of_the_official_descriptors(table: Any, message: Any) -> None:
    check(table, message.DESCRIPTOR)
    assert a2a_pb2.TaskState.keys() == list(STATES)


WHOLE = {
    "task": {
        "id": "t", "contextId": "c",
        "status": {"state": "TASK_STATE_WORKING", "timestamp": "2026-11-27T05:50:07.250Z"},
        "artifacts": [
            {"artifactId": "a", "parts": [{"raw": "aGk=", "mediaType": "x/y"}, {"data": {"n": [1, -2.5, None, {}]}}]}
        ],
        "history": [{"messageId": "m", "role": "ROLE_USER", "parts": [{"text": "h\u00e9"}], "extensions": ["u", "v"]}],
        "metadata": {"k": {"deep": ["x", 1.5, False]}},
    }
}  # fmt: skip


def test_what_is_written_is_what_the_official_parser_reads_and_back() -> None:
    raw = encoded(WHOLE, ANSWERS["SendMessage"])
    official = a2a_pb2.SendMessageResponse.FromString(raw)
    assert official == ParseDict(WHOLE, a2a_pb2.SendMessageResponse())
    again = decoded(official.SerializeToString(), ANSWERS["SendMessage"], "the answer")
    assert ParseDict(again, a2a_pb2.SendMessageResponse()) == official
    assert MessageToDict(official)["task"]["metadata"] == again["task"]["metadata"]


@pytest.mark.parametrize(
    "value",
    [
        {"task": 5}, {"task": {"id": 5, "status": []}}, {"task": {"status": {"state": "NO_SUCH", "timestamp": "noon"}}},
        {"task": {"artifacts": {"a": 1}, "metadata": ["x"]}}, {"message": {"parts": [{"raw": "?"}, 5, {"text": None}]}},
        {"message": {"messageId": "\ud800"}},
    ],
)  # fmt: skip
def test_what_a_field_cannot_hold_is_left_out(value: Any) -> None:
    a2a_pb2.SendMessageResponse.FromString(encoded(value, ANSWERS["SendMessage"]))
