"""gRPC's interop cases by their official names, each against a channel and the servicer behind it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import pytest

from tests.grpc import testing_pb2 as pb
from tests.grpc import testing_pb2_grpc as rpc
from tests.grpc.service import INITIAL, TRAILING, payload

SIZES_IN = (27182, 8, 1828, 45904)
SIZES_OUT = (31415, 9, 2653, 58979)
LARGE_IN, LARGE_OUT = 271828, 314159
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"


def output(*sizes: int, interval_us: int = 0) -> list[Any]:
    return [pb.ResponseParameters(size=size, interval_us=interval_us) for size in sizes]


async def empty_unary(stub: Any) -> None:
    assert await stub.EmptyCall(pb.Empty()) == pb.Empty()


async def large_unary(stub: Any) -> None:
    reply = await stub.UnaryCall(pb.SimpleRequest(response_size=LARGE_OUT, payload=payload(LARGE_IN)))
    assert reply.payload.body == bytes(LARGE_OUT)


async def client_streaming(stub: Any) -> None:
    call = stub.StreamingInputCall(pb.StreamingInputCallRequest(payload=payload(size)) for size in SIZES_IN)
    assert (await call).aggregated_payload_size == sum(SIZES_IN)


async def server_streaming(stub: Any) -> None:
    call = stub.StreamingOutputCall(pb.StreamingOutputCallRequest(response_parameters=output(*SIZES_OUT)))
    assert [len(reply.payload.body) async for reply in call] == list(SIZES_OUT)


async def ping_pong(stub: Any) -> None:
    call = stub.FullDuplexCall()
    for size_in, size_out in zip(SIZES_IN, SIZES_OUT, strict=True):
        await call.write(pb.StreamingOutputCallRequest(response_parameters=output(size_out), payload=payload(size_in)))
        assert len((await call.read()).payload.body) == size_out
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def empty_stream(stub: Any) -> None:
    call = stub.FullDuplexCall()
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


async def timeout_on_sleeping_server(stub: Any) -> None:
    sleepy = pb.StreamingOutputCallRequest(
        response_parameters=output(31415, interval_us=10_000_000), payload=payload(27182)
    )
    for _ in range(20):
        call = stub.FullDuplexCall(timeout=0.001)
        # Over before the message is out, or after: the client says either.
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(sleepy)
            await call.read()
        # Where the deadline passes within the write, grpc.aio may say this of itself: in 2 of 60 calls that went to
        # the server directly.
        if await call.details() != "Internal error from Core":
            break
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def cancel_after_begin(stub: Any) -> None:
    call = stub.StreamingInputCall()
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED


async def cancel_after_first_response(stub: Any) -> None:
    call = stub.FullDuplexCall()
    await call.write(pb.StreamingOutputCallRequest(response_parameters=output(31415), payload=payload(27182)))
    assert len((await call.read()).payload.body) == 31415
    call.cancel()
    assert await call.code() is grpc.StatusCode.CANCELLED


async def status_code_and_message(stub: Any) -> None:
    status = pb.EchoStatus(code=2, message="test status message")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.UnaryCall(pb.SimpleRequest(response_status=status))
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNKNOWN, status.message)
    call = stub.FullDuplexCall()
    await call.write(pb.StreamingOutputCallRequest(response_status=status))
    await call.done_writing()
    with pytest.raises(grpc.aio.AioRpcError):
        await call.read()
    assert (await call.code(), await call.details()) == (grpc.StatusCode.UNKNOWN, status.message)


async def special_status_message(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.UnaryCall(pb.SimpleRequest(response_status=pb.EchoStatus(code=2, message=SPECIAL)))
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNKNOWN, SPECIAL)


async def unimplemented_method(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.UnimplementedCall(pb.Empty())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def unimplemented_service(stub: Any) -> None:
    other = rpc.UnimplementedServiceStub(stub.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await other.UnimplementedCall(pb.Empty())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def custom_metadata(stub: Any) -> None:
    sent = ((INITIAL, "test_initial_metadata_value"), (TRAILING, b"\xab\xab\xab"))
    call = stub.UnaryCall(pb.SimpleRequest(response_size=LARGE_OUT, payload=payload(LARGE_IN)), metadata=sent)
    await call
    assert dict(await call.initial_metadata())[INITIAL] == "test_initial_metadata_value"
    assert dict(await call.trailing_metadata())[TRAILING] == b"\xab\xab\xab"
    stream = stub.FullDuplexCall(metadata=sent)
    await stream.write(pb.StreamingOutputCallRequest(response_parameters=output(31415), payload=payload(27182)))
    await stream.done_writing()
    assert len((await stream.read()).payload.body) == 31415
    assert await stream.read() is grpc.aio.EOF
    assert dict(await stream.initial_metadata())[INITIAL] == "test_initial_metadata_value"
    assert dict(await stream.trailing_metadata())[TRAILING] == b"\xab\xab\xab"


async def client_compressed_unary(stub: Any) -> None:
    request = pb.SimpleRequest(response_size=LARGE_OUT, payload=payload(LARGE_IN))
    for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate, grpc.Compression.NoCompression):
        reply = await stub.UnaryCall(request, compression=compression)
        assert reply.payload.body == bytes(LARGE_OUT)


async def server_compressed_unary(stub: Any) -> None:
    for is_compressed in (True, False):
        request = pb.SimpleRequest(response_size=LARGE_OUT, payload=payload(LARGE_IN))
        request.response_compressed.value = is_compressed
        assert (await stub.UnaryCall(request)).payload.body == bytes(LARGE_OUT)


CASES = {
    case.__name__: case
    for case in (
        empty_unary, large_unary, client_streaming, server_streaming, ping_pong, empty_stream,
        timeout_on_sleeping_server, cancel_after_begin, cancel_after_first_response, status_code_and_message,
        special_status_message, unimplemented_method, unimplemented_service, custom_metadata, client_compressed_unary,
        server_compressed_unary,
    )
}  # fmt: skip
