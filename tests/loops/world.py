"""A scenario with real processes: one meshd or three, agents over HTTP and gRPC, a model that reports its usage."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import grpc
import grpc.aio

from meshd.mesh_key import MeshKeys
from tests.end_to_end.sidecar import Sidecar
from tests.engines.servers import redis_server, running
from tests.loops.playing import Player, Record
from tests.loops.policies import document, refusal, shown
from tests.loops.reading import LEAD, TOOL
from tests.loops.serving import CALL, CONTEXT, Stage
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.loops.playing import Actor, Handle, Said
    from tests.loops.reading import Scenario

_ANSWER_S: Final = 30.0
_STALL_S: Final = 60.0
"""A workflow that takes longer than this is broken: no figure depends on it."""


class RealMesh:
    """Carries calls through the sidecar beside their caller."""

    def __init__(self, scenario: Scenario, workflow: str, stage: Stage, sidecars: list[Sidecar]) -> None:
        self._scenario = scenario
        self._workflow = workflow
        self._stage = stage
        self._sidecars = sidecars
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}
        self.spent_before = 0

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self._scenario.pace)

    async def loop_begins(self) -> None:
        self.spent_before = await asyncio.to_thread(self.spent)

    def spent(self) -> int:
        """Tokens in the books of all accounts, and those that are still reserved."""
        accounts = self._sidecars[0].accounts()
        return sum(used + reserved for _, used, reserved in accounts.values())

    async def close(self) -> None:
        await self._session.close()
        for channel in self._channels.values():
            await channel.close()

    async def send(self, actor: Actor, said: Said, handle: Handle) -> None:
        """See `Mesh.send`."""
        at = self._scenario.agents.index(actor.agent) if len(self._sidecars) > 1 else 0
        sidecar = self._sidecars[at % len(self._sidecars)]
        self._stage.expected[said.id] = said, handle
        headers = {CALL: said.id}
        if actor.token:
            headers[CONTEXT] = actor.token
        elif actor.agent == LEAD and self._scenario.context == "passed":
            headers["x-meshd-workflow"] = self._workflow
        try:
            if said.via == "grpc":
                await self._by_grpc(sidecar, said, headers)
            else:
                await self._by_http(sidecar, said, headers)
        finally:
            del self._stage.expected[said.id]

    async def _by_http(self, sidecar: Sidecar, said: Said, headers: dict[str, str]) -> None:
        upstream = said.target.removeprefix(TOOL)
        url = f"{sidecar.url}/{upstream}{said.path}"
        if said.body is not None:
            headers["content-type"] = "application/json"
        if said.via == "mcp":
            headers["accept"] = "application/json, text/event-stream"
        timeout = aiohttp.ClientTimeout(total=_ANSWER_S)
        async with self._session.request(said.method, url, data=said.body, headers=headers, timeout=timeout) as reply:
            text = await reply.text()
            if reply.headers.get("x-meshd-decision") == "refuse":
                words = shown(text) if said.via == "mcp" else text
                said.refusal = refusal(reply.headers.get("x-meshd-reason", "refused"), words)
            elif not said.reached:
                said.refusal = refusal("not reached", f"{reply.status} {text}")

    async def _by_grpc(self, sidecar: Sidecar, said: Said, headers: dict[str, str]) -> None:
        key = sidecar.url, said.target
        channel = self._channels.get(key)
        if channel is None:
            options = [("grpc.default_authority", f"{said.target}.mesh"), ("grpc.use_local_subchannel_pool", 1)]
            channel = self._channels[key] = grpc.aio.insecure_channel(f"127.0.0.1:{sidecar.port}", options=options)
        method: Any = channel.unary_unary(said.path)
        call = method(said.body, metadata=tuple(headers.items()), timeout=_ANSWER_S)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            trailers = dict(error.trailing_metadata() or ())
            reason = str(trailers.get("x-meshd-reason", ""))
            if trailers.get("x-meshd-decision") == "refuse" or reason or not said.reached:
                said.refusal = refusal(reason or "not reached", error.details() or "")


async def play(scenario: Scenario, seed: int) -> tuple[Record, float]:
    """Play a scenario with processes of its own; return how it went, and the share of the budget that was spent
    after the loop began, by meshd's own books."""
    stage = Stage(passes_context=scenario.context == "passed", pace=scenario.pace)
    workflow = f"loop-{seed}"
    async with _sidecars(scenario, stage) as sidecars:
        mesh = RealMesh(scenario, workflow, stage, sidecars)
        try:
            player = Player(scenario, seed, mesh, workflow)
            record = player.record
            try:
                async with asyncio.timeout(_STALL_S):
                    await player.play()
                    await _settled(stage)
            except TimeoutError:
                stage.errors.append(f"it still ran after {_STALL_S:.0f} s")
            spent = await asyncio.to_thread(mesh.spent)
        finally:
            await mesh.close()
        stage.errors += [f"{one.home.name} logged {_traceback(one.log)}" for one in sidecars if "Traceback" in one.log]
        record.error = "; ".join(stage.errors)
        # Of an account that several sidecars lease from, each knows a part; what the model was paid is known whole.
        return record, max(spent - mesh.spent_before, record.spent) / scenario.budget


def _traceback(log: str) -> str:
    """Return the end of the first traceback: JSON puts it into one line."""
    line = next(line for line in log.splitlines() if "Traceback" in line)
    return line.replace("\\n", "\n").strip()[-300:]


async def _settled(stage: Stage) -> None:
    while stage.background:
        done, _ = await asyncio.wait(stage.background)
        stage.background -= done


@contextlib.asynccontextmanager
async def _sidecars(scenario: Scenario, stage: Stage) -> AsyncIterator[list[Sidecar]]:
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = ""
        if scenario.sidecars > 1:
            server = await stack.enter_async_context(running(redis_server(folder / "store")))
            store = f"redis://{server.address}"
        stack.push_async_callback(stage.close)
        ports = {"": await stage.serve_http("")}
        for name in scenario.agents:
            ports[name] = await (stage.serve_grpc if scenario.speaks_grpc(name) else stage.serve_http)(name)
        inbound = [free_port() for _ in range(scenario.sidecars)]
        made = [Sidecar(folder / f"home{at}") for at in range(scenario.sidecars)]
        for one in made:
            stack.callback(one.kill)
        starts = []
        key = MeshKeys(folder / "shared.key")  # made here, so that no two daemons make it
        assert key.ring
        for at, one in enumerate(made):
            arguments = ["--mesh-key", str(folder / "shared.key")]
            env: dict[str, Any] = {"MESHD_INBOUND": f"127.0.0.1:{inbound[at]}"}
            if store:
                env["MESHD_STORE"] = store
                beside = scenario.agents[at : at + 1]
                arguments += ["--app", f"http://127.0.0.1:{ports[beside[0]]}"] if beside else []
            starts.append(asyncio.to_thread(one.start, document(scenario, at, ports, inbound), *arguments, **env))
        await asyncio.gather(*starts)
        yield made
