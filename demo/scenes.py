"""What the demo shows, one function a scene. Each writes what happens and checks what it claims."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from demo.scenes_circles import show_clarification, show_hop_limit, show_ping_pong
from demo.scenes_failing import show_breaker, show_fallback
from demo.scenes_finding import show_intent, show_tools
from demo.scenes_tools import show_approval, show_order

if TYPE_CHECKING:
    from demo.story import Story
    from demo.world import Event
    from meshd_sdk.context import Context


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

    with story.watching(watch):
        status, result = await world.ask("manager", {"task": "sidecars"}, workflow)
    text = result.get("next", {}).get("next", {}).get("text", "")
    checks.claim(status == 200 and bool(text), "the report came back through all three agents", (status, result))
    hops = [contexts[agent].hops if agent in contexts else None for agent in agents]
    checks.claim(hops == [1, 2, 3], "the agents saw hops 1, 2 and 3", hops)
    names = {context.workflow for context in contexts.values()}
    checks.claim(len(names) == 1, "all in one workflow", names)
    if not world.options.is_real:
        tokens, ledger = await story.compare_books(workflow, *agents)
        checks.claim(ledger == tokens, f"provider billed {tokens:,} tokens, the ledger says {ledger:,}")


async def show_budget(story: Story) -> None:
    """A runaway, several calls at once, spends its budget and not a token more."""
    screen, checks, world = story.screen, story.checks, story.world
    limit = world.options.budget
    screen.title(f"5  A runaway with something new in every call, six at once, on a budget of {limit:,} tokens")

    def watch(event: Event) -> None:
        if event["event"] == "spent":
            screen.live(f"{event['answers']} answers, {event['tokens']:,} of {limit:,} tokens")

    with story.watching(watch):
        status, result = await world.ask("runaway", {"task": "Say more"}, world.workflow("runaway"))
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


SCENES: tuple[Any, ...] = (
    show_context,
    show_ping_pong,
    show_clarification,
    show_hop_limit,
    show_budget,
    show_breaker,
    show_fallback,
    show_order,
    show_approval,
    show_tools,
    show_intent,
)
