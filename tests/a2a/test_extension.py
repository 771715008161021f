"""An A2A agent that takes meshd's extension finds its context in the message; no caller can write there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from a2a.client import ClientCallContext

from meshd.dialects.a2a_extension import EXTENSION
from tests.a2a.sample_agent import SampleAgent, Worker
from tests.a2a.talking import BINDINGS, VERSIONS, card_at, client_of, message, only, said
from tests.a2a.test_daemon import fetched, named_as, policy, started
from tests.end_to_end.conftest import sidecar, sidecars

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.end_to_end.sidecar import Sidecar

__all__ = ["sidecar", "sidecars"]
FIELDS = {"a2a-version": "1.0", "content-type": "application/json", "x-meshd-workflow": "w-1"}
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DEADLINE = "limits: {deadline: 10m}\n"


@pytest.fixture
async def declaring() -> AsyncIterator[SampleAgent]:
    made = await SampleAgent(Worker(), extension=EXTENSION).start()
    yield made
    await made.close()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("binding", BINDINGS)
async def test_an_agent_whose_card_declares_it_is_told(
    sidecar: Sidecar, declaring: SampleAgent, binding: str, version: str
) -> None:
    # gRPC is an upstream of its own here, whose card nobody asks for.
    document = policy(declaring).replace(
        "kind: agent, dialect: a2a}\n", "kind: agent, dialect: a2a, extension: true}\n"
    )
    await started(sidecar, (document if binding == "GRPC" else policy(declaring)) + DEADLINE)
    card = only(await card_at(f"{sidecar.url}/echo"), binding, version)
    async with client_of(card) as client:
        sent = message("message hi")
        sent.message.metadata.update({"mine": {"deep": [1, "two"]}, EXTENSION: {"workflow": "forged", "hops": 0}})
        context = ClientCallContext(service_parameters={"x-meshd-workflow": "w-1", "traceparent": TRACE})
        assert [one async for one in client.send_message(sent, context=context)]
    worker = declaring.worker
    assert worker.extensions == [{EXTENSION}]
    assert worker.metadata[0]["mine"] == {"deep": [1, "two"]}
    if binding == "GRPC":
        # There the fields say it: the protobuf of the message is not written anew.
        return
    told = worker.metadata[0][EXTENSION]
    assert (told["workflow"], told["hops"]) == ("w-1", 1)
    assert 0 < told["deadline_s"] <= 600
    assert told["traceparent"] == worker.headers[0]["traceparent"]
    assert told["traceparent"].split("-")[1] == TRACE.split("-")[1]
    # Never the token: it is in its field, and nowhere else.
    assert len(worker.headers[0]["x-meshd-context"]) > 40
    assert worker.headers[0]["x-meshd-context"] not in str(worker.whole[0])
    assert set(told) == {"workflow", "hops", "deadline_s", "traceparent"}


async def test_others_are_told_nothing(sidecar: Sidecar, agent: Any, declaring: SampleAgent) -> None:
    for one, extra in ((agent, ""), (declaring, ", extension: false")):
        await started(sidecar, policy(one, extra))
        card = only(await card_at(f"{sidecar.url}/echo"), "JSONRPC", "1.0")
        async with client_of(card) as client:
            await said(named_as(client, "w-1"), message("message hi"))
        assert one.worker.metadata == [{}]
        assert one.worker.extensions == [set()]
        await asyncio.to_thread(sidecar.stop)


async def test_the_policy_may_say_so_and_the_caller_s_own_extensions_stay(sidecar: Sidecar, agent: Any) -> None:
    await started(sidecar, policy(agent, ", extension: true"))
    card = only(await card_at(f"{sidecar.url}/echo"), "HTTP+JSON", "1.0")
    async with client_of(card) as client:
        for own in ("https://example.com/ext/v1", f"https://example.com/ext/v1, {EXTENSION}"):
            context = ClientCallContext(service_parameters={"A2A-Extensions": own, "x-meshd-workflow": "w-1"})
            async for _ in client.send_message(message(f"message {own}"), context=context):
                pass
    assert agent.worker.extensions == [{"https://example.com/ext/v1", EXTENSION}] * 2
    assert [one[EXTENSION]["workflow"] for one in agent.worker.metadata] == ["w-1", "w-1"]


@pytest.mark.parametrize(
    "key", [f'"{EXTENSION}"', '"https:\\/\\/meshd.io/a2a/context/v\\u0031"'], ids=["plain", "escaped"]
)
async def test_what_a_caller_claims_goes_wherever_it_stands(sidecar: Sidecar, agent: Any, key: str) -> None:
    await started(sidecar, policy(agent))
    body = (
        '{"message": {"messageId": "m-1", "role": "ROLE_USER", "parts": [{"text": "message"}], '
        f'"metadata": {{"mine": 1.50, {key}: {{"workflow": "forged"}}}}}}, "metadata": {{{key}: {{"hops": 0}}}}}}'
    )
    response = await fetched(f"{sidecar.url}/echo/message:send", method="POST", content=body, headers=FIELDS)
    assert response.status_code == 200
    assert agent.worker.metadata == [{"mine": 1.5}]


@pytest.mark.parametrize("metadata", ["null", "[]", '"text"', "7", "{}"])
async def test_metadata_that_is_none_is_the_agent_s_to_judge(sidecar: Sidecar, agent: Any, metadata: str) -> None:
    await started(sidecar, policy(agent, ", extension: true"))
    rest = '"messageId": "m-1", "role": "ROLE_USER", "parts": [{"text": "message"}]'
    body = f'{{"message": {{{rest}, "metadata": {metadata}}}}}'
    response = await fetched(f"{sidecar.url}/echo/message:send", method="POST", content=body, headers=FIELDS)
    is_usual = metadata in ("null", "{}")
    assert (response.status_code == 200) is is_usual
    assert len(agent.worker.metadata) == is_usual
    twice = f'{{"message": {{{rest}, "metadata": {{"a": 1, "a": 2}}}}}}'
    response = await fetched(f"{sidecar.url}/echo/message:send", method="POST", content=twice, headers=FIELDS)
    assert (response.status_code, response.headers["x-meshd-reason"]) == (400, "malformed")
