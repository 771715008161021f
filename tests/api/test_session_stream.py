"""The stream itself: its first frame, order, credit, acknowledgement, resuming, and what nonsense does to it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from meshd.api import session_frames as frames
from meshd_sdk.v1 import session_pb2 as pb
from tests.api.session_peer import EndedError, Peer
from tests.proxy.harness import until

pytestmark = pytest.mark.both_loops

ALONE = "agent: manager\nupstreams: {}\n"
INVALID = grpc.StatusCode.INVALID_ARGUMENT
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


async def resumed(one: Any, broken: Peer, **hello: Any) -> Peer:
    """Break a session's connection and go on with it over another, as an SDK does."""
    broken.break_off()
    options = {"session": broken.welcome.session, "received": broken.received, **hello}
    peer = await one.peer(broken.name, **options)
    if peer.welcome.is_resumed:
        peer.seq, peer._ids = broken.seq, broken._ids
        for frame in broken.sent:
            if frame.seq > peer.welcome.received:
                await peer.send_raw(frame)
    return peer


async def test_welcome_says_what_holds(door: Any) -> None:
    one = await door(ALONE)
    peer = await one.peer("manager")
    welcome = peer.welcome
    assert (welcome.revision, welcome.is_resumed, welcome.received) == (1, False, 0)
    assert (welcome.credit, welcome.frame_bytes_max) == (frames.CREDIT, frames.FRAME_BYTES_MAX)
    assert welcome.resume_window.seconds == 60
    assert len(bytes.fromhex(welcome.session)) == 16
    assert welcome.server.startswith("meshd/")


async def test_a_newer_sdk_is_answered_in_our_revision(door: Any) -> None:
    one = await door(ALONE)
    peer = await one.peer("manager", revision=7)
    assert peer.welcome.revision == 1
    # A frame, and a field of a known one, that this build has never heard of: numbers 3000 and 90.
    unknown = b"\x08\x01" + b"\xc2\xbb\x01\x02hi"
    await peer.send_raw(pb.ConnectRequest.FromString(unknown))
    peer.seq = 1
    call = pb.Call.FromString(pb.Call(id=5, target="nobody").SerializeToString() + b"\xd2\x05\x02hi")
    await peer.send(call=call)
    assert (await peer.reply(5)).status.reason == "unknown_target"


NO_HELLO: dict[str, tuple[pb.ConnectRequest, str]] = {
    "another frame first": (pb.ConnectRequest(seq=1, call=pb.Call(id=1)), "hello:"),
    "nothing in it": (pb.ConnectRequest(), "hello:"),
    "no name": (pb.ConnectRequest(hello=pb.Hello(revision=1)), "hello.agent.name:"),
    "a long story": (
        pb.ConnectRequest(hello=pb.Hello(revision=1, agent={"name": "a", "description": "x" * frames.AGENT_BYTES_MAX})),
        "hello.agent:",
    ),
    "no revision": (pb.ConnectRequest(hello=pb.Hello(agent={"name": "a"})), "hello.revision:"),
    **{
        f"named {name!r}": (pb.ConnectRequest(hello=pb.Hello(revision=1, agent={"name": name})), "hello.agent.name:")
        for name in ("app", "w", "A", "a b", "a/b", "../a", "a" * 64, "ä", "a\n", "-a")
    },
}


@pytest.mark.parametrize(("first", "field"), NO_HELLO.values(), ids=NO_HELLO)
async def test_what_is_no_hello(door: Any, first: pb.ConnectRequest, field: str) -> None:
    one = await door(ALONE)
    peer = await one.stranger()
    await peer.send_raw(first)
    ended = await peer.ended()
    assert ended.code is INVALID
    assert ended.message.startswith(field)
    assert one.service.count == 0
    await one.peer("manager")


async def test_bytes_that_are_no_frame(door: Any) -> None:
    one = await door(ALONE)
    good = await one.peer("manager")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{one.port}") as channel:
        stream = channel.stream_stream("/meshd.v1.SessionService/Connect")()
        await stream.write(b"\xff\xff\xff garbage")
        assert await stream.code() is not grpc.StatusCode.OK
    assert (await good.ask("nobody")).status.reason == "unknown_target"


BROKEN: dict[str, tuple[pb.ConnectRequest, str]] = {
    "a second hello": (pb.ConnectRequest(hello=pb.Hello(revision=1, agent={"name": "manager"})), "hello:"),
    "a gap": (pb.ConnectRequest(seq=2, goodbye=pb.Goodbye()), "seq:"),
    "an ack of what never was": (pb.ConnectRequest(ack=9), "ack:"),
    "a call without an id": (pb.ConnectRequest(seq=1, call=pb.Call(target="x")), "call.id:"),
    "a publication without an id": (pb.ConnectRequest(seq=1, publish=pb.Publish()), "publish.id:"),
    "a subscription without an id": (pb.ConnectRequest(seq=1, subscribe=pb.Subscribe()), "subscribe.id:"),
    "a record without an id": (pb.ConnectRequest(seq=1, record=pb.Record()), "record.id:"),
}


@pytest.mark.parametrize(("frame", "field"), BROKEN.values(), ids=BROKEN)
async def test_what_breaks_the_protocol_ends_its_session_alone(door: Any, frame: pb.ConnectRequest, field: str) -> None:
    one = await door(ALONE)
    bystander, peer = await one.peer("bystander"), await one.peer("manager")
    await peer.send_raw(frame)
    ended = await peer.ended()
    assert ended.code is INVALID
    assert ended.message.startswith(field)
    assert one.service.count == 1
    assert (await bystander.ask("manager")).status.reason == "unknown_target"


async def test_an_id_twice_at_once_is_no_id(door: Any) -> None:
    one = await door(ALONE)
    a, _b = await one.peer("a"), await one.peer("b")
    await a.send(call=pb.Call(id=3, target="b"))
    await a.send(call=pb.Call(id=3, target="b"))
    ended = await a.ended()
    assert (ended.code, ended.message[:8]) == (INVALID, "call.id:")


CALLS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no target": ({"target": ""}, "unknown_target", "call.target"),
    "a path as a target": ({"target": "../b"}, "unknown_target", "call.target"),
    "the sidecar's own name": ({"target": "w"}, "unknown_target", "call.target"),
    "a line break in the path": ({"operation": "x\r\nhost: y"}, "malformed", "call.operation"),
    "no ASCII in the path": ({"operation": "zähl"}, "malformed", "call.operation"),
    "dots in the path": ({"operation": "a/../b"}, "malformed", "dot segments"),
    "a path without an end": ({"operation": "x" * 20_000}, "malformed", "call.operation"),
    "a line break in the type": ({"content_type": "a\r\nb: c"}, "malformed", "call.content_type"),
    "a line break in the key": ({"idempotency_key": "a\nb"}, "malformed", "call.idempotency_key"),
    "a negative time": ({"timeout": {"seconds": -1}}, "malformed", "call.timeout"),
    "a time of ages": ({"timeout": {"seconds": 10**11}}, "malformed", "call.timeout"),
    "a negative part": ({"delegate_tokens": -5}, "malformed", "call.delegate_tokens"),
    "a token with a line break": ({"token": "a\r\nb"}, "context_invalid", "token"),
    "a token beyond ASCII": ({"token": "ä"}, "context_invalid", "token"),
}


@pytest.mark.parametrize(("fields", "reason", "word"), CALLS.values(), ids=CALLS)
async def test_what_is_no_call_has_a_status(door: Any, fields: dict[str, Any], reason: str, word: str) -> None:
    one = await door(ALONE)
    a, b = await one.peer("a"), await one.peer("b")
    reply = await a.ask(**{"target": "b", **fields})
    assert reply.status.reason == reason
    assert word in reply.status.message
    id = await a.call("b", "fine")
    await b.answer(await b.next("call"))
    assert (await a.reply(id)).status.code == 0


async def test_work_beyond_its_credit_ends_the_session(door: Any) -> None:
    one = await door(ALONE)
    a, b = await one.peer("a", credit=1000), await one.peer("b", credit=1000)
    for _ in range(frames.CREDIT + 1):
        await a.call("b")
    ended = await a.ended()
    assert ended.code is EXHAUSTED
    assert str(frames.CREDIT) in ended.message
    for _ in range(frames.CREDIT):  # and whoever it called is told that nobody waits any more
        await b.next("call")
    await b.next("cancel")


async def test_credit_comes_back_with_work_done(door: Any) -> None:
    one = await door(ALONE)
    a = await one.peer("a")
    for _ in range(3 * frames.CREDIT):
        a.credit -= 1
        assert a.credit >= 0, "no credit was left although all work was done"
        await a.ask("nobody")


async def test_long_work_does_not_keep_the_credit_of_short_work(door: Any) -> None:
    one = await door(ALONE)
    a, _b = await one.peer("a"), await one.peer("b", credit=1000)
    for _ in range(frames.CREDIT - 1):
        await a.call("b")
        a.credit -= 1
    for _ in range(5):
        a.credit -= 1
        id = await a.call("nobody")
        assert (await a.reply(id)).status.reason == "unknown_target"
        while a.credit < 1:
            await a.read()


async def test_a_call_survives_its_callers_broken_connection(door: Any) -> None:
    one = await door(ALONE)
    a, b = await one.peer("a"), await one.peer("b")
    id = await a.call("b")
    delivery = await b.next("call")
    a.break_off()
    await until(lambda: not one.plane.proxy.agents.named("a"))
    await b.answer(delivery, b"while you were away")
    again = await resumed(one, a)
    assert again.welcome.is_resumed
    assert again.welcome.received == 1
    assert (await again.reply(id)).payload == b"while you were away"


async def test_a_delivery_and_its_reply_survive_the_agents_broken_connection(door: Any) -> None:
    one = await door(ALONE)
    a, b = await one.peer("a"), await one.peer("b")
    id = await a.call("b")
    await until(lambda: one.plane.proxy.live)
    # The delivery may have been sent, but this agent has not read it.
    again = await resumed(one, b, received=0)
    delivery = await again.next("call")
    await again.answer(delivery, b"late")
    assert (await a.reply(id)).payload == b"late"


async def test_what_is_sent_again_is_handled_once(door: Any) -> None:
    one = await door(ALONE)
    a, b = await one.peer("a"), await one.peer("b")
    id = await a.call("b")
    delivery = await b.next("call")
    broken = a
    for _ in range(3):
        broken.break_off()
        peer = await one.peer("a", session=a.welcome.session, received=0)
        assert peer.welcome.is_resumed
        assert peer.welcome.received == 1
        await peer.send_raw(a.sent[0])  # an SDK that did not read `received`
        broken = peer
    await b.answer(delivery, b"once")
    assert (await broken.reply(id)).payload == b"once"
    broken.seq = 1
    assert (await broken.ask("nobody")).status.reason == "unknown_target"
    other = await broken.call("b")
    assert (await b.next("call")).id == delivery.id + 1, "the call was delivered once"
    assert other


async def test_an_unknown_session_begins_anew(door: Any) -> None:
    one = await door(ALONE)
    for session in ("0" * 32, "nonsense", "ä", "x" * 10_000):
        peer = await one.peer("a", session=session, received=5)
        assert not peer.welcome.is_resumed
        assert peer.welcome.received == 0
        assert peer.welcome.session != session


async def test_a_session_is_not_resumed_under_another_name(door: Any) -> None:
    one = await door(ALONE)
    a = await one.peer("a")
    thief = await one.stranger()
    with pytest.raises(EndedError) as caught:
        await thief.hello("b", session=a.welcome.session)
    assert caught.value.code is INVALID
    assert (await a.ask("nobody")).status.reason == "unknown_target", "its own stream goes on"


async def test_a_resume_that_has_received_what_never_was_harms_nobody(door: Any) -> None:
    one = await door(ALONE)
    a = await one.peer("a")
    liar = await one.stranger()
    with pytest.raises(EndedError) as caught:
        await liar.hello("a", session=a.welcome.session, received=99)
    assert caught.value.code is INVALID
    assert caught.value.message.startswith("hello.received:")
    assert (await a.ask("nobody")).status.reason == "unknown_target"


async def test_the_older_stream_of_a_resumed_session_ends(door: Any) -> None:
    one = await door(ALONE)
    first = await one.peer("a")
    second = await one.peer("a", session=first.welcome.session)
    assert second.welcome.is_resumed
    assert (await first.ended()).code is grpc.StatusCode.ABORTED
    assert (await second.ask("nobody")).status.reason == "unknown_target"
    assert one.service.count == 1


async def test_a_session_that_stays_away_is_forgotten(door: Any) -> None:
    one = await door(ALONE)
    a, b = await one.peer("a"), await one.peer("b")
    id = await a.call("b")
    await b.next("call")
    b.break_off()
    await until(lambda: not one.plane.proxy.agents.named("b"))
    assert (await a.ask("b")).status.reason == "upstream_unreachable", "a status, while it may still come back"
    one.plane.expire(frames.RESUME_WINDOW_S - 1)
    assert one.service.count == 2
    one.plane.expire(2)
    assert one.service.count == 1
    reply = await a.reply(id)
    assert (reply.status.code, reply.status.reason) == (14, "upstream_unreachable")
    again = await one.peer("b", session=b.welcome.session, received=b.received)
    assert not again.welcome.is_resumed


async def test_goodbye_ends_a_session_for_good(door: Any) -> None:
    one = await door(ALONE)
    a = await one.peer("a")
    await a.send(goodbye=pb.Goodbye(reason="done"))
    with pytest.raises(EOFError):
        await a.ended()
    assert one.service.count == 0
    assert not (await one.peer("a", session=a.welcome.session)).welcome.is_resumed


async def test_a_client_that_acknowledges_nothing_is_ended(door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "KEPT_FRAMES_MAX", 50)
    one = await door(ALONE)
    a = await one.peer("a")
    for number in range(1, 52):
        await a.send_raw(pb.ConnectRequest(seq=number, call=pb.Call(id=number, target="nobody")))
        if number < 51:
            await a.reply(number)
    ended = await a.ended()
    assert ended.code is EXHAUSTED
    assert "`ack`" in ended.message
    assert one.service.count == 0


async def test_a_client_that_never_reads_holds_its_upstream_back(door: Any, upstream: Any) -> None:
    sent = 0

    async def script(peer: Any) -> None:
        nonlocal sent
        await peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 20000000\r\n\r\n")
        for _ in range(200):
            peer.send(bytes(100_000))
            await peer.writer.drain()
            sent += 1

    server = await upstream(script)
    one = await door(f"agent: a\nupstreams: {{big: {{kind: tool, url: 'http://127.0.0.1:{server.port}'}}}}\n")
    a = await one.peer("a")
    await a.call("big")
    session = next(iter(one.service._by_digest.values()))
    await until(lambda: session.is_crowded)
    for _ in range(200):
        await until(lambda: True)
    assert session._kept_bytes < frames.KEPT_BYTES_HIGH + 4 * frames.PIECE_BYTES_MAX
    total = 0
    while True:  # and when it reads and acknowledges, all comes
        reply = await a.next("reply")
        total += len(reply.payload)
        if not reply.has_more:
            break
        await a.send_raw(pb.ConnectRequest(ack=a.received))
    assert (total, reply.status.code) == (20_000_000, 0)


async def test_too_many_sessions_and_agents(door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "SESSIONS_MAX", 3)
    monkeypatch.setattr(frames, "AGENTS_MAX", 2)
    one = await door(ALONE)
    for name in ("a", "b", "b"):
        await one.peer(name)
    for name in ("b", "c"):
        with pytest.raises(EndedError) as caught:
            await one.peer(name)
        assert caught.value.code is EXHAUSTED
    monkeypatch.setattr(frames, "SESSIONS_MAX", 9)
    with pytest.raises(EndedError) as caught:
        await one.peer("c")
    assert "2 agents" in caught.value.message


async def test_a_payload_beyond_a_frame_is_refused(door: Any) -> None:
    one = await door(ALONE)
    b = await one.peer("b")
    client = await one.plane.connect()
    body = bytes(frames.PAYLOAD_BYTES_MAX + 1)
    client.send(b"POST /b/x HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    assert (await client.reply("POST")).status == 413
    a = await one.peer("a")
    id = await a.call("b", "fine")
    assert (await b.next("call")).operation == "fine"
    assert id


async def test_drain_says_so_finishes_and_takes_nothing_new(door: Any) -> None:
    one = await door(ALONE)
    a, b = await one.peer("a"), await one.peer("b")
    id = await a.call("b")
    delivery = await b.next("call")
    one.plane.proxy.is_draining = True
    one.service.drain()
    assert (await a.next("drain")).grace.seconds == 30
    await b.next("drain")
    assert (await a.ask("b")).status.reason == "draining"
    await b.answer(delivery, b"finished")
    assert (await a.reply(id)).payload == b"finished"
    with pytest.raises(EndedError) as caught:
        await one.peer("c")
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    one.service.close_now()
    assert (await a.ended()).code is grpc.StatusCode.UNAVAILABLE


async def test_a_restarted_daemon_knows_no_session(door: Any) -> None:
    first = await door(ALONE)
    a = await first.peer("a")
    b = await first.peer("b")
    await a.call("b")
    await b.next("call")
    first.service.close_now()
    assert (await a.ended()).code is grpc.StatusCode.UNAVAILABLE
    second = await door(ALONE)
    again = await second.peer("a", session=a.welcome.session, received=a.received)
    assert not again.welcome.is_resumed
    assert (await again.ask("nobody")).status.reason == "unknown_target"


async def test_a_read_that_misses_its_cancellation_keeps_no_session(door: Any) -> None:
    one = await door(ALONE)
    release, welcomed = asyncio.Event(), asyncio.Event()

    async def received() -> Any:
        yield pb.ConnectRequest(hello=pb.Hello(revision=1, credit=1, agent={"name": "deaf"}))
        try:
            await release.wait()
        except asyncio.CancelledError:
            await release.wait()  # as grpc.aio's does now and then

    async def send(frame: pb.ConnectResponse) -> None:
        welcomed.set()

    stream = asyncio.create_task(one.service.connect(received(), send, "test"))
    await welcomed.wait()
    assert one.plane.proxy.agents.named("deaf")
    stream.cancel()
    await until(lambda: not one.plane.proxy.agents.named("deaf"))
    release.set()
    await asyncio.gather(stream, return_exceptions=True)
