"""Trade execution: places what was assessed, once, and never by a view of the risk that is out of date."""

import os
from typing import Any

from journal import say, serve

from meshd_sdk import Agent, Ctx, Drop, Event, State
from meshd_sdk.errors import KeyConflict, StateConflict

agent = Agent(os.environ.get("AGENT_ROLE", "trade-execution"), intents=["trade_execution"])


@agent.on("risk.assessed", from_oldest=True)
async def trade(ctx: Ctx, assessed: Event) -> None:
    say(agent, "heard", topic=assessed.topic, workflow=ctx.workflow, hops=ctx.hops)
    view = await ctx.state.get(assessed["view"])
    if view is None:
        raise Drop("what was assessed is kept no longer")
    async with ctx.step("trade") as step:
        say(agent, "pricing", workflow=ctx.workflow, version=view.version)
        quote = await ctx.call("exchange/quotes", {"symbol": assessed["symbol"]})
        quantity, view = await hold(ctx, assessed["order"], assessed["quantity"], view)
        step.decide("how much to trade", str(quantity), rationale=f"{quote['price']} each, by {view.reference}")
        order = {"order": assessed["order"], "symbol": assessed["symbol"], "quantity": quantity}
        await execute(ctx, order, assessed)


async def hold(ctx: Ctx, order: str, wanted: int, view: State) -> tuple[int, State]:
    """Enter into the view what is about to be traded. Made from an old version it is refused, and decided anew."""
    while True:
        holds = view.value["holds"]
        if order in holds:  # by an attempt before this one, of which nothing was heard
            return holds[order], view
        quantity = max(0, min(wanted, view.value["limit"] - sum(holds.values())))
        held = {**view.value, "holds": {**holds, order: quantity}}
        try:
            return quantity, await ctx.state.commit(view.key, held, view)
        except StateConflict as stale:
            newest = await ctx.state.get(view.key)
            if stale.current is None or newest is None:
                raise Drop("the view of the risk is gone") from stale
            say(
                agent,
                "stale",
                workflow=ctx.workflow,
                had=view.version,
                newest=stale.current.version,
                writer=stale.current.writer,
                order=stale.order,
                wanted=quantity,
                message=stale.message,
            )
            view = newest


@agent.on("trade.ordered", from_oldest=True)
async def ordered(ctx: Ctx, order: Event) -> None:
    """Place what people, or systems that say everything twice, have ordered."""
    await execute(ctx, {name: order[name] for name in ("order", "symbol", "quantity")}, order)


async def execute(ctx: Ctx, order: dict[str, Any], cause: Event) -> None:
    try:
        # The order's own number is the key, whatever event it came with, and however often.
        placed = await ctx.call("exchange/orders", order, idempotency_key=order["order"])
    except KeyConflict as conflict:
        say(agent, "rejected", workflow=ctx.workflow, order=order["order"], reason=conflict.reason)
        await ctx.publish("trade.rejected", {**order, "why": conflict.message}, id=f"rejected-{cause.id}")
        return
    say(agent, "executed", workflow=ctx.workflow, order=order["order"], execution=placed["execution"])
    await ctx.publish("trade.executed", {**order, **placed}, key=order["symbol"], id=f"executed-{cause.id}")


if __name__ == "__main__":
    serve(agent)
