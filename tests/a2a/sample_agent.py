"""An A2A agent by the official SDK: JSON-RPC, REST and gRPC, of 1.0 and of 0.3, with tasks that live for a while.

It answers with a task by default, and does what its caller's words ask: `message` is answered with a message, `ask`
ends in input-required, `long` works until it is cancelled. Run it by itself with `python -m tests.a2a.sample_agent`.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import a2a.client  # noqa: F401 - before its layer for 0.3, which else takes the client of 1.0 for its own
import grpc
import httpx
from a2a.compat.v0_3 import a2a_v0_3_pb2_grpc
from a2a.compat.v0_3.grpc_handler import CompatGrpcHandler
from a2a.helpers import new_task_from_user_message, new_text_message, new_text_part
from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.events import EventQueue
from a2a.server.request_handlers import DefaultRequestHandler, GrpcHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes, create_rest_routes
from a2a.server.tasks import (
    BasePushNotificationSender,
    InMemoryPushNotificationConfigStore,
    InMemoryTaskStore,
    TaskUpdater,
)
from a2a.types import AgentCapabilities, AgentCard, AgentExtension, AgentInterface, AgentSkill, TaskState, a2a_pb2_grpc
from google.protobuf.json_format import MessageToDict
from starlette.applications import Starlette

from tests.rpc.servers import Server

SLOW = "test-resubscribe-message-id"
"""Begins the ids of messages whose tasks the official test kit wants to last."""


class Worker(AgentExecutor):
    """Does what it is told, and remembers that."""

    def __init__(self, pace_s: float = 0.0) -> None:
        """`pace_s` seconds lie between the steps of a task, for clients that look at it meanwhile."""
        self.told: list[str] = []
        self.contexts: list[str] = []
        self.metadata: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.whole: list[dict[str, Any]] = []
        self.extensions: list[set[str]] = []
        self.reports: list[dict[str, Any]] = []
        """Metadata that the next answer says, in its order: of a message, or of a task's status updates."""
        self._pace_s = pace_s
        self._cancelled: set[str] = set()

    async def execute(self, context: RequestContext, event_queue: EventQueue) -> None:
        message = context.message
        assert message is not None
        words = context.get_user_input()
        self.told.append(words)
        self.contexts.append(context.context_id or "")
        self.metadata.append(MessageToDict(message.metadata))
        self.whole.append(MessageToDict(message))
        self.extensions.append(set(context.call_context.requested_extensions) if context.call_context else set())
        self.headers.append(dict(context.call_context.state.get("headers", {})) if context.call_context else {})
        if words.startswith("message"):
            said = new_text_message(f"you said {words}", context_id=context.context_id, task_id=None)
            for metadata in self.reports:
                said.metadata.update(metadata)
            await event_queue.enqueue_event(said)
            return
        task = context.current_task
        if task is None:
            task = new_task_from_user_message(message)
            await event_queue.enqueue_event(task)
        updater = TaskUpdater(event_queue, task.id, task.context_id)
        await updater.start_work()
        if message.message_id.startswith(SLOW) or words.startswith("long"):
            for _ in range(600):
                if task.id in self._cancelled:
                    return
                await asyncio.sleep(0.05 if not self._pace_s else self._pace_s)
        elif self._pace_s:
            await asyncio.sleep(self._pace_s)
        if task.id in self._cancelled:
            return
        if words.startswith("ask"):
            await updater.requires_input(updater.new_agent_message([new_text_part("what exactly?")]))
            return
        for metadata in self.reports:
            await updater.update_status(TaskState.TASK_STATE_WORKING, metadata=metadata)
        await updater.add_artifact([new_text_part(f"you said {words}")], name="answer")
        await updater.complete(updater.new_agent_message([new_text_part("done")]))

    async def cancel(self, context: RequestContext, event_queue: EventQueue) -> None:
        task = context.current_task
        assert task is not None
        self._cancelled.add(task.id)
        await TaskUpdater(event_queue, task.id, task.context_id).cancel()


def card_of(
    http: str,
    grpc_target: str,
    versions: tuple[str, ...] = ("1.0", "0.3"),
    extension: str = "https://example.com/ext/v1",
) -> AgentCard:
    """Return the agent's card. `http` is its base URL without a slash at its end."""
    interfaces = []
    for version in versions:
        interfaces += [
            AgentInterface(url=f"{http}/", protocol_binding="JSONRPC", protocol_version=version),
            AgentInterface(url=http, protocol_binding="HTTP+JSON", protocol_version=version),
            AgentInterface(url=grpc_target, protocol_binding="GRPC", protocol_version=version),
        ]
    return AgentCard(
        name="Sample Agent",
        description="Says what it was told.",
        version="1.0.0",
        supported_interfaces=interfaces,
        capabilities=AgentCapabilities(
            streaming=True,
            push_notifications=True,
            extended_agent_card=True,
            extensions=[AgentExtension(uri=extension, required=False)],
        ),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[
            AgentSkill(
                id="echo", name="Echo", description="Says it again.", tags=["echo"], examples=["hello", "say it again"]
            )
        ],
    )


class Assuming:
    """Takes a request that names no version for one of 1.0: the official test kit sends the methods of 1.0 so, and by
    the specification it would then be 0.3."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        is_old = scope.get("path", "").startswith("/v1/")
        if scope["type"] == "http" and not is_old and all(name != b"a2a-version" for name, _ in scope["headers"]):
            scope = {**scope, "headers": [*scope["headers"], (b"a2a-version", b"1.0")]}
        await self._app(scope, receive, send)


class SampleAgent:
    """The agent, served on two ports of loopback until `close`."""

    def __init__(
        self,
        worker: Worker | None = None,
        *,
        sign: Any = None,
        is_assuming: bool = False,
        host: str = "127.0.0.1",
        extension: str = "https://example.com/ext/v1",
    ) -> None:
        """`sign` signs its card, as `create_agent_card_signer` makes it; `is_assuming`: see `Assuming`; `host` is what
        it calls itself, and for the official test kit it names its gRPC port as a URL."""
        self._is_assuming = is_assuming
        self.worker = worker or Worker()
        self._sign = sign
        self._host = host
        self._extension = extension
        self._grpc_scheme = "grpc://" if is_assuming else ""
        self.card: AgentCard
        self.port = self.grpc_port = 0

    async def start(self, port: int = 0, grpc_port: int = 0) -> SampleAgent:
        self._grpc = grpc.aio.server()
        self.grpc_port = self._grpc.add_insecure_port(f"127.0.0.1:{grpc_port}")
        self._app = Starlette()
        self._server = Server(Assuming(self._app) if self._is_assuming else self._app)
        if port:
            self._server._server.config.port = port
        await self._server.start()
        self.port = self._server.port
        self._serve()
        await self._grpc.start()
        return self

    def _serve(self) -> None:
        card = card_of(
            f"http://{self._host}:{self.port}",
            f"{self._grpc_scheme}{self._host}:{self.grpc_port}",
            extension=self._extension,
        )
        self.card = card if self._sign is None else self._sign(card)
        extended = AgentCard()
        extended.CopyFrom(self.card)
        extended.description = "Says what it was told, to those whom it knows."
        if self._sign is not None:
            del extended.signatures[:]
            extended = self._sign(extended)
        configs = InMemoryPushNotificationConfigStore()
        self._http = httpx.AsyncClient(trust_env=False)
        handler = DefaultRequestHandler(
            agent_executor=self.worker,
            task_store=InMemoryTaskStore(),
            agent_card=self.card,
            push_config_store=configs,
            push_sender=BasePushNotificationSender(self._http, configs),
            extended_agent_card=extended,
        )
        self._app.router.routes += [
            *create_agent_card_routes(self.card),
            *create_jsonrpc_routes(handler, "/", enable_v0_3_compat=True),
            *create_rest_routes(handler, enable_v0_3_compat=True),
        ]
        a2a_pb2_grpc.add_A2AServiceServicer_to_server(GrpcHandler(handler), self._grpc)
        a2a_v0_3_pb2_grpc.add_A2AServiceServicer_to_server(CompatGrpcHandler(handler), self._grpc)

    async def close(self) -> None:
        await self._grpc.stop(0)
        await self._server.close()
        await self._http.aclose()


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9999)
    parser.add_argument("--grpc-port", type=int, default=9998)
    parser.add_argument("--pace", type=float, default=0.3, help="seconds between the steps of a task")
    asked = parser.parse_args()
    agent = SampleAgent(Worker(asked.pace), is_assuming=True, host="localhost")
    await agent.start(asked.port, asked.grpc_port)
    print(f"http://127.0.0.1:{agent.port} grpc 127.0.0.1:{agent.grpc_port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
