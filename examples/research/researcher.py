"""Takes `task.assigned`, finds sources, and publishes `task.completed`. How to run it: README.md beside this file."""

import os

from meshd_sdk import Agent, Ctx, Event

agent = Agent("researcher", intents=["research a question"], version="1.0.0")
MODEL = os.environ.get("RESEARCH_MODEL", "")  # of the upstream `openai`; without one, no LLM is asked


@agent.tool(read_only=True)
def search(query: str, limit: int = 3) -> list[str]:
    """Find sources, at most `limit`."""
    return [f"{query}: source {number}" for number in range(1, limit + 1)]


@agent.on("task.assigned", from_oldest=True)
async def research(ctx: Ctx, task: Event) -> None:
    async with ctx.step("research") as step:
        sources = search(task["question"])
        step.decide("which source is best", sources[0], options=sources)
        answer = sources[0]
        if MODEL:  # judged, bounded and charged as every call is: an exhausted budget raises BudgetExhausted
            ask = {"model": MODEL, "messages": [{"role": "user", "content": f"Answer from {sources}"}]}
            answer = (await ctx.call("openai/v1/chat/completions", ask))["choices"][0]["message"]["content"]
    await ctx.publish("task.completed", {"question": task["question"], "answer": answer})


if __name__ == "__main__":
    agent.run_forever()
