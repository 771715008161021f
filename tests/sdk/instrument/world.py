"""An agent that answers calls with real clients, between a real sidecar and what it calls through it.

A call to the agent `writer` names an act; the act is a function of the test that runs within the handling of that
call, and makes requests by the library under test. What came of it is seen where it cannot be made up: in the
sidecar's spans, in its books, and at the far ends.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from meshd.mesh_key import MeshKeys
from meshd_sdk import Current, current
from meshd_sdk import context as codec
from meshd_sdk.asgi import Carrying
from tests.end_to_end.agents import Agent
from tests.end_to_end.provider import Provider
from tests.end_to_end.sidecar import PATIENCE_S, Sidecar, fetch, until
from tests.end_to_end.test_telemetry import Collector

if TYPE_CHECKING:
    from tests.sdk.instrument.others import Peer, Service, Tool

Act = Callable[[Any], Any]
BACKLOG = 512
CHAT = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "go"}]}


class Server:
    """An ASGI application on a port of its own, served by uvicorn in a thread."""

    def __init__(self, app: Any) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", ws="none"))
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)
        self._thread.start()
        until(lambda: self._server.started, "the server")

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)


async def _redirect(request: Request) -> Response:
    return RedirectResponse(request.query_params["to"], 307)


class World:
    """One sidecar, the agent under test, and everybody whom it may call."""

    def __init__(self, folder: Path) -> None:
        self.provider = Provider()
        self.collector = Collector()
        self.critic = Agent()
        """An agent that it calls through the sidecar."""
        # http.server lets five connections wait; of two hundred at once some are lost where its thread is kept waiting.
        self.critic._server.socket.listen(BACKLOG)
        self.stranger = Agent()
        """Somebody else on this machine, whom it calls directly."""
        self.redirector = Server(Starlette(routes=[Route("/{path:path}", _redirect, methods=["GET", "POST"])]))
        """Sends whoever calls it to where the query's `to` says; an upstream of the sidecar."""
        self.acts: dict[str, Act] = {}
        self.writer = Server(Carrying(Starlette(routes=[Route("/{path:path}", self._handle, methods=["POST"])])))
        self.sidecar = Sidecar(folder / "home")
        self.more = ""
        """Further upstreams of the policy, in YAML."""
        self.tool: Tool
        self.peer: Peer
        self.service: Service

    def start(self) -> World:
        # Every client makes the same calls here, so that they can be compared: a loop is let pass.
        document = (
            "agent: researcher\nlimits: {hops: 16, turns: {ladder: note}}\nupstreams:\n"
            f'  llm: {{url: "{self.provider.url}", kind: llm, dialect: openai}}\n'
            f'  claude: {{url: "{self.provider.url}", kind: llm, dialect: anthropic}}\n'
            f'  writer: {{url: "{self.writer.url}", kind: agent}}\n'
            f'  critic: {{url: "{self.critic.url}", kind: agent}}\n'
            f'  away: {{url: "{self.redirector.url}", kind: host}}\n'
            f"{self.more}"
            "rules:\n  - {name: purse, match: {kind: llm}, budget: {tokens: 100000}}\n"
        )
        self.sidecar.start(document, MESHD_OTLP_ENDPOINT=self.collector.url, MESHD_SAMPLE_RATIO="1")
        self.keys = MeshKeys(self.sidecar.home / "mesh.key")
        return self

    @property
    def url(self) -> str:
        return self.sidecar.url

    async def _handle(self, request: Request) -> Response:
        act = self.acts[(await request.json())["act"]]
        found = await act(request) if inspect.iscoroutinefunction(act) else await asyncio.to_thread(act, request)
        return found if isinstance(found, Response) else JSONResponse(found)

    def tell(self, act: Act, workflow: str = "") -> tuple[str, Any]:
        """Have the agent do `act` as a call of a workflow, and return the workflow and what the agent answered."""
        workflow = workflow or f"wf-{uuid.uuid4().hex}"
        name = uuid.uuid4().hex
        self.acts[name] = act
        status, text = fetch(
            f"{self.url}/writer/run", "POST", {"x-meshd-workflow": workflow}, json.dumps({"act": name}).encode()
        )
        assert status == 200, text
        return workflow, json.loads(text) if text else None

    def opened(self) -> tuple[str, Current]:
        """Open a workflow, and return the context that the agent has in it."""
        found: list[Current | None] = []
        workflow, _ = self.tell(lambda _: found.append(current()))
        (now,) = found
        assert now is not None
        return workflow, now

    def spans(self, workflow: str, target: str, how_many: int = 1) -> list[dict[str, Any]]:
        """The spans of a workflow's calls to a target, once there are so many."""

        def found() -> list[dict[str, Any]]:
            return [
                one
                for one in self.collector.spans()
                if one.get("meshd.workflow") == workflow and one.get("meshd.target") == target
            ]

        until(lambda: len(found()) >= how_many, f"{how_many} spans of {workflow} to {target}")
        return found()

    def is_charged(self, workflow: str, target: str, how_many: int = 1) -> None:
        """Assert that the writer's calls to a target belong to the workflow, by its token, one hop from its caller."""
        spans = self.spans(workflow, target, how_many)
        seen = [(one["meshd.evidence"], one["meshd.hops"], one["meshd.agent"]) for one in spans]
        assert seen == [("token", 1, "writer")] * how_many

    def is_paid(self, workflow: str) -> None:
        """Assert that the workflow has paid for an LLM."""
        account = "workflow/" + workflow
        until(lambda: self.sidecar.accounts().get(account, (0, 0, 0))[1] > 0, f"a payment of {workflow}")

    def read(self, token: str) -> codec.Context:
        return codec.verify(token.encode(), self.keys.ring, now_s=time.time()).context

    def is_critic_called(self, workflow: str) -> dict[str, str]:
        """Assert that the critic got a context of this workflow, the hop counted; return the fields that it got."""
        contexts = [(self.read(seen["x-meshd-context"]), seen) for seen in self.critic.seen]
        ((context, fields),) = [(one, seen) for one, seen in contexts if one.workflow == workflow]
        assert (context.agent, context.hops, context.path) == ("critic", 2, ("researcher", "writer"))
        return fields

    def is_stranger_told_nothing(self) -> None:
        """Assert that the last call to the stranger had none of our fields, and forget it."""
        seen = self.stranger.seen.pop()
        ours = [
            name for name in seen if name.startswith("x-meshd-") or name in ("traceparent", "tracestate", "baggage")
        ]
        assert ours == []

    def close(self) -> None:
        self.sidecar.kill()
        self.writer.close()
        self.redirector.close()
        for one in (self.provider, self.collector, self.critic, self.stranger):
            one.close()
