"""EventService over gRPC and JSON: what is published, handed out and settled without a session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from meshd.engines.bus_memory import MemoryBus
from meshd.engines.bus_sqlite import SqliteBus
from meshd_sdk.v1 import events_pb2 as ev
from meshd_sdk.v1 import events_pb2_grpc
from tests.api.house import House, house, refusal, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

POLICY = """
agent: ann
upstreams:
  bob: {url: "http://127.0.0.1:1", kind: agent}
governance: {max_tokens_per_workflow: 1000}
"""


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[House]:
    async with house(tmp_path, POLICY) as made:
        made.mesh.bus = MemoryBus()
        yield made
        await made.mesh.bus.close()


def stub(one: House) -> Any:
    return events_pb2_grpc.EventServiceStub(one.channel)


def publish(topic: str = "task.done", *, token: str = "", agent: str = "", **event: Any) -> ev.PublishRequest:
    return ev.PublishRequest(token=token, agent=agent, event=ev.Event(topic=topic, **event))


async def test_what_is_published_is_handed_out_with_a_context_and_settled(one: House) -> None:
    context = await one.open("w")
    taken = stub(one).Subscribe(ev.SubscribeRequest(topic="task.*", agent="bob"))
    await until(lambda: one.mesh.events is not None and one.mesh.events._takings)
    done = await stub(one).Publish(publish(token=context.token, id="e1", data=b"{}"))
    assert (done.event_id, done.is_duplicate) == ("e1", False)
    handed = await taken.read()
    assert (handed.event.id, handed.event.source, handed.attempt) == ("e1", "ann", 1)
    assert (handed.context.agent, handed.context.hops, list(handed.context.path)) == ("bob", 1, ["ann"])
    assert handed.event.correlation_id == handed.context.workflow == "w"
    answer = await stub(one).Publish(publish("task.next", token=handed.context.token, id="e2"))
    assert answer.event_id == "e2"
    after = await taken.read()
    assert after.event.causation_id == "e1", "what is published under an event's token follows from it"
    settled = await stub(one).Settle(ev.SettleRequest(delivery=handed.delivery, verdict=ev.VERDICT_SUCCESS))
    assert settled.is_counted
    again = await stub(one).Settle(ev.SettleRequest(delivery=handed.delivery, verdict=ev.VERDICT_DROP))
    assert not again.is_counted, "it is settled already"
    counts = one.mesh.event_counts
    assert counts.published["task.done", "new"] == 1
    assert counts.settled["task.done", "success"] == 1
    taken.cancel()


async def test_credit_holds_back_and_a_stream_that_ends_gives_back(one: House) -> None:
    await stub(one).Publish(publish(id="1"))
    await stub(one).Publish(publish(id="2"))
    request = ev.SubscribeRequest(topic="task.done", group="g", credit=1, starts_at_oldest=True)
    first = stub(one).Subscribe(request)
    handed = await first.read()
    service = one.mesh.events
    (taking,) = service._takings.values()
    assert await taking.next(0.05) is None, "its credit is used up"
    await stub(one).Settle(ev.SettleRequest(delivery=handed.delivery, verdict=ev.VERDICT_SUCCESS))
    assert (await first.read()).event.id == "2"
    first.cancel()
    await until(lambda: not service._takings)
    second = stub(one).Subscribe(request)
    again = await second.read()
    assert (again.event.id, again.attempt, again.may_have_been_handled) == ("2", 2, True)
    retried = ev.SettleRequest(delivery=again.delivery, verdict=ev.VERDICT_RETRY, reason="busy")
    retried.retry_after.FromNanoseconds(1)
    assert (await stub(one).Settle(retried)).is_counted
    assert (await second.read()).attempt == 3
    second.cancel()


async def test_what_could_not_be_settled_is_said_again_and_counts(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as made:
        bus = made.mesh.bus = SqliteBus(tmp_path / "bus.db")
        ask = bus._shelf._file.ask  # type: ignore[attr-defined]
        connection = bus._shelf._shelf.connection  # type: ignore[attr-defined]
        await stub(made).Publish(publish(id="1", partition_key="k"))
        await stub(made).Publish(publish(id="2", partition_key="k"))
        taken = stub(made).Subscribe(ev.SubscribeRequest(topic="task.done", group="g", starts_at_oldest=True))
        handed = await taken.read()
        success = ev.SettleRequest(delivery=handed.delivery, verdict=ev.VERDICT_SUCCESS)
        await ask(lambda: connection.execute("PRAGMA query_only = ON"), (), is_write=False)
        for _ in range(2):
            assert (await refusal(stub(made).Settle(success))).code() is grpc.StatusCode.UNAVAILABLE
        await ask(lambda: connection.execute("PRAGMA query_only = OFF"), (), is_write=False)
        assert (await stub(made).Settle(success)).is_counted
        assert (await taken.read()).event.id == "2"
        assert not (await stub(made).Settle(success)).is_counted
        taken.cancel()
        await bus.close()


async def test_a_group_begins_where_it_is_told_to(one: House) -> None:
    first = await stub(one).Publish(publish(id="1"))
    await stub(one).Publish(publish(id="2"))
    taken = stub(one).Subscribe(ev.SubscribeRequest(topic="task.done", group="r", starts_after=first.sequence))
    assert (await taken.read()).event.id == "2"
    taken.cancel()
    everything = stub(one).Subscribe(ev.SubscribeRequest(topic="task.done", group="m", starts_at=Timestamp(seconds=1)))
    assert (await everything.read()).event.id == "1"
    everything.cancel()


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (ev.SubscribeRequest(topic="../../x"), grpc.StatusCode.INVALID_ARGUMENT, "topic"),
        (ev.SubscribeRequest(topic="t", group="a b"), grpc.StatusCode.INVALID_ARGUMENT, "group"),
        (ev.SubscribeRequest(topic="t", credit=4096), grpc.StatusCode.INVALID_ARGUMENT, "credit"),
        (ev.SubscribeRequest(topic="t", starts_after="x"), grpc.StatusCode.INVALID_ARGUMENT, "starts_after"),
        (
            ev.SubscribeRequest(topic="t", starts_after="1", starts_at_oldest=True),
            grpc.StatusCode.INVALID_ARGUMENT,
            "only one",
        ),
        (ev.SubscribeRequest(topic="t", agent="eve"), grpc.StatusCode.PERMISSION_DENIED, "No agent eve"),
        (ev.SubscribeRequest(topic="t", agent="\n"), grpc.StatusCode.INVALID_ARGUMENT, "agent"),
    ],
)
async def test_a_subscription_that_is_none_is_refused(one: House, request_: Any, code: Any, words: str) -> None:
    error = await refusal(stub(one).Subscribe(request_).read())
    assert error.code() is code
    assert words in (error.details() or "")
    assert await one.mesh.bus.positions() == []


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (publish("../../x"), grpc.StatusCode.INVALID_ARGUMENT, "topic"),
        (publish(""), grpc.StatusCode.INVALID_ARGUMENT, "topic"),
        (publish(source="bob"), grpc.StatusCode.INVALID_ARGUMENT, "event.source"),
        (publish(agent="eve"), grpc.StatusCode.PERMISSION_DENIED, "No agent eve"),
        (publish(token="x"), grpc.StatusCode.UNAUTHENTICATED, "token"),
        (publish(data=bytes(2**20 + 1)), grpc.StatusCode.INVALID_ARGUMENT, "data"),
        (publish(extensions={"Not": "one"}), grpc.StatusCode.INVALID_ARGUMENT, "extensions"),
        (publish(data_ref="mesh://state/../@x"), grpc.StatusCode.INVALID_ARGUMENT, "event.data_ref"),
        (publish(data_ref="mesh://state/mesh/x"), grpc.StatusCode.INVALID_ARGUMENT, "@ and a version"),
        (publish(data_ref="mesh://state/agent/./x@1"), grpc.StatusCode.INVALID_ARGUMENT, "says whose it is"),
        (publish(extensions={"expirytime": "soon"}), grpc.StatusCode.INVALID_ARGUMENT, "expirytime"),
    ],
)
async def test_an_event_that_is_none_is_refused(one: House, request_: Any, code: Any, words: str) -> None:
    error = await refusal(stub(one).Publish(request_))
    assert error.code() is code
    assert words in (error.details() or "")


async def test_a_delivery_that_nobody_was_handed_is_not_found(one: House) -> None:
    for delivery in ("", "x", "x.1", "." * 5000):
        error = await refusal(stub(one).Settle(ev.SettleRequest(delivery=delivery)))
        assert error.code() is grpc.StatusCode.NOT_FOUND


async def test_the_service_speaks_json_too(one: House) -> None:
    event = {"topic": "task.done", "id": "j", "data": "e30="}
    assert await one.ask("EventService/Publish", {"event": event}) == (
        200,
        {"eventId": "j", "sequence": "00000000000000000001"},
    )
    status, said = await one.ask("EventService/Publish", {"event": {"topic": "a b"}})
    assert (status, said["code"]) == (400, "invalid_argument")
    url = f"http://{one.address}/meshd.v1.EventService/Subscribe"
    async with aiohttp.ClientSession() as client, client.ws_connect(url) as socket:
        await socket.send_str('{"topic": "task.done", "startsAtOldest": true}')
        handed = await socket.receive_json()
        assert handed["event"]["id"] == "j"
        asked = {"delivery": handed["delivery"], "verdict": "VERDICT_SUCCESS"}
        assert await one.ask("EventService/Settle", asked) == (200, {"isCounted": True})
        assert await socket.close(), "it is answered, not given up"
        assert socket.close_code == 1000
        await until(lambda: not one.mesh.events._takings)
        async with client.ws_connect(url) as talkative:
            await talkative.send_str('{"topic": "task.done"}')
            await talkative.send_str("{}")
            assert "one message" in (await talkative.receive_json())["error"]["message"]
    await until(lambda: not one.mesh.events._takings)


async def test_without_a_bus_it_says_so(tmp_path: Path) -> None:
    async with house(tmp_path, POLICY) as made:
        error = await refusal(stub(made).Publish(publish()))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
