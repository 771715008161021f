"""Risk assessment: keeps the view of the risk as shared state, and says of each signal how much may be traded."""

import os

from journal import say, serve

from meshd_sdk import Agent, Ctx, Event

agent = Agent(os.environ.get("AGENT_ROLE", "risk-assessment"), intents=["risk_assessment"])
VIEW = "risk-view"  # of the workflow, and of all agents in it
LIMIT, LIMIT_WILD = 100, 40
ANSWERS = (
    "That depends on the exposure of the position. Which exposure do you mean yourself?",
    "It depends on the exposure of the position. Which exposure do you mean?",
    "That depends on which exposure of the position you mean. Which one do you mean?",
)
_asked = 0


@agent.on("market.signal", from_oldest=True)
async def assess(ctx: Ctx, signal: Event) -> None:
    say(agent, "heard", topic=signal.topic, workflow=ctx.workflow, hops=ctx.hops)
    async with ctx.step("assess") as step:
        known = await ctx.state.get(VIEW)
        holds = known.value["holds"] if known else {}
        view = await ctx.state.commit(VIEW, {"limit": LIMIT, "holds": holds}, known or 0)
        step.decide("how much may be held", str(LIMIT), rationale="calm market")
    # What was assessed travels as a reference to a version, not as a copy that grows old.
    said = {**signal.data, "view": view.reference}
    await ctx.publish("risk.assessed", said, key=signal["symbol"], id=f"assessed-{signal.id}")


@agent.on("market.moved", from_oldest=True)
async def revise(ctx: Ctx, moved: Event) -> None:
    async with ctx.step("revise") as step:
        view = await ctx.state.get(VIEW)
        if view is None:
            return
        view = await ctx.state.commit(VIEW, {**view.value, "limit": LIMIT_WILD}, view)
        step.decide("how much may be held", str(LIMIT_WILD), rationale="wild market")
    say(agent, "revised", workflow=ctx.workflow, version=view.version)


@agent.tool
async def clarify(question: str) -> dict[str, str]:
    """Say what a question about risk means, which this one never can."""
    global _asked
    _asked += 1
    say(agent, "asked", question=question)
    return {"question": ANSWERS[_asked % len(ANSWERS)]}


if __name__ == "__main__":
    serve(agent)
