"""What the demo shows, one function a scene. Each writes what happens and checks what it claims."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo.world import Event, billed
from meshd_sdk.context import Context, Keyring, TokenInvalidError, verify

if TYPE_CHECKING:
    from demo.checks import Checks
    from demo.screen import Screen
    from demo.world import World

HOPS_MAX = 16
_FAILURES_TO_OPEN = 3
_PROBE_CALLS_MAX = 20
_CALLS_WHILE_OPEN = 10
_CLOSE_TIMEOUT_S = 15.0
_CLOSE_POLL_S = 0.2
_CALLS_WHEN_WELL = 5


class Story:
    """What every scene needs, and what the summary will tell."""

    def __init__(self, world: World, screen: Screen, checks: Checks) -> None:
        self.world = world
        self.screen = screen
        self.checks = checks
        self.rows: list[tuple[str, int, int, int]] = []
        """(workflow, calls at the provider, tokens billed there, tokens in meshd's ledger)."""
        self._keyring: Keyring | None = None

    def context_of(self, event: Event) -> Context | None:
        """Open the token that an agent received. The demo may: it can read the mesh key. The agent cannot."""
        if self._keyring is None:
            from meshd.mesh_key import MeshKeys

            self._keyring = MeshKeys(Path(self.world.home) / "state" / "mesh.key").ring
        token = event["seen"].get("x-meshd-context", "")
        try:
            return verify(token.encode(), self._keyring, now_s=time.time()).context
        except TokenInvalidError:
            return None

    async def compare_books(self, workflow: str, *agents: str) -> tuple[int, int]:
        """Note and return what the provider billed for a workflow and what meshd's ledger charged, in tokens."""
        books = await self.world.books()
        keys = [self.world.key(agent) for agent in agents]
        tokens, ledger = billed(books, *keys), await self.world.ledger(workflow)
        calls = sum(books["accounts"].get(key, {}).get("calls", 0) for key in keys)
        self.rows.append((workflow, calls, tokens, ledger))
        return tokens, ledger

    async def breaker_states(self, upstream: str) -> set[str]:
        """Return the states of an upstream's breakers, as the admin API says them."""
        found = await self.world.admin("/v1/breakers")
        return {str(breaker["state"]) for breaker in found["breakers"] if breaker["upstream"] == upstream}


async def show_context(story: Story) -> None:
    """Three hops: the workflow and the hop count arrive, though no agent knows of either."""
    screen, checks, world = story.screen, story.checks, story.world
    screen.title("1  One workflow over three hops: manager -> researcher -> writer, each with an LLM call of its own")
    workflow, agents = world.workflow("report"), ("manager", "researcher", "writer")
    contexts: dict[str, Context] = {}

    def watch(event: Event) -> None:
        if event["event"] == "received" and (context := story.context_of(event)) is not None:
            contexts[event["agent"]] = context
            path = " -> ".join([*context.path, context.agent])
            screen.step(f"{event['agent']:<11} received hop {context.hops} of workflow {context.workflow}  ({path})")
        elif event["event"] == "thought":
            screen.step(f"{event['agent']:<11} asked the LLM with the {event['sdk']} SDK: {event['pieces']} pieces")

    world.watchers.append(watch)
    status, result = await world.ask("manager", {"task": "sidecars"}, workflow)
    world.watchers.remove(watch)
    text = result.get("next", {}).get("next", {}).get("text", "")
    checks.claim(status == 200 and bool(text), "the report came back through all three agents", (status, result))
    hops = [contexts[agent].hops if agent in contexts else None for agent in agents]
    checks.claim(hops == [1, 2, 3], "the agents saw hops 1, 2 and 3", hops)
    names = {context.workflow for context in contexts.values()}
    checks.claim(len(names) == 1, "all in one workflow", names)
    if not world.options.is_real:
        tokens, ledger = await story.compare_books(workflow, *agents)
        checks.claim(ledger == tokens, f"provider billed {tokens:,} tokens, the ledger says {ledger:,}")


async def show_hop_limit(story: Story) -> None:
    """Two agents that never agree are ended by the hop limit."""
    screen, checks, world = story.screen, story.checks, story.world
    screen.title("2  A ping-pong between two agents, ended by the hop limit")
    turns: list[str] = []

    def watch(event: Event) -> None:
        if event["event"] == "received":
            turns.append(event["agent"])
            screen.live(f"turn {len(turns)}: {event['agent']}")

    world.watchers.append(watch)
    status, result = await world.ask("ping", {"task": "are you sure?"}, world.workflow("ping-pong"))
    world.watchers.remove(watch)
    refused = result.get("refused") or {}
    screen.step(f"{' '.join(turns)}")
    screen.step(f"then {refused.get('status')} {refused.get('reason')}:")
    screen.quote(_detail(str(refused.get("body", ""))))
    checks.claim(status == 200 and len(turns) == HOPS_MAX, f"ended after {HOPS_MAX} turns", len(turns))
    seen = (refused.get("status"), refused.get("reason"))
    checks.claim(
        seen == (403, "hop_limit"), "the next call was refused with 403 hop_limit, in words for the model", seen
    )
    if not world.options.is_real:
        tokens, ledger = await story.compare_books(world.workflow("ping-pong"), "ping", "pong")
        checks.claim(ledger == tokens, f"provider billed {tokens:,} tokens, the ledger says {ledger:,}")


async def show_budget(story: Story) -> None:
    """A runaway, several calls at once, spends its budget and not a token more."""
    screen, checks, world = story.screen, story.checks, story.world
    limit = world.options.budget
    screen.title(f"3  A runaway agent, six calls at once, on a budget of {limit:,} tokens")

    def watch(event: Event) -> None:
        if event["event"] == "spent":
            screen.live(f"{event['answers']} answers, {event['tokens']:,} of {limit:,} tokens")

    world.watchers.append(watch)
    status, result = await world.ask("runaway", {"task": "Say more"}, world.workflow("runaway"))
    world.watchers.remove(watch)
    refused = result.get("refused") or {}
    screen.step(
        f"{result.get('answers')} answers, {result.get('shortened')} of them shortened to fit what was left, "
        f"{result.get('busy')} told to wait"
    )
    screen.step(f"then the SDK raised {refused.get('type')} with {refused.get('status')} {refused.get('reason')}:")
    screen.quote(str(refused.get("message", "")))
    seen = (status, refused.get("status"))
    checks.claim(seen == (200, 402), "it was stopped: 402, which no SDK tries again", seen)
    if world.options.is_real:
        billed_tokens, ledger = int(result.get("reported_tokens", 0)), await world.ledger(world.workflow("runaway"))
        screen.step("the provider's own books cannot be read: what it reported to the agent stands in for them")
    else:
        billed_tokens, ledger = await story.compare_books(world.workflow("runaway"), "runaway")
    screen.table(
        ("", "tokens"),
        [
            ("limit", limit),
            ("billed by the provider", billed_tokens),
            ("meshd's ledger", ledger),
            ("left", limit - ledger),
        ],
    )
    checks.claim(billed_tokens == ledger, "ledger and provider agree to the token", (billed_tokens, ledger))
    checks.claim(0 < billed_tokens <= limit, "overspent: 0 tokens", billed_tokens - limit)


async def show_breaker(story: Story) -> None:
    """A dead upstream is left alone, and found again when it is back."""
    screen, checks, world = story.screen, story.checks, story.world
    screen.title("4  A breaker opens on a dead upstream, and closes again")
    workflow = world.workflow("breaker")

    async def calls(count: int) -> list[tuple[int, str]]:
        _, result = await world.ask("prober", {"task": "probe", "count": count}, workflow)
        return [(int(status), str(reason)) for status, reason in result["answers"]]

    async def call() -> tuple[int, str]:
        return (await calls(1))[0]

    async def connections() -> int:
        return int((await world.books("flaky"))["connections"])

    checks.claim((await call())[0] == 200, "the upstream answers")
    await world.behave("flaky", "dead")
    screen.step("the upstream dies: every connection is dropped at once, and counted")
    seen: list[tuple[int, str]] = []
    while len(seen) < _PROBE_CALLS_MAX and (not seen or seen[-1][1] != "circuit_open"):
        seen.append(await call())
        screen.step(f"call {len(seen)}: {seen[-1][0]} {seen[-1][1]}")
    checks.claim(len(seen) == _FAILURES_TO_OPEN + 1, f"open after {_FAILURES_TO_OPEN} failures", seen)
    before = await connections()
    held = await calls(_CALLS_WHILE_OPEN)
    refused = sum(1 for _, reason in held if reason == "circuit_open")
    touched = await connections() - before
    # On a machine that stalls for seconds the breaker's own probe may be among them: that one may touch it.
    is_spared = touched == _CALLS_WHILE_OPEN - refused and touched <= 1
    text = f"{_CALLS_WHILE_OPEN} more calls: {refused} refused, the upstream saw {touched} connections"
    checks.claim(is_spared, text)
    await world.behave("flaky", "answer")
    back_s = time.monotonic()
    while (answer := await call())[0] != 200 and time.monotonic() - back_s < _CLOSE_TIMEOUT_S:
        screen.live(f"it is back; the breaker is still open: {answer[0]} {answer[1]}")
        await asyncio.sleep(_CLOSE_POLL_S)
    checks.claim(
        answer[0] == 200,
        f"half-open: a call passed {time.monotonic() - back_s:.1f} s after the upstream came back",
        answer,
    )
    after = [status for status, _ in await calls(_CALLS_WHEN_WELL)]
    states = await story.breaker_states("flaky")
    text = f"the next {_CALLS_WHEN_WELL} calls all pass, and the breaker is closed"
    checks.claim(after == [200] * _CALLS_WHEN_WELL and states == {"closed"}, text, (after, states))


def _detail(body: str) -> str:
    """Return the message of a refusal's problem details (RFC 9457)."""
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return body


SCENES: tuple[Any, ...] = (show_context, show_hop_limit, show_budget, show_breaker)
