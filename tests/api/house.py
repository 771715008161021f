"""A sidecar's API in this process: real sockets, a real ledger, and clients for both of its faces."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc

from meshd.api.door import Door
from meshd.api.mesh import Mesh
from meshd.approvals.desk import Desk
from meshd.assembly import build_chain
from meshd.config import Address
from meshd.engines.port import StoreLocked
from meshd.ledger import Ledger
from meshd.mesh_key import MeshKeys
from meshd.policy.document import load
from meshd.proxy.proxy import Proxy
from meshd.telemetry import redact
from meshd.telemetry.telemetry import Telemetry
from meshd.trace.opening import open_trace
from meshd.tracing import attach
from meshd_sdk.v1 import (
    approvals_pb2_grpc,
    budget_pb2_grpc,
    context_pb2,
    context_pb2_grpc,
    state_pb2_grpc,
    trace_pb2_grpc,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from meshd.trace.recorder import Recorder

POLICY = "agent: ann\ngovernance: {max_tokens_per_workflow: 50000}\n"
ANY_PORT = Address("127.0.0.1", 0)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class House:
    """One sidecar. `now_s` moves its wall clock."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ahead_s = 0.0
        self.mesh: Mesh
        self.door: Door
        self.channel: grpc.aio.Channel

    async def build(self, document: str, ledger: Ledger, **more: Any) -> None:
        path = self.home / "policy.yaml"
        path.write_text(document)
        policy = load([path])
        keys, telemetry = MeshKeys(self.home / "mesh.key"), Telemetry(version="1.2.3")
        self.trace = self._traced(keys)
        attach(self.trace, telemetry)
        chain = build_chain(keys=keys, ledger=ledger, agent="", shadowed=telemetry.shadowed, trace=self.trace)
        proxy = Proxy(asyncio.get_running_loop(), policy=policy, chain=chain, telemetry=telemetry)
        self.desk = Desk(ledger.store, lambda: proxy.policy, clean=redact.argument, clock=self.wall_clock)
        self.mesh = Mesh(
            proxy=proxy,
            chain=chain,
            keys=keys,
            ledger=ledger,
            telemetry=telemetry,
            desk=self.desk,
            wall_clock=self.wall_clock,
        )
        self.door = Door(self.mesh, home=self.home, **more)
        await self.door.start(ANY_PORT)
        self.channel = grpc.aio.insecure_channel(self.address)

    def _traced(self, keys: MeshKeys) -> Recorder:
        """Open a trace beside the home: the one of an earlier house here, or another where that is still open."""
        beside = self.home.parent / f"{self.home.name}-trace"
        try:
            return open_trace(beside, keys=keys)
        except StoreLocked:
            return open_trace(beside / "other", keys=keys)

    def wall_clock(self) -> float:
        return time.time() + self.ahead_s

    @property
    def address(self) -> str:
        return str(self.door.address)

    @property
    def contexts(self) -> Any:
        return context_pb2_grpc.ContextServiceStub(self.channel)

    @property
    def budgets(self) -> Any:
        return budget_pb2_grpc.BudgetServiceStub(self.channel)

    @property
    def approvals(self) -> Any:
        return approvals_pb2_grpc.ApprovalServiceStub(self.channel)

    @property
    def state(self) -> Any:
        return state_pb2_grpc.StateServiceStub(self.channel)

    @property
    def traces(self) -> Any:
        return trace_pb2_grpc.TraceServiceStub(self.channel)

    async def open(self, workflow: str = "w", **more: Any) -> context_pb2.Context:
        """Open a workflow over gRPC."""
        found = await self.contexts.Open(context_pb2.OpenRequest(workflow=workflow, **more))
        return found.context  # type: ignore[no-any-return]

    async def ask(self, method: str, body: Any, *, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Ask as JSON over TCP."""
        sent = {"content-type": "application/json", **(headers or {})}
        data = body if isinstance(body, bytes | str) else json.dumps(body)
        url = f"http://{self.address}/meshd.v1.{method}"
        async with aiohttp.ClientSession() as session, session.post(url, data=data, headers=sent) as reply:
            text = await reply.text()
            assert reply.headers["Cache-Control"] == "no-store"
            assert "Access-Control-Allow-Origin" not in reply.headers
            return reply.status, json.loads(text) if reply.content_type == "application/json" else text

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a bare connection over TCP."""
        assert self.door.address is not None
        return await asyncio.open_connection(self.door.address.host, self.door.address.port)

    async def close(self) -> None:
        await self.channel.close(grace=None)
        await self.door.close()
        self.mesh.proxy.close()
        self.trace.close()
        await self.desk.close()
        await self.mesh.ledger.close()


@asynccontextmanager
async def house(home: Path, document: str = POLICY, *, is_kept: bool = False, **more: Any) -> AsyncIterator[House]:
    """Run a sidecar's API; with `is_kept` its books are on disk, as a daemon's are."""
    made = House(home)
    ledger = await Ledger.open(home) if is_kept else Ledger.in_memory()
    await made.build(document, ledger, **more)
    try:
        yield made
    finally:
        await made.close()


async def refusal(call: Any) -> grpc.aio.AioRpcError:
    """Return how a call that is refused ends."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError(f"it was answered: {answer}")


async def until(is_so: Any, patience_s: float = 20.0) -> None:
    """Let the loop run until `is_so()`; a guard against a hang ends it."""
    async with asyncio.timeout(patience_s):
        while not is_so():
            await asyncio.sleep(0.005)
