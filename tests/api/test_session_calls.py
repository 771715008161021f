"""Calls in sessions: to upstreams, to other agents, and from callers that know nothing of sessions."""

from __future__ import annotations

import json
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from meshd.engines.bus_memory import MemoryBus
from meshd_sdk.v1 import events_pb2 as ev
from meshd_sdk.v1 import session_pb2 as pb
from meshd_sdk.v1.status_pb2 import Status
from tests.proxy.harness import until
from tests.proxy.messages import Message

pytestmark = pytest.mark.both_loops

DOCUMENT = "agent: manager\nupstreams:\n  tools: {{kind: tool, url: 'http://127.0.0.1:{port}'}}\n"
ALONE = "agent: manager\nupstreams: {}\n"


async def test_a_call_reaches_an_upstream_and_its_reply_comes_back(door: Any, upstream: Any) -> None:
    seen: list[Message] = []

    async def script(peer: Any) -> None:
        seen.append(await peer.request())
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello")

    server = await upstream(script)
    one = await door(DOCUMENT.format(port=server.port))
    agent = await one.peer("manager")
    reply = await agent.ask("tools", "v1/find?x=1", b'{"q": 1}', idempotency_key="k-1")
    assert (reply.status.code, reply.payload, reply.content_type) == (0, b"hello", "text/plain")
    assert reply.status.metadata["http_status"] == "200"
    assert reply.call_id
    assert len(reply.pieces) == 1, "a reply whose length is known needs one frame"
    (request,) = seen
    assert (request.method, request.target, request.body) == (b"POST", b"/v1/find?x=1", b'{"q": 1}')
    assert request.get(b"content-type") == b"application/json"
    assert request.get(b"idempotency-key") == b"k-1"
    assert request.get(b"x-meshd-context") is None, "no token leaves to a tool"


async def test_one_agent_calls_another(door: Any) -> None:
    one = await door(ALONE)
    manager, researcher = await one.peer("manager"), await one.peer("researcher")
    id = await manager.call("researcher", "search", b'{"q": "bees"}')
    delivery = await researcher.next("call")
    assert (delivery.operation, delivery.payload, delivery.content_type) == (
        "search",
        b'{"q": "bees"}',
        "application/json",
    )
    context = delivery.context
    assert (context.agent, context.hops, list(context.path)) == ("researcher", 1, ["manager"])
    assert context.account.startswith("unattributed/manager/")
    await researcher.answer(delivery, b'{"found": 3}', content_type="application/json")
    reply = await manager.reply(id)
    assert (reply.status.code, reply.payload) == (0, b'{"found": 3}')


async def test_a_call_without_a_token_is_charged_to_the_agent_that_made_it(door: Any) -> None:
    one = await door(ALONE)
    other, researcher = await one.peer("other"), await one.peer("researcher")
    id = await other.call("researcher")
    delivery = await researcher.next("call")
    assert delivery.context.account.startswith("unattributed/other/")
    assert list(delivery.context.path) == ["other"]
    await researcher.answer(delivery)
    assert (await other.reply(id)).status.code == 0


async def test_a_token_goes_on_and_counts_hops(door: Any) -> None:
    one = await door(ALONE)
    a, b, c = await one.peer("a"), await one.peer("b"), await one.peer("c")
    first = await a.call("b")
    at_b = await b.next("call")
    second = await b.call("c", token=at_b.context.token)
    at_c = await c.next("call")
    assert (at_c.context.hops, list(at_c.context.path)) == (2, ["a", "b"])
    await c.answer(at_c)
    await b.reply(second)
    await b.answer(at_b)
    await a.reply(first)


async def test_another_agents_token_is_refused(door: Any) -> None:
    one = await door(ALONE)
    a, b, c = await one.peer("a"), await one.peer("b"), await one.peer("c")
    first = await a.call("b")
    at_b = await b.next("call")
    reply = await c.ask("b", token=at_b.context.token)
    assert (reply.status.code, reply.status.reason) == (16, "context_invalid")
    assert (await c.ask("b", token="nonsense")).status.reason == "context_invalid"
    await b.answer(at_b)
    await a.reply(first)


async def test_an_http_caller_reaches_an_agents_tool(door: Any) -> None:
    one = await door(ALONE)
    researcher = await one.peer("researcher")
    client = await one.plane.connect()
    client.send(b"POST /researcher/search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n[]")
    delivery = await researcher.next("call")
    assert (delivery.operation, delivery.payload) == ("search", b"[]")
    await researcher.answer(delivery, b"[1]")
    reply = await client.reply("POST")
    assert (reply.status, reply.body) == (200, b"[1]")


async def test_an_http_caller_is_told_how_the_agent_failed(door: Any) -> None:
    one = await door(ALONE)
    researcher = await one.peer("researcher")
    client = await one.plane.connect()
    client.send(b"GET /researcher/search HTTP/1.1\r\nhost: localhost\r\n\r\n")
    delivery = await researcher.next("call")
    await researcher.answer(delivery, status=Status(code=5, message="no such bee"))
    reply = await client.reply()
    assert reply.status == 404
    assert json.loads(reply.body)["detail"] == "no such bee"


async def test_pieces_of_a_reply_pass_as_they_come(door: Any) -> None:
    one = await door(ALONE)
    manager, researcher = await one.peer("manager"), await one.peer("researcher")
    id = await manager.call("researcher")
    delivery = await researcher.next("call")
    await researcher.answer(delivery, b"one ", has_more=True)
    first = await manager.next("reply")
    assert (first.id, first.payload, first.has_more) == (id, b"one ", True)
    await researcher.answer(delivery, b"two")
    assert (await manager.reply(id)).payload == b"two"


async def test_an_agents_failure_comes_back_in_its_own_words(door: Any) -> None:
    one = await door(ALONE)
    manager, researcher = await one.peer("manager"), await one.peer("researcher")
    for has_begun in (False, True):
        id = await manager.call("researcher")
        delivery = await researcher.next("call")
        if has_begun:
            await researcher.answer(delivery, b"some", has_more=True)
        said = Status(code=9, reason="budget_exhausted", message="not now", metadata={"why": "asleep"})
        await researcher.answer(delivery, status=said)
        reply = await manager.reply(id)
        assert (reply.status.code, reply.status.message) == (9, "not now")
        assert reply.status.metadata["why"] == "asleep"
        assert reply.status.reason == "", "a reason is the sidecar's to give"


async def test_an_unknown_target_has_a_status_at_once(door: Any) -> None:
    one = await door(ALONE)
    manager = await one.peer("manager")
    reply = await manager.ask("nobody", "search")
    assert (reply.status.code, reply.status.reason) == (5, "unknown_target")
    assert "manager" in reply.status.message


async def test_a_declared_agent_without_a_session_has_a_status_at_once(door: Any) -> None:
    one = await door("agent: manager\nupstreams:\n  researcher: {kind: agent, session: true}\n")
    manager = await one.peer("manager")
    for _ in range(10):  # more than a breaker needs to open
        reply = await manager.ask("researcher", "search")
        assert (reply.status.code, reply.status.reason) == (14, "upstream_unreachable")
    researcher = await one.peer("researcher")
    assert not researcher.welcome.notices
    id = await manager.call("researcher", "search")
    await researcher.answer(await researcher.next("call"), b"here")
    assert (await manager.reply(id)).payload == b"here"


async def test_time_that_the_caller_has_set_does_not_open_the_agents_breaker(door: Any) -> None:
    breaker = "rules:\n- {name: few, match: {kind: agent}, breaker: {consecutive: 3}}\n"
    one = await door(ALONE + breaker)
    manager, researcher = await one.peer("manager"), await one.peer("researcher")
    for fields, count in (({"timeout": Duration(seconds=60)}, 8), ({}, 3)):
        for _ in range(count):
            id = await manager.call("researcher", "slow", **fields)
            await researcher.answer(await researcher.next("call"), status=Status(code=4, message="too late"))
            reply = await manager.reply(id)
            assert (reply.status.code, reply.status.reason) == (4, "")
    assert (await manager.ask("researcher", "slow")).status.reason == "circuit_open"


async def test_a_reply_that_comes_faster_than_it_is_read_ends_in_words_and_opens_no_breaker(door: Any) -> None:
    one = await door(ALONE + "rules:\n- {name: few, match: {kind: agent}, breaker: {consecutive: 1}}\n")
    manager, researcher = await one.peer("manager"), await one.peer("researcher")
    id = await manager.call("researcher", "flood")
    delivery = await researcher.next("call")
    for _ in range(14):  # 2 MiB go out unacknowledged, and 8 MiB are kept
        await researcher.send(reply=pb.CallReply(id=delivery.id, payload=bytes(2**20), has_more=True))
    while (piece := await manager.next("reply")).has_more:
        pass
    assert (piece.id, piece.status.code) == (id, 14)
    assert piece.status.message == "The reply of researcher came faster than it was read: 8,388,608 bytes are kept"
    await manager.send_raw(pb.ConnectRequest(ack=manager.received))
    id = await manager.call("researcher", "find")
    await researcher.answer(await researcher.next("call"), b"here")
    assert (await manager.reply(id)).payload == b"here"


async def test_a_refusal_keeps_its_reason(door: Any) -> None:
    document = ALONE + "rules:\n- {name: closed, match: {target: app}, deny: never}\n"
    document = document.replace("{}", "\n  shut: {kind: agent, session: true}").replace("target: app", "target: shut")
    one = await door(document)
    manager = await one.peer("manager")
    reply = await manager.ask("shut")
    assert (reply.status.code, reply.status.reason) == (7, "not_allowed")
    assert reply.status.metadata["rule"] == "closed"
    assert not reply.status.is_retryable


async def test_the_hop_limit_holds(door: Any) -> None:
    one = await door(ALONE + "limits: {hops: 1}\n")
    a, b = await one.peer("a"), await one.peer("b")
    id = await a.call("b")
    at_b = await b.next("call")
    assert (await b.ask("a", token=at_b.context.token)).status.reason == "hop_limit"
    await b.answer(at_b)
    await a.reply(id)


async def test_what_an_upstream_answers_is_a_status_and_its_body(door: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 429 Too Many\r\nretry-after: 3\r\ncontent-length: 4\r\n\r\nslow")

    server = await upstream(script)
    one = await door(DOCUMENT.format(port=server.port))
    reply = await (await one.peer("manager")).ask("tools")
    assert (reply.status.code, reply.status.metadata["http_status"], reply.payload) == (8, "429", b"slow")
    assert reply.status.is_retryable
    assert reply.status.retry_after.seconds == 3
    assert reply.status.reason == ""


async def test_a_cancelled_call_is_given_up_at_the_agent(door: Any) -> None:
    one = await door(ALONE)
    manager, researcher = await one.peer("manager"), await one.peer("researcher")
    id = await manager.call("researcher")
    delivery = await researcher.next("call")
    await manager.send(cancel=pb.CancelCall(id=id))
    assert (await researcher.next("cancel")).id == delivery.id
    assert (await manager.reply(id)).status.code == 1
    await researcher.answer(delivery, b"too late")
    again = await manager.call("researcher")
    await researcher.answer(await researcher.next("call"), b"in time")
    assert (await manager.reply(again)).payload == b"in time"


async def test_an_http_caller_that_hangs_up_cancels_the_delivery(door: Any) -> None:
    one = await door(ALONE)
    researcher = await one.peer("researcher")
    client = await one.plane.connect()
    client.send(b"POST /researcher/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n")
    delivery = await researcher.next("call")
    client.close()
    assert (await researcher.next("cancel")).id == delivery.id


async def test_sessions_of_one_name_take_turns(door: Any) -> None:
    one = await door(ALONE)
    manager = await one.peer("manager")
    first, second = await one.peer("worker"), await one.peer("worker")
    ids = [await manager.call("worker") for _ in range(4)]
    for worker in (first, second):
        for _ in range(2):
            await worker.answer(await worker.next("call"), worker.welcome.session[:4].encode())
    answers = {(await manager.next("reply")).payload for _ in ids}
    assert len(answers) == 2


async def test_calls_wait_for_credit_and_then_are_too_many(door: Any) -> None:
    document = "agent: manager\nupstreams:\n  worker: {kind: agent, session: true, pool: {pending: 2}}\n"
    one = await door(document)
    manager, worker = await one.peer("manager"), await one.peer("worker", credit=1)
    ids = [await manager.call("worker") for _ in range(3)]
    refused = await manager.ask("worker")
    assert (refused.status.reason, refused.status.is_retryable) == ("overloaded", True)
    for id in ids:
        await worker.answer(await worker.next("call"), b"%d" % id)
        assert (await manager.reply(id)).payload == b"%d" % id


async def test_waiting_calls_are_refused_when_the_agent_leaves(door: Any) -> None:
    one = await door(ALONE)
    manager, worker = await one.peer("manager"), await one.peer("worker", credit=0)
    id = await manager.call("worker")
    await worker.send(goodbye=pb.Goodbye())
    assert (await manager.reply(id)).status.reason == "upstream_unreachable"
    assert (await manager.ask("worker")).status.reason == "unknown_target", "a guest goes with its last session"


async def test_grpc_to_an_agent_with_a_session_is_refused_clearly(door: Any) -> None:
    one = await door(ALONE)
    await one.peer("researcher")
    options = (("grpc.default_authority", "researcher.mesh"),)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{one.plane.port}", options) as channel:
        ask = channel.unary_unary("/x.Y/Z", request_serializer=bytes, response_deserializer=bytes)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(b"")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "session" in caught.value.details()


async def test_inbound_calls_reach_the_policys_agent(door: Any) -> None:
    one = await door("agent: researcher\nupstreams: {}\n", app="session")
    researcher = await one.peer("researcher")
    client = await one.plane.connect(inbound=True)
    client.send(b"POST /search HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
    delivery = await researcher.next("call")
    assert delivery.operation == "search"
    assert (delivery.context.agent, delivery.context.hops) == ("researcher", 0)
    assert delivery.context.workflow.startswith("wf-")
    await researcher.answer(delivery, b"ok")
    assert (await client.reply("POST")).body == b"ok"


async def test_a_name_with_an_address_stays_the_policys(door: Any, upstream: Any) -> None:
    async def script(peer: Any) -> None:
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\naddress")

    server = await upstream(script)
    one = await door(f"agent: manager\nupstreams:\n  worker: {{kind: agent, url: 'http://127.0.0.1:{server.port}'}}\n")
    worker = await one.peer("worker")
    assert "session: true" in worker.welcome.notices[0]
    manager = await one.peer("manager")
    assert (await manager.ask("worker")).payload == b"address"


async def test_a_reload_keeps_guests(door: Any) -> None:
    one = await door(ALONE)
    manager, worker = await one.peer("manager"), await one.peer("worker")
    one.plane.proxy.swap(one.plane.load(ALONE + "limits: {hops: 3}\n"))
    id = await manager.call("worker")
    await worker.answer(await worker.next("call"), b"still here")
    assert (await manager.reply(id)).payload == b"still here"


async def test_credit_that_a_call_gives_back_unsent_serves_the_next(door: Any) -> None:
    one = await door(ALONE)
    worker = await one.peer("worker", credit=1)
    first, second = await one.plane.connect(), await one.plane.connect()
    # It takes the credit, and its body never ends.
    first.send(b"POST /worker/a HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n12")
    await until(lambda: len(one.plane.attempts) == 1)
    second.send(b"POST /worker/b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n{}")
    await until(lambda: len(one.plane.attempts) == 2)
    first.close()
    delivery = await worker.next("call")
    assert delivery.operation == "b"
    await worker.answer(delivery)
    assert (await second.reply("POST")).status == 200


async def test_a_call_that_is_not_sent_yet_counts_in_a_resumed_sessions_credit(door: Any) -> None:
    one = await door(ALONE)
    worker = await one.peer("worker", credit=1)
    client = await one.plane.connect()
    client.send(b"POST /worker/a HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n{")
    await until(lambda: len(one.plane.attempts) == 1)
    again = await one.peer("worker", credit=1, session=worker.welcome.session)
    other = await one.plane.connect()
    other.send(b"POST /worker/b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n{}")
    await until(lambda: len(one.plane.attempts) == 2)
    client.send(b"}")
    first = await again.next("call")
    assert first.operation == "a"
    await again.send(reply=pb.CallReply(id=first.id))
    assert (await client.reply("POST")).status == 200
    await again.send_raw(pb.ConnectRequest(credit=pb.Credit(frames=1)))
    second = await again.next("call")
    assert second.operation == "b"
    await again.answer(second)
    assert (await other.reply("POST")).status == 200


async def test_agents_that_come_and_go_leave_nothing(door: Any) -> None:
    one = await door(ALONE)
    for number in range(3):
        worker = await one.peer(f"worker-{number}")
        client = await one.plane.connect()
        client.send(b"POST /worker-%d/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\n{}" % number)
        await worker.answer(await worker.next("call"))
        assert (await client.reply("POST")).status == 200
        await worker.send(goodbye=pb.Goodbye())
    await until(lambda: not one.service.count)
    assert not one.plane.proxy.pools.open_connections()


async def test_a_reload_that_no_longer_names_an_agent_leaves_it_its_session(door: Any) -> None:
    one = await door("agent: manager\nupstreams:\n  worker: {session: true}\n")
    manager, worker = await one.peer("manager"), await one.peer("worker")
    one.plane.proxy.swap(one.plane.load(ALONE))
    id = await manager.call("worker")
    await worker.answer(await worker.next("call"))
    assert (await manager.reply(id)).status.code == 0


async def test_where_nobody_names_workflows_another_name_is_no_other_purse(door: Any) -> None:
    one = await door(ALONE + "limits: {names_workflows: false}\n", MemoryBus())
    worker = await one.peer("worker")
    id = worker.next_id()
    await worker.send(subscribe=pb.Subscribe(id=id, request=ev.SubscribeRequest(topic="t")))
    await worker.next("subscribed")
    for name in ("one", "two"):
        agent = await one.peer(name)
        call = await agent.call("worker")
        delivery = await worker.next("call")
        assert delivery.context.account.startswith("unattributed/manager/")
        assert list(delivery.context.path) == [name]
        await worker.answer(delivery)
        assert (await agent.reply(call)).status.code == 0
        await agent.send(publish=pb.Publish(id=agent.next_id(), request=ev.PublishRequest(event=ev.Event(topic="t"))))
        assert (await worker.next("event")).context.account.startswith("unattributed/manager/")
