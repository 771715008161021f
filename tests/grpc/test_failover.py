"""gRPC calls whose server is gone or whose breaker is open: another takes them, as long as no message has been sent."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from tests.grpc import testing_pb2 as pb
from tests.ports import free_port
from tests.proxy.harness import until


def document(first: int, second: int, more: str = "") -> str:
    rule = "retry: {attempts: 0}, breaker: {consecutive: 2}" + more
    return (
        "upstreams:\n"
        f'  up: {{url: "http://127.0.0.1:{first}", kind: tool}}\n'
        f'  spare: {{url: "http://127.0.0.1:{second}", kind: tool}}\n'
        f"rules:\n  - {{match: {{target: up}}, {rule}, fallback: {{to: [{{upstream: spare}}]}}}}\n"
        "  - {match: {target: spare}, retry: {attempts: 0}}\n"
    )


async def test_a_dead_servers_calls_go_to_another(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(document(free_port(), server.port))
    client = stub(one.port)
    for size in (5, 90, 700, 4000):
        # The first two find nobody; then the breaker is open, and nothing is tried.
        call = client.UnaryCall(pb.SimpleRequest(response_size=size))
        reply = await call
        assert len(reply.payload.body) == size
        fields = dict(await call.initial_metadata())
        assert fields["x-meshd-served-by"] == "spare"


async def test_streams_go_too_and_messages_sent_later_follow(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(document(free_port(), server.port))
    call = stub(one.port).FullDuplexCall()
    for size in (3, 7):
        await call.write(pb.StreamingOutputCallRequest(response_parameters=[pb.ResponseParameters(size=size)]))
        assert len((await call.read()).payload.body) == size
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK


async def test_where_nobody_is_left_the_first_failure_is_told_as_a_status(mesh: Any, stub: Any) -> None:
    one = await mesh(document(free_port(), free_port()))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub(one.port).UnaryCall(pb.SimpleRequest())
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "Tried in its place: spare (connect)." in raised.value.details()


async def test_a_full_queue_is_the_substitutes_turn_and_a_cancelled_wait_frees_its_place(
    mesh: Any, serve: Any, stub: Any
) -> None:
    first, second = await serve(), await serve()
    one = await mesh(document(first.port, second.port, ", concurrency: {max: 1, queue: 1}"))
    breaker = next(each for each in one.proxy.chain.per_attempt if each.name == "breaker")

    def queued() -> int:
        return sum(view.queued for view in breaker.snapshot())

    client = stub(one.port)
    held = client.FullDuplexCall()
    await held.write(pb.StreamingOutputCallRequest(response_parameters=[pb.ResponseParameters(size=1)]))
    await held.read()
    waits = client.UnaryCall(pb.SimpleRequest(response_size=1))
    task = asyncio.ensure_future(waits.code())
    await until(lambda: queued() == 1)
    call = client.UnaryCall(pb.SimpleRequest(response_size=2))
    assert len((await call).payload.body) == 2
    assert dict(await call.initial_metadata())["x-meshd-served-by"] == "spare"
    waits.cancel()
    await until(lambda: queued() == 0)
    await task
    await held.done_writing()
    assert await held.code() is grpc.StatusCode.OK
