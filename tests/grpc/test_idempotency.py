"""grpcio's own client with `idempotency-key` metadata: a unary call is carried out once, and replayed whole."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from meshd.claims.rest import PIECES
from meshd.engines.port import Change
from meshd.filters.idempotency import Idempotency
from tests.grpc import testing_pb2 as pb
from tests.grpc.conftest import policy
from tests.grpc.service import TRAILING
from tests.proxy.harness import turns, until

KEY = (("idempotency-key", "order-1"), (TRAILING, b"\x01\x02"))


async def unary(stub: Any, size: int = 5, metadata: Any = KEY, **options: Any) -> tuple[Any, dict[str, Any], Any]:
    call = stub.UnaryCall(pb.SimpleRequest(response_size=size), metadata=metadata, **options)
    reply = await call
    return reply, dict(await call.initial_metadata()), await call.trailing_metadata()


async def test_a_unary_call_is_replayed_with_its_frames_and_trailers(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    client = stub(one.port)
    first, second = await unary(client), await unary(client)
    assert first[0] == second[0] == pb.SimpleResponse(payload=pb.Payload(body=bytes(5)))
    assert server.servicer.calls == 1
    assert "idempotent-replayed" not in first[1]
    assert second[1]["idempotent-replayed"] == "true"
    assert dict(second[2])[TRAILING] == b"\x01\x02"
    assert server.servicer.metadata[0]["idempotency-key"] == "order-1"


async def test_a_deterministic_status_is_replayed_and_others_are_not(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    client = stub(one.port)

    async def status(code: int, key: str) -> tuple[int, str]:
        request = pb.SimpleRequest(response_status=pb.EchoStatus(code=code, message="as it is"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.UnaryCall(request, metadata=(("idempotency-key", key),))
        return caught.value.code().value[0], caught.value.details()

    # INVALID_ARGUMENT depends on the request alone.
    assert [await status(3, "a") for _ in range(2)] == [(3, "as it is")] * 2
    assert server.servicer.calls == 1
    # RESOURCE_EXHAUSTED turned it away: it runs anew.
    assert [await status(8, "b") for _ in range(2)] == [(8, "as it is")] * 2
    assert server.servicer.calls == 3
    # INTERNAL may have been carried out.
    assert await status(13, "c") == (13, "as it is")
    await one.idle()
    code, said = await status(13, "c")
    assert (code, "may have been carried out" in said) == (9, True)
    assert server.servicer.calls == 4


async def test_the_same_key_and_another_message(mesh: Any, serve: Any, stub: Any) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    client = stub(one.port)
    await unary(client)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unary(client, size=6)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await unary(client, metadata=(("idempotency-key", "a"), ("idempotency-key", "a")))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert server.servicer.calls == 1


async def test_a_call_that_its_client_cancels_goes_on_and_is_joined(mesh: Any, serve: Any, stub: Any) -> None:
    from tests.grpc.service import Interop

    class Slow(Interop):
        def __init__(self) -> None:
            super().__init__()
            self.gate = asyncio.Event()

        async def UnaryCall(self, request: Any, context: Any) -> Any:  # noqa: N802
            self.calls += 1
            await self.gate.wait()
            return pb.SimpleResponse(username="slow")

    slow = Slow()
    server = await serve(slow)
    one = await mesh(policy(server.port))
    client = stub(one.port)
    first = asyncio.ensure_future(unary(client))
    await until(lambda: slow.calls)
    first.cancel()
    await until(lambda: first.done())
    await until(lambda: next(iter(one.proxy.live)).is_detached)
    second = asyncio.ensure_future(unary(client))
    await until(lambda: len(one.proxy.live) == 2)
    await turns()
    slow.gate.set()
    assert (await second)[0].username == "slow"
    assert slow.calls == 1
    assert server.port


async def test_a_long_answer_is_given_whole_or_ends_with_a_status_that_says_so(
    mesh: Any, serve: Any, stub: Any
) -> None:
    server = await serve()
    one = await mesh(policy(server.port))
    client = stub(one.port)
    size = 2_000_000
    first = await unary(client, size)
    (keeper,) = [each for each in one.proxy.chain.per_call if isinstance(each, Idempotency)]
    await until(lambda: not keeper.book.under_way)
    again = await unary(client, size)
    assert again[0] == first[0]
    assert dict(again[2])[TRAILING] == b"\x01\x02"
    assert again[1]["idempotent-replayed"] == "true"
    store = keeper.book._shelf.store
    await store.write([Change(PIECES, (await store.keys(PIECES))[-1], None)])
    for words in ("breaks off", "is not carried out again"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(client, size)
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert words in (caught.value.details() or "")
    assert server.servicer.calls == 1
