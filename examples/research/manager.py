"""Publishes a `task.assigned` for each question, and prints what comes back as `task.completed`."""

import asyncio
import sys

from meshd_sdk import Agent, Event

agent = Agent("manager", version="1.0.0")
completed: asyncio.Queue[Event] = asyncio.Queue()


@agent.on("task.completed")
async def complete(task: Event) -> None:
    await completed.put(task)


async def main(questions: list[str]) -> None:
    async with agent, agent.workflow(tokens=20_000, timeout=300) as ctx:
        for question in questions:
            await ctx.publish("task.assigned", {"question": question})
        for _ in questions:
            print((await completed.get())["answer"])
        for account in await ctx.balance():
            print(f"{account.account}: {account.tokens.spent if account.tokens else 0} tokens spent")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or ["Why are there tides?"]))
