"""The supervisor: is told of agents that go in circles, while their call is held, and decides in their place."""

import os

from journal import say, serve

from meshd_sdk import Agent, Ctx, Event

agent = Agent(os.environ.get("AGENT_ROLE", "supervisor"), intents=["supervision"])
DEFINITION = "net, in the account's currency, at today's close"


@agent.on("mesh.loops")
async def decide(ctx: Ctx, asked: Event) -> None:
    story = asked["story"]
    say(agent, "decides", workflow=story["workflow"], detector=story["detector"], edges=story["edges"])
    answer = {"action": "finish", "answer": {"exposure": DEFINITION}, "reason": "it is written in the handbook"}
    await ctx.publish("mesh.loops.answers", answer)


if __name__ == "__main__":
    serve(agent)
