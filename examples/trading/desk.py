"""Brings one tick into the mesh, and prints what became of it: `python desk.py [SYMBOL] [QUANTITY]`."""

import asyncio
import os
import sys
import uuid

from meshd_sdk import Agent, Event

agent = Agent(os.environ.get("AGENT_ROLE", "desk"))
executed: asyncio.Queue[Event] = asyncio.Queue()


@agent.on("trade.executed")
async def note(trade: Event) -> None:
    await executed.put(trade)


async def main(symbol: str = "ACME", quantity: str = "100") -> None:
    order = uuid.uuid4().hex[:12]
    tick = {"symbol": symbol, "price": 97, "mean": 100, "quantity": int(quantity), "order": order}
    async with agent, agent.workflow(f"trade-{order}") as ctx:
        await ctx.publish("market.tick", tick, key=symbol)
        print(f"workflow {ctx.workflow}: published; a person may have to allow the order (meshd approvals)", flush=True)
        while (trade := await executed.get()).workflow != ctx.workflow:
            pass
    print(f"{trade['quantity']} {trade['symbol']} at {trade['price']}, execution {trade['execution']}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
