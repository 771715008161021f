"""gRPC channels to the sidecar, sync and async, all four kinds of call, and the servers' side of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from meshd_sdk import using
from meshd_sdk.current import current
from tests.sdk.instrument.world import World

pytestmark = pytest.mark.usefixtures("instrumented")
KINDS = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")
kinds = pytest.mark.parametrize("kind", KINDS)
servers = pytest.mark.parametrize("server", ["echo", "aio-echo"])


def options(server: str) -> list[tuple[str, Any]]:
    return [("grpc.default_authority", f"{server}.mesh")]


def call(channel: grpc.Channel, kind: str, metadata: Any = None) -> list[bytes]:
    """Make one call of a kind, of two messages where it takes many; return all replies."""
    path = f"/test.Echo/{kind}"
    if kind == "UnaryUnary":
        return [channel.unary_unary(path)(b"x", metadata=metadata, timeout=30)]
    if kind == "UnaryStream":
        return list(channel.unary_stream(path)(b"x", metadata=metadata, timeout=30))
    if kind == "StreamUnary":
        return [channel.stream_unary(path)(iter([b"x", b"y"]), metadata=metadata, timeout=30)]
    return list(channel.stream_stream(path)(iter([b"x", b"y"]), metadata=metadata, timeout=30))


async def call_aio(channel: grpc.aio.Channel, kind: str, metadata: Any = None) -> list[bytes]:
    path = f"/test.Echo/{kind}"
    if kind == "UnaryUnary":
        return [await channel.unary_unary(path)(b"x", metadata=metadata, timeout=30)]
    if kind == "UnaryStream":
        return [one async for one in channel.unary_stream(path)(b"x", metadata=metadata, timeout=30)]
    if kind == "StreamUnary":
        return [await channel.stream_unary(path)(iter([b"x", b"y"]), metadata=metadata, timeout=30)]
    return [one async for one in channel.stream_stream(path)(iter([b"x", b"y"]), metadata=metadata, timeout=30)]


def is_in(world: World, workflow: str, replies: list[bytes], server: str) -> None:
    """Assert that the service was called in this workflow, and that all of its handlers knew."""
    assert replies
    for reply in replies:
        said, token, sent = reply.decode().split(" ")
        assert said == workflow
        assert token == sent
        context = world.read(token)
        assert (context.agent, context.hops, context.path) == (server, 2, ("researcher", "writer"))


@kinds
@servers
def test_a_call_of_an_answer_is_in_its_workflow(world: World, kind: str, server: str) -> None:
    def act(_: Any) -> list[str]:
        with grpc.insecure_channel(f"127.0.0.1:{world.sidecar.port}", options(server)) as channel:
            return [reply.decode() for reply in call(channel, kind)]

    workflow, answer = world.tell(act)
    is_in(world, workflow, [reply.encode() for reply in answer], server)
    world.is_charged(workflow, server)


@kinds
@servers
def test_so_is_an_async_one(world: World, kind: str, server: str) -> None:
    async def act(_: Any) -> list[str]:
        async with grpc.aio.insecure_channel(f"localhost:{world.sidecar.port}", options(server)) as channel:
            return [reply.decode() for reply in await call_aio(channel, kind)]

    workflow, answer = world.tell(act)
    is_in(world, workflow, [reply.encode() for reply in answer], server)
    world.is_charged(workflow, server)


async def test_one_channel_serves_many_workflows_at_once(world: World) -> None:
    opened = [await asyncio.to_thread(world.opened) for _ in range(4)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{world.sidecar.port}", options("aio-echo")) as channel:

        async def one(number: int) -> None:
            workflow, now = opened[number % 4]
            with using(now):
                is_in(world, workflow, await call_aio(channel, KINDS[number // 4 % 4]), "aio-echo")

        await asyncio.gather(*(one(number) for number in range(64)))


@pytest.mark.parametrize("method", ["Written", "InAThread"])
async def test_handlers_of_an_async_server_of_other_forms_have_it_too(world: World, method: str) -> None:
    workflow, now = await asyncio.to_thread(world.opened)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{world.sidecar.port}", options("aio-echo")) as channel:
        path = f"/test.Echo/{method}"
        with using(now):
            if method == "Written":
                replies = [one async for one in channel.stream_stream(path)(iter([b"x", b"y"]), timeout=30)]
            else:
                replies = [await channel.unary_unary(path)(b"x", timeout=30)]
    is_in(world, workflow, replies, "aio-echo")


@kinds
def test_a_service_called_directly_is_told_nothing(world: World, kind: str) -> None:
    def act(_: Any) -> list[str]:
        with grpc.insecure_channel(f"127.0.0.1:{world.service.port}") as channel:
            return [reply.decode() for reply in call(channel, kind)]

    assert set(world.tell(act)[1]) == {"  "}


@kinds
async def test_nor_by_an_async_channel(world: World, kind: str) -> None:
    _, now = await asyncio.to_thread(world.opened)
    with using(now):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{world.service.aio_port}") as channel:
            assert set(await call_aio(channel, kind)) == {b"  "}


def test_metadata_of_the_caller_stays(world: World) -> None:
    earlier, then = world.opened()
    _, now = world.opened()
    with using(now), grpc.insecure_channel(f"127.0.0.1:{world.sidecar.port}", options("echo")) as channel:
        is_in(world, earlier, call(channel, "UnaryUnary", (("x-meshd-context", then.token),)), "echo")


async def test_and_of_an_async_one(world: World) -> None:
    earlier, then = await asyncio.to_thread(world.opened)
    _, now = await asyncio.to_thread(world.opened)
    with using(now):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{world.sidecar.port}", options("aio-echo")) as channel:
            metadata = grpc.aio.Metadata(("x-meshd-context", then.token))
            is_in(world, earlier, await call_aio(channel, "UnaryUnary", metadata), "aio-echo")


class Marking(grpc.aio.UnaryUnaryClientInterceptor):
    """An interceptor of the caller's own."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        self.seen.append(current())
        return await continuation(details, request)


@pytest.mark.parametrize("is_positional", [True, False])
async def test_interceptors_of_the_caller_s_own_stay(world: World, is_positional: bool) -> None:
    workflow, now = await asyncio.to_thread(world.opened)
    target, own = f"127.0.0.1:{world.sidecar.port}", Marking()
    if is_positional:
        channel = grpc.aio.insecure_channel(target, options("aio-echo"), None, [own])
    else:
        channel = grpc.aio.insecure_channel(target, options=options("aio-echo"), interceptors=[own])
    with using(now):
        async with channel:
            is_in(world, workflow, await call_aio(channel, "UnaryUnary"), "aio-echo")
    assert own.seen == [now]


def test_a_call_without_context_has_none_though_its_thread_has_served_one(world: World) -> None:
    _, now = world.opened()
    with grpc.insecure_channel(f"127.0.0.1:{world.sidecar.port}", options("echo")) as channel:
        for _ in range(8):
            with using(now):
                call(channel, "UnaryStream")
    with grpc.insecure_channel(f"127.0.0.1:{world.service.port}") as channel:
        for _ in range(8):
            assert call(channel, "UnaryUnary") == [b"  "]
