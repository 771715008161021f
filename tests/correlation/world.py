"""A real sidecar between the agent and the stand-in, 200 runs through it, and who was charged for what.

What meshd concluded is read from its spans, each of which names the response by the id that the stand-in gave it.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import anthropic
import openai

from tests.correlation.agent import Agent, Plan
from tests.correlation.stand_in import StandIn, sentence
from tests.end_to_end.sidecar import Sidecar
from tests.end_to_end.test_telemetry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable

POLICY = """
agent: researcher
upstreams:
  openai: {{url: "{llm}", kind: llm, dialect: openai}}
  claude: {{url: "{llm}", kind: llm, dialect: anthropic}}
limits: {{unattributed_tokens: 100000000, infers_context: {infers}, turns: {{ladder: note}}}}
"""
_HARBOURS = ("Lisbon", "Hamburg", "Piraeus", "Gdansk", "Cork")


@dataclass
class Run:
    """One task."""

    name: str
    plan: Plan
    task: str


@dataclass
class Score:
    """What became of the LLM calls of all runs."""

    calls: int = 0
    right: Counter[str] = field(default_factory=Counter)
    """Calls that were tied to their own run, by evidence."""
    wrong: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    is_broken: list[str] = field(default_factory=list)
    """Runs that failed."""

    @property
    def precision(self) -> float:
        """Of the calls that were tied to a run, the part that was to its own."""
        tied = self.right.total() + self.wrong.total()
        return self.right.total() / tied if tied else 1.0

    @property
    def recall(self) -> float:
        """Of all calls, the part that was tied to its own run."""
        return self.right.total() / self.calls if self.calls else 1.0


def runs_of(
    how_many: int,
    seed: int,
    plan: Callable[[random.Random, int], Plan],
    *,
    same: float = 0.0,
    is_short: bool = False,
) -> list[Run]:
    """Make runs; a part `same` of them has a task of five that come again and again."""
    dice = random.Random(seed)
    made = []
    for number in range(how_many):
        task = f"Write about the harbour of {dice.choice(_HARBOURS)} and its ships."
        if dice.random() >= same:
            task = f"Compare these in {dice.randint(2, 9)} points: {sentence(dice, 6)}"
            if is_short:
                task = f"Sum up item {number}"
        made.append(Run(f"run-{number:04d}", plan(dice, number), task))
    return made


async def measure(
    runs: list[Run],
    concurrency: int,
    *,
    infers: bool = True,
    alone: int = 0,
    addressed: Callable[[Sidecar, Run], str] | None = None,
    deterministic: float = 0.0,
) -> Score:
    """Send all runs through a sidecar of their own, `concurrency` at a time, and score what it made of them.

    `alone` is how many tasks the agent takes up of its own accord meanwhile: nothing of them may be tied to a run.
    `addressed` gives each run a base URL of its own. A part `deterministic` of the runs gets answers that repeat.
    """
    stand_in, collector = StandIn(), Collector()
    await stand_in.start()
    sidecar: Sidecar | None = None
    clients: list[Any] = []

    def make(kind: Any, door: str, pool_kind: Any) -> Any:
        # One connection pool for all, as a service has it.
        pool = pool_kind(timeout=60, trust_env=False)
        clients.append(pool)

        def client(base_url: str, run: str) -> Any:
            assert sidecar is not None
            return kind(base_url=base_url or sidecar.url + door, api_key=run, http_client=pool, max_retries=0)

        return client

    agent = Agent(
        make(openai.AsyncOpenAI, "/openai/v1", openai.DefaultAsyncHttpxClient),
        make(anthropic.AsyncAnthropic, "/claude", anthropic.DefaultAsyncHttpxClient),
    )
    await agent.start()
    with tempfile.TemporaryDirectory() as folder:
        sidecar = Sidecar(Path(folder) / "home")
        document = POLICY.format(llm=stand_in.url, infers=str(infers).lower())
        arguments = ("--app", agent.url)
        env = {"MESHD_OTLP_ENDPOINT": collector.url, "MESHD_SAMPLE_RATIO": "1"}
        try:
            await asyncio.to_thread(lambda: sidecar.start(document, *arguments, **env))
            dice = random.Random(len(runs))
            for run in runs:
                base = addressed(sidecar, run) if addressed is not None else ""
                agent.plans[run.name] = Plan(**{**vars(run.plan), "base_url": base})
                if dice.random() < deterministic:
                    stand_in.deterministic.add(run.name)
            broken = await _drive(sidecar, agent, runs, concurrency, alone)
            assert sidecar.process is not None
            assert sidecar.process.poll() is None, f"meshd ended with {sidecar.process.returncode}:\n{sidecar.log}"
        finally:
            for one in clients:
                await one.aclose()
            if sidecar.process is not None and sidecar.process.poll() is None:
                await asyncio.to_thread(sidecar.stop)
            await agent.stop()
            await stand_in.stop()
        score = _scored(stand_in.truth, collector.spans())
        collector.close()
        score.is_broken = broken
        return score


async def _drive(sidecar: Sidecar, agent: Agent, runs: list[Run], concurrency: int, alone: int) -> list[str]:
    gate = asyncio.Semaphore(concurrency)
    broken: list[str] = []
    inbound = sidecar.inbound

    async def one(session: aiohttp.ClientSession, number: int, run: Run) -> None:
        async with gate:
            body = {"jsonrpc": "2.0", "id": number, "method": "message/send", "params": {"message": run.task}}
            url = f"{inbound}/tasks/{number}"
            try:
                async with session.post(url, json=body, headers={"x-run": run.name}) as reply:
                    if reply.status != 200:
                        broken.append(f"{run.name}: {reply.status} {(await reply.text())[:200]}")
            except aiohttp.ClientError as error:
                broken.append(f"{run.name}: {error!r}")

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        own = [agent.work_beside(f"own-{n}", Plan(turns=8), f"Tidy up shelf {n} of the archive.") for n in range(alone)]
        await asyncio.gather(*[one(session, number, run) for number, run in enumerate(runs)], *own)
    return broken


def _scored(truth: dict[str, str], spans: list[dict[str, Any]]) -> Score:
    workflows: dict[str, str] = {}
    """By workflow: the run that opened it."""
    for span in spans:
        if span.get("meshd.direction") == "inbound":
            workflows[span["meshd.workflow"]] = f"run-{int(span['url.path'].rpartition('/')[2]):04d}"
    score = Score()
    seen = {span["gen_ai.response.id"]: span for span in spans if "gen_ai.response.id" in span}
    for id, run in truth.items():
        span = seen.get(id)
        is_own = run.startswith("own-")
        score.calls += not is_own
        workflow = span.get("meshd.workflow", "") if span is not None else ""
        if not workflow or span is None:
            score.missed += not is_own
        elif workflows.get(workflow, workflow) == run:
            score.right[span["meshd.evidence"]] += 1
        else:
            score.wrong[span["meshd.evidence"]] += 1
    return score
