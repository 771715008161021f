"""Scenes of agents that go in circles: who ends them, how soon, and how little they have spent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from demo.story import Story
    from demo.world import Event

HOPS_MAX = 16
ROUNDS_MAX = 3
_SHARE_MAX = 0.05
"""Of the budget, spent after the loop began."""


async def show_ping_pong(story: Story) -> None:
    """Two agents that never agree are stopped as a loop, in the third round, long before the hop limit."""
    screen, checks, world = story.screen, story.checks, story.world
    screen.title("2  A ping-pong between two agents, each called by the other: stopped as a loop")
    turns: list[str] = []

    def watch(event: Event) -> None:
        if event["event"] == "received":
            turns.append(event["agent"])
            screen.live(f"turn {len(turns)}: {event['agent']}")

    workflow = world.workflow("ping-pong")
    with story.watching(watch):
        status, result = await world.ask("ping", {"task": "are you sure?"}, workflow)
    screen.step(" ".join(turns))
    seen = story.show_refusal(result.get("refused") or {})
    is_stopped = status == 200 and seen == (403, "loop") and 2 <= len(turns) <= 2 * ROUNDS_MAX
    text = f"stopped after {len(turns)} turns, {ROUNDS_MAX} rounds, where the hop limit is {HOPS_MAX}"
    checks.claim(is_stopped, text, (status, seen, turns))
    await _show_spent(story, workflow, "ping", "pong")


async def show_clarification(story: Story) -> None:
    """Two agents that ask each other for clarification, in other words each time, are stopped within three rounds."""
    screen, checks, world = story.screen, story.checks, story.world
    screen.title("3  Two agents ask each other for clarification, reworded each time: stopped as a loop")
    questions: list[str] = []

    def watch(event: Event) -> None:
        if event["event"] == "received" and event["agent"] == "analyst":
            questions.append(event["task"])
            screen.step(f"planner -> analyst: {event['task']}")

    workflow = world.workflow("clarify")
    with story.watching(watch):
        status, result = await world.ask("planner", {"task": "the quarterly report"}, workflow)
    seen = story.show_refusal(result.get("refused") or {})
    is_stopped = status == 200 and seen == (403, "loop") and 1 <= len(questions) <= ROUNDS_MAX
    checks.claim(is_stopped, f"stopped after {len(questions)} rounds", (status, seen, questions))
    await _show_spent(story, workflow, "planner", "analyst")


async def show_hop_limit(story: Story) -> None:
    """Where a policy lets agents return to each other, the hop limit is what ends them."""
    screen, checks, world = story.screen, story.checks, story.world
    screen.title("4  Two desks that the policy lets hand a case to and fro (turns.reentry): ended by the hop limit")
    hops = 0

    def watch(event: Event) -> None:
        nonlocal hops
        hops += event["event"] == "received" and event["agent"] == "desk"

    with story.watching(watch):
        status, result = await world.ask("desk-a", {"task": "case 7411"}, world.workflow("desks"))
        for _ in range(100):  # What agents print comes through pipes, behind the answer.
            if hops < HOPS_MAX:
                await asyncio.sleep(0.02)
    seen = story.show_refusal(result.get("refused") or {})
    is_ended = status == 200 and hops == HOPS_MAX and seen == (403, "hop_limit")
    checks.claim(is_ended, f"ended after {hops} hops with 403 hop_limit", (status, seen, hops))


async def _show_spent(story: Story, workflow: str, *agents: str) -> None:
    """Say what a circle has cost, from both books."""
    world, limit = story.world, story.world.options.budget
    if world.options.is_real:
        ledger = await world.ledger(workflow)
        story.screen.step(f"meshd's ledger says {ledger:,} tokens, {ledger / limit:.1%} of the workflow's budget")
        return
    tokens, ledger = await story.compare_books(workflow, *agents)
    text = f"provider billed {tokens:,} tokens, the ledger says {ledger:,}: {ledger / limit:.1%} of the budget"
    story.checks.claim(0 < ledger == tokens and ledger <= limit * _SHARE_MAX, text)
