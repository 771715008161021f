"""Messages and metadata of every kind, both ways, and how a call is ended from either side."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from meshd.outcome import Fault, Verdict
from tests.grpc import testing_pb2 as pb
from tests.grpc import testing_pb2_grpc as rpc
from tests.grpc.cases import output
from tests.grpc.conftest import policy
from tests.grpc.service import payload
from tests.proxy.harness import until

BIG = 8 * 2**20
GRPC = (("content-type", "application/grpc"), ("te", "trailers"))
METHOD = "/grpc.testing.TestService/UnaryCall"
FRAME = b"\0\0\0\0\4abcd"


async def test_eight_megabytes_both_ways(mesh: Any, serve: Any, stub: Any) -> None:
    one = await mesh(policy((await serve()).port))
    reply = await stub(one.port).UnaryCall(pb.SimpleRequest(response_size=BIG, payload=payload(BIG)))
    assert reply.payload.body == bytes(BIG)


async def test_streams_of_many_messages_both_ways_at_once(mesh: Any, serve: Any, stub: Any) -> None:
    one = await mesh(policy((await serve()).port))
    calls = [stub(one.port).FullDuplexCall() for _ in range(4)]

    async def talk(call: Any) -> int:
        async def ask() -> None:
            for _ in range(200):
                await call.write(pb.StreamingOutputCallRequest(response_parameters=output(3000, 7)))
            await call.done_writing()

        asking = asyncio.ensure_future(ask())
        got = [len(reply.payload.body) async for reply in call]
        await asking
        assert got == [3000, 7] * 200
        return len(got)

    assert await asyncio.gather(*map(talk, calls)) == [400] * 4
    assert [record.outcome.verdict for record in one.attempts] == [Verdict.SUCCESS] * 4


async def test_metadata_binary_and_repeated_both_ways(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    server.servicer.trailers = [("t-bin", b"\0\xff"), ("t-bin", b"2"), ("t", "a"), ("t", "b, c")]
    one = await mesh(policy(server.port))
    sent = (("k", "1"), ("k", "2"), ("k-bin", bytes(range(256))), ("k-bin", b""))
    call = stub(one.port).EmptyCall(pb.Empty(), metadata=sent)
    await call
    came = [(name, value) for name, value in server.servicer.raw[0] if name in ("k", "k-bin")]
    assert sorted(came) == sorted(sent)
    back = [(name, value) for name, value in await call.trailing_metadata() if name in ("t", "t-bin")]
    assert sorted(back) == sorted(server.servicer.trailers)


async def test_our_own_metadata_goes_neither_in_nor_out(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    server.servicer.trailers = [("x-meshd-anything", "1"), ("x-meshd-usage-input-tokens", "5")]
    one = await mesh(policy(server.port))
    call = stub(one.port).EmptyCall(pb.Empty(), metadata=(("x-meshd-target", "up"), ("x-meshd-other", "1")))
    await call
    assert {name for name in server.servicer.metadata[0] if name.startswith("x-meshd-")} == {"x-meshd-context"}
    assert not [name for name, _ in await call.trailing_metadata() if name.startswith("x-meshd-")]
    assert [name for name, _ in await call.initial_metadata() if name.startswith("x-meshd-")] == ["x-meshd-call"]


async def test_trailers_alone_stay_one_frame_that_ends_the_stream(mesh: Any, upstream_h2: Any, h2_client: Any) -> None:
    async def script(server: Any) -> None:
        half = await server.request()
        server.head(half.id, *GRPC[:1], ("grpc-status", "5"), ("grpc-message", "none%20here"), ("own", "x"), end=True)
        await server.closed()

    up = await upstream_h2(script)
    one = await mesh(policy(up.port))
    client = await h2_client(one)
    frames: list[tuple[bytes, bool]] = []
    take = client._take

    def taking(event: Any) -> None:
        frames.append((type(event).__name__.encode(), getattr(event, "stream_ended", None) is not None))
        take(event)

    client._take = taking
    half = await client.ask(f"/up{METHOD}", *GRPC, method="POST", body=FRAME)
    assert (half.fields["grpc-status"], half.fields["grpc-message"], half.fields["own"]) == ("5", "none%20here", "x")
    assert half.trailers is None
    assert (b"ResponseReceived", True) in frames
    assert not [name for name, _ in frames if name == b"DataReceived"]
    await one.idle()
    assert one.attempts[0].outcome.grpc_status == 5
    assert one.attempts[0].outcome.verdict is Verdict.NEUTRAL


async def test_a_status_in_a_head_with_a_body_is_not_the_end(mesh: Any, upstream_h2: Any, h2_client: Any) -> None:
    async def script(server: Any) -> None:
        half = await server.request()
        server.head(half.id, *GRPC[:1], ("grpc-status", "0"))
        server.send(half.id, FRAME)
        server.h2.send_headers(half.id, [("grpc-status", "13")], end_stream=True)
        server.flush()
        await server.closed()

    up = await upstream_h2(script)
    one = await mesh(policy(up.port))
    half = await (await h2_client(one)).ask(f"/up{METHOD}", *GRPC, method="POST", body=FRAME)
    assert (bytes(half.body), half.trailers) == (FRAME, {"grpc-status": "13"})
    await one.idle()
    assert (one.attempts[0].outcome.grpc_status, one.attempts[0].outcome.verdict) == (13, Verdict.FAILURE)


async def test_a_caller_that_cancels_reaches_the_upstream(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    slow = [*output(10), *output(10, interval_us=60_000_000)]
    call = stub(one.port).StreamingOutputCall(pb.StreamingOutputCallRequest(response_parameters=slow))
    await call.read()
    call.cancel()
    await until(lambda: server.servicer.cancelled)
    await one.idle()
    outcome = one.attempts[0].outcome
    assert (outcome.fault, outcome.verdict) == (Fault.CALLER_GONE, Verdict.NEUTRAL)


async def test_a_cancel_is_the_frame_that_says_so(mesh: Any, upstream_h2: Any, h2_client: Any) -> None:
    resets: list[int] = []

    async def script(server: Any) -> None:
        half = await server.request()
        server.head(half.id, *GRPC[:1])
        await server.until(lambda: half.reset is not None)
        resets.append(half.reset)

    up = await upstream_h2(script)
    one = await mesh(policy(up.port))
    client = await h2_client(one)
    id = client.request(f"/up{METHOD}", *GRPC, method="POST", end=False)
    await client.until(lambda: client.streams.get(id) and client.streams[id].fields)
    client.h2.reset_stream(id, 8)
    client.flush()
    await until(lambda: resets)
    assert resets == [8]


@pytest.mark.parametrize("is_begun", [False, True], ids=["before the head", "within the reply"])
@pytest.mark.parametrize(("code", "status"), [(0x8, 1), (0x7, 14), (0xB, 8), (0xC, 7), (0x2, 13), (0x1, 13), (0x0, 13)])
async def test_a_reset_upstream_is_told_by_its_status(
    mesh: Any, upstream_h2: Any, stub: Any, code: int, status: int, is_begun: bool
) -> None:
    async def script(server: Any) -> None:
        half = await server.request()
        if is_begun:
            server.head(half.id, *GRPC[:1])
            server.send(half.id, b"\0\0\0\0\0")
        server.h2.reset_stream(half.id, code)
        server.flush()
        await server.closed()

    up = await upstream_h2(script)
    one = await mesh(policy(up.port))
    call = stub(one.port).FullDuplexCall()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(_all(call), 30)
    assert caught.value.code().value[0] == status
    assert "up reset the stream" in str(caught.value.details())
    await one.idle()
    assert one.attempts[0].outcome.verdict is Verdict.FAILURE


async def _all(call: Any) -> None:
    async for _ in call:
        pass


async def test_an_upstream_that_breaks_off_is_unavailable_in_trailers(
    mesh: Any, upstream_h2: Any, h2_client: Any
) -> None:
    async def script(server: Any) -> None:
        half = await server.request()
        server.head(half.id, *GRPC[:1])
        server.send(half.id, FRAME)
        await server.writer.drain()
        go.append(1)
        await until(lambda: len(go) > 1)
        server.close()

    go: list[int] = []
    up = await upstream_h2(script)
    one = await mesh(policy(up.port))
    client = await h2_client(one)
    id = client.request(f"/up{METHOD}", *GRPC, method="POST", end=False)
    await client.until(lambda: client.streams.get(id) and client.streams[id].body)
    go.append(1)
    half = await client.ended(id)
    assert half.trailers is not None
    assert (half.trailers["grpc-status"], half.trailers["grpc-retry-pushback-ms"]) == ("14", "-1")
    # The request was not whole: the rest of it is told to stay away, and nothing else is said by the reset.
    assert half.reset in (None, 0)
    await one.idle()
    outcome = one.attempts[0].outcome
    assert (outcome.fault, outcome.verdict, outcome.grpc_status) == (Fault.RESET, Verdict.FAILURE, 14)


@pytest.mark.parametrize("status", ["200", "502"])
async def test_what_an_upstream_says_without_grpc_passes_as_it_is(
    mesh: Any, upstream_h2: Any, h2_client: Any, status: str
) -> None:
    async def script(server: Any) -> None:
        half = await server.request()
        server.reply(half.id, b"<html>no", ("content-type", "text/html"), status=status)
        await server.closed()

    up = await upstream_h2(script)
    one = await mesh(policy(up.port))
    half = await (await h2_client(one)).ask(f"/up{METHOD}", *GRPC, method="POST", body=FRAME)
    assert (half.fields[":status"], half.fields["content-type"], bytes(half.body)) == (status, "text/html", b"<html>no")


async def test_a_reply_that_ends_without_a_status_is_a_failure(mesh: Any, upstream_h2: Any, stub: Any) -> None:
    async def script(server: Any) -> None:
        half = await server.request()
        server.reply(half.id, b"\0\0\0\0\0", *GRPC[:1])
        await server.closed()

    up = await upstream_h2(script)
    one = await mesh(policy(up.port))
    with pytest.raises(grpc.aio.AioRpcError):
        await stub(one.port).EmptyCall(pb.Empty())
    await one.idle()
    outcome = one.attempts[0].outcome
    assert (outcome.verdict, outcome.is_terminal, outcome.grpc_status) == (Verdict.FAILURE, False, -1)


async def test_a_ping_is_answered_while_a_call_is_silent(mesh: Any, upstream_h2: Any, h2_client: Any) -> None:
    async def script(server: Any) -> None:
        half = await server.request()
        server.head(half.id, *GRPC[:1])
        await server.closed()

    up = await upstream_h2(script)
    one = await mesh(policy(up.port))
    client = await h2_client(one)
    answers: list[bytes] = []
    take = client._take

    def taking(event: Any) -> None:
        if type(event).__name__ == "PingAckReceived":
            answers.append(event.ping_data)
        take(event)

    client._take = taking
    id = client.request(f"/up{METHOD}", *GRPC, method="POST", end=False)
    await client.until(lambda: client.streams.get(id) and client.streams[id].fields)
    for number in range(3):
        client.h2.ping(b"alive%03d" % number)
        client.flush()
    await client.until(lambda: len(answers) == 3)
    assert answers == [b"alive000", b"alive001", b"alive002"]
    assert client.streams[id].reset is None


async def test_an_upstream_that_goes_away_is_connected_to_again(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    made = stub(one.port)
    call = made.FullDuplexCall()
    await call.write(pb.StreamingOutputCallRequest(response_parameters=output(10)))
    await call.read()
    # Gracefully: GOAWAY now, and what runs is finished.
    stopping = asyncio.ensure_future(server.server.stop(30))
    await until(
        lambda: any(shared._is_going_away for pool in one.proxy.pools._pools.values() for shared in pool._shared)
    )
    await call.write(pb.StreamingOutputCallRequest(response_parameters=output(11)))
    assert len((await call.read()).payload.body) == 11
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    await stopping
    again = await serve(port=server.port)
    assert await made.EmptyCall(pb.Empty()) == pb.Empty()
    assert again.servicer.calls == 1


async def test_a_sidecar_that_drains_finishes_what_runs(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    call = stub(one.port).FullDuplexCall()
    await call.write(pb.StreamingOutputCallRequest(response_parameters=output(10)))
    await call.read()
    one.stop_listening()
    draining = asyncio.ensure_future(one.proxy.drain(30))
    await call.write(pb.StreamingOutputCallRequest(response_parameters=output(11)))
    assert len((await call.read()).payload.body) == 11
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK
    assert await draining


async def test_a_sidecar_that_has_no_more_time_says_unavailable(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    call = stub(one.port).FullDuplexCall()
    await call.write(pb.StreamingOutputCallRequest(response_parameters=output(10)))
    await call.read()
    one.stop_listening()
    assert not await one.proxy.drain(0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"


class _Sync(rpc.TestServiceServicer):
    def UnaryCall(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        return pb.SimpleResponse(payload=payload(request.response_size))

    def FullDuplexCall(self, requests: Any, context: Any) -> Any:  # noqa: N802 - as above
        for request in requests:
            for one in request.response_parameters:
                yield pb.StreamingOutputCallResponse(payload=payload(one.size))


async def test_clients_and_servers_without_asyncio(mesh: Any) -> None:
    server = grpc.server(ThreadPoolExecutor(4))
    rpc.add_TestServiceServicer_to_server(_Sync(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    one = await mesh(policy(port))

    def calls() -> list[int]:
        target = f"127.0.0.1:{one.port}"
        with grpc.insecure_channel(target, options=[("grpc.default_authority", "up.mesh")]) as channel:
            stub: Any = rpc.TestServiceStub(channel)
            sizes = [len(stub.UnaryCall(pb.SimpleRequest(response_size=70_000)).payload.body)]
            asks = (pb.StreamingOutputCallRequest(response_parameters=output(size)) for size in (1, 2, 3))
            sizes += [len(reply.payload.body) for reply in stub.FullDuplexCall(asks)]
        return sizes

    try:
        assert await asyncio.to_thread(calls) == [70_000, 1, 2, 3]
    finally:
        await asyncio.to_thread(server.stop(None).wait)
    assert threading.active_count() >= 1


async def test_calls_that_come_in_reach_the_agent_beside(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(1), app=f"http://127.0.0.1:{server.port}")
    made = stub(one.inbound_port, authority="")
    assert await made.EmptyCall(pb.Empty()) == pb.Empty()
    assert "x-meshd-context" in server.servicer.metadata[0]
    await one.idle()
    assert one.attempts[0].outcome.grpc_status == 0


async def test_a_client_that_never_reads_stops_its_upstream_and_nobody_else(
    mesh: Any, serve: Any, stub: Any, h2_client: Any
) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    client = await h2_client(one)
    client.acknowledges = False
    ask = pb.StreamingOutputCallRequest(response_parameters=output(*[100_000] * 400)).SerializeToString()
    id = client.request("/up/grpc.testing.TestService/StreamingOutputCall", *GRPC, method="POST", end=False)
    client.send(id, b"\0" + len(ask).to_bytes(4, "big") + ask, end=True)
    await client.until(lambda: client.streams.get(id) and client.streams[id].size == 65_535)
    # Another call over the same connection to the upstream goes on, though 40 MB wait.
    assert await stub(one.port).EmptyCall(pb.Empty()) == pb.Empty()
    (stalled,) = [exchange for exchange in one.proxy.live if exchange.call.path.endswith("StreamingOutputCall")]
    assert stalled.attempt is not None
    assert stalled.attempt._is_paused
    client.h2.reset_stream(id, 8)
    client.flush()
    await until(lambda: stalled.is_done)
