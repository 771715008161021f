"""The service of gRPC's interop cases, written after its description (grpc/doc/interop-test-descriptions.md)."""

# ruff: noqa: N802 - the methods have the names of the protocol

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from tests.grpc import testing_pb2 as pb
from tests.grpc import testing_pb2_grpc as rpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

INITIAL = "x-grpc-test-echo-initial"
TRAILING = "x-grpc-test-echo-trailing-bin"
MESSAGE_BYTES_MAX = 64 * 2**20
OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.so_reuseport", 0),
]


def payload(size: int) -> Any:
    return pb.Payload(body=bytes(size))


class Interop(rpc.TestServiceServicer):
    """Does what the cases ask for, and remembers what came."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, Any]] = []
        self.raw: list[list[tuple[str, Any]]] = []
        self.time_left_s: list[float | None] = []
        self.cancelled = 0
        """Calls that were cancelled while they slept: grpc.aio tells no other of it."""
        self.calls = 0
        self.trailers: list[tuple[str, str | bytes]] = []
        """Sent with every reply, beside what is echoed."""

    async def _begin(self, context: Any) -> None:
        self.calls += 1
        found = dict(context.invocation_metadata())
        self.metadata.append(found)
        self.raw.append(list(context.invocation_metadata()))
        self.time_left_s.append(context.time_remaining())
        if INITIAL in found:
            await context.send_initial_metadata([(INITIAL, found[INITIAL])])
        trailing = [(TRAILING, found[TRAILING])] if TRAILING in found else []
        if trailing or self.trailers:
            context.set_trailing_metadata([*trailing, *self.trailers])

    async def _status(self, request: Any, context: Any) -> None:
        if request.HasField("response_status") and request.response_status.code:
            code = next(one for one in grpc.StatusCode if one.value[0] == request.response_status.code)
            await context.abort(code, request.response_status.message)

    async def EmptyCall(self, request: Any, context: Any) -> Any:
        await self._begin(context)
        return pb.Empty()

    async def UnaryCall(self, request: Any, context: Any) -> Any:
        await self._begin(context)
        await self._status(request, context)
        if request.HasField("response_compressed") and request.response_compressed.value:
            context.set_compression(grpc.Compression.Gzip)
        return pb.SimpleResponse(payload=payload(request.response_size))

    async def StreamingOutputCall(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self._begin(context)
        await self._status(request, context)
        for one in request.response_parameters:
            await self._pause(one)
            yield pb.StreamingOutputCallResponse(payload=payload(one.size))

    async def StreamingInputCall(self, requests: AsyncIterator[Any], context: Any) -> Any:
        await self._begin(context)
        size = 0
        async for request in requests:
            size += len(request.payload.body)
        return pb.StreamingInputCallResponse(aggregated_payload_size=size)

    async def FullDuplexCall(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        await self._begin(context)
        async for request in requests:
            await self._status(request, context)
            for one in request.response_parameters:
                await self._pause(one)
                yield pb.StreamingOutputCallResponse(payload=payload(one.size))

    async def _pause(self, parameters: Any) -> None:
        # The server's own slowness is what some cases are about.
        if parameters.interval_us:
            try:
                await asyncio.sleep(parameters.interval_us / 1e6)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise


class Server:
    """A grpc.aio server of it on a port of loopback."""

    def __init__(self, servicer: Any = None) -> None:
        self.servicer = servicer or Interop()
        self.server: Any = None
        self.port = 0

    async def start(self, credentials: Any = None, port: int = 0, **options: Any) -> Server:
        extra = [(name.replace("__", "."), value) for name, value in options.items()]
        self.server = grpc.aio.server(options=[*OPTIONS, *extra])
        rpc.add_TestServiceServicer_to_server(self.servicer, self.server)
        if credentials is None:
            self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        else:
            self.port = self.server.add_secure_port(f"localhost:{port}", credentials)
        await self.server.start()
        return self

    async def stop(self, grace_s: float | None = None) -> None:
        await self.server.stop(grace_s)
