"""The gRPC face of the API: a grpcio server of its own behind a private socket, to which the door brings connections.

Imported with the first gRPC connection, never before. The socket's file is in a directory that is the owner's alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from meshd.api.failing import failure_of, trailers
from meshd.api.services import parsed
from meshd.refusal import Reason, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from meshd.api.mesh import Mesh
    from meshd.api.services import Answer, Method, Offer, Stream

MESSAGE_BYTES_MAX: Final = 4 * 2**20
"""Of one message, either way: gRPC's own default."""
METADATA_BYTES_MAX: Final = 16_384
STREAMS_MAX: Final = 256
"""Of one connection."""
CALLS_MAX: Final = 2048
"""Of all connections, open streams included."""
HANDSHAKE_S: Final = 10
PING_INTERVAL_MIN_S: Final = 10
"""A client that pings oftener is sent away."""
WATCH_S: Final = 1.0
"""How often those who watch a service's health are looked after."""
HEALTH: Final = "grpc.health.v1.Health"
BUDGETS: Final = "meshd.v1.BudgetService"

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.max_concurrent_streams", STREAMS_MAX),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_S * 1000),
    ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MIN_S * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
)
_STATUS: Final = {code.value[0]: code for code in grpc.StatusCode}


class GrpcServer:
    """Started once, stopped once."""

    def __init__(self, mesh: Mesh, offer: Offer, path: Path) -> None:
        """`path` is where its socket will be."""
        self.path = path
        self._health = Health(mesh, offer.names)
        self._server = grpc.aio.server(
            options=_OPTIONS, interceptors=[RefusePages()], maximum_concurrent_rpcs=CALLS_MAX
        )
        services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for place, method in offer.by_path.items():
            _, service, name = place.split("/")
            services.setdefault(service, {})[name] = self._handler(method)
        for service, handlers in services.items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*offer.names, HEALTH, reflection.SERVICE_NAME), self._server)

    async def start(self) -> None:
        """Listen. Raises RuntimeError where the socket cannot be made."""
        self.path.unlink(missing_ok=True)
        self._server.add_insecure_port(f"unix:{self.path}")
        await self._server.start()
        self.path.chmod(0o600)

    async def drain(self, grace_s: float) -> None:
        """Take no more calls (GOAWAY), let those that are open end for at most `grace_s` seconds, then end the rest.

        Health says NOT_SERVING from now on. Called once: grpcio crashes where a second stop comes upon a first.
        """
        self._health.end()
        await self._server.stop(grace_s or None)
        self.path.unlink(missing_ok=True)

    def _handler(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        # Messages are read and written here, so that what is no message is refused in our words.
        if method.answer is not None:
            return grpc.unary_unary_rpc_method_handler(self._unary(method, method.answer))
        assert method.stream is not None
        return grpc.stream_stream_rpc_method_handler(self._streaming(method, method.stream))

    def _unary(self, method: Method, answer: Answer) -> Callable[[bytes, Any], Any]:
        async def call(body: bytes, context: Any) -> bytes | None:
            try:
                found = await answer(parsed(method, body))
                return found.SerializeToString()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, it becomes a status
                await _fail(context, error)
                return None

        return call

    def _streaming(self, method: Method, stream: Stream) -> Callable[[AsyncIterator[bytes], Any], Any]:
        async def call(frames: AsyncIterator[bytes], context: Any) -> None:
            async def read() -> AsyncIterator[Any]:
                async for body in frames:
                    yield parsed(method, body)

            async def send(message: Any) -> None:
                try:
                    await context.write(message.SerializeToString())
                except Exception as error:  # grpcio's own, of a module that is not public
                    raise ConnectionResetError("the stream has ended") from error

            try:
                await stream(read(), send, context.peer())
            except asyncio.CancelledError:
                raise
            except ConnectionError:
                pass  # there is nobody to tell
            except Exception as error:  # noqa: BLE001 - as above
                await _fail(context, error)

        return call


async def _fail(context: Any, error: Exception) -> None:
    """End a call with a status. Where it has ended already (its client is gone), there is nobody to tell."""
    if not context.done():
        failure = failure_of(error)
        await context.abort(_STATUS[failure.code], failure.message, trailers(failure))


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The standard service. All serve until the drain; budgets do while the books can be kept."""

    def __init__(self, mesh: Mesh, names: tuple[str, ...]) -> None:
        self._mesh = mesh
        self._names = frozenset(("", HEALTH, reflection.SERVICE_NAME, *names))
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Say NOT_SERVING from now on, and end those who watch."""
        self._ending.set()

    def _status(self, service: str) -> int:
        states = health_pb2.HealthCheckResponse
        if service not in self._names:
            return int(states.SERVICE_UNKNOWN)
        is_serving = not self._ending.is_set() and (service != BUDGETS or self._mesh.ledger.fault is None)
        return int(states.SERVING if is_serving else states.NOT_SERVING)

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        """Answer for one service; NOT_FOUND for one that is not here."""
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service is here")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - the protocol's name
        """Say how a service stands, and again whenever that changes."""
        last = -1
        while True:
            if (status := self._status(request.service)) != last:
                last = status
                await context.write(health_pb2.HealthCheckResponse(status=status))
            if self._ending.is_set():
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_S):
                    await self._ending.wait()


class RefusePages(grpc.aio.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Refuses what a browser sends for a page: no agent names an origin, and no page has business here."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        handler = await continuation(details)
        if handler is None or not any(key == "origin" for key, _ in details.invocation_metadata):
            return handler
        refused = Refused(Reason.NOT_ALLOWED, "Pages of other origins have no business here.")

        async def refuse(_request: Any, context: Any) -> None:
            await _fail(context, refused)

        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(refuse)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(refuse)
        return grpc.unary_unary_rpc_method_handler(refuse)
