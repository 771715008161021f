"""Both ends of the gRPC rows speak real gRPC: each is joined to the official library, and each notices nonsense."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from bench.load import messages
from bench.load.request import Request
from bench.upstream import bodies
from bench.upstream.http1 import Counters
from bench.upstream.http2 import GrpcUpstream, whole_messages

MESSAGE = bodies.grpc_frame()[5:]
FIELDS = {"te": "trailers", "content-type": "application/grpc"}


@pytest.fixture
async def stand_in() -> AsyncIterator[tuple[int, Counters]]:
    counters = Counters()
    server = await asyncio.get_running_loop().create_server(lambda: GrpcUpstream(counters), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], counters


@pytest.fixture
async def official() -> AsyncIterator[tuple[int, list[bytes]]]:
    """The same three methods, served by grpcio; each message that it got stands in the list."""
    got: list[bytes] = []

    async def unary(request: bytes, _context: object) -> bytes:
        got.append(request)
        return MESSAGE

    async def stream(requests: AsyncIterator[bytes], _context: object) -> AsyncIterator[bytes]:
        async for request in requests:
            got.append(request)
            yield request

    async def flood(request: bytes, _context: object) -> AsyncIterator[bytes]:
        got.append(request)
        for _ in range(bodies.FLOOD_MESSAGES):
            yield MESSAGE

    server = grpc.aio.server()
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.stream_stream_rpc_method_handler(stream),
        "Flood": grpc.unary_stream_rpc_method_handler(flood),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield port, got
    await server.stop(None)


async def test_grpcio_calls_all_methods_of_the_stand_in(stand_in: tuple[int, Counters]) -> None:
    port, counters = stand_in
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        assert await channel.unary_unary(bodies.UNARY_PATH)(MESSAGE) == MESSAGE
        assert counters.unary == 1
        sent = [bytes([number]) * 70_000 for number in range(20)]
        assert [reply async for reply in channel.stream_stream(bodies.STREAM_PATH)(iter(sent))] == sent
        # Beyond the window of a stream, so it must have waited for the client to open it.
        flood = [reply async for reply in channel.unary_stream(bodies.FLOOD_PATH)(MESSAGE)]
        assert flood == [MESSAGE] * bodies.FLOOD_MESSAGES


@pytest.mark.parametrize(
    ("path", "sent", "got"),
    [(bodies.UNARY_PATH, 1, 1), (bodies.STREAM_PATH, 10, 10), (bodies.FLOOD_PATH, 1, bodies.FLOOD_MESSAGES)],
)
async def test_the_load_calls_a_server_of_grpcio(
    official: tuple[int, list[bytes]], path: str, sent: int, got: int
) -> None:
    port, seen = official
    loop = asyncio.get_running_loop()
    load = messages.Load(0, 0, 0.0, "test")
    request = Request(port, path, FIELDS, bodies.grpc_frame())
    transport, _ = await loop.create_connection(
        lambda: messages.MessageCaller(request, 2, sent, got, load), "127.0.0.1", port
    )
    while load.count < 3 * got and not load.errors:
        await asyncio.sleep(0)
    load.wall_s = 1.0
    transport.abort()
    assert not load.errors
    assert set(seen) == {MESSAGE}


@pytest.mark.parametrize(
    ("status", "message", "trailer"),
    [
        (b"503", MESSAGE, b"0"),
        (b"200", MESSAGE, b"13"),
        (b"200", MESSAGE[1:], b"0"),
        (b"200", MESSAGE + b"\0", b"0"),
        (b"200", b"", b"0"),
    ],
    ids=["status", "grpc-status", "too short", "too long", "nothing"],
)
async def test_the_load_counts_a_wrong_answer_as_an_error(status: bytes, message: bytes, trailer: bytes) -> None:
    class Wrong(GrpcUpstream):
        def _end(self, id: int) -> None:
            self.connection.send_response(id, [(b":status", status)])
            if message:
                self.connection.send_data(id, len(message).to_bytes(5, "big") + message)
            self.connection.send_trailers(id, [(b"grpc-status", trailer)])

    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Wrong(Counters()), "127.0.0.1", 0)
    load = messages.Load(0, 0, 0.0, "test")
    async with server:
        port = server.sockets[0].getsockname()[1]
        request = Request(port, bodies.UNARY_PATH, FIELDS, bodies.grpc_frame())
        transport, _ = await loop.create_connection(
            lambda: messages.MessageCaller(request, 1, 1, 1, load), "127.0.0.1", port
        )
        while not load.errors:
            await asyncio.sleep(0)
        load.wall_s = 1.0
        transport.abort()


async def test_the_stand_in_closes_on_what_is_not_http2(stand_in: tuple[int, Counters]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", stand_in[0])
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    await reader.read()
    writer.close()


def test_a_message_is_whole_at_its_last_byte_and_not_before() -> None:
    frame = bodies.grpc_frame(3)
    for cut in range(len(frame)):
        assert whole_messages(frame[:cut]) == 0
        assert whole_messages(frame + frame[:cut]) == len(frame)
    assert whole_messages(frame * 2) == 2 * len(frame)
