"""The official client by the card that it gets from the sidecar, over all bindings of 1.0 and 0.3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from a2a.client import A2AClientError
from a2a.types import (
    CancelTaskRequest,
    DeleteTaskPushNotificationConfigRequest,
    GetExtendedAgentCardRequest,
    GetTaskPushNotificationConfigRequest,
    GetTaskRequest,
    ListTaskPushNotificationConfigsRequest,
    SubscribeToTaskRequest,
    TaskPushNotificationConfig,
    TaskState,
)
from a2a.utils.errors import A2AError, MethodNotFoundError, TaskNotFoundError

from meshd.refusal import Reason, Refused
from tests.a2a.talking import BINDINGS, VERSIONS, card_at, client_of, document, message, only, said

if TYPE_CHECKING:
    from meshd.call import Call

SENDS = {"1.0": ("SendMessage", "SendStreamingMessage"), "0.3": ("message/send", "message/stream")}


@pytest.fixture(params=VERSIONS)
def version(request: Any) -> str:
    return str(request.param)


@pytest.fixture(params=BINDINGS)
def binding(request: Any) -> str:
    return str(request.param)


async def resolved(mesh: Any, agent: Any, binding: str, version: str, rules: str = "") -> tuple[Any, Any, list[Call]]:
    made = await mesh(document(agent, rules))
    made.proxy.cards.port = made.port
    seen: list[Call] = []
    card = only(await card_at(f"http://127.0.0.1:{made.port}/echo"), binding, version)
    made.per_call.on_admit = lambda call: seen.append(call)
    return made, card, seen


@pytest.mark.parametrize("is_streaming", [False, True], ids=["plain", "streamed"])
async def test_a_message_passes_and_is_read(
    mesh: Any, agent: Any, binding: str, version: str, is_streaming: bool
) -> None:
    _, card, seen = await resolved(mesh, agent, binding, version)
    async with client_of(card, is_streaming=is_streaming) as client:
        answered = await said(client, message("message hello"))

    assert answered[-1].message.parts[0].text == "you said message hello"
    call = seen[0]
    rpc = call.rpc
    assert rpc is not None
    assert rpc.method == SENDS[version][is_streaming]
    assert rpc.binding == {"JSONRPC": "jsonrpc", "HTTP+JSON": "rest", "GRPC": "grpc"}[binding]
    assert rpc.key
    assert rpc.key.encode() not in rpc.arguments
    assert b"message hello" in rpc.arguments
    assert not rpc.is_read_only
    assert rpc.is_stream is is_streaming


async def test_a_task_is_sent_got_and_streamed(mesh: Any, agent: Any, binding: str, version: str) -> None:
    _, card, seen = await resolved(mesh, agent, binding, version)
    async with client_of(card, is_streaming=True) as client:
        events = await said(client, message("work"))
        task_id = events[0].task.id
        task = await client.get_task(GetTaskRequest(id=task_id))

    assert task.status.state == TaskState.TASK_STATE_COMPLETED
    assert [event.WhichOneof("payload") for event in events][-1] == "status_update"
    rpc = seen[-1].rpc
    assert rpc is not None
    assert rpc.method == {"1.0": "GetTask", "0.3": "tasks/get"}[version]
    assert rpc.is_read_only
    assert rpc.task_id == task_id


async def test_a_stream_is_left_resubscribed_and_cancelled(mesh: Any, agent: Any, binding: str, version: str) -> None:
    _, card, seen = await resolved(mesh, agent, binding, version)
    async with client_of(card, is_streaming=True) as client:
        stream = client.send_message(message("long"))
        task_id = ""
        async for event in stream:
            task_id = event.task.id or event.status_update.task_id
            if event.WhichOneof("payload") == "status_update":
                break
        await stream.aclose()
        again = client.subscribe(SubscribeToTaskRequest(id=task_id))
        async for _ in again:
            break
        await again.aclose()
        task = await client.cancel_task(CancelTaskRequest(id=task_id))

    assert task.status.state == TaskState.TASK_STATE_CANCELED
    methods = [call.rpc.method for call in seen if call.rpc is not None]
    assert {"1.0": "SubscribeToTask", "0.3": "tasks/resubscribe"}[version] in methods
    assert {"1.0": "CancelTask", "0.3": "tasks/cancel"}[version] in methods
    assert {call.rpc.task_id for call in seen[1:] if call.rpc is not None} == {task_id}


async def test_push_configurations(mesh: Any, agent: Any, binding: str, version: str) -> None:
    _, card, seen = await resolved(mesh, agent, binding, version)
    async with client_of(card, is_streaming=True) as client:
        events = await said(client, message("work"))
        task_id = events[0].task.id
        config = TaskPushNotificationConfig(task_id=task_id, id="c-1", url="http://127.0.0.1:9/hook")
        await client.create_task_push_notification_config(config)
        got = await client.get_task_push_notification_config(
            GetTaskPushNotificationConfigRequest(task_id=task_id, id="c-1")
        )
        assert got.url == "http://127.0.0.1:9/hook"
        if (version, binding) != ("0.3", "HTTP+JSON") and (version, binding) != ("0.3", "GRPC"):
            listed = await client.list_task_push_notification_configs(
                ListTaskPushNotificationConfigsRequest(task_id=task_id)
            )
            assert [one.id for one in listed.configs] == ["c-1"]
            await client.delete_task_push_notification_config(
                DeleteTaskPushNotificationConfigRequest(task_id=task_id, id="c-1")
            )
    assert {call.rpc.task_id for call in seen[1:] if call.rpc is not None} == {task_id}


async def test_an_error_of_the_agent_stays_its_own(mesh: Any, agent: Any, binding: str, version: str) -> None:
    _, card, _ = await resolved(mesh, agent, binding, version)
    async with client_of(card) as client:
        # Over REST, 0.3's client has no better word for a 404.
        with pytest.raises((TaskNotFoundError, MethodNotFoundError), match=r"(?i)not found"):
            await client.get_task(GetTaskRequest(id="nobody"))


async def test_the_extended_card_leads_here_too(mesh: Any, agent: Any, binding: str, version: str) -> None:
    made, card, _ = await resolved(mesh, agent, binding, version)
    async with client_of(card) as client:
        extended = await client.get_extended_agent_card(GetExtendedAgentCardRequest())

    assert extended.description.endswith("to those whom it knows.")
    urls = {interface.url for interface in extended.supported_interfaces}
    assert urls
    for url in urls:
        assert str(made.port) in url
        assert str(agent.port) not in url
        assert str(agent.grpc_port) not in url


async def test_rules_match_the_operation_whichever_way_it_comes(
    mesh: Any, agent: Any, binding: str, version: str
) -> None:
    rules = f"rules:\n  - {{name: r, match: {{operation: '{SENDS[version][0]}'}}, deny: say nothing}}\n"
    _, card, _ = await resolved(mesh, agent, binding, version, rules)
    async with client_of(card) as client:
        with pytest.raises((A2AClientError, A2AError), match="say nothing"):
            await said(client, message("message hello"))
    assert not agent.worker.told


@pytest.mark.parametrize("is_streaming", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize(
    "reason",
    [Reason.NOT_ALLOWED, Reason.LOOP, Reason.BUDGET_EXHAUSTED, Reason.APPROVAL_DENIED, Reason.CIRCUIT_OPEN],
    ids=lambda reason: str(reason.value),
)
async def test_a_refusal_is_told_in_its_client_s_words(
    mesh: Any, agent: Any, binding: str, version: str, is_streaming: bool, reason: Reason
) -> None:
    made, card, _ = await resolved(mesh, agent, binding, version)

    def refuse(call: Call) -> None:
        made.per_call.on_admit = None
        raise Refused(reason, f"This is why: {reason.value}")

    made.per_call.on_admit = refuse
    async with client_of(card, is_streaming=is_streaming) as client:
        with pytest.raises((A2AClientError, A2AError), match=f"This is why: {reason.value}"):
            await said(client, message("message hello"))
        assert not agent.worker.told
        assert (await said(client, message("message again")))[-1].message.parts[0].text == "you said message again"
