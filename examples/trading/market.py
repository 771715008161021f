"""Market analysis: hears ticks and says what they mean. Who wants to know that listens; it knows topics, and nobody."""

import os

from journal import say, serve

from meshd_sdk import Agent, Ctx, Event
from meshd_sdk.errors import LoopStopped

agent = Agent(os.environ.get("AGENT_ROLE", "market-analysis"), intents=["market_analysis", "technical_audit"])
QUESTIONS = (
    "A takeover of {symbol} is rumoured. Which exposure of the position do you mean?",
    "A takeover of {symbol} is rumoured. Could you say which exposure of the position you mean?",
    "A takeover of {symbol} is rumoured. Please say again, which exposure of the position do you mean?",
)


@agent.on("market.tick", from_oldest=True)
async def analyse(ctx: Ctx, tick: Event) -> None:
    say(agent, "heard", topic=tick.topic, workflow=ctx.workflow, hops=ctx.hops)
    async with ctx.step("analyse") as step:
        side = "buy" if tick["price"] < tick["mean"] else "sell"
        step.decide("which side", side, options=["buy", "sell"], rationale=f"{tick['price']}, mean {tick['mean']}")
    # The tick's id names the signal: an analysis that is made again is published once.
    await ctx.publish("market.signal", {**tick.data, "side": side}, key=tick["symbol"], id=f"signal-{tick.id}")


@agent.on("market.rumour", from_oldest=True)
async def clarify(ctx: Ctx, rumour: Event) -> None:
    """Ask the risk agent what a rumour is to mean, until it says so. It asks back each time: a loop without an end."""
    say(agent, "heard", topic=rumour.topic, workflow=ctx.workflow, hops=ctx.hops)
    asked = 0
    async with ctx.step("clarify"):
        while True:
            question = QUESTIONS[asked % len(QUESTIONS)].format(**rumour.data)
            try:
                answer = await ctx.call("risk-assessment/clarify", {"question": question})
            except LoopStopped as stopped:
                say(agent, "stopped", workflow=ctx.workflow, asked=asked, why=stopped.message)
                await ctx.publish("market.abandoned", {"why": stopped.message}, key=rumour["symbol"])
                return
            asked += 1
            if "exposure" in answer:
                break
    say(agent, "clarified", workflow=ctx.workflow, asked=asked, exposure=answer["exposure"])
    await ctx.publish("market.clarified", {**rumour.data, **answer}, key=rumour["symbol"])


if __name__ == "__main__":
    serve(agent)
