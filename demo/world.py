"""Everything that the demo starts, and how to ask it things: the provider's books, meshd's ledger and counters."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import aiohttp

from demo.processes import ROOT, Process, ProcessError, hold_port, output_of
from meshd.config import ALIASES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

POLICY = ROOT / "demo" / "policy.yaml"
OPENAI_URL = "https://api.openai.com"
PROVIDERS = ("llm", "flaky")
AGENTS = (
    "manager",
    "researcher",
    "writer",
    "ping",
    "pong",
    "planner",
    "analyst",
    "desk",
    "runaway",
    "prober",
    "clerk",
    "harbour",
)
_POLICY_PORTS = {"llm": 7471, "flaky": 7472, "shop": 7473, "toolbox": 7474}
_POLICY_PORTS |= {name: 7481 + index for index, name in enumerate(AGENTS)}
_NO_HASH = "0" * 64
_LIVE_TIMEOUT_S = 30.0
_POLL_S = 0.05
_METRIC = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
Event = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What the command line asked for."""

    llm: str = "stand-in"
    model: str = "stand-in"
    budget: int = 6000
    is_kept: bool = False

    @property
    def is_real(self) -> bool:
        """The real provider is used, and spends real money."""
        return self.llm == "openai"


@dataclass
class World:
    """The running demo."""

    options: Options
    home: Path
    run_id: str = field(default_factory=lambda: secrets.token_hex(3))
    ports: dict[str, int] = field(default_factory=dict)
    control: dict[str, int] = field(default_factory=dict)
    processes: list[Process] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    watchers: list[Any] = field(default_factory=list)
    approver_hash: str = _NO_HASH
    http: aiohttp.ClientSession = field(init=False)

    @property
    def mesh_url(self) -> str:
        """Where agents are pointed."""
        return f"http://127.0.0.1:{self.ports['listen']}"

    def workflow(self, scene: str) -> str:
        """Name of a scene's workflow: no two runs of the demo share one."""
        return f"{scene}-{self.run_id}"

    def key(self, agent: str) -> str:
        """API key of an agent at the stand-in provider, by which its books are kept."""
        return f"sk-demo-{agent}"

    def heard(self, event: Event) -> None:
        """Keep an event and hand it to whoever watches."""
        self.events.append(event)
        for watcher in list(self.watchers):
            watcher(event)

    async def ask(self, agent: str, body: Event, workflow: str) -> tuple[int, Event]:
        """Bring an agent a task through meshd, as a user would who names the workflow."""
        headers = {"x-meshd-workflow": workflow}
        async with self.http.post(f"{self.mesh_url}/{agent}/run", json=body, headers=headers) as reply:
            raw = await reply.text()
            try:
                return reply.status, json.loads(raw)
            except ValueError:
                return reply.status, {"text": raw[:500]}

    async def books(self, provider: str = "llm") -> Event:
        """Return the provider's own books."""
        async with self.http.get(f"http://127.0.0.1:{self.control[provider]}/books") as reply:
            return cast("Event", await reply.json())

    async def behave(self, provider: str, mode: str) -> None:
        """Tell a stand-in provider to answer, to be dead or to fail."""
        async with self.http.post(f"http://127.0.0.1:{self.control[provider]}/behave", json={"mode": mode}) as reply:
            reply.raise_for_status()

    async def metrics(self) -> list[tuple[str, dict[str, str], float]]:
        """Return meshd's metrics as (name, labels, value)."""
        async with self.http.get(f"http://127.0.0.1:{self.ports['metrics']}/metrics") as reply:
            return samples_of(await reply.text())

    async def admin(self, path: str) -> Event:
        """Ask meshd's admin API."""
        token = (self.home / "state" / "admin.token").read_text().strip()
        headers = {"authorization": f"Bearer {token}"}
        async with self.http.get(f"http://127.0.0.1:{self.ports['admin']}{path}", headers=headers) as reply:
            reply.raise_for_status()
            return cast("Event", await reply.json())

    @property
    def approver_key_file(self) -> Path:
        """Where the demo, which plays the approver, keeps that key. No agent is told of it."""
        return self.home / "visitor.key"

    async def cli(self, *arguments: str) -> str:
        """Run `meshd ARGUMENTS` and return what it prints. Raises RuntimeError with its words where it fails."""
        environ = bare_environ() | {"MESHD_HOME": str(self.home / "state")}
        return await output_of(["-m", "meshd.cli", *arguments], environ)

    async def ledger(self, workflow: str) -> int:
        """Return the tokens that meshd's ledger charged to a workflow."""
        found = await self.admin("/v1/accounts?limit=1000")
        return sum(int(entry["used"]) for entry in found["accounts"] if entry["id"] == f"workflow/{workflow}")


def samples_of(text: str) -> list[tuple[str, dict[str, str], float]]:
    """Read what Prometheus reads, as (name, labels, value)."""
    return [(name, dict(_LABEL.findall(labels or "")), float(value)) for name, labels, value in _METRIC.findall(text)]


def billed(books: Event, *keys: str) -> int:
    """Return the tokens billed to some API keys, input and output together."""
    accounts = [books["accounts"].get(key, {}) for key in keys]
    return sum(account.get("input_tokens", 0) + account.get("output_tokens", 0) for account in accounts)


def policy_text(ports: dict[str, int], options: Options, approver_hash: str = _NO_HASH) -> str:
    """Return the policy with the ports of this run, its approver and the budget asked for in place of its own."""
    text = POLICY.read_text()
    for name, port in _POLICY_PORTS.items():
        text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{ports[name]}")
    text = text.replace("tokens: 6000", f"tokens: {options.budget}").replace(_NO_HASH, approver_hash)
    if options.is_real:
        text = text.replace(
            f'"http://127.0.0.1:{ports["llm"]}", kind: llm, dialect: openai',
            f'"{OPENAI_URL}", kind: llm, dialect: openai',
        )
    return text


@asynccontextmanager
async def running(options: Options, on_progress: Any) -> AsyncIterator[World]:
    """Start everything, and end everything: processes by group, and the temporary directory."""
    with tempfile.TemporaryDirectory(prefix="meshd-demo-") as directory:
        world = World(options, Path(directory))
        timeout = aiohttp.ClientTimeout(total=50)
        async with aiohttp.ClientSession(timeout=timeout) as world.http:
            try:
                await _start(world, on_progress)
                yield world
            finally:
                stopping = (process.stop() for process in reversed(world.processes))
                # One that cannot be stopped must not keep the others from it.
                await asyncio.gather(*stopping, return_exceptions=True)


async def _start(world: World, on_progress: Any) -> None:
    # Bound until meshd starts, so that no agent is given one of these ports.
    held = {name: hold_port() for name in ("listen", "inbound", "admin", "metrics")}
    world.ports |= {name: holder.getsockname()[1] for name, holder in held.items()}
    on_progress("starting the stand-in provider and the agents")
    started = {name: await _launch(world, name, ["-m", "demo.llm_server"], bare_environ()) for name in PROVIDERS}
    started["shop"] = await _launch(world, "shop", ["-m", "demo.shop"], bare_environ())
    toolbox = await _launch(world, "toolbox", ["-m", "demo.toolbox"], bare_environ())
    agents = {
        name: await _launch(world, name, ["-m", "demo.agent", name], _agent_environ(world, name)) for name in AGENTS
    }
    await _make_approver(world)
    for name, process in started.items():
        ready = await process.wait_ready()
        world.ports[name], world.control[name] = ready["port"], ready["control_port"]
    for name, process in {**agents, "toolbox": toolbox}.items():
        world.ports[name] = (await process.wait_ready())["port"]
    on_progress("starting meshd")
    for holder in held.values():
        holder.close()
    await _start_meshd(world)


async def _launch(world: World, name: str, arguments: list[str], environ: dict[str, str]) -> Process:
    process = Process(name, world.heard)
    world.processes.append(process)
    await process.start(arguments, environ)
    return process


async def _make_approver(world: World) -> None:
    """Make the key of the one who may approve, as a person would: it is shown once, and the policy holds its hash."""
    made = json.loads(await world.cli("approvals", "key", "visitor", "--json"))
    world.approver_key_file.touch(mode=0o600)
    world.approver_key_file.write_text(made["key"])
    world.approver_hash = made["policy"]["visitor"]["key"].removeprefix("sha256:")


async def _start_meshd(world: World) -> None:
    policy = world.home / "policy.yaml"
    policy.write_text(policy_text(world.ports, world.options, world.approver_hash))
    environ = bare_environ() | {"MESHD_HOME": str(world.home / "state"), "MESHD_DRAIN": "2"}
    for name in ("inbound", "admin", "metrics"):
        environ[f"MESHD_{name.upper()}"] = f"127.0.0.1:{world.ports[name]}"
    environ["MESHD_API"] = "127.0.0.1:0"
    environ["DEMO_SPARE_KEY"] = world.key("spare")
    listen = f"127.0.0.1:{world.ports['listen']}"
    arguments = ["-m", "meshd.cli", "run", "--policy", str(policy), "--listen", listen]
    process = await _launch(world, "meshd", arguments, environ)
    ends_s = time.monotonic() + _LIVE_TIMEOUT_S
    while not await _is_ready(world):
        if not process.is_running or time.monotonic() > ends_s:
            await process.stop()
            raise ProcessError(f"meshd did not get ready\n{process.tail}")
        await asyncio.sleep(_POLL_S)


async def _is_ready(world: World) -> bool:
    try:
        async with world.http.get(f"http://127.0.0.1:{world.ports['metrics']}/readyz") as reply:
            return reply.status == 200
    except aiohttp.ClientError:
        return False


def bare_environ() -> dict[str, str]:
    """The environment without what would steer meshd, or spend money by its mere presence."""
    steering = ("MESHD_", "OPENAI_", "ANTHROPIC_", "OTEL_", *ALIASES)
    environ = {key: value for key, value in os.environ.items() if not key.startswith(steering)}
    environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environ["NO_PROXY"] = environ["no_proxy"] = "127.0.0.1,localhost,::1"
    return environ


def _agent_environ(world: World, name: str) -> dict[str, str]:
    environ = bare_environ() | {
        "MESHD_URL": world.mesh_url,
        "OPENAI_BASE_URL": f"{world.mesh_url}/openai/v1",
        "OPENAI_API_KEY": world.key(name),
        "DEMO_MODEL": world.options.model,
    }
    if world.options.is_real:
        return environ | {"OPENAI_API_KEY": os.environ["OPENAI_API_KEY"]}
    return environ | {"ANTHROPIC_BASE_URL": f"{world.mesh_url}/anthropic", "ANTHROPIC_API_KEY": world.key(name)}
