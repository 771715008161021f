"""Events in sessions: published, handed on with their context, settled; and who may say what."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from meshd.api import session_events
from meshd.engines.bus_memory import MemoryBus
from meshd.engines.bus_port import Event
from meshd_sdk.v1 import events_pb2 as ev
from meshd_sdk.v1 import session_pb2 as pb
from tests.api.session_peer import Peer
from tests.proxy.harness import until

pytestmark = pytest.mark.both_loops

ALONE = "agent: manager\nupstreams: {}\n"


async def publish(peer: Peer, topic: str, *, token: str = "", **event: Any) -> pb.PublishReply:
    id = peer.next_id()
    request = ev.PublishRequest(token=token, event=ev.Event(topic=topic, **event))
    await peer.send(publish=pb.Publish(id=id, request=request))
    reply = await peer.next("published")
    assert reply.id == id
    return reply


async def subscribe(peer: Peer, topic: str, **request: Any) -> pb.SubscribeReply:
    id = peer.next_id()
    await peer.send(subscribe=pb.Subscribe(id=id, request=ev.SubscribeRequest(topic=topic, **request)))
    reply = await peer.next("subscribed")
    assert reply.id == id
    return reply


async def settle(peer: Peer, delivery: pb.EventDelivery, verdict: int = ev.VERDICT_SUCCESS, **fields: Any) -> None:
    await peer.send(settle=pb.Settle(id=delivery.id, verdict=verdict, **fields))
    await peer.send_raw(pb.ConnectRequest(credit=pb.Credit(frames=1)))


async def test_an_event_comes_with_a_context_one_hop_on(door: Any) -> None:
    one = await door(ALONE, MemoryBus())
    manager, researcher = await one.peer("manager"), await one.peer("researcher")
    assert (await subscribe(researcher, "task.*")).status.code == 0
    done = await publish(manager, "task.assigned", data=b'{"q": 1}', subject="bees")
    assert done.status.code == 0
    assert not done.response.is_duplicate
    delivery = await researcher.next("event")
    event = delivery.event
    assert (event.topic, event.type, event.source) == ("task.assigned", "task.assigned", "manager")
    assert (event.data, event.subject, event.data_content_type) == (b'{"q": 1}', "bees", "application/json")
    assert (event.id, event.sequence) == (done.response.event_id, done.response.sequence)
    assert (delivery.attempt, delivery.may_have_been_handled) == (1, False)
    context = delivery.context
    assert (context.agent, context.hops, list(context.path)) == ("researcher", 1, ["manager"])
    assert context.account.startswith("unattributed/manager/"), "whoever published pays"
    assert one.mesh.read(context.token, "researcher").hops == 1
    await settle(researcher, delivery)


async def test_workflow_hops_and_cause_go_from_event_to_event(door: Any) -> None:
    one = await door("agent: manager\nupstreams: {}\n", MemoryBus(), app="session")
    manager, researcher = await one.peer("manager"), await one.peer("researcher")
    client = await one.plane.connect(inbound=True)
    client.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
    call = await manager.next("call")
    await subscribe(researcher, "task.assigned")
    await subscribe(manager, "task.completed")
    await publish(manager, "task.assigned", token=call.context.token)
    assigned = await researcher.next("event")
    assert assigned.event.correlation_id == call.context.workflow == assigned.context.workflow
    assert assigned.context.account == call.context.account
    await publish(researcher, "task.completed", token=assigned.context.token)
    await settle(researcher, assigned)
    completed = await manager.next("event")
    assert completed.event.causation_id == assigned.event.id
    assert completed.event.correlation_id == call.context.workflow
    assert (completed.context.hops, list(completed.context.path)) == (2, ["manager", "researcher"])
    await settle(manager, completed)
    await manager.answer(call, b"done")
    assert (await client.reply("POST")).body == b"done"


async def test_an_agent_cannot_forge_what_the_sidecar_writes(door: Any) -> None:
    one = await door(ALONE, MemoryBus())
    manager, researcher = await one.peer("manager"), await one.peer("researcher")
    await subscribe(researcher, "t")
    await publish(manager, "t", correlation_id="wf-victim", causation_id="x", sequence="9")
    delivery = await researcher.next("event")
    event = delivery.event
    assert (event.correlation_id, event.causation_id) == ("", "")
    assert event.sequence != "9"
    assert delivery.context.workflow == ""
    reply = await publish(manager, "t", source="researcher")
    assert (reply.status.code, reply.status.reason) == (3, "malformed")
    assert "event.source" in reply.status.message
    reply = await publish(researcher, "t", token=delivery.context.token)
    assert reply.status.code == 0
    reply = await publish(manager, "t", token=delivery.context.token)
    assert (reply.status.code, reply.status.reason) == (16, "context_invalid")


async def test_the_hop_limit_holds_for_events(door: Any) -> None:
    one = await door(ALONE + "limits: {hops: 3}\n", MemoryBus())
    a, b = await one.peer("a"), await one.peer("b")
    await subscribe(a, "to.a")
    await subscribe(b, "to.b")
    token, turns = "", 0
    while True:
        publisher, reader, topic = ((a, b, "to.b"), (b, a, "to.a"))[turns % 2]
        reply = await publish(publisher, topic, token=token)
        if reply.status.code:
            break
        delivery = await reader.next("event")
        token, turns = delivery.context.token, turns + 1
        await settle(reader, delivery)
    assert turns == 3
    assert (reply.status.code, reply.status.reason) == (9, "hop_limit")


async def test_the_same_event_is_published_once(door: Any) -> None:
    one = await door(ALONE, MemoryBus())
    a = await one.peer("a")
    first = await publish(a, "t", id="e-1")
    again = await publish(a, "t", id="e-1")
    assert again.response.is_duplicate
    assert again.response.sequence == first.response.sequence


BAD_EVENTS: dict[str, dict[str, Any]] = {
    "no topic": {"topic": ""},
    "a wildcard to publish to": {"topic": "a.*"},
    "a topic with spaces": {"topic": "a b"},
    "a long topic": {"topic": "a" * 256},
    "a bad extension": {"topic": "t", "extensions": {"Not-A-Name": "x"}},
}


@pytest.mark.parametrize("event", BAD_EVENTS.values(), ids=BAD_EVENTS)
async def test_what_is_no_event_has_a_status_and_harms_no_other(door: Any, event: dict[str, Any]) -> None:
    one = await door(ALONE, MemoryBus())
    a, b = await one.peer("a"), await one.peer("b")
    await subscribe(b, ">")
    bad, good = a.next_id(), a.next_id()
    # Both are there before the bus is asked, so that they go to it together.
    for id, fields in ((bad, event), (good, {"topic": "fine"})):
        await a.send(publish=pb.Publish(id=id, request=ev.PublishRequest(event=ev.Event(**fields))))
    replies = {}
    while len(replies) < 2:
        reply = await a.next("published")
        replies[reply.id] = reply.status
    assert (replies[bad].code, replies[bad].reason) == (3, "malformed")
    assert replies[good].code == 0
    assert (await b.next("event")).event.topic == "fine"


async def test_what_is_no_subscription_has_a_status(door: Any) -> None:
    one = await door(ALONE, MemoryBus())
    a = await one.peer("a")
    for request in ({"topic": ""}, {"topic": "a..b"}, {"topic": "t", "handling_time": {"seconds": -1}}):
        reply = await subscribe(a, **request)
        assert (reply.status.code, reply.status.reason) == (3, "malformed")
    assert (await subscribe(a, "t")).status.code == 0


async def test_a_retry_comes_again_and_a_drop_does_not(door: Any) -> None:
    one = await door(ALONE, MemoryBus())
    a, b = await one.peer("a"), await one.peer("b")
    await subscribe(b, "t")
    await publish(a, "t", data=b"1")
    first = await b.next("event")
    await settle(b, first, ev.VERDICT_RETRY, retry_after={"seconds": 0})
    second = await b.next("event")
    assert (second.event.id, second.attempt) == (first.event.id, 2)
    await settle(b, second, ev.VERDICT_DROP, reason="not mine")
    await publish(a, "t", data=b"2")
    assert (await b.next("event")).event.data == b"2"


async def test_events_wait_for_credit_and_leave_calls_theirs(door: Any) -> None:
    one = await door(ALONE, MemoryBus())
    a, b = await one.peer("a"), await one.peer("b", credit=1)
    await subscribe(b, "t")
    id = await a.call("b")  # a subscription that waits for events keeps no credit
    call = await b.next("call")
    await publish(a, "t")
    await b.answer(call)
    await a.reply(id)
    assert (await b.next("event")).event.topic == "t"


async def test_an_event_that_finds_no_credit_goes_to_another_and_its_attempt_does_not_count(door: Any) -> None:
    one = await door(ALONE, MemoryBus())
    a, b = await one.peer("a"), await one.peer("b", credit=1)
    # Both subscriptions wait with the one credit that there is.
    for topic in ("first", "second"):
        await subscribe(b, topic, group="g", handling_time=Duration(seconds=86_400))
    for topic in ("first", "second"):
        await publish(a, topic)
    taken = (await b.next("event")).event.topic
    other = "second" if taken == "first" else "first"
    c = await one.peer("c")
    await subscribe(c, other, group="g")
    event = await c.next("event")
    assert (event.event.topic, event.attempt, event.may_have_been_handled) == (other, 1, False)


async def test_an_unsettled_event_goes_to_another_when_its_session_ends(door: Any) -> None:
    one = await door(ALONE, MemoryBus())
    a, first = await one.peer("a"), await one.peer("worker")
    await subscribe(first, "t")
    await publish(a, "t")
    lost = await first.next("event")
    second = await one.peer("worker")
    await subscribe(second, "t")
    await first.send(goodbye=pb.Goodbye())
    again = await second.next("event")
    assert (again.event.id, again.attempt, again.may_have_been_handled) == (lost.event.id, 2, True)


async def test_a_settlement_is_handled_once_over_a_broken_connection(door: Any) -> None:
    bus = MemoryBus()
    one = await door(ALONE, bus)
    a, b = await one.peer("a"), await one.peer("b")
    await subscribe(b, "t")
    await publish(a, "t")
    delivery = await b.next("event")
    b.break_off()
    again = await one.peer("b", session=b.welcome.session, received=b.received)
    again.seq = b.seq
    await settle(again, delivery)
    await again.send_raw(again.sent[0])  # and once more
    await publish(a, "t", data=b"next")
    following = await again.next("event")
    assert (following.event.data, following.attempt) == (b"next", 1)
    (position,) = await bus.positions()
    await until(lambda: True)
    assert position.under_way == 1


async def test_unsubscribing_ends_it(door: Any) -> None:
    one = await door(ALONE, MemoryBus())
    a, b = await one.peer("a"), await one.peer("b")
    id = b.next_id()
    await b.send(subscribe=pb.Subscribe(id=id, request=ev.SubscribeRequest(topic="t")))
    await b.next("subscribed")
    await b.send(unsubscribe=pb.Unsubscribe(id=id))
    await b.send(unsubscribe=pb.Unsubscribe(id=77))
    await subscribe(b, "u")
    await publish(a, "t")
    await publish(a, "u")
    assert (await b.next("event")).event.topic == "u"


async def test_what_is_under_way_when_it_is_unsubscribed_is_still_settled(door: Any) -> None:
    one = await door(ALONE, MemoryBus())
    a, first, second = await one.peer("a"), await one.peer("worker"), await one.peer("worker")
    id = first.next_id()
    await first.send(subscribe=pb.Subscribe(id=id, request=ev.SubscribeRequest(topic="t")))
    await first.next("subscribed")
    for data in (b"1", b"2"):
        await publish(a, "t", data=data)
    held = [await first.next("event") for _ in range(2)]
    await first.send(unsubscribe=pb.Unsubscribe(id=id))
    await subscribe(second, "t")
    for delivery in held:
        await settle(first, delivery)
    await publish(a, "t", data=b"3")
    following = await second.next("event")
    assert (following.event.data, following.attempt) == (b"3", 1), "what was settled comes to nobody else"


async def test_a_retry_later_than_events_wait_is_the_latest(door: Any) -> None:
    """The SDK takes up to a year; a Settle has no answer, so nobody would hear of a refusal."""
    bus = MemoryBus()
    one = await door(ALONE, bus)
    a, b = await one.peer("a"), await one.peer("b")
    await subscribe(b, "t")
    await publish(a, "t")
    await settle(b, await b.next("event"), ev.VERDICT_RETRY, retry_after=Duration(seconds=30 * 86_400))
    await publish(a, "t", data=b"next")
    assert (await b.next("event")).event.data == b"next"
    (position,) = await bus.positions()
    assert (position.under_way, position.waiting) == (1, 1)


async def test_a_time_that_is_none_is_named(door: Any) -> None:
    one = await door(ALONE, MemoryBus())
    a = await one.peer("a")
    for wrong in (Timestamp(seconds=2**62), Timestamp(seconds=-5), Timestamp(nanos=-1), Timestamp(nanos=2**31 - 1)):
        status = (await publish(a, "t", time=wrong)).status
        assert (status.code, status.reason) == (3, "malformed"), wrong
        assert "time" in status.message


async def test_a_settlement_of_what_never_was_is_passed_over(door: Any) -> None:
    one = await door(ALONE, MemoryBus())
    a = await one.peer("a")
    await a.send(settle=pb.Settle(id=99, verdict=ev.VERDICT_SUCCESS))
    assert (await publish(a, "t")).status.code == 0


async def test_without_a_bus_there_is_a_status(door: Any) -> None:
    one = await door(ALONE)
    a = await one.peer("a")
    assert (await publish(a, "t")).status.reason == "store_unavailable"
    assert (await subscribe(a, "t")).status.reason == "store_unavailable"


async def test_an_agent_that_settles_nothing_is_handed_a_bounded_number(
    door: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_events, "HANDED_MAX", 3)
    one = await door(ALONE, MemoryBus())
    a, b = await one.peer("a"), await one.peer("b", credit=1000)
    await subscribe(b, "t")
    for number in range(6):
        await publish(a, "t", data=b"%d" % number)
    handed = [await b.next("event") for _ in range(3)]
    id = await a.call("b")  # what comes next is the call, not a fourth event
    await b.answer(await b.next("call"))
    await a.reply(id)
    await settle(b, handed[0])
    assert (await b.next("event")).event.data == b"3"


async def test_what_follows_from_an_event_of_the_sidecars_own_names_it_as_its_cause(door: Any) -> None:
    """A question for a supervisor is published without a context: then that of the agent's shared account comes."""
    bus = MemoryBus()
    one = await door(ALONE, bus)
    boss, heard = await one.peer("boss"), await bus.subscribe("ops.answers", "test")
    assert (await subscribe(boss, "ops")).status.code == 0
    await bus.publish([Event("ops", source="meshd:supervisor", id="question-1")])
    delivery = await boss.next("event")
    context = delivery.context
    assert (context.workflow, context.hops, list(context.path), context.agent) == ("", 0, [], "boss")
    assert context.account.startswith("unattributed/boss/")
    assert (await publish(boss, "ops.answers", token=context.token, data=b"{}")).status.code == 0
    answer = (await heard.next()).event
    assert (answer.source, answer.causation_id) == ("boss", "question-1")
