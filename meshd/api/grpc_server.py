"""The gRPC face of the API: a grpcio server of its own behind a private socket, to which the door brings connections.

Imported with the first gRPC connection, never before. The socket's file is in a directory that is the owner's alone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from meshd.api.failing import Failure, failure_of, trailers
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
_log = logging.getLogger("meshd.api")


class GrpcServer:
    """Started once, stopped once."""

    def __init__(self, mesh: Mesh, offer: Offer, path: Path) -> None:
        """`path` is where its socket will be."""
        self.path = path
        self._mesh = mesh
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._health = Health(mesh)
        self._names = offer.names
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
        reflection.enable_server_reflection((*self._names, HEALTH, reflection.SERVICE_NAME), self._server)

    async def start(self) -> None:
        """Listen. Raises RuntimeError where the socket cannot be made."""
        for name in ("", *self._names, HEALTH, reflection.SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self.path.unlink(missing_ok=True)
        self._server.add_insecure_port(f"unix:{self.path}")
        await self._server.start()
        self.path.chmod(0o600)

    async def drain(self, grace_s: float) -> None:
        """Take no more calls (GOAWAY), let those that are open end for at most `grace_s` seconds, then end the rest.

        Health says NOT_SERVING from now on. A stream that only watches is not waited for.
        """
        await self._health.enter_graceful_shutdown()
        stopping = asyncio.ensure_future(self._server.stop(grace_s))
        waiting = asyncio.ensure_future(self._idle.wait())
        await asyncio.wait((stopping, waiting), timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        await self._server.stop(None)
        await stopping
        self.path.unlink(missing_ok=True)

    def _handler(self, method: Method) -> grpc.RpcMethodHandler[Any, Any]:
        # Messages are read and written here, so that what is no message is refused in our words.
        if method.answer is not None:
            return grpc.unary_unary_rpc_method_handler(self._unary(method, method.answer))
        assert method.stream is not None
        return grpc.stream_stream_rpc_method_handler(self._streaming(method, method.stream))

    def _unary(self, method: Method, answer: Answer) -> Callable[[bytes, Any], Any]:
        async def call(body: bytes, context: Any) -> bytes | None:
            self._opened()
            try:
                found = await answer(parsed(method, body))
                return found.SerializeToString()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, it becomes a status
                await _fail(context, failure_of(error))
                return None
            finally:
                self._ended()

        return call

    def _streaming(self, method: Method, stream: Stream) -> Callable[[AsyncIterator[bytes], Any], Any]:
        async def call(frames: AsyncIterator[bytes], context: Any) -> None:
            async def read() -> AsyncIterator[Any]:
                async for body in frames:
                    yield parsed(method, body)

            async def send(message: Any) -> None:
                await context.write(message.SerializeToString())

            self._opened()
            try:
                await stream(read(), send, context.peer())
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - as above
                await _fail(context, failure_of(error))
            finally:
                self._ended()

        return call

    def _opened(self) -> None:
        self._open += 1
        self._idle.clear()

    def _ended(self) -> None:
        self._open -= 1
        if not self._open:
            self._idle.set()


async def _fail(context: Any, failure: Failure) -> None:
    """End a call with a status. Where it has ended already (its client is gone), there is nobody to tell."""
    if not context.done():
        await context.abort(_STATUS[failure.code], failure.message, trailers(failure))


class Health(health.aio.HealthServicer):  # type: ignore[misc]
    """The standard service; the budgets' status follows the books."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self._mesh = mesh

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        """Answer for one service; NOT_FOUND for one that is not here."""
        is_kept = self._mesh.ledger.fault is None
        states = health_pb2.HealthCheckResponse
        await self.set(BUDGETS, states.SERVING if is_kept else states.NOT_SERVING)
        return await super().Check(request, context)


class RefusePages(grpc.aio.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Refuses what a browser sends for a page: no agent names an origin, and no page has business here."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        handler = await continuation(details)
        if handler is None or not any(key == "origin" for key, _ in details.invocation_metadata):
            return handler
        failure = failure_of(Refused(Reason.NOT_ALLOWED, "Pages of other origins have no business here."))

        async def refuse(_request: Any, context: Any) -> None:
            await _fail(context, failure)

        if handler.request_streaming and handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(refuse)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(refuse)
        return grpc.unary_unary_rpc_method_handler(refuse)
