"""Scenes of an end: a loop that a supervisor ends, one that nobody ends but meshd, and the trace of it all."""

from __future__ import annotations

import asyncio
import re
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from demo.checks import Checks
    from demo.events.world import World
    from demo.screen import Screen

PERIODS_MAX = 3
_LINES_SHOWN = 24
_BAD_RECORD = re.compile(r"BAD: (\w+-\d+-\d+): ")


async def show_supervisor(world: World, screen: Screen, checks: Checks) -> None:
    """Two agents ask each other what they mean; a third one, which is told the story, says it."""
    screen.title("4  market-analysis and risk-assessment ask each other what they mean: a supervisor decides")
    workflow = world.workflow("clarify")
    async with world.desk.workflow(workflow) as ctx:
        await ctx.publish("market.rumour", {"symbol": "ACME"}, key="ACME")
        await world.until_result("market.clarified", workflow)
    (clarified,) = world.all_said("clarified", workflow)
    questions = [one["question"] for one in world.said if one["event"] == "asked"]
    for question in questions:
        screen.quote(f"risk-assessment is asked: {question}")
    decided = world.all_said("decides", workflow)
    for one in decided:
        screen.step(f"the supervisor hears of it on mesh.loops ({one['detector']}), and says: {clarified['exposure']}")
    is_soon = len(decided) == 1 and 1 <= len(questions) <= PERIODS_MAX
    checks.claim(is_soon, f"handed to the supervisor after {len(questions)} rounds", (questions, decided))
    is_answered = clarified["exposure"].startswith("net,")
    checks.claim(is_answered, "its answer took the call's place, and the workflow went on", clarified)


async def show_silence(world: World, screen: Screen, checks: Checks) -> None:
    """Where the supervisor is silent the workflow is stopped, and that is said."""
    screen.title("5  The same with a supervisor that is gone: stopped, loudly")
    await world.agents["supervisor"].stop()
    workflow = world.workflow("silence")
    before = sum(one["event"] == "asked" for one in world.said)
    async with world.desk.workflow(workflow) as ctx:
        await ctx.publish("market.rumour", {"symbol": "ACME"}, key="ACME")
        stopped = await world.until_said("stopped", workflow)
    screen.quote(stopped["why"])
    rounds = sum(one["event"] == "asked" for one in world.said) - before
    checks.claim(1 <= rounds <= PERIODS_MAX, f"stopped after {rounds} rounds", stopped)
    said = "so the workflow is stopped"
    logged = [line for one in world.sidecars for line in one.process.tail.splitlines() if said in line]
    for line in logged:
        screen.log_of("meshd", line)
    late = await world.metric("meshd_supervisor_asked_total", way="topic", result="late")
    text = "that nobody answered stands in the refusal, in the log and in a metric"
    checks.claim(bool(logged) and late == 1 and "supervisor" in stopped["why"], text, (logged, late))


async def show_trace(world: World, screen: Screen, checks: Checks) -> None:
    """The workflow's story as a tree; the log is whole, and a copy that somebody changed is not."""
    screen.title("6  What became of it all: meshd trace")
    workflow = world.workflow("stale")
    code, tree = await world.cli("trace", workflow)
    for line in tree.splitlines()[:_LINES_SHOWN]:
        screen.step(line)
    agents = [name for name in ("market-analysis", "risk-assessment", "trade-execution") if f" {name}: " in tree]
    is_told = code == 0 and len(agents) == 3 and "exchange" in tree
    checks.claim(is_told, "steps and decisions of all three agents, and their calls of the exchange", tree)
    code, words = await world.cli("trace", "--verify")
    checks.claim(code == 0, f"meshd trace --verify: {words.splitlines()[-1] if words else code}", words)
    await _show_tampering(world, screen, checks)


async def _show_tampering(world: World, screen: Screen, checks: Checks) -> None:
    copy = world.home / "copy"
    await asyncio.to_thread(shutil.copytree, world.sidecars[-1].home / "trace", copy / "trace")
    # The longest, without the zeros behind its end: what was written of it.
    files = [one for one in (copy / "trace").rglob("*") if one.is_file()]
    file = max(files, key=lambda one: len(one.read_bytes().rstrip(b"\0")))
    raw = bytearray(file.read_bytes())
    at = len(raw.rstrip(b"\0")) // 2
    raw[at] ^= 1
    file.write_bytes(raw)
    code, words = await world.cli("trace", "--verify", homes=[copy])
    screen.step(f"one bit of a copy is changed, in {file.name} at byte {at:,}:")
    for line in words.splitlines():
        screen.quote(line)
    named = _BAD_RECORD.search(words)
    text = f"found, and named: record {named[1]}" if named else "found, and named"
    checks.claim(code == 1 and named is not None, text, (code, words))
