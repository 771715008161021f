"""A real MCP server, a real A2A agent and a real gRPC service, for the sidecar to stand before."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import grpc
from a2a.helpers import get_message_text, new_task_from_user_message, new_text_message, new_text_status_update_event
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.request_handlers import DefaultRequestHandlerV2
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore
from a2a.types.a2a_pb2 import AgentCapabilities, AgentCard, AgentInterface, TaskState
from mcp.server.mcpserver import MCPServer
from starlette.applications import Starlette

from meshd_sdk import Current, current
from meshd_sdk.asgi import Carrying
from meshd_sdk.grpc_server import AioCarrying
from meshd_sdk.grpc_server import Carrying as GrpcCarrying
from tests.end_to_end.sidecar import PATIENCE_S
from tests.sdk.instrument.world import Server


class Recorded:
    """An ASGI application, and the headers and bodies of all requests to it."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})

        async def kept() -> Any:
            message = await receive()
            self.bodies.append(message.get("body", b""))
            return message

        await self._app(scope, kept, send)


class Tool:
    """An MCP server with one tool."""

    def __init__(self) -> None:
        server = MCPServer("echo")

        @server.tool()
        def echo(text: str) -> str:
            """Give it back."""
            return text

        self.seen = Recorded(server.streamable_http_app())
        self._server = Server(self.seen)
        self.url = self._server.url

    def close(self) -> None:
        self._server.close()


class Turns(AgentExecutor):
    """Says in which workflow it is. Asked "open" it leaves the task open, for a second turn."""

    def __init__(self) -> None:
        self.was: list[Current | None] = []

    async def execute(self, context: RequestContext, event_queue: Any) -> None:
        now = current()
        self.was.append(now)
        said = now.workflow if now else "none"
        text = get_message_text(context.message)
        if context.current_task is None and text != "open":
            await event_queue.enqueue_event(new_text_message(said))
            return
        if context.current_task is None:
            await event_queue.enqueue_event(new_task_from_user_message(context.message))
        state = TaskState.TASK_STATE_INPUT_REQUIRED if text == "open" else TaskState.TASK_STATE_COMPLETED
        await event_queue.enqueue_event(new_text_status_update_event(context.task_id, context.context_id, state, said))

    async def cancel(self, context: RequestContext, event_queue: Any) -> None:
        raise NotImplementedError


class Peer:
    """An A2A agent."""

    def __init__(self) -> None:
        self.turns = Turns()
        card = self.card("http://127.0.0.1:1/")
        handler = DefaultRequestHandlerV2(self.turns, InMemoryTaskStore(), card)
        routes = [*create_agent_card_routes(card), *create_jsonrpc_routes(handler, "/rpc")]
        self.seen = Recorded(Carrying(Starlette(routes=routes)))
        self._server = Server(self.seen)
        self.url = self._server.url

    @staticmethod
    def card(url: str) -> AgentCard:
        """What the agent says of itself, reached at `url`."""
        return AgentCard(
            name="peer",
            description="says where it is",
            version="1",
            supported_interfaces=[AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0")],
            capabilities=AgentCapabilities(streaming=True),
            default_input_modes=["text/plain"],
            default_output_modes=["text/plain"],
        )

    def close(self) -> None:
        self._server.close()


def _said(context: Any) -> bytes:
    """What the handler of a gRPC call knows: the current workflow, and the token in its metadata."""
    now = current()
    sent = dict(context.invocation_metadata()).get("x-meshd-context", "")
    return f"{now.workflow if now else ''} {now.token if now else ''} {sent}".encode()


def _unary_unary(_: bytes, context: Any) -> bytes:
    return _said(context)


def _unary_stream(_: bytes, context: Any) -> Any:
    for _number in range(3):
        yield _said(context)


def _stream_unary(requests: Any, context: Any) -> bytes:
    list(requests)
    return _said(context)


def _stream_stream(requests: Any, context: Any) -> Any:
    for _request in requests:
        yield _said(context)


async def _aio_unary_unary(_: bytes, context: Any) -> bytes:
    await asyncio.sleep(0)
    return _said(context)


async def _aio_unary_stream(_: bytes, context: Any) -> Any:
    for _number in range(3):
        await asyncio.sleep(0)
        yield _said(context)


async def _aio_stream_unary(requests: Any, context: Any) -> bytes:
    async for _request in requests:
        pass
    return _said(context)


async def _aio_stream_stream(requests: Any, context: Any) -> Any:
    async for _request in requests:
        yield _said(context)


async def _aio_written(requests: Any, context: Any) -> None:
    async for _request in requests:
        await context.write(_said(context))


def _handlers(one: Any, two: Any, three: Any, four: Any, **more: Any) -> Any:
    return grpc.method_handlers_generic_handler(
        "test.Echo",
        {
            "UnaryUnary": grpc.unary_unary_rpc_method_handler(one),
            "UnaryStream": grpc.unary_stream_rpc_method_handler(two),
            "StreamUnary": grpc.stream_unary_rpc_method_handler(three),
            "StreamStream": grpc.stream_stream_rpc_method_handler(four),
        }
        | more,
    )


class Service:
    """The same gRPC service twice: by `grpc.server` with threads, and by `grpc.aio.server`."""

    def __init__(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._sync = grpc.server(ThreadPoolExecutor(4), interceptors=[GrpcCarrying()])
        self._sync.add_generic_rpc_handlers((_handlers(_unary_unary, _unary_stream, _stream_unary, _stream_stream),))
        self.port = self._sync.add_insecure_port("127.0.0.1:0")
        self._sync.start()
        self._loop = asyncio.new_event_loop()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._is_up.wait(PATIENCE_S)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._ending = asyncio.Event()
        server = grpc.aio.server(interceptors=[AioCarrying()])
        written = grpc.stream_stream_rpc_method_handler(_aio_written)
        plain = grpc.unary_unary_rpc_method_handler(_unary_unary)
        server.add_generic_rpc_handlers(
            (
                _handlers(
                    _aio_unary_unary,
                    _aio_unary_stream,
                    _aio_stream_unary,
                    _aio_stream_stream,
                    Written=written,
                    InAThread=plain,
                ),
            )
        )
        self.aio_port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._is_up.set()
        await self._ending.wait()
        await server.stop(None)

    def close(self) -> None:
        self._sync.stop(None).wait()
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(PATIENCE_S)
