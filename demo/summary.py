"""The end of the demo: counters, tokens, refusals, and what passing through meshd adds to a call."""

from __future__ import annotations

import asyncio
import http.client
import json
import statistics
import time
from typing import TYPE_CHECKING

from demo.processes import ROOT
from demo.world import POLICY

if TYPE_CHECKING:
    from demo.story import Story

_PAIRS = 150
_WARM_UP = 20


def _one_call(connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> float:
    started_s = time.perf_counter()
    connection.request("POST", path, body, headers)
    reply = connection.getresponse()
    reply.read()
    if reply.status != 200:
        raise RuntimeError(f"{path} answered {reply.status}")
    return time.perf_counter() - started_s


def measure(direct_port: int, mesh_port: int, workflow: str) -> tuple[float, float]:
    """Return the median seconds of a call straight to the provider and of one through meshd, taken in turn."""
    headers = {"content-type": "application/json", "authorization": "Bearer sk-demo-latency"}
    direct = http.client.HTTPConnection("127.0.0.1", direct_port, timeout=10)
    through = http.client.HTTPConnection("127.0.0.1", mesh_port, timeout=10)
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(_PAIRS + _WARM_UP):
        # One workflow that asks the same again and again, and hears the same, would be a loop.
        asked = {"role": "user", "content": f"note{number} in 4 words"}
        body = json.dumps({"model": "stand-in", "messages": [asked]}).encode()
        times[0].append(_one_call(direct, "/v1/chat/completions", body, headers))
        named = {**headers, "x-meshd-workflow": workflow}
        times[1].append(_one_call(through, "/openai/v1/chat/completions", body, named))
    direct.close()
    through.close()
    return statistics.median(times[0][_WARM_UP:]), statistics.median(times[1][_WARM_UP:])


async def show_summary(story: Story) -> None:
    """Write the summary."""
    screen, world = story.screen, story.world
    screen.title("Summary")
    samples = await world.metrics()
    calls = sum(int(value) for name, _, value in samples if name == "meshd_calls_total")
    refusals = [
        (labels["reason"], labels.get("target", ""), int(value))
        for name, labels, value in samples
        if name == "meshd_refusals_total" and value
    ]
    if story.rows:
        screen.table(("workflow", "LLM calls", "tokens billed", "tokens in the ledger"), story.rows)
    screen.step(f"{calls:,} calls through meshd, {sum(count for _, _, count in refusals):,} refused:")
    screen.table(("reason", "target", "calls"), refusals)
    if not world.options.is_real:
        ports, workflow = world.ports, world.workflow("latency")
        direct_s, through_s = await asyncio.to_thread(measure, ports["llm"], ports["listen"], workflow)
        screen.step(
            f"added latency: {(through_s - direct_s) * 1e6:,.0f} us at the median of {_PAIRS} calls, taken in turn "
            f"({direct_s * 1e6:,.0f} us direct, {through_s * 1e6:,.0f} us through meshd)"
        )


def show_next(story: Story) -> None:
    """Say where to look next."""
    screen, world = story.screen, story.world
    screen.title("Where to look next")
    screen.step(f"the policy that was enforced    {POLICY.relative_to(ROOT)}")
    screen.step("how to point an agent at meshd  docs/agents.md")
    screen.step("govern a program of yours       meshd exec -- python agent.py")
    if not world.options.is_kept:
        screen.step("keep all this running           make demo KEEP=1")
        return
    ports = world.ports
    screen.title("Still running; Ctrl-C ends it")
    rows = [("meshd, for agents", world.mesh_url), ("metrics", f"http://127.0.0.1:{ports['metrics']}/metrics")]
    rows.append(("admin", f"http://127.0.0.1:{ports['admin']}/"))
    rows += [(f"books of {name}", f"http://127.0.0.1:{port}/books") for name, port in world.control.items()]
    rows.append(("state", str(world.home / "state")))
    screen.table(("", "address"), rows)
    screen.step(
        f"try: curl -s {world.mesh_url}/manager/run -H 'x-meshd-workflow: mine' -d '{{\"task\": \"sidecars\"}}'"
    )
