"""The agents of examples/trading as processes, each with its sidecar: one for all on the embedded bus, else its own."""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import aiohttp

from demo.processes import ROOT, Process, ProcessError, ended, hold_port
from demo.world import Event, bare_environ, samples_of
from meshd_sdk import Agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from meshd_sdk import Event as MeshEvent

POLICY = ROOT / "demo" / "events" / "policy.yaml"
PROGRAMS = ROOT / "examples" / "trading"
AGENTS = {
    "market-analysis": "market.py",
    "risk-assessment": "risk.py",
    "trade-execution": "trade.py",
    "supervisor": "supervisor.py",
}
WITH_SIDECARS = ("market-analysis", "risk-assessment", "trade-execution")
"""Where each has its own; the supervisor and the desk, which brings the work, are at the first one's."""
RESULTS = ("trade.executed", "trade.rejected", "market.clarified", "market.abandoned")
PATIENCE_S = 20.0
_POLL_S = 0.05
_EXCHANGE = "127.0.0.1:7491"


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    bus: str = ""
    """URL of the bus; empty for the embedded one."""
    store: str = ""
    """URL of the store; empty for one on the bus's server."""

    @property
    def is_shared(self) -> bool:
        """Each agent has a sidecar of its own, and they share bus, store and mesh key."""
        return bool(self.bus)

    @property
    def shared_store(self) -> str:
        """The store's URL: the bus's, without what only a bus understands."""
        if self.store or not self.bus:
            return self.store
        parts = urlsplit(self.bus)
        options = [(name, value) for name, value in parse_qsl(parts.query) if name != "stream"]
        return urlunsplit(parts._replace(query=urlencode(options, safe="/:")))


@dataclass
class Sidecar:
    """One daemon."""

    name: str
    home: Path
    process: Process
    addresses: dict[str, Any] = field(default_factory=dict)


@dataclass
class World:
    """The running demo."""

    options: Options
    home: Path
    run_id: str = field(default_factory=lambda: secrets.token_hex(3))
    processes: list[Process] = field(default_factory=list)
    sidecars: list[Sidecar] = field(default_factory=list)
    agents: dict[str, Process] = field(default_factory=dict)
    said: list[Event] = field(default_factory=list)
    """What the agents said of themselves."""
    results: list[MeshEvent] = field(default_factory=list)
    """What the desk heard."""
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    on_said: Callable[[Event], None] = lambda event: None
    desk: Agent = field(init=False)
    control_port: int = 0
    exchange_port: int = 0
    http: aiohttp.ClientSession = field(init=False)

    def workflow(self, scene: str) -> str:
        """Name of a scene's workflow: no two runs of the demo share one."""
        return f"{scene}-{self.run_id}"

    def heard(self, event: Event) -> None:
        """Keep what an agent said."""
        self.said.append(event)
        self.on_said(event)
        self._tell()

    def _tell(self) -> None:
        async def tell() -> None:
            async with self.changed:
                self.changed.notify_all()

        _keep(asyncio.ensure_future(tell()))

    async def take(self, result: MeshEvent) -> None:
        """Keep what came to the desk."""
        self.results.append(result)
        self._tell()

    def all_said(self, event: str, workflow: str) -> list[Event]:
        """Return what agents said under that name in a workflow."""
        return [one for one in self.said if one["event"] == event and one.get("workflow") == workflow]

    def all_results(self, topic: str, workflow: str) -> list[MeshEvent]:
        """Return what came to the desk in a workflow."""
        return [one for one in self.results if one.topic == topic and one.workflow == workflow]

    async def until(self, is_so: Callable[[], Any], what: str) -> Any:
        """Wait for a first true value. Raises RuntimeError where it does not come."""
        try:
            async with asyncio.timeout(PATIENCE_S), self.changed:
                while not (found := is_so()):
                    await self.changed.wait()
                return found
        except TimeoutError:
            raise RuntimeError(f"{what} has not come within {PATIENCE_S:.0f} s") from None

    async def until_said(self, event: str, workflow: str) -> Event:
        """Wait until an agent has said that in a workflow."""
        await self.until(lambda: self.all_said(event, workflow), f"{event!r} of an agent")
        return self.all_said(event, workflow)[-1]

    async def until_result(self, topic: str, workflow: str, count: int = 1) -> MeshEvent:
        """Wait until so many results of a workflow have come; return the last one."""
        await self.until(lambda: len(self.all_results(topic, workflow)) >= count, f"{topic}, {count} of them,")
        return self.all_results(topic, workflow)[-1]

    async def books(self, order: str) -> list[Event]:
        """Return the exchange's own books of an order."""
        async with self.http.get(f"http://127.0.0.1:{self.control_port}/books") as reply:
            return [one for one in (await reply.json())["orders"] if one["order"] == order]

    async def trading(self, switch: str) -> None:
        """Halt or resume trading at the exchange."""
        async with self.http.post(f"http://127.0.0.1:{self.control_port}/{switch}") as reply:
            reply.raise_for_status()

    async def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over all sidecars."""
        total = 0.0
        for sidecar in self.sidecars:
            async with self.http.get(f"http://{sidecar.addresses['metrics']}/metrics") as reply:
                samples = samples_of(await reply.text())
            total += sum(value for found, own, value in samples if found == name and labels.items() <= own.items())
        return total

    async def cli(self, *arguments: str, homes: list[Path] | None = None) -> tuple[int, str]:
        """Run `meshd ARGUMENTS` over the sidecars' state directories; return its exit code and what it printed."""
        own = [one.home for one in self.sidecars] if homes is None else homes
        named = [text for home in own for text in ("--home", str(home))]
        code, out, err = await ended(["-m", "meshd.cli", *arguments, *named], bare_environ())
        return code, out + err


_kept: set[asyncio.Future[None]] = set()


def _keep(task: asyncio.Future[None]) -> None:
    _kept.add(task)
    task.add_done_callback(_kept.discard)


@asynccontextmanager
async def running(options: Options, on_progress: Callable[[str], None]) -> AsyncIterator[World]:
    """Start everything, and end everything. Raises ProcessError where something does not start."""
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="meshd-demo-"))
        world = World(options, Path(directory))
        stack.push_async_callback(_stop, world)
        world.http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
        await _start(world, on_progress)
        await stack.enter_async_context(world.desk)
        yield world


async def _stop(world: World) -> None:
    # Agents first: they have something to say to their sidecars.
    for processes in (list(world.agents.values()), world.processes):
        await asyncio.gather(*(one.stop() for one in processes), return_exceptions=True)


async def _start(world: World, on_progress: Callable[[str], None]) -> None:
    on_progress("starting the exchange and the sidecars")
    exchange = await _launch(world, "exchange", [str(PROGRAMS / "exchange.py")])
    ready = await exchange.wait_ready()
    world.exchange_port, world.control_port = ready["port"], ready["control_port"]
    await _start_sidecars(world)
    on_progress("starting the agents")
    for index, (name, program) in enumerate(AGENTS.items()):
        sidecar = world.sidecars[index % len(WITH_SIDECARS) if world.options.is_shared else 0]
        environ = {"MESHD_API": sidecar.addresses["api"], "AGENT_ROLE": name}
        world.agents[name] = await _launch(world, name, [str(PROGRAMS / program)], environ)
    for agent in world.agents.values():
        await agent.wait_ready()
    world.desk = Agent("desk", api=world.sidecars[0].addresses["api"], environ={}, grace=1)
    for topic in RESULTS:
        world.desk.on(topic)(world.take)


async def _launch(world: World, name: str, arguments: list[str], environ: dict[str, str] | None = None) -> Process:
    process = Process(name, world.heard)
    world.processes.append(process)
    await process.start(arguments, bare_environ() | (environ or {}))
    return process


async def _start_sidecars(world: World) -> None:
    names = WITH_SIDECARS if world.options.is_shared else ("desk",)
    held = {name: hold_port() for name in names}
    inbound = {name: holder.getsockname()[1] for name, holder in held.items()}
    for holder in held.values():
        holder.close()
    for name in names:
        policy = world.home / f"{name}.yaml"
        policy.write_text(policy_text(world, name, inbound))
        environ = {f"MESHD_{port}": "127.0.0.1:0" for port in ("LISTEN", "API", "ADMIN", "METRICS")}
        environ |= {"MESHD_INBOUND": f"127.0.0.1:{inbound[name]}", "MESHD_HOME": str(world.home / name)}
        environ |= {"MESHD_DRAIN": "1", "MESHD_MESH_KEY": str(world.home / "mesh.key"), "MESHD_POLICY": str(policy)}
        arguments = ["-m", "meshd.cli", "run"]
        if world.options.is_shared:
            # By the environment, as a password may be in them.
            environ |= {"MESHD_BUS": world.options.bus, "MESHD_STORE": world.options.shared_store}
            arguments += ["--app", "session"]
        process = await _launch(world, f"meshd of {name}", arguments, environ)
        sidecar = Sidecar(name, world.home / name, process)
        world.sidecars.append(sidecar)
        # One after the other: the first makes the mesh key that the others read.
        await _wait_ready(sidecar)


def policy_text(world: World, name: str, inbound: dict[str, int]) -> str:
    """Return the policy of one sidecar: with this run's ports, and where there are three, the others' addresses."""
    text = POLICY.read_text().replace(_EXCHANGE, f"127.0.0.1:{world.exchange_port}")
    if not world.options.is_shared:
        return text
    text = text.replace("agent: desk", f"agent: {name}")
    for other, port in inbound.items():
        if other != name:
            there = f'{other}: {{url: "http://127.0.0.1:{port}", kind: agent, peer: true}}'
            text = text.replace(f"{other}: {{kind: agent, session: true}}", there)
    return text


async def _wait_ready(sidecar: Sidecar) -> None:
    ends_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            found = cast("dict[str, Any]", json.loads((sidecar.home / "daemon.json").read_text()))
        except (OSError, ValueError):
            found = {}
        if found.get("metrics"):
            sidecar.addresses = found
            return
        if not sidecar.process.is_running or time.monotonic() > ends_s:
            await sidecar.process.stop()
            raise ProcessError(f"{sidecar.process.name} did not get ready\n{sidecar.process.tail}")
        await asyncio.sleep(_POLL_S)
